"""What `vpnkit doctor` looks at, one function per fact.  Each tries the thing itself where it can."""

from __future__ import annotations

import errno
import os
import platform
import resource
import shutil
import socket
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from vpnkit.flow.host import has_ipv6
from vpnkit.services.resolvconf import ResolvConf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

State: TypeAlias = Literal["OK", "warn", "missing"]

CLONE_NEWUSER: Final = 0x10000000
WANTED_DESCRIPTORS: Final = 4096
OLDEST_KERNEL: Final = (5, 3)  # pidfd_open(2)
LINUX_LIBRARIES: Final = ("pyroute2",) if sys.platform == "linux" else ()
LIBRARIES: Final = ("trio", "dnspython", "h11", "msgspec", "click", *LINUX_LIBRARIES, "dpkt")


class Check(msgspec.Struct, frozen=True):
    """One fact about this machine."""

    name: str
    state: State
    detail: str
    mend: str = ""
    needed: bool = False  # by `vpnkit run`


def checks() -> Iterator[Check]:
    """Every fact, those that `vpnkit run` needs first."""
    for check in ALL:
        try:
            yield check()
        except Exception as error:  # a doctor who faints helps nobody
            yield Check(check.__name__, "warn", f"cannot tell: {type(error).__name__}: {error}")


def guest() -> Check:
    """The way of `vpnkit run` itself: namespaces, a TAP device inside, addresses on it."""
    name = "guest"
    if sys.platform != "linux":
        return Check(name, "missing", f"{sys.platform} has no network namespaces", "use Linux", needed=True)
    from tapdev.netns import GuestConfig, NamespaceError, spawn

    config = GuestConfig(
        mac=bytes.fromhex("025000000001"),
        mtu=1500,
        address="192.168.65.3",
        prefix_length=24,
        gateway="192.168.65.1",
        nameserver="192.168.65.1",
    )
    try:
        made = spawn(config, ["true"])
        try:
            tap, vnet_header = made.receive_tap()
            try:
                made.wait_configured_sync()
            finally:
                os.close(tap)
        finally:
            made.close()
    except NamespaceError as error:
        what, _, mend = str(error).partition("; ")
        return Check(name, "missing", what, mend, needed=True)
    header = "with" if vnet_header else "without"
    return Check(name, "OK", f"a namespace with a TAP device, {header} the virtio-net header", needed=True)


def tun_device() -> Check:
    """Whether this user may open /dev/net/tun."""
    name = "/dev/net/tun"
    if sys.platform != "linux":
        return Check(name, "missing", f"{sys.platform} has none", "use Linux", needed=True)
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Check(name, "missing", "it does not exist", "modprobe tun; in a container: --device /dev/net/tun", True)
    except OSError as error:
        return Check(name, "missing", _text(error), "chmod 0666 /dev/net/tun; it gives no right by itself", True)
    return Check(name, "OK", "it can be opened", needed=True)


def tap_device() -> Check:
    """Whether this user may make a TAP device here, outside of any namespace: `serve --link tap:` does."""
    name = "TAP on this host"
    if sys.platform != "linux":
        return Check(
            name, "warn", f"{sys.platform} has no TAP devices", "only `--link tap:` needs it: use another link"
        )
    from tapdev.tap import open_tap

    try:
        os.close(open_tap("doctor%d"))
    except OSError as error:
        mend = "only `--link tap:` needs it: run as root, or prepare one: ip tuntap add NAME mode tap user $USER"
        return Check(name, "warn", _text(error), mend)
    return Check(name, "OK", "it can be made (TUNSETIFF)")


def user_namespaces() -> Check:
    """Whether this user can make a user namespace: tried, in a child."""
    name = "user namespaces"
    if sys.platform != "linux":
        return Check(name, "warn", f"{sys.platform} has none", "only `vpnkit run` needs them: use Linux")
    number = _in_child(_unshare_user)
    if number == 0:
        return Check(name, "OK", "they can be made")
    mend = "sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
    mend += "kernel.apparmor_restrict_unprivileged_userns; or run as root"
    return Check(name, "warn", os.strerror(number), mend)  # root does without; `guest` says whether it matters


def ping() -> Check:
    """How a guest's ping can leave: unprivileged ICMP sockets or raw ones."""
    name = "ping"
    for kind, words in ((socket.SOCK_DGRAM, "unprivileged ICMP sockets"), (socket.SOCK_RAW, "raw sockets")):
        try:
            socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP).close()
        except OSError:
            continue
        return Check(name, "OK", f"{words} can be made")
    allowed = _read("/proc/sys/net/ipv4/ping_group_range") or "unknown"
    detail = f"guests cannot ping the outside: gid {os.getegid()} is not in ping_group_range ({allowed})"
    return Check(name, "warn", detail, 'sysctl -w net.ipv4.ping_group_range="0 2147483647"')


def descriptors() -> Check:
    """How many host sockets fit."""
    name = "descriptors"
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return Check(name, "OK", "no limit")
    if hard < WANTED_DESCRIPTORS:
        mend = "raise nofile in /etc/security/limits.conf, LimitNOFILE= or --ulimit nofile"
        return Check(name, "warn", f"at most {hard}: that many connections", mend)
    return Check(name, "OK", f"up to {hard}")


def low_ports() -> Check:
    """How forwards can have ports below 1024: by this user's own right, or by `vpnkit helper`."""
    name = "ports below 1024"
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 1))
    except PermissionError:
        pass
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return Check(name, "OK", "this user may bind them")
    else:
        return Check(name, "OK", "this user may bind them")
    import trio

    from portfwd.helper import DEFAULT_PATH
    from portfwd.helper.client import HelperError, greet

    try:
        trio.run(greet, DEFAULT_PATH)
    except HelperError as error:
        mend = f"as root: vpnkit helper --allow-uid {os.getuid()}; or sysctl -w net.ipv4.ip_unprivileged_port_start=80"
        return Check(name, "warn", f"forwards cannot have them: {error}", mend)
    return Check(name, "OK", f"the port helper at {DEFAULT_PATH} binds them")


def ipv6() -> Check:
    """IPv6 on the loopback (for forwards on ::1) and a route to anywhere, as `--ipv6 auto` looks for it."""
    name = "IPv6"
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        mend = "sysctl -w net.ipv6.conf.lo.disable_ipv6=0; forwards listen on 127.0.0.1 alone"
        return Check(name, "warn", f"not on the loopback: {_text(error)}", mend)
    if not has_ipv6():
        mend = "nothing, unless guests need IPv6; --ipv6 local gives them one among themselves"
        return Check(name, "warn", "on the loopback only, no way out: guests are offered none", mend)
    return Check(name, "OK", "on the loopback, and a way out, which guests are offered")


def resolvers() -> Check:
    """Where DNS queries of guests go by default."""
    name = "resolvers"
    servers = [str(server) for server in ResolvConf().servers()]
    if servers:
        return Check(name, "OK", ", ".join(servers))
    return Check(name, "warn", "/etc/resolv.conf names none", "add one, or use --dns SERVER")


def vsock() -> Check:
    """AF_VSOCK, for `--link vsock:`."""
    name = "/dev/vsock"
    try:
        os.close(os.open("/dev/vsock", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return Check(name, "warn", _text(error), "modprobe vsock vhost_vsock; only vsock links need it")
    return Check(name, "OK", "it can be opened")


def plan9() -> Check:
    """Whether this kernel can mount the 9P tree."""
    name = "9p"
    if any(line.split()[-1:] == ["9p"] for line in _read("/proc/filesystems").splitlines()):
        return Check(name, "OK", "the kernel can mount it")
    return Check(name, "warn", "the kernel does not list it", "modprobe 9p; only mounting --9p needs it")


def qemu() -> Check:
    """QEMU, for guests that are machines."""
    name = "qemu"
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine(), platform.machine())
    found = shutil.which(f"qemu-system-{machine}")
    if found:
        return Check(name, "OK", found)
    return Check(name, "warn", f"no qemu-system-{machine} on PATH", "install it; `vpnkit run` does without")


def kernel() -> Check:
    """The system's version."""
    name = "kernel"
    system = f"{platform.system()} {platform.release()}"
    if sys.platform != "linux":
        return Check(name, "warn", system, "TAP devices and `vpnkit run` need Linux")
    words = platform.release().split(".")
    version = tuple(int("".join(filter(str.isdigit, word[:3])) or 0) for word in words[:2])
    if version < OLDEST_KERNEL:
        oldest = ".".join(str(number) for number in OLDEST_KERNEL)
        return Check(name, "missing", system, f"`vpnkit run` needs {oldest}", needed=True)
    return Check(name, "OK", system)


def libraries() -> Check:
    """Python and what we use of it."""
    name = "python"
    versions, missing = [f"{platform.python_version()}"], []
    for library in LIBRARIES:
        try:
            versions.append(f"{library} {metadata.version(library)}")
        except metadata.PackageNotFoundError:
            missing.append(library)
    if missing:
        return Check(name, "missing", f"without {', '.join(missing)}", f"pip install {' '.join(missing)}", needed=True)
    return Check(name, "OK", ", ".join(versions), needed=True)


ALL: Final[tuple[Callable[[], Check], ...]] = (
    guest,
    tun_device,
    libraries,
    user_namespaces,
    tap_device,
    ping,
    low_ports,
    descriptors,
    resolvers,
    ipv6,
    kernel,
    vsock,
    plan9,
    qemu,
)


def _unshare_user() -> int:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    unshare = getattr(libc, "unshare", None)
    if unshare is None:
        return errno.ENOSYS
    return ctypes.get_errno() if unshare(CLONE_NEWUSER) else 0


def _in_child(function: Callable[[], int]) -> int:
    """What `function` returns, an errno, in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(function())
        finally:
            os._exit(errno.EIO)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _text(error: OSError) -> str:
    return error.strerror or str(error)

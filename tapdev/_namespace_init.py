"""What runs inside: the four processes between the fork of `netns.spawn` and the command.

    P  netns.spawn       outside
    A  first_child       makes the user and the pid namespace, forks B, is gone
    B  _init             pid 1 inside: makes the network and the mount namespace, then waits for signals and children
    D  _configure        opens the TAP device, hands it out, sets addresses and routes, is gone
    C  _command          becomes the command when P says so

All of them are forks of P and share its pages; only D imports more (pyroute2).  None may return into P's code: each
ends in `os._exit`, whatever happens, and what happened is told to P in one line.

The channel is a SOCK_SEQPACKET pair, one message one packet, the first octet says which.  Its end of file is what
ends everything: B then exits, and the kernel kills whoever is left in a pid namespace without a pid 1.  That works
also when P died of SIGKILL, for nobody else holds P's end.

Descriptors: the command may use those that P inherited (its standard streams, `3<file` of a shell).  What P opened
itself is close-on-exec and is closed in A already, because B does not exec: it would keep sockets and pipes of P open.
B gives up the inherited ones too, once the command has them.

Every signal is blocked in A, B and D; C puts dispositions and mask back.  B shares P's session and process group so
that the command is in the terminal's foreground group, and keyboard signals must not end B.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import select
import signal
import socket
import struct
from typing import TYPE_CHECKING, Final, NoReturn

from tapdev._namespace_mounts import check, libc, set_up_mounts
from tapdev.signals import SignalDescriptor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tapdev.netns import GuestConfig

# What A writes into a pipe: the pid of B as P sees it | whether there is a user namespace.
STARTED: Final = struct.Struct("=i?")
# Messages to P, each followed by what is named here:
TAP: Final = b"T"  # one octet, 1 with the virtio-net header; the descriptor travels along
CONFIGURED: Final = b"C"
STATUS: Final = b"S"  # WAIT_STATUS
WARNING: Final = b"W"  # text
ERROR: Final = b"E"  # text
DIAG: Final = b"D"  # two NETLINK_SOCK_DIAG sockets travel along
NOTICES: Final = b"N"  # the descriptor of `bind_notices.install`, from C
# Messages to B:
GO: Final = b"G"
SIGNAL: Final = b"K"  # one octet, its number
LEFTOVER: Final = b"L"  # FILE_ID | path: a file of P's to remove when P was killed

WAIT_STATUS: Final = struct.Struct("=i")
FILE_ID: Final = struct.Struct("=QQ")  # st_dev | st_ino
MAX_MESSAGE: Final = 4096

# linux/sched.h, linux/prctl.h
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
PR_SET_PDEATHSIG: Final = 1

# linux/if_tun.h
TUN_DEVICE: Final = "/dev/net/tun"
TUNSETIFF: Final = 0x400454CA
TUNSETVNETHDRSZ: Final = 0x400454D8
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
IFA_F_NODAD: Final = 0x02  # linux/if_addr.h: nobody else can have it
VNET_HEADER_SIZE: Final = 12  # struct virtio_net_hdr_v1

NETLINK_SOCK_DIAG: Final = 4  # linux/netlink.h

NOT_EXECUTABLE: Final = 126  # POSIX shell, section 2.8.2
NOT_FOUND: Final = 127


class Failure(Exception):
    """One step could not be done.  Its text is one line for the operator."""


def first_child(
    config: GuestConfig, argv: Sequence[str], channel: socket.socket, started: int, mask: Iterable[int]
) -> NoReturn:
    """Be process A.  `started` is a pipe to write STARTED into, `mask` the signal mask that the command gets."""

    def enter() -> None:
        gc.disable()  # objects of P own descriptor numbers that are closed, and perhaps used again, below
        signal.set_wakeup_fd(-1)
        inherited = _close_own_descriptors({channel.fileno(), started})
        user_namespace = _unshare_user_and_pid()
        pid = os.fork()
        if pid == 0:
            os.close(started)
            _run(channel, lambda: _init(config, argv, channel, mask, inherited))
        os.write(started, STARTED.pack(pid, user_namespace))

    _run(channel, enter)


def _run(channel: socket.socket, body: Callable[[], None]) -> NoReturn:
    """Run the body of a process and end the process; a failure is told to P."""
    status = 1
    try:
        body()
        status = 0
    except BrokenPipeError:
        pass  # P is gone
    except Failure as error:
        _say(channel, ERROR, str(error))
    except BaseException as error:  # the one boundary, see the head of this file
        _say(channel, ERROR, f"{type(error).__name__}: {error}")
    finally:
        os._exit(status)


def _say(channel: socket.socket, kind: bytes, text: str) -> None:
    try:
        channel.send(kind + text.encode(errors="backslashreplace")[: MAX_MESSAGE - 1])
    except OSError:
        pass


def _close_own_descriptors(keep: set[int]) -> list[int]:
    """Close what is close-on-exec and not in `keep`.  Returns what is inheritable, above the standard streams."""
    inherited = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            inheritable = os.get_inheritable(fd)
        except OSError:
            continue  # that of listdir itself
        if not inheritable and fd not in keep:
            os.close(fd)
        elif inheritable and fd > 2:
            inherited.append(fd)
    return inherited


# Namespaces


def _unshare(flags: int) -> None:
    check(libc().unshare(flags))


def _unshare_user_and_pid() -> bool:
    """Future children are in a new pid namespace; we in a new user namespace unless root.  True if we are."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        try:
            _unshare(CLONE_NEWPID)
        except PermissionError:
            pass  # root without CAP_SYS_ADMIN, as in a container: like any other user
        else:
            return False
    try:
        _unshare(CLONE_NEWUSER | CLONE_NEWPID)
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        raise Failure(f"make a user namespace: {error.strerror}{_user_namespace_advice()}") from error
    return True


def _user_namespace_advice() -> str:
    for path, bad, advice in (
        ("/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give this program an AppArmor profile",
        ),
    ):
        try:
            with open(path) as file:
                value = file.read().strip()
        except OSError:
            continue
        if value == bad:
            return f"; they are disabled here: {advice}"
    return "; run as root, or in a container with --cap-add SYS_ADMIN and a seccomp profile that allows unshare"


# Process B


def _init(
    config: GuestConfig,
    argv: Sequence[str],
    channel: socket.socket,
    mask: Iterable[int],
    inherited: list[int],
) -> None:
    child_ended = SignalDescriptor({signal.SIGCHLD})
    try:
        _unshare(CLONE_NEWNET | CLONE_NEWNS)
    except OSError as error:
        raise Failure(f"make a network namespace: {error.strerror}{_user_namespace_advice()}") from error
    try:
        for warning in set_up_mounts(config.nameserver, config.search):
            _say(channel, WARNING, warning)
    except OSError as error:
        raise Failure(f"make the mounts private: {error.strerror}") from error

    configurator = os.fork()
    if configurator == 0:
        _run(channel, lambda: _configure(config, channel))
    command = 0
    leftovers: list[bytes] = []
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    poller.register(child_ended, select.POLLIN)
    while True:
        ready = [fd for fd, _ in poller.poll()]
        if child_ended.fileno() in ready:
            while child_ended.receive():
                pass
            for pid, status in _ended_children():
                if pid == command:
                    channel.send(STATUS + WAIT_STATUS.pack(status))
                    return
                if pid == configurator and os.WIFSIGNALED(status):
                    raise Failure(f"set up {config.name}: killed by signal {os.WTERMSIG(status)}")
        if channel.fileno() in ready:
            message = channel.recv(MAX_MESSAGE)
            if not message:
                for leftover in leftovers:
                    _remove(leftover)
                return
            if message[:1] == LEFTOVER:
                leftovers.append(message[1:])
            elif message == GO and not command:
                # For an init that is stopped, which would not see the end of file.  Only now: until A had ended, A
                # was the parent whose death it would have meant.
                libc().prctl(PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)
                command = os.fork()
                if command == 0:
                    _command(argv, mask, channel if config.watch else None)
                _give_up_streams(inherited)
            elif message[:1] == SIGNAL and command:
                os.kill(command, message[1])


def _remove(leftover: bytes) -> None:
    """Remove the file, if it is still the one that P made, and its directory, if that is empty then."""
    path = os.fsdecode(leftover[FILE_ID.size :])
    try:
        status = os.lstat(path)
        if (status.st_dev, status.st_ino) == FILE_ID.unpack_from(leftover):
            os.unlink(path)
            os.rmdir(os.path.dirname(path))
    except OSError:
        pass  # it is gone, or not empty


def _ended_children() -> list[tuple[int, int]]:
    """The pid and wait status of every child that ended; pid 1 inherits those of others."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        ended.append((pid, status))


def _give_up_streams(inherited: list[int]) -> None:
    """A pipe ends when the command closes it, not when we end."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for fd in (null, *inherited):
        os.close(fd)


# Process C


def _command(argv: Sequence[str], mask: Iterable[int], watched_by: socket.socket | None) -> NoReturn:
    status = NOT_FOUND
    try:
        if watched_by is not None:
            _let_watch(watched_by)
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)) or number in (signal.SIGPIPE, signal.SIGXFSZ):  # python ignores those
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        words = [os.fsencode(word) for word in argv]
        # C's execvp and not Python's: it runs a script without #! by sh.
        libc().execvp(words[0], (ctypes.c_char_p * (len(words) + 1))(*words, None))
        code = ctypes.get_errno()
        status = NOT_FOUND if code in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE
        os.write(2, f"{argv[0]}: {os.strerror(code)}\n".encode(errors="surrogateescape"))
    finally:
        os._exit(status)


def _let_watch(channel: socket.socket) -> None:
    from tapdev.bind_notices import install

    try:
        fd = install()
        socket.send_fds(channel, [NOTICES], [fd])
    except OSError as error:
        _say(channel, WARNING, f"be told who listens inside: {error.strerror}; it is looked for now and then")
    else:
        os.close(fd)


# Process D


def _configure(config: GuestConfig, channel: socket.socket) -> None:
    tap = _open_tap(config)
    socket.send_fds(channel, [TAP + bytes([config.vnet_header])], [tap])
    os.close(tap)
    if config.watch:
        _hand_out_diag(channel)
    _allow_ping()

    import warnings

    warnings.simplefilter("ignore")  # those of other people's imports
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    step = "set up the loopback device"
    try:
        with IPRoute() as route:
            route.link("set", index=socket.if_nametoindex("lo"), state="up")
            step = f"set up {config.name}"
            index = socket.if_nametoindex(config.name)
            if config.configure and config.address6:
                _ignore_router_advertisements(config.name)
            route.link("set", index=index, address=config.mac.hex(":"), mtu=config.mtu, state="up")
            if config.configure:
                step = f"give {config.name} the address {config.address}/{config.prefix_length}"
                route.addr("add", index=index, address=config.address, prefixlen=config.prefix_length)
                step = f"route through {config.gateway}"
                route.route("add", dst="default", gateway=config.gateway, oif=index)
                if config.address6:
                    step = f"give {config.name} the address {config.address6}/64"
                    route.addr("add", index=index, address=config.address6, prefixlen=64, flags=IFA_F_NODAD)
                if config.gateway6:
                    step = f"route through {config.gateway6}"
                    route.route("add", family=socket.AF_INET6, dst="default", gateway=config.gateway6, oif=index)
    except NetlinkError as error:
        raise Failure(f"{step}: {os.strerror(error.code)}") from error
    except OSError as error:
        raise Failure(f"{step}: {error.strerror}") from error
    channel.send(CONFIGURED)


def _hand_out_diag(channel: socket.socket) -> None:
    try:
        made = [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) for _ in range(2)]
    except OSError as error:
        raise Failure(f"see who listens inside: {error.strerror}; the kernel needs CONFIG_INET_DIAG") from error
    socket.send_fds(channel, [DIAG], [one.fileno() for one in made])


def _open_tap(config: GuestConfig) -> int:
    import fcntl

    try:
        fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if isinstance(error, PermissionError):
            advice = f"make it readable and writable for you (chmod 0666 {TUN_DEVICE}, as most distributions do)"
        else:
            advice = f"load the driver (modprobe tun), or in a container add --device {TUN_DEVICE}"
        raise Failure(f"open {TUN_DEVICE}: {error.strerror}; {advice}") from error
    flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if config.vnet_header else 0)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("=16sH22x", config.name.encode(), flags))
        if config.vnet_header:
            fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("=i", VNET_HEADER_SIZE))
    except OSError as error:
        raise Failure(f"make the TAP device {config.name}: {error.strerror}") from error
    return fd


def _ignore_router_advertisements(name: str) -> None:
    """What a router would say is configured; where the kernel has no IPv6 there is nothing to ignore."""
    try:
        with open(f"/proc/sys/net/ipv6/conf/{name}/accept_ra", "w") as file:
            file.write("0")
    except OSError:
        pass


def _allow_ping() -> None:
    """Let ping do without CAP_NET_RAW: ICMP sockets for every group, or the only one that this user namespace has."""
    for groups in ("0 2147483647", "0 0"):
        try:
            with open("/proc/sys/net/ipv4/ping_group_range", "w") as file:
                file.write(groups)
        except OSError:
            continue
        return

"""The machine inside the machine in which everything is measured.

A private network, process and mount namespace plays the host: its loopback is fresh, so no port is busy and nobody
else's traffic is in it; one neighbour stands behind a veth pair, since pasta takes its addresses from a routable
interface; /etc/resolv.conf names a server of ours.  Nothing outside can be reached, even by mistake, and when the
process ends the kernel ends whatever it started.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .processes import BenchmarkError, run, spawn, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

NEIGHBOUR = "198.51.100.1"  # TEST-NET-2: also our default gateway
OUR_ADDRESS = "198.51.100.2"
RESOLVER = "127.0.0.1"

_CLONE_NEWNS, _CLONE_NEWPID, _CLONE_NEWNET = 0x20000, 0x20000000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _mount(source: str, target: str, kind: str | None, flags: int) -> None:
    fstype = kind.encode() if kind else None
    _checked(_libc.mount(source.encode(), target.encode(), fstype, ctypes.c_ulong(flags), None), f"mount {target}")


def inside(work: Callable[[Path], int]) -> int:
    """Call `work` with a scratch directory in a new world and return its exit status."""
    _checked(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWPID), "unshare")
    child = os.fork()
    if child == 0:
        _first_process(work)
    # The child has left the terminal's process group, so that Ctrl-C comes to it once, from us; then it tidies up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGINT))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _first_process(work: Callable[[Path], int]) -> NoReturn:
    status = 1
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        os.setsid()
        # The first process of a namespace ignores what it has no handler for.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with tempfile.TemporaryDirectory(prefix="vpnkit-bench-") as name:
            scratch = Path(name)
            _furnish(scratch)
            status = work(scratch)
    except KeyboardInterrupt:
        status = 130
    except (BenchmarkError, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _furnish(scratch: Path) -> None:
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("proc", "/proc", "proc", 0)
    scratch.chmod(0o755)
    resolv_conf = scratch / "resolv.conf"
    resolv_conf.write_text(f"nameserver {RESOLVER}\n")
    _mount(str(resolv_conf), os.path.realpath("/etc/resolv.conf"), None, _MS_BIND)
    runtime = scratch / "runtime"
    runtime.mkdir(0o700)
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(OSError):  # ping from the translators that use ping sockets
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
    _link_neighbour()


def _link_neighbour() -> None:
    _ip("link set lo up")
    neighbour = spawn(["unshare", "-n", "sleep", "infinity"])
    ours = os.readlink("/proc/self/ns/net")

    def moved() -> bool:
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/{neighbour.pid}/ns/net") != ours
        return False

    wait_until(moved, 5, "a namespace for the neighbour")
    _ip(f"link add bench0 type veth peer name bench1 netns {neighbour.pid}")
    _ip(f"addr add {OUR_ADDRESS}/24 dev bench0")
    _ip("link set bench0 up")
    _ip(f"addr add {NEIGHBOUR}/24 dev bench1", neighbour.pid)
    _ip("link set bench1 up", neighbour.pid)
    _ip(f"route add default via {NEIGHBOUR}")


def _ip(words: str, pid: int | None = None) -> None:
    enter = ["nsenter", "-t", str(pid), "-n", "--"] if pid else []
    run([*enter, "ip", *words.split()], 10)

"""Child processes that never outlive the run, and what /proc says about them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
REPOSITORY = Path(__file__).resolve().parent.parent

_children: set[subprocess.Popen[bytes]] = set()


class BenchmarkError(Exception):
    """A sample could not be taken.  Recorded with its reason; the run goes on."""


def spawn(
    argv: Sequence[str],
    *,
    log: Path | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a program in its own process group.  `stop` or `stop_all` ends it."""
    with contextlib.ExitStack() as stack:
        stderr = stack.enter_context(log.open("wb")) if log else subprocess.DEVNULL
        try:
            child = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=pass_fds,
                start_new_session=True,
                cwd=REPOSITORY,
            )
        except FileNotFoundError:
            raise BenchmarkError(f"{argv[0]} is not installed") from None
    _children.add(child)
    return child


def run(argv: Sequence[str], timeout: float, *, check: bool = True) -> str:
    """Run a program to its end and return what it printed; past `timeout` its whole group is killed."""
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=REPOSITORY,
        )
    except FileNotFoundError:
        raise BenchmarkError(f"{argv[0]} is not installed") from None
    _children.add(child)
    try:
        out, err = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{program_of(argv)} did not end within {timeout:.0f} s") from None
    finally:
        stop(child, signal.SIGKILL)
    if check and child.returncode != 0:
        raise BenchmarkError(f"{program_of(argv)} ended with status {child.returncode}: {last_line(out, err)}")
    return out.decode(errors="replace")


def program_of(argv: Sequence[str]) -> str:
    """The program that does the work, behind `nsenter ... --`."""
    return argv[argv.index("--") + 1] if argv[0] == "nsenter" else argv[0]


def last_line(*outputs: bytes) -> str:
    lines = [line for output in outputs for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "it said nothing"


def stop(child: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM, patience: float = 5.0) -> None:
    """End a child and its process group: politely first, then for certain."""
    _children.discard(child)
    if child.poll() is None and how is not signal.SIGKILL:
        child.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def stop_all() -> None:
    for child in list(_children):
        stop(child, signal.SIGKILL)


def wait_until(condition: Callable[[], bool], timeout: float, what: str, interval: float = 0.002) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{what} did not happen within {timeout:.0f} s")
        time.sleep(interval)


def listening(port: int) -> bool:
    """Whether something accepts TCP connections on `port` of this network namespace, found without connecting."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    return True
    return False


# ---- what /proc says ------------------------------------------------------------------------------------------------


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def find_by_command(argv: Sequence[str]) -> int | None:
    """The process whose argument vector is exactly `argv`."""
    wanted = list(argv)
    return next((pid for pid in all_pids() if command_line(pid) == wanted), None)


def _stat(pid: int) -> list[str]:
    # The command name may contain spaces and parentheses, so count from the last one.  [0] is the state.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def family(root: int, without: Iterable[int] = ()) -> list[int]:
    """`root` and its descendants, except `without` and theirs."""
    children: dict[int, list[int]] = {}
    for pid in all_pids():
        with contextlib.suppress(OSError):
            children.setdefault(int(_stat(pid)[1]), []).append(pid)
    skip = set(without)
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        if pid not in skip and Path(f"/proc/{pid}").exists():
            found.append(pid)
            todo.extend(children.get(pid, ()))
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes with all their threads."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = _stat(pid)
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_SECOND


def memory(pids: Iterable[int]) -> tuple[int, int]:
    """Resident and proportional set size, in bytes."""
    rss = pss = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Rss:"):
                    rss += int(line.split()[1]) * 1024
                elif line.startswith("Pss:"):
                    pss += int(line.split()[1]) * 1024
    return rss, pss


def wakeups(pids: Iterable[int]) -> int:
    """How often these processes went to sleep of their own accord: each time is one wake-up."""
    total = 0
    for pid in pids:
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            with contextlib.suppress(OSError):
                for line in status.read_text().splitlines():
                    if line.startswith("voluntary_ctxt_switches:"):
                        total += int(line.split()[1])
    return total

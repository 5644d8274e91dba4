"""What the tests of namespaces share: the way to be nobody, and the search for what was left behind.

Run as a program, `guests.py ARGV...` becomes ARGV as uid 65534 with a /dev/net/tun that everybody may open, as most
distributions have it; that device is in a mount namespace of its own.  With `--closed` only root may open it.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = 65534
ROOT = Path(__file__).parents[2]
CLONE_NEWNS = 0x20000
MS_BIND = 0x1000
MS_REC_PRIVATE = 0x44000


def as_user(user: str, argv: list[str]) -> list[str]:
    """The argument vector that runs `argv` as "root" or "nobody"."""
    return argv if user == "root" else [sys.executable, "-I", __file__, *argv]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **more}


def processes(having: str) -> list[int]:
    """The processes, zombies excepted, with `having` in their arguments or as their network namespace."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if having in (directory / "cmdline").read_text(errors="replace") or having == os.readlink(
                directory / "ns/net"
            ):
                found.append(int(directory.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def eventually(condition: Callable[[], bool], seconds: float = 3.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [word and word.encode() for word in (source, target, kind, data)]
    if ctypes.CDLL(None, use_errno=True).mount(*words[:3], ctypes.c_ulong(flags), words[3]):
        raise OSError(ctypes.get_errno(), f"mount {source} on {target}")


def make_reachable(path: str) -> None:
    """Let everybody reach `path`, also below a directory that is its owner's alone, as /root is."""
    for directory in reversed(Path(path).parents):
        if not directory.stat().st_mode & 0o001:
            fd = os.open(path, os.O_PATH)
            mount("tmpfs", str(directory), "tmpfs", 0, "mode=755")
            os.makedirs(path)
            mount(f"/proc/self/fd/{fd}", path, None, MS_BIND)
            os.close(fd)
            return


def main() -> None:
    argv = sys.argv[1:]
    if ctypes.CDLL(None).unshare(CLONE_NEWNS):
        sys.exit("no mount namespace")
    mount("none", "/", None, MS_REC_PRIVATE)
    make_reachable(sys.base_prefix)
    mode = 0o666
    if argv[0] == "--closed":
        del argv[0]
        mode = 0o600
    with tempfile.TemporaryDirectory() as directory:
        device = f"{directory}/tun"
        os.mknod(device, mode | stat.S_IFCHR, os.makedev(10, 200))
        os.chmod(device, mode)
        mount(device, "/dev/net/tun", None, MS_BIND)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main()

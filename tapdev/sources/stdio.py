"""One guest on our own standard input and output, as RootlessKit's and gvproxy's children are used."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from tapdev.sources.host import LinkError
from tapdev.sources.single import DescriptorSource
from tapdev.stream import VMNET, StreamLink

if TYPE_CHECKING:
    from tapdev.spec import LinkSpec

STDIN: Final = 0
STDOUT: Final = 1
PIPE_OCTETS: Final = 1 << 20  # the most that a user may ask for: a large datagram in fragments, and some more


def open_stdio(spec: LinkSpec, mtu: int, stdin: int = STDIN, stdout: int = STDOUT) -> DescriptorSource:
    """Works on duplicates, so that the numbers stay taken.  Raises LinkError for what no frames can go through."""
    for fd, name in ((stdin, "input"), (stdout, "output")):
        try:
            mode = os.fstat(fd).st_mode
        except OSError:
            raise LinkError(f"standard {name} is closed; connect both to the VM") from None
        if os.isatty(fd) or not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            what = "a terminal" if os.isatty(fd) else "no pipe or socket"
            raise LinkError(f"standard {name} is {what}; connect both to the VM")
    reading = os.dup(stdin)
    try:
        writing = os.dup(stdout)
    except BaseException:
        os.close(reading)
        raise
    _widen(writing)
    return DescriptorSource(spec, [reading, writing], lambda: StreamLink(reading, writing, VMNET, mtu=mtu))


def _widen(fd: int) -> None:
    """Let a pipe hold more than its 64 KiB, where the system can."""
    import fcntl

    size = getattr(fcntl, "F_SETPIPE_SZ", None)
    if size is not None:
        try:
            fcntl.fcntl(fd, size, PIPE_OCTETS)
        except OSError:
            pass  # a socket, or the user's pipes are many

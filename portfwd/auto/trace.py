"""Being told by Linux's tracing that somebody begins to listen: a trace instance of our own, for root.

It has two events with filters, so that nothing is recorded but TCP sockets that begin to listen and binds that worked.
Standard library only.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import TracebackType

PLACES: Final = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
NAME: Final = "vpnkit-"  # and our process id
# event: filter; TCP_LISTEN is 10
EVENTS: Final = {"sock/inet_sock_set_state": "newstate == 10", "syscalls/sys_exit_bind": "ret == 0"}
BUFFER_KIB: Final = "16"  # of each processor; only that something came matters


class TraceError(Exception):
    """It cannot be had here."""


class ListenTrace:
    """Readable when somebody began to listen.  Raises TraceError."""

    def __init__(self) -> None:
        self._fd = -1
        self._path = ""
        for place in PLACES:
            if os.path.isdir(f"{place}/instances"):
                self._path = f"{place}/instances/{NAME}{os.getpid()}"
                break
        else:
            raise TraceError("there is no tracefs")
        try:
            _remove_old(os.path.dirname(self._path))
            os.mkdir(self._path)
            self._write("buffer_size_kb", BUFFER_KIB)
            self._write("buffer_percent", "0")
            for event, filter_ in EVENTS.items():
                if event.startswith("sock/") or os.path.isdir(f"{self._path}/events/{event}"):
                    self._write(f"events/{event}/filter", filter_)
                    self._write(f"events/{event}/enable", "1")
            self._fd = os.open(f"{self._path}/trace_pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self.close()
            raise TraceError(f"{self._path}: {error.strerror}") from error

    def fileno(self) -> int:
        return self._fd

    def drain(self) -> None:
        """Read all that came."""
        try:
            while os.read(self._fd, 1 << 16):
                pass
        except (BlockingIOError, InterruptedError):
            pass

    def close(self) -> None:
        """Remove the instance.  Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        _remove(self._path)

    def __enter__(self) -> ListenTrace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, name: str, text: str) -> None:
        with open(f"{self._path}/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _remove_old(instances: str) -> None:
    """What agents left that were killed."""
    for name in os.listdir(instances):
        found = re.fullmatch(re.escape(NAME) + "([0-9]+)", name)
        if found and not os.path.isdir(f"/proc/{found[1]}"):
            _remove(f"{instances}/{name}")


def _remove(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass  # it is gone, or in use

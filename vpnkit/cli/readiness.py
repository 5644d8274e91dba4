"""Who is told that every socket accepts, and how: a line, a descriptor, and the service manager."""

from __future__ import annotations

import json
import logging
import os
import socket
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

log = logging.getLogger(__name__)

READY: Final = b"1"  # slirp4netns writes this to its --ready-fd
VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def ready_line(control: str, links: Iterable[str], forwards: Iterable[str] = (), control_tcp: str = "") -> str:
    """`ready control=PATH link=URL ... forward=SPEC ... [control-tcp=ADDR:PORT]`; what has a space is a JSON string."""
    fields = [("control", control), *(("link", link) for link in links), *(("forward", spec) for spec in forwards)]
    if control_tcp:
        fields.append(("control-tcp", control_tcp))
    return " ".join(["ready", *(f"{name}={_word(value)}" for name, value in fields)])


def _word(value: str) -> str:
    return value if value.isprintable() and not set(value) & {" ", '"'} else json.dumps(value)


def write_ready(fd: int) -> None:
    """Write READY to `fd` and close it.  That nobody reads it any more is no failure."""
    try:
        os.write(fd, READY)
    except OSError as error:
        log.warning("--ready-fd %d: %s", fd, error.strerror)
    finally:
        os.close(fd)


class ServiceManager:
    """The other end of sd_notify(3); without one, every call does nothing.

    `watchdog` is the seconds between two signs of life, half of what the service manager asks for.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Take the variables of sd_notify and sd_watchdog_enabled out of `environ`."""
        path, interval, pid = (environ.pop(variable, "") for variable in VARIABLES)
        self.watchdog: float | None = None
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self._socket: socket.socket | None = None
        if not path:
            return
        if path[0] not in "/@":
            log.warning("NOTIFY_SOCKET is %r, neither a path nor an abstract name; nobody is notified", path)
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)  # now: later guests may have every descriptor
        self._socket.setblocking(False)
        if pid in ("", str(os.getpid())) and interval.isascii() and interval.isdigit() and int(interval) > 0:
            self.watchdog = int(interval) / 1e6 / 2

    def ready(self, status: str) -> None:
        """Every socket accepts.  `status` is for people."""
        self._send(f"READY=1\nSTATUS={' '.join(status.split())}\nMAINPID={os.getpid()}")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    async def feed_watchdog(self) -> None:
        """Say until cancelled that the loop turns."""
        while self.watchdog is not None:
            self._send("WATCHDOG=1")
            await trio.sleep(self.watchdog)

    def close(self) -> None:
        """Say nothing any more.  Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:
            log.warning("cannot notify the service manager at %r: %s", self._address, error.strerror)

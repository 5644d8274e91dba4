"""Which simulated sockets are ready: edge-triggered, as epoll is."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import trio

from vpnkit.flow.poller import Poller

if TYPE_CHECKING:
    from tests.sim.host import SimHost

MAX_EVENTS: Final = 256


class SimBackend:
    """Readiness of simulated sockets."""

    def __init__(self, host: SimHost) -> None:
        self._host = host
        self.registered: set[int] = set()
        self.ready: dict[int, int] = {}
        self.readers = trio.lowlevel.ParkingLot()
        self.closed = False

    def fileno(self) -> int:
        raise AssertionError("nobody waits for a simulated descriptor")

    def register(self, fd: int, *, readable_only: bool = False) -> None:
        if fd in self.registered:
            raise FileExistsError(errno.EEXIST, "registered twice")
        self.registered.add(fd)
        made = self._host.sockets[fd]
        made.backend = self
        if made.state():
            self.mark(fd)

    def unregister(self, fd: int) -> None:
        self.registered.remove(fd)
        self.ready.pop(fd, None)

    def closing(self, fd: int) -> None:
        self.unregister(fd)

    def mark(self, fd: int) -> None:
        if fd in self.registered:
            self.ready[fd] = 1
            self.readers.unpark_all()

    def poll(self) -> list[tuple[int, int]]:
        if not self.ready:
            return []
        events = []
        for fd in list(self.ready)[:MAX_EVENTS]:
            del self.ready[fd]
            bits = self._host.sockets[fd].state()
            if bits:
                events.append((fd, bits))
        return events

    def meaning(self, bits: int) -> int:
        return bits

    def close(self) -> None:
        self.closed = True
        self.registered.clear()
        self.ready.clear()


class SimPoller(Poller):
    def __init__(self, host: SimHost) -> None:
        self.simulated = SimBackend(host)
        super().__init__(self.simulated)

    async def wait(self) -> None:
        if self.simulated.ready:
            await trio.lowlevel.checkpoint()
        else:
            await self.simulated.readers.park()

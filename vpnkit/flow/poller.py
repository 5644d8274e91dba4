"""Readiness of many descriptors behind one that trio waits for.

Every blocked `trio.lowlevel.wait_readable` costs a system call to arm and a task switch to wake, about 25 us.  A guest
with a thousand sockets wants to pay that once per batch of events and to keep no task for a socket that says nothing.
So host sockets are registered once, edge-triggered, with an epoll (kqueue on macOS and the BSDs) whose own descriptor
is what trio watches.

Edge-triggered means: a handler is told once that a descriptor became readable or writable, and must remember it until
the kernel says EAGAIN.
"""

from __future__ import annotations

import select
import sys
from typing import Final, Protocol

import trio

MAX_EVENTS: Final = 256  # per call of `poll`; the rest stays in the kernel for the next one

READABLE: Final = 1
WRITABLE: Final = 2
HANGUP: Final = 4  # the peer will send no more, or an error is waiting: read until the kernel says so


class Handler(Protocol):
    """What is told about one descriptor."""

    def on_ready(self, events: int) -> None:
        """`events` is a set of READABLE, WRITABLE and HANGUP."""
        ...

    def on_failure(self, error: BaseException) -> None:
        """`on_ready` raised.  Give up this handler's descriptor; the other handlers go on."""
        ...


if sys.platform == "linux":

    class _Epoll:
        def __init__(self) -> None:
            self._epoll = select.epoll()
            self.fileno = self._epoll.fileno
            self.close = self._epoll.close
            self._interest = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
            self._readable = select.EPOLLIN | select.EPOLLET
            # select.epoll bits to ours, for every combination that occurs; filled as they occur
            self._meaning: dict[int, int] = {}

        def register(self, fd: int, *, readable_only: bool = False) -> None:
            self._epoll.register(fd, self._readable if readable_only else self._interest)

        def unregister(self, fd: int) -> None:
            self._epoll.unregister(fd)

        def closing(self, fd: int) -> None:
            """epoll(7), question 6: no other descriptor is for the same socket, so it leaves the set."""

        def poll(self) -> list[tuple[int, int]]:
            return self._epoll.poll(0, MAX_EVENTS)

        def meaning(self, bits: int) -> int:
            known = self._meaning.get(bits)
            if known is None:
                known = 0
                if bits & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP):
                    known |= READABLE
                if bits & (select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR):
                    known |= WRITABLE
                if bits & (select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP):
                    known |= HANGUP
                self._meaning[bits] = known
            return known

    _Backend = _Epoll
else:

    class _Kqueue:
        """kqueue(2).  A descriptor has two filters there, so what is ready both ways comes as two events; they are
        told as one, because the handler of the first may close the descriptor and its number be taken again."""

        def __init__(self) -> None:
            self._kqueue = select.kqueue()
            self.fileno = self._kqueue.fileno
            self.close = self._kqueue.close

        def _control(self, fd: int, flags: int) -> None:
            self._kqueue.control(
                [
                    select.kevent(fd, select.KQ_FILTER_READ, flags),
                    select.kevent(fd, select.KQ_FILTER_WRITE, flags),
                ],
                0,
            )

        def register(self, fd: int, *, readable_only: bool = False) -> None:
            if readable_only:
                flags = select.KQ_EV_ADD | select.KQ_EV_CLEAR
                self._kqueue.control([select.kevent(fd, select.KQ_FILTER_READ, flags)], 0)
                return
            self._control(fd, select.KQ_EV_ADD | select.KQ_EV_CLEAR)

        def unregister(self, fd: int) -> None:
            self._control(fd, select.KQ_EV_DELETE)

        def closing(self, fd: int) -> None:
            """kqueue(2): its events go when it is closed."""

        def poll(self) -> list[tuple[int, int]]:
            found: dict[int, int] = {}
            for event in self._kqueue.control(None, MAX_EVENTS, 0):
                ended = event.flags & select.KQ_EV_EOF
                if event.filter == select.KQ_FILTER_READ:
                    bits = READABLE | HANGUP if ended else READABLE
                elif ended and event.fflags:  # the socket's error; without one it is our own `shutdown`
                    bits = WRITABLE | READABLE | HANGUP
                else:
                    bits = WRITABLE
                found[event.ident] = found.get(event.ident, 0) | bits
            return list(found.items())

        @staticmethod
        def meaning(bits: int) -> int:
            return bits

    _Backend = _Kqueue


class Backend(Protocol):
    """What knows which descriptors are ready: the kernel, or a simulation of it."""

    def fileno(self) -> int: ...
    def register(self, fd: int, *, readable_only: bool = False) -> None: ...
    def unregister(self, fd: int) -> None: ...
    def closing(self, fd: int) -> None: ...
    def poll(self) -> list[tuple[int, int]]: ...
    def meaning(self, bits: int) -> int: ...
    def close(self) -> None: ...


class Poller:
    """Descriptors and the handlers that are told about them.  Not task-safe: one loop calls `poll`."""

    def __init__(self, backend: Backend | None = None) -> None:
        self._backend: Backend = backend or _Backend()
        self._meaning = self._backend.meaning
        self._poll = self._backend.poll
        self._handlers: dict[int, Handler] = {}

    def __len__(self) -> int:
        return len(self._handlers)

    def register(self, fd: int, handler: Handler) -> None:
        """Tell `handler` when `fd` becomes readable or writable; what it is already now is told too."""
        self._backend.register(fd)
        self._handlers[fd] = handler

    def unregister(self, fd: int) -> None:
        """Forget `fd`, before it is closed.  An unknown one is ignored."""
        if self._handlers.pop(fd, None) is not None:
            self._backend.unregister(fd)

    def register_reader(self, fd: int, handler: Handler) -> None:
        """Tell `handler` when `fd` becomes readable, and nothing else; for those that live for one datagram."""
        self._backend.register(fd, readable_only=True)
        self._handlers[fd] = handler

    def closing(self, fd: int) -> None:
        """Forget `fd`, which the caller closes next; the kernel forgets it then.  An unknown one is ignored."""
        if self._handlers.pop(fd, None) is not None:
            self._backend.closing(fd)

    def poll(self) -> int:
        """Tell the handlers what became ready, without waiting.  Returns how many events there were."""
        events = self._poll()
        handlers = self._handlers
        meaning = self._meaning
        for fd, bits in events:
            handler = handlers.get(fd)
            if handler is None:
                continue  # unregistered by a handler earlier in this batch
            try:
                handler.on_ready(meaning(bits))
            except Exception as error:  # the containment boundary of one descriptor
                handler.on_failure(error)
        return len(events)

    async def wait(self) -> None:
        """Return when `poll` would find something."""
        await trio.lowlevel.wait_readable(self._backend.fileno())

    def close(self) -> None:
        """Close the poller itself; the descriptors belong to their handlers."""
        self._handlers.clear()
        self._backend.close()

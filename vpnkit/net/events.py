"""What happens in a network, told to whoever listens, and never waited for.

Each listener has a queue of its own.  When it is full the newest event is lost for that listener alone, and counted:
behind those that waited he finds how many he missed.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

import trio
from msgspec import Struct

from vpnkit.net.report import ForwardReport, GuestReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUEUE_EVENTS: Final = 256  # that wait for one listener


class GuestCame(Struct, frozen=True, kw_only=True, tag_field="event", tag="guest_came"):
    """A link is up.  Who is behind it may not be known yet."""

    time: float  # of every event: seconds since 1970, by the host's clock
    guest: GuestReport


class GuestLeft(Struct, frozen=True, kw_only=True, tag_field="event", tag="guest_left"):
    """A link is closed, and what went through it."""

    time: float
    guest: GuestReport


class ForwardAdded(Struct, frozen=True, kw_only=True, tag_field="event", tag="forward_added"):
    """The host listens for a guest."""

    time: float
    forwards: list[ForwardReport]


class ForwardRemoved(Struct, frozen=True, kw_only=True, tag_field="event", tag="forward_removed"):
    """It does not any more; connections that are open may go on."""

    time: float
    forwards: list[ForwardReport]


class LeaseGiven(Struct, frozen=True, kw_only=True, tag_field="event", tag="lease_given"):
    """A guest was given an address, or the same one again."""

    time: float
    guest: int  # its id
    ip: str
    mac: str


class Warned(Struct, frozen=True, kw_only=True, tag_field="event", tag="warning"):
    """Something that the operator should know."""

    time: float
    message: str


class EventsLost(Struct, frozen=True, kw_only=True, tag_field="event", tag="events_lost"):
    """This listener was too slow for so many events."""

    time: float
    count: int


Event: TypeAlias = GuestCame | GuestLeft | ForwardAdded | ForwardRemoved | LeaseGiven | Warned | EventsLost


class Listener:
    """One who listens, from the moment he began."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._waiting: deque[Event] = deque()
        self._lost = 0
        self._changed = trio.Event()

    def offer(self, event: Event) -> bool:
        """Queue `event`; False when it is lost."""
        if len(self._waiting) >= QUEUE_EVENTS:
            self._lost += 1
            return False
        self._waiting.append(event)
        self._changed.set()
        return True

    async def take(self) -> list[Event]:
        """All that happened since the last time, and at least one event."""
        while not self._waiting:
            self._changed = trio.Event()
            await self._changed.wait()
        taken = list(self._waiting)
        self._waiting.clear()
        if self._lost:
            taken.append(EventsLost(time=self._now(), count=self._lost))
            self._lost = 0
        return taken


class EventHub:
    """Where events of one network come together."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        """`now` is the wall clock, in seconds."""
        self.now = now
        self.published = 0
        self.lost = 0  # for some listener
        self._listeners: list[Listener] = []

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    def publish(self, event: Event) -> None:
        """Tell everybody who listens now.  Never waits."""
        self.published += 1
        for listener in self._listeners:
            if not listener.offer(event):
                self.lost += 1

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """A listener, as long as the context is entered."""
        listener = Listener(self.now)
        self._listeners.append(listener)
        try:
            yield listener
        finally:
            self._listeners.remove(listener)

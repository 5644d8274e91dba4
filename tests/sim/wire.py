"""The link between the network under test and a scripted guest: a memory link at our end, a wire with faults behind.

What the network sends and receives is shown to the recorder at our end of it, in the order in which it happens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from tapdev.memory import memory_link_pair

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from tapdev.link import Buffer, LinkCapabilities
    from tests.sim.agenda import Agenda
    from tests.sim.faults import Faults

INCOMING: Final = 1
OUTGOING: Final = 2


class Recorder(Protocol):
    def frame(self, wire: Wire, direction: int, frame: bytes, partial: bool, gso_size: int) -> None: ...


class Wire:
    """Our end is `self`, a Link.  The other end is `deliver`, called with each frame that arrives there."""

    def __init__(
        self,
        agenda: Agenda,
        faults: Faults,
        rng: random.Random,
        capabilities: LinkCapabilities,
        recorder: Recorder,
        *,
        latency: float,
        queue_frames: int,
    ) -> None:
        near, far = memory_link_pair(capabilities=capabilities, queue_frames=queue_frames)
        self.capabilities = near.capabilities
        if faults.corrupt or faults.truncate:
            self.capabilities = replace(capabilities, reliable=False)
        self.deliver: Callable[[bytes, bool, int], None] = lambda _frame, _partial, _gso: None
        self.stopped = False  # the guest takes nothing, so that our link becomes full
        self.down = False
        self.latency = latency
        self.gso_type = 0
        self.gso_size = 0
        self.checksum_partial = False
        self.statistics = near.statistics
        self._near, self._far = near, far
        self._agenda = agenda
        self._faults = faults
        self._rng = rng
        self._recorder = recorder
        self._last = {INCOMING: 0.0, OUTGOING: 0.0}
        self.hold = near.hold
        self.release = near.release
        self.wait_readable = near.wait_readable
        self.wait_writable = near.wait_writable

    # Our end

    def receive(self) -> memoryview | None:
        near = self._near
        view = near.receive()
        if view is not None:
            self.gso_type = near.gso_type
            self.gso_size = near.gso_size
            self.checksum_partial = near.checksum_partial
            self._recorder.frame(self, INCOMING, bytes(view), near.checksum_partial, near.gso_size)
        return view

    def send(
        self,
        parts: Sequence[Buffer],
        checksum_start: int = 0,
        checksum_offset: int = 0,
        gso_type: int = 0,
        gso_size: int = 0,
        header_length: int = 0,
    ) -> bool:
        if not self._near.send(parts, checksum_start, checksum_offset, gso_type, gso_size, header_length):
            self._faults.counts["link_full"] += 1
            return False
        frame = b"".join(parts)
        if not 14 <= len(frame) <= 65553:
            return True
        self._recorder.frame(self, OUTGOING, frame, checksum_start != 0, gso_size)
        if not self.stopped:
            self.drain()
        return True

    def close(self) -> None:
        self._near.close()

    # The other end

    def drain(self) -> None:
        """The guest takes what waits for him."""
        far = self._far
        while (view := far.receive()) is not None:
            self._travel(OUTGOING, bytes(view), far.checksum_partial, far.gso_size if far.gso_type else 0)
        far.release()

    def transmit(self, frame: bytes) -> None:
        """The guest sends."""
        self._travel(INCOMING, frame, False, 0)

    def end(self) -> None:
        """The guest's end is gone."""
        self._far.close()

    def _travel(self, direction: int, frame: bytes, partial: bool, gso_size: int) -> None:
        faults = self._faults
        if self.down:
            faults.counts["link_down"] += 1
            return
        if faults.happens("drop"):
            return
        copies = 2 if faults.happens("duplicate") else 1
        for _ in range(copies):
            data = frame
            arp = frame[12:14] == b"\x08\x06"  # no checksum protects it, and a real wire's would
            if not arp and faults.happens("corrupt"):
                flipped = bytearray(data)
                bit = self._rng.randrange(14 * 8, len(data) * 8)
                flipped[bit >> 3] ^= 1 << (bit & 7)
                data = bytes(flipped)
            if not arp and faults.happens("truncate"):
                data = data[: self._rng.randrange(14, len(data))]
            delay = self.latency * self._rng.uniform(0.5, 1.0)
            if faults.happens("delay"):
                delay += self._rng.expovariate(1 / 0.2)
            when = self._agenda.now() + delay
            if faults.happens("reorder"):
                when += self.latency * self._rng.uniform(1, 8)
            else:
                when = self._last[direction] = max(when, self._last[direction])
            self._agenda.at(when, self._arrive, direction, data, partial, gso_size)

    def _arrive(self, direction: int, frame: bytes, partial: bool, gso_size: int) -> None:
        if direction == OUTGOING:
            self.deliver(frame, partial, gso_size)
        elif not self._far._closed and not self._near._closed and not self._far.send((frame,)):
            self._faults.counts["queue_full"] += 1

"""Links made of links: `Tee` for captures, `Impair` for tests.

A wrapper is a Link that holds a Link, and says of a frame what the inner link says of it, so that a burst loop cannot
tell the difference.  Statistics are the inner link's own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import trio

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from tapdev.link import Buffer, Link


class Direction(IntEnum):
    """Seen from our end of the link; the numbers are those of a pcapng packet's flags."""

    IN = 1
    OUT = 2


IN: Final = int(Direction.IN)
OUT: Final = int(Direction.OUT)


class Tap(Protocol):
    """What listens at a Tee.  It must not raise, and must copy what it keeps."""

    def __call__(
        self, parts: Sequence[Buffer], direction: int, gso_type: int, gso_size: int, checksum_partial: bool, /
    ) -> None:
        """One whole frame, the concatenation of `parts`, as the link carried it: a super-frame is one frame."""
        ...


class Tee:
    """Shows every frame that crosses `link` to `tap`.

    `tap` may be changed at any time.  What the link refused is not shown; it will be when it is sent again.  A burst
    loop looks in vain more often than not, so that is made cheap: `receive` is a function that knows what it needs
    (0.03 us more than the link's own, where a method costs 0.1).
    """

    def __init__(self, link: Link, tap: Tap | None = None) -> None:
        self.tap = tap
        self.capabilities = link.capabilities
        self.statistics = link.statistics
        self._link = link
        self._send = link.send
        self.hold = link.hold
        self.release = link.release
        self.wait_readable = link.wait_readable
        self.wait_writable = link.wait_writable
        self.close = link.close
        receive_inner = link.receive

        def receive() -> memoryview | None:
            frame = receive_inner()
            if frame is not None:
                tap = self.tap
                if tap is not None:
                    gso_type = link.gso_type
                    tap((frame,), IN, gso_type, link.gso_size if gso_type else 0, link.checksum_partial)
            return frame

        self.receive = receive

    @property
    def gso_type(self) -> int:
        return self._link.gso_type

    @property
    def gso_size(self) -> int:
        return self._link.gso_size

    @property
    def checksum_partial(self) -> bool:
        return self._link.checksum_partial

    def send(
        self,
        parts: Sequence[Buffer],
        checksum_start: int = 0,
        checksum_offset: int = 0,
        gso_type: int = 0,
        gso_size: int = 0,
        header_length: int = 0,
    ) -> bool:
        if not self._send(parts, checksum_start, checksum_offset, gso_type, gso_size, header_length):
            return False
        tap = self.tap
        if tap is not None:
            tap(parts, OUT, gso_type, gso_size, checksum_start != 0)
        return True


@dataclass(frozen=True, slots=True)
class Faults:
    """How bad one direction of a link is: the probability of each fault, for each frame."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0  # the frame changes places with the next one; without a next one it waits for ever
    corrupt: float = 0.0  # one bit is flipped

    def __post_init__(self) -> None:
        for name in ("drop", "duplicate", "reorder", "corrupt"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name)} is not a probability")


@dataclass(slots=True)
class FaultCounts:
    """What happened to the frames of one direction."""

    dropped: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0


# What a frame is besides its octets.  Received: gso_type, gso_size, checksum_partial.  Sent: the arguments of `send`.
_Received: TypeAlias = tuple[memoryview, int, int, bool]
_Sent: TypeAlias = tuple[bytes, int, int, int, int, int]

NO_FAULTS = Faults()


class Impair:
    """Loses, doubles, swaps and corrupts frames of `link`, each direction by its own `Faults`.

    Dice come from `rng` alone: the same seed and the same calls give the same faults.  With corruption the link is no
    longer `reliable`; it must not have checksum offload, for nobody could tell that a frame without a checksum was
    corrupted.
    """

    def __init__(
        self, link: Link, rng: random.Random, *, incoming: Faults = NO_FAULTS, outgoing: Faults = NO_FAULTS
    ) -> None:
        self.capabilities = link.capabilities
        if incoming.corrupt or outgoing.corrupt:
            if link.capabilities.checksum:
                raise ValueError("a link with checksum offload cannot be corrupted: nobody would notice")
            self.capabilities = replace(link.capabilities, reliable=False)
        self.statistics = link.statistics
        self.incoming, self.incoming_faults = incoming, FaultCounts()
        self.outgoing, self.outgoing_faults = outgoing, FaultCounts()
        self.gso_type = 0
        self.gso_size = 0
        self.checksum_partial = False
        self._link = link
        self._rng = rng
        self._ready: deque[_Received] = deque()  # copies to deliver before the link is asked again
        self._late: _Received | None = None  # a copy that lets the next frame pass
        self._late_sent: _Sent | None = None
        self._current_is_the_links = False
        self.release = link.release
        self.wait_writable = link.wait_writable

    def receive(self) -> memoryview | None:
        while not self._ready:
            view = self._link.receive()
            if view is None:
                return None
            faults, counts = self.incoming, self.incoming_faults
            if self._rolls(faults.drop):
                counts.dropped += 1
                continue
            late, self._late = self._late, None
            link = self._link
            frame: _Received = (view, link.gso_type, link.gso_size, link.checksum_partial)
            corrupt = self._rolls(faults.corrupt)
            if corrupt:
                counts.corrupted += 1
                frame = (memoryview(self._corrupted(view)), *frame[1:])
            duplicate = self._rolls(faults.duplicate)
            if duplicate:
                counts.duplicated += 1
                self._ready.append(_copy(frame))
            if late is not None:
                self._ready.append(late)
            elif self._rolls(faults.reorder) and not duplicate:
                counts.reordered += 1
                self._late = _copy(frame)
                continue
            self._current_is_the_links = not corrupt
            return self._deliver(frame)
        self._current_is_the_links = False
        return self._deliver(self._ready.popleft())

    def _deliver(self, frame: _Received) -> memoryview:
        view, self.gso_type, self.gso_size, self.checksum_partial = frame
        return view

    def hold(self) -> None:
        if self._current_is_the_links:  # a copy of ours lives as long as somebody looks at it
            self._link.hold()

    def send(
        self,
        parts: Sequence[Buffer],
        checksum_start: int = 0,
        checksum_offset: int = 0,
        gso_type: int = 0,
        gso_size: int = 0,
        header_length: int = 0,
    ) -> bool:
        faults, counts = self.outgoing, self.outgoing_faults
        if self._rolls(faults.drop):
            counts.dropped += 1
            return True
        frame: _Sent = (b"".join(parts), checksum_start, checksum_offset, gso_type, gso_size, header_length)
        if self._late_sent is None and self._rolls(faults.reorder):
            counts.reordered += 1
            self._late_sent = frame
            return True
        corrupt = self._rolls(faults.corrupt)
        if corrupt:
            frame = (bytes(self._corrupted(frame[0])), *frame[1:])
        if not self._pass_on(frame):
            return False
        counts.corrupted += corrupt
        if self._rolls(faults.duplicate):
            counts.duplicated += self._pass_on(frame)
        late, self._late_sent = self._late_sent, None
        if late is not None and not self._pass_on(late):
            counts.dropped += 1
        return True

    def _pass_on(self, frame: _Sent) -> bool:
        data, *metadata = frame
        return self._link.send((data,), *metadata)

    def _rolls(self, probability: float) -> bool:
        return probability > 0.0 and self._rng.random() < probability

    def _corrupted(self, frame: Buffer) -> bytearray:
        data = bytearray(frame)
        bit = self._rng.randrange(8 * len(data))
        data[bit >> 3] ^= 1 << (bit & 7)
        return data

    async def wait_readable(self) -> None:
        if self._ready:
            await trio.lowlevel.checkpoint()
        else:
            await self._link.wait_readable()

    def close(self) -> None:
        self._ready.clear()
        self._late = self._late_sent = None
        self._link.close()


def _copy(frame: _Received) -> _Received:
    return (memoryview(bytearray(frame[0])), *frame[1:])

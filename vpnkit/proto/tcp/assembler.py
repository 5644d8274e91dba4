"""Segments that came too early.

Kept sorted by sequence, what adjoins in one piece, bounded in ranges and octets: the guest chooses both.  What does not
fit is dropped, and the guest sends it again.
"""

from __future__ import annotations

from typing import Final

from vpnkit.proto.tcp.seq import MASK, distance

MAX_RANGES: Final = 64
RECENT: Final = 4  # segments whose order of arrival is remembered, for a SACK option
MAX_OCTETS: Final = 1 << 20  # of one connection; not more than the window that was advertised anyway


class Assembler:
    """Out-of-order data, as (sequence, octets) with a gap between any two."""

    __slots__ = ("_ranges", "_recent", "dropped", "octets")

    def __init__(self) -> None:
        self._ranges: list[tuple[int, bytearray]] = []
        self._recent: list[int] = []  # where the last ones began, newest first
        self.octets = 0
        self.dropped = 0  # segments that did not fit

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def add(self, base: int, sequence: int, data: bytes | memoryview) -> None:
        """Keep what is new of `data`; `base` is RCV.NXT, not after `sequence`."""
        start = distance(base, sequence)
        end = start + len(data)
        if end <= start:
            return
        self._recent.insert(0, sequence)
        del self._recent[RECENT:]
        ranges = self._ranges
        i = 0
        while i < len(ranges) and start < end:
            other = distance(base, ranges[i][0])
            other_end = other + len(ranges[i][1])
            if other_end <= start:
                i += 1
                continue
            if other >= end:
                break
            if start < other:  # the part in front of a range that is there already
                merged = self._insert(i, base + start, data[: other - start])
                if merged is None:
                    return
                i = merged
            else:
                i += 1
            data = data[max(0, other_end - start) :]
            start = other_end
        if start < end:
            self._insert(i, base + start, data)

    def _insert(self, index: int, sequence: int, data: bytes | memoryview) -> int | None:
        """Put `data`, which overlaps nothing, in front of range `index`.  The index of the range behind it and of what
        it joined with it, or None when it does not fit."""
        ranges = self._ranges
        sequence &= MASK
        size = len(data)
        joins = index > 0 and (ranges[index - 1][0] + len(ranges[index - 1][1])) & MASK == sequence
        follows = index < len(ranges) and (sequence + size) & MASK == ranges[index][0]
        if self.octets + size > MAX_OCTETS or (len(ranges) >= MAX_RANGES and not joins and not follows):
            self.dropped += 1
            return None
        self.octets += size
        if joins:
            ranges[index - 1][1].extend(data)
            if follows:
                ranges[index - 1][1].extend(ranges[index][1])
                del ranges[index]
            return index
        if follows:
            ranges[index][1][:0] = data
            ranges[index] = (sequence, ranges[index][1])
        else:
            ranges.insert(index, (sequence, bytearray(data)))
        return index + 1

    def take(self, nxt: int) -> memoryview | None:
        """The data that now begins at `nxt`, or None.  What lies wholly before it is forgotten."""
        while self._ranges:
            sequence, data = self._ranges[0]
            behind = distance(sequence, nxt)
            if behind < 0:
                return None
            del self._ranges[0]
            self.octets -= len(data)
            if behind < len(data):
                return memoryview(data)[behind:]
        return None

    def blocks(self, limit: int) -> list[tuple[int, int]]:
        """At most `limit` blocks of octets, that of the newest segment first (RFC 2018 section 4)."""
        held = [(sequence, (sequence + len(data)) & MASK) for sequence, data in self._ranges]
        found: list[tuple[int, int]] = []
        for recent in self._recent:
            for block in held:
                if distance(block[0], recent) >= 0 and distance(recent, block[1]) > 0 and block not in found:
                    found.append(block)
        return [*found, *(block for block in held if block not in found)][:limit]

    def clear(self) -> None:
        self._ranges.clear()
        self._recent.clear()
        self.octets = 0

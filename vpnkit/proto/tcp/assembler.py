"""Segments that came too early.

Kept sorted by sequence, bounded in ranges and octets: the guest chooses both.  What does not fit is dropped, and the
guest sends it again.
"""

from __future__ import annotations

from typing import Final

from vpnkit.proto.tcp.seq import MASK, distance

MAX_RANGES: Final = 64
RECENT: Final = 4  # segments whose order of arrival is remembered, for a SACK option
MAX_OCTETS: Final = 1 << 20  # of one connection; not more than the window that was advertised anyway


class Assembler:
    """Out-of-order data, as (sequence, octets) with no two overlapping."""

    __slots__ = ("_ranges", "_recent", "dropped", "octets")

    def __init__(self) -> None:
        self._ranges: list[tuple[int, bytes]] = []
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
                if not self._insert(i, base + start, data[: other - start]):
                    return
                i += 1
            data = data[max(0, other_end - start) :]
            start = other_end
            i += 1
        if start < end:
            self._insert(i, base + start, data)

    def _insert(self, index: int, sequence: int, data: bytes | memoryview) -> bool:
        if len(self._ranges) >= MAX_RANGES or self.octets + len(data) > MAX_OCTETS:
            self.dropped += 1
            return False
        self._ranges.insert(index, (sequence & 0xFFFFFFFF, bytes(data)))
        self.octets += len(data)
        return True

    def take(self, nxt: int) -> bytes | None:
        """The data that now begins at `nxt`, or None.  What lies wholly before it is forgotten."""
        while self._ranges:
            sequence, data = self._ranges[0]
            behind = distance(sequence, nxt)
            if behind < 0:
                return None
            del self._ranges[0]
            self.octets -= len(data)
            if behind < len(data):
                return data[behind:]
        return None

    def blocks(self, limit: int) -> list[tuple[int, int]]:
        """At most `limit` blocks of adjoining octets, that of the newest segment first (RFC 2018 section 4)."""
        merged: list[tuple[int, int]] = []
        for sequence, data in self._ranges:
            end = (sequence + len(data)) & MASK
            if merged and merged[-1][1] == sequence:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((sequence, end))
        found: list[tuple[int, int]] = []
        for recent in self._recent:
            for block in merged:
                if distance(block[0], recent) >= 0 and distance(recent, block[1]) > 0 and block not in found:
                    found.append(block)
        return [*found, *(block for block in merged if block not in found)][:limit]

    def clear(self) -> None:
        self._ranges.clear()
        self._recent.clear()
        self.octets = 0

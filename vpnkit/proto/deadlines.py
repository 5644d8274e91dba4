"""One queue of deadlines per guest, for everything that must happen later.

Deadlines move far more often than they pass (a retransmission timer moves with every ACK), so an entry is lazy: each
`Timed` is in the heap at most once, at a time not later than its real deadline, and is asked again when that time
comes.  Moving a deadline later is then a plain assignment.

What ended leaves its entry behind until its time comes, and so does what was queued again for an earlier time.  A
guest makes such entries faster than their times come, so they are swept out whenever the heap has doubled.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import Final, Protocol

NEVER: Final = float("inf")
SWEEP_AT: Final = 1024  # entries; below, it is not worth looking for those that mean nothing any more


class Timed(Protocol):
    """Something with a deadline of its own."""

    queued_at: float  # owned by the queue: where the entry in the heap stands; NEVER when there is none

    def next_deadline(self) -> float:
        """When `on_deadline` wants to be called, in seconds of the same clock as `now`; NEVER for not at all."""
        ...

    def on_deadline(self, now: float) -> None:
        """The deadline passed.  Afterwards `next_deadline()` is later than `now`, or NEVER."""
        ...


class DeadlineQueue:
    """The heap.  Seconds; any clock, as long as it is always the same one."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timed]] = []
        self._order = count()
        self._sweep_at = SWEEP_AT

    def __len__(self) -> int:
        return len(self._heap)

    def update(self, timed: Timed) -> bool:
        """Take note that the deadline of `timed` may have become earlier.  True when the head of the queue moved."""
        when = timed.next_deadline()
        if when >= timed.queued_at:
            return False
        timed.queued_at = when
        heapq.heappush(self._heap, (when, next(self._order), timed))
        if len(self._heap) > self._sweep_at:
            self._sweep()
        return self._heap[0][2] is timed

    def _sweep(self) -> None:
        kept = []
        for entry in self._heap:
            when, _, timed = entry
            if when != timed.queued_at:
                continue
            if timed.next_deadline() == NEVER:
                timed.queued_at = NEVER
            else:
                kept.append(entry)
        heapq.heapify(kept)
        self._heap[:] = kept  # `due` may be at work on it
        self._sweep_at = max(SWEEP_AT, 2 * len(kept))

    def next_deadline(self) -> float:
        """When `run` should be called next; it may find that nothing is due then."""
        return self._heap[0][0] if self._heap else NEVER

    def due(self, now: float) -> list[Timed]:
        """Everything whose deadline has passed at `now`, taken out of the queue; the rest is put where it belongs.

        The caller calls `on_deadline` and then `update` for each: that is where a failure is contained.
        """
        heap = self._heap
        due: list[Timed] = []
        while heap and heap[0][0] <= now:
            when, _, timed = heapq.heappop(heap)
            if when != timed.queued_at:
                continue  # an older, later entry of something that was queued again since
            timed.queued_at = NEVER
            deadline = timed.next_deadline()
            if deadline <= now:
                due.append(timed)
            elif deadline != NEVER:
                self.update(timed)
        return due

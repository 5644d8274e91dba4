"""What the guest said he holds beyond his cumulative ACK: the scoreboard of RFC 6675.

Positions are octets since the scoreboard was made and never wrap; SND.UNA is `base`.  Only the sender's caller turns
sequence numbers into positions, and it has checked them: nothing here is above what was sent.  Bounded in ranges, so
that an ACK costs microseconds whatever the guest says.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

MAX_RANGES: Final = 128  # beyond, only what touches a known range is noted
DUPLICATE_ACKS: Final = 3  # DupThresh
MAX_REPEATS: Final = 128  # retransmissions that are remembered at a time


class Scoreboard:
    __slots__ = ("_ends", "_repeats", "_starts", "again", "base", "late", "lost", "octets", "repeated")

    def __init__(self) -> None:
        self.base = 0  # SND.UNA
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.octets = 0  # held by the guest
        self.lost = 0  # what he does not hold below this position counts as lost
        self.repeated = 0  # HighRxt: what is missing below was sent again in this recovery
        self.again: list[tuple[int, int]] = []  # what was sent again and was lost again
        self.late = False  # something came after what was sent behind it: the link changes the order
        self._repeats: list[tuple[int, int, int]] = []  # start, end, and the position of SND.MAX at that time

    def __bool__(self) -> bool:
        return bool(self._starts)

    @property
    def top(self) -> int:
        """Behind the highest octet that the guest holds."""
        return self._ends[-1] if self._ends else self.base

    @property
    def last_start(self) -> int:
        """Where the highest range begins."""
        return self._starts[-1] if self._starts else self.base

    def add(self, start: int, end: int) -> int:
        """The guest holds [start, end).  How many octets of that are news."""
        starts, ends = self._starts, self._ends
        i = bisect_left(ends, start)
        j = bisect_right(starts, end)
        if i == j:
            if len(starts) >= MAX_RANGES:
                return 0
            starts.insert(i, start)
            ends.insert(i, end)
            self.octets += end - start
            return end - start
        start = min(start, starts[i])
        end = max(end, ends[j - 1])
        news = end - start - sum(ends[k] - starts[k] for k in range(i, j))
        starts[i:j] = [start]
        ends[i:j] = [end]
        self.octets += news
        return news

    def passes(self, octets: int) -> bool:
        """Whether SND.UNA, moved by `octets`, leaves behind something that was missing below a range."""
        return bool(self._starts) and self._starts[0] < self.base + octets

    def advance(self, octets: int) -> None:
        """SND.UNA moved."""
        self.base = base = self.base + octets
        starts, ends = self._starts, self._ends
        gone = bisect_right(ends, base)
        if gone:
            self.octets -= sum(ends[k] - starts[k] for k in range(gone))
            del starts[:gone], ends[:gone]
        if starts and starts[0] < base:
            self.octets -= base - starts[0]
            starts[0] = base

    def clear(self) -> None:
        """Forget everything: the guest may take back what he said (RFC 2018 section 8)."""
        self._starts.clear()
        self._ends.clear()
        self.octets = 0
        self.begin()

    def begin(self) -> None:
        """A recovery begins or ends: nothing was sent again in it."""
        self.lost = self.repeated = self.base
        self.again.clear()
        self._repeats.clear()

    def held(self, start: int, end: int) -> int:
        """Octets of [start, end) that the guest holds."""
        if end <= start:
            return 0
        starts, ends = self._starts, self._ends
        total = 0
        for k in range(bisect_right(ends, start), bisect_left(starts, end)):
            total += min(ends[k], end) - max(starts[k], start)
        return total

    def missing(self, start: int, end: int) -> int:
        """Octets of [start, end) that he does not hold."""
        start = max(start, self.base)
        return max(end - start, 0) - self.held(start, end)

    def lost_below(self, mss: int) -> int:
        """IsLost of RFC 6675 section 4: what is missing below this position has three ranges, or more than two
        segments' octets, above it."""
        starts, ends = self._starts, self._ends
        above = 0
        for count, k in enumerate(range(len(starts) - 1, -1, -1), 1):
            above += ends[k] - starts[k]
            if count >= DUPLICATE_ACKS or above > (DUPLICATE_ACKS - 1) * mss:
                return starts[k]
        return self.base

    def hole(self, start: int, end: int) -> tuple[int, int] | None:
        """The first missing part of [start, end)."""
        start = max(start, self.base)
        k = bisect_right(self._ends, start)
        if k < len(self._starts) and self._starts[k] <= start:
            start = self._ends[k]
            k += 1
        if k < len(self._starts):
            end = min(end, self._starts[k])
        return (start, end) if start < end else None

    def pipe(self, nxt: int) -> int:
        """How many octets below `nxt`, the position of SND.NXT, are on their way (RFC 6675 section 4)."""
        lost = min(self.lost, nxt)
        waiting = self.missing(max(self.repeated, self.base), lost)
        return self.missing(self.base, nxt) - waiting - sum(self.missing(*part) for part in self.again)

    def next_lost(self) -> tuple[int, int] | None:
        """The next part that is lost and was not sent again since (NextSeg, rule 1)."""
        while self.again:
            start, end = self.again[0]
            hole = self.hole(start, end)
            if hole is not None:
                self.again[0] = (hole[0], end)
                return hole
            del self.again[0]
        return self.hole(self.repeated, self.lost)

    def sent_again(self, start: int, end: int, top: int) -> None:
        """[start, end) left once more while `top` was the position of SND.MAX."""
        if self.again and self.again[0][0] == start:
            if end < self.again[0][1]:
                self.again[0] = (end, self.again[0][1])
            else:
                del self.again[0]
        if end > self.repeated:
            self.repeated = end
        if len(self._repeats) < MAX_REPEATS:
            self._repeats.append((start, end, top))

    def look_for_lost_repeats(self, mss: int) -> None:
        """What was sent again is lost again when the guest holds enough of what was sent after it.

        Enough is one later retransmission, three on a link that changes the order; or three segments beyond what had
        been sent at that time.
        """
        enough = DUPLICATE_ACKS if self.late else 1
        later = 0
        left: list[tuple[int, int, int]] = []
        for start, end, top in reversed(self._repeats):
            if not self.missing(start, end):
                later += 1
            elif later >= enough or self.held(top, self.top) > (DUPLICATE_ACKS - 1) * mss:
                self.again.append((start, end))
            else:
                left.append((start, end, top))
        if len(left) < len(self._repeats):
            left.reverse()
            self._repeats = left
            self.again.sort()

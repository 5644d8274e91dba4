"""What the sender does about loss: SACK recovery (RFC 6675) with lost retransmissions found again, NewReno (RFC 6582)
for guests without SACK, patience on links that change the order, and the tail-loss probe (RFC 8985 section 7).

While nothing is wrong `Sender.repairing` is False and nothing here is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.tcp.sack import DUPLICATE_ACKS, MAX_REPEATS, Scoreboard
from vpnkit.proto.tcp.seq import HALF, MASK
from vpnkit.proto.tcp.seq import before as _before

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vpnkit.proto.tcp.sender import Sender
    from vpnkit.wire.checksum import Buffer
    from vpnkit.wire.tcp import Block

MAX_BLOCKS: Final = 4  # of one ACK
REORDERING: Final = 0.001  # seconds, the least that what is late may come later than what was sent behind it
ACK_DELAY: Final = 0.05  # seconds that a guest may keep the ACK of less than two segments; Linux takes 40 ms


class Recovery:
    __slots__ = (
        "_due",
        "_patience",
        "_probe_end",
        "_probe_repeats",
        "_reorder_at",
        "_reorder_edge",
        "_rescued",
        "_sender",
        "_tail_due",
        "_timeout_at",
        "_twice",
        "_undo",
        "_waited_for",
        "active",
        "board",
        "duplicates",
        "point",
        "probes",
    )

    def __init__(self, sender: Sender, *, sack: bool) -> None:
        self._sender = sender
        self.board = Scoreboard() if sack else None
        self.active = False  # fast recovery
        self.point: int | None = None  # where fast recovery, or what a time-out set back, ends
        self.duplicates = 0  # ACKs in a row that acknowledge nothing new
        self.probes = 0  # tail-loss probes, over the connection's life
        self._due = False  # without SACK: the segment at SND.UNA is to be sent again
        self._rescued = False  # the rescue retransmission of this recovery was made (NextSeg, rule 4)
        self._patience = 1  # quarters of a round trip
        self._reorder_at = NEVER  # when what is missing below `_reorder_edge` counts as lost
        self._reorder_edge = 0
        self._timeout_at = NEVER  # of the retransmission timer, while a shorter one runs
        self._tail_due = False
        self._probe_end: int | None = None  # SND.MAX after a tail-loss probe that was not answered
        self._probe_repeats = False
        self._waited_for: int | None = None  # SND.UNA whose ACK the guest may have kept back
        self._undo: tuple[int, float] | None = None  # the congestion window before this recovery, and its ssthresh
        self._twice: set[int] = set()  # sequence numbers sent again in it, of which the guest did not say "twice"

    # ACKs

    def heard(self, acknowledgement: int, blocks: Sequence[Block]) -> bool:
        """The SACK blocks of an ACK that is in range.  True when they are news.

        Blocks that are inverted, not above the ACK, or beyond what was sent are ignored; the first one may be a
        duplicate that the guest reports (RFC 2883).
        """
        board = self.board
        if board is None:
            return False
        sender = self._sender
        una = sender.una
        low = (acknowledgement - una) & MASK
        high = (sender.top - una) & MASK
        base = board.base
        before = board.top
        news = 0
        for i, (left, right) in enumerate(blocks[:MAX_BLOCKS]):
            start = (left - una) & MASK
            end = (right - una) & MASK
            if i == 0 and self._is_duplicate(left, right, low, blocks):
                self._came_twice(left)
            elif low <= start < end <= high:
                gained = board.add(base + start, base + end)
                news += gained
                if gained and base + end < before and base + start >= board.repeated and self._is_first_time:
                    board.late = True
        return news > 0

    @property
    def _is_first_time(self) -> bool:
        """What comes now above HighRxt was sent once: no time-out set SND.NXT back."""
        return self.active or self.point is None

    def _is_duplicate(self, left: int, right: int, low: int, blocks: Sequence[Block]) -> bool:
        """RFC 2883 section 4: the first block lies below the ACK, or within the second."""
        length = (right - left) & MASK
        if not 0 < length <= self._sender.window_max:
            return False
        behind = (self._sender.una + low - right) & MASK
        if behind < HALF:
            return behind <= self._sender.window_max
        if len(blocks) < 2:
            return False
        outer, end = blocks[1]
        return (left - outer) & MASK < HALF and (end - right) & MASK < HALF

    def _came_twice(self, sequence: int) -> None:
        """The guest got what begins at `sequence` a second time."""
        if self._probe_end is not None:
            self._probe_repeats = False  # the tail had not been lost
        if sequence not in self._twice:
            return
        self._twice.remove(sequence)
        if self._undo is not None and not self._twice:
            # All that was sent again came twice, so nothing had been lost: the link had changed the order (RFC 3708).
            window, ssthresh = self._undo
            congestion = self._sender.congestion
            congestion.window = max(congestion.window, window)
            congestion.ssthresh = max(congestion.ssthresh, ssthresh)
            self._undo = None
            self._patience = min(self._patience + 1, 4)
            if self.board is not None:
                self.board.late = True

    def duplicate(self, blocks: Sequence[Block], now: float) -> None:
        """An ACK that acknowledges nothing new while something is outstanding."""
        sender = self._sender
        board = self.board
        if board is not None:
            if not blocks or not self.heard(sender.una, blocks):
                return
            self.duplicates += 1
            self._leave_calm(now)
            self._look(now)
            sender.deadline = min(self._timeout_at, self._reorder_at)
            return
        self.duplicates += 1
        self._leave_calm(now)
        if self.active:
            sender.congestion.window += sender.mss
        elif self.duplicates == DUPLICATE_ACKS and self.point is None:
            self._begin()
            sender.congestion.window += DUPLICATE_ACKS * sender.mss
            self._due = True

    def _leave_calm(self, now: float) -> None:
        """From here on the timer is the one of retransmission, and no more that of a tail-loss probe."""
        sender = self._sender
        if not sender.repairing:
            sender.repairing = True
            rtt = sender.rtt  # the probe's timer began when that of retransmission would have (RFC 6298 section 5.3)
            began = min(sender.deadline - rtt.first, now)
            self._timeout_at = sender.deadline = began + rtt.rto

    def advanced(self, acked: int, now: float) -> None:
        """SND.UNA moved by `acked` octets, while something was being repaired."""
        sender = self._sender
        board = self.board
        una = sender.una
        self.duplicates = 0
        self._due = self._tail_due = False
        if board is not None:
            if self.point is None and board.passes(acked):
                board.late = True  # what was missing came by itself
            board.advance(acked)
        if self._probe_end is not None and not _before(una, self._probe_end):
            if self._probe_repeats and una != self._probe_end:  # the probe repaired a loss (RFC 8985 section 7.4)
                sender.congestion.lost(max(acked, sender.in_flight))
            self._probe_end = None
        if self.point is not None:
            if not _before(una, self.point):
                self._end()
            elif not self.active:
                sender.congestion.acknowledged(acked)  # slow start after a time-out
            elif board is None:  # a partial ACK: the next hole begins here (RFC 6582 section 3.2)
                self._due = True
                sender.congestion.deflated(acked)
        if board:
            self._look(now)
        else:
            self._reorder_at = NEVER
            if board is not None and self.active:
                board.look_for_lost_repeats(sender.mss)
        sender.repairing = bool(self.active or self.point is not None or self._probe_end is not None or board)

    def _look(self, now: float) -> None:
        """After an ACK with news: what is lost now?"""
        sender = self._sender
        board = self.board
        assert board is not None
        if not board.late:
            board.lost = max(board.lost, board.lost_below(sender.mss))
        if self.active:
            board.look_for_lost_repeats(sender.mss)
        self._await_late(now)
        self._begin_if_lost()

    def _await_late(self, now: float) -> None:
        """What is missing and has something above it is lost if it does not come soon (RFC 8985 section 6.2)."""
        board = self.board
        assert board is not None
        if not board.missing(board.lost, board.last_start):
            self._reorder_at = NEVER
        elif self._reorder_at == NEVER:
            self._reorder_edge = board.last_start
            self._reorder_at = now + max(self._sender.rtt.srtt * self._patience / 4, REORDERING)

    def _begin_if_lost(self) -> None:
        board = self.board
        if board is not None and self.point is None and board.missing(board.base, board.lost):
            self._begin()

    def _begin(self) -> None:
        sender = self._sender
        congestion = sender.congestion
        self._undo = (congestion.window, congestion.ssthresh)
        self._twice.clear()
        congestion.lost(sender.in_flight)
        self.active = True
        self.point = sender.top
        self._rescued = False
        self._probe_end = None
        self._tail_due = False
        if self.board is not None:
            lost = self.board.lost
            self.board.begin()
            self.board.lost = max(lost, self.board.base)

    def _end(self) -> None:
        sender = self._sender
        if self.active and self.board is None:
            sender.congestion.recovered()
        self.active = False
        self.point = None
        if self.board is not None:
            self.board.begin()

    # Output

    def next_data(self) -> tuple[int, Buffer, bool] | None:
        """What is to be sent again now, or as a probe; None when new data may follow."""
        sender = self._sender
        if self._tail_due:
            return self._tail()
        if self._due:
            # A window that shrank allows less than was sent (SHLD-16), but never nothing.
            sequence, payload, fin = sender.segment_at(sender.una, max(1, min(sender.mss, sender.window)))
            return sequence, payload, fin and sender.fin_sent
        board = self.board
        if board is None or not self.active:
            return None
        nxt = board.base + sender.in_flight
        allowed = sender.congestion.window - board.pipe(nxt)
        found = board.next_lost()
        if found is None or found[0] >= nxt:
            if allowed < sender.mss or self._rescued or sender.unsent:
                return None
            # Nothing new may leave, so the end of the flight once more (NextSeg, rule 4).
            found = board.hole(max(nxt - sender.mss, board.base), nxt)
            if found is None or found[0] < max(board.lost, board.repeated):
                return None
        start, end = found
        if allowed < sender.mss and board.repeated > board.base:
            return None  # but what is lost first leaves at once
        length = min(end, nxt) - start
        limit = max(min(length, sender.limit, allowed - allowed % sender.mss), min(length, sender.mss))
        usable = sender.window - (start - board.base)
        if usable <= 0 and start > board.base:
            return None
        sequence, payload, fin = sender.segment_at((sender.una + start - board.base) & MASK, max(1, min(limit, usable)))
        return sequence, payload, fin and sender.fin_sent

    def _tail(self) -> tuple[int, Buffer, bool]:
        """New data where there is some, else the last segment again (RFC 8985 section 7.3)."""
        sender = self._sender
        usable = sender.window - sender.in_flight
        if sender.unsent and usable > 0:
            return sender.segment_at(sender.nxt, min(usable, sender.mss))
        sequence, payload, fin = sender.last_segment()
        return sequence, payload, fin and sender.fin_sent

    def sent(self, sequence: int, length: int) -> bool:
        """A segment of `length`, the FIN counted, has left.  True when it was one of this's, and nothing new."""
        sender = self._sender
        if self._tail_due:
            self._tail_due = False
            self.probes += 1
            self._probe_repeats = sequence != sender.nxt
            self._probe_end = sender.top if self._probe_repeats else (sequence + length) & MASK
            return self._probe_repeats
        if self._due:
            self._due = False
            return True
        if sequence == sender.nxt:
            return False
        board = self.board
        if board is not None:
            start = board.base + ((sequence - sender.una) & MASK)
            if len(self._twice) < MAX_REPEATS:
                self._twice.add(sequence)
            if start >= board.lost:
                self._rescued = True
            else:
                board.sent_again(start, start + length, board.base + ((sender.top - sender.una) & MASK))
        return True

    def allowed(self) -> int:
        """The congestion window less what is on its way: for new data, while something is repaired."""
        sender = self._sender
        board = self.board
        if board is None or not self.active:
            return sender.congestion.window - sender.in_flight + (board.octets if board is not None else 0)
        return sender.congestion.window - board.pipe(board.base + sender.in_flight)

    def next_unheld(self) -> tuple[int, int]:
        """A time-out set SND.NXT back: how many octets from there on the guest holds already, and how many follow
        that he does not, 0 for all."""
        sender = self._sender
        board = self.board
        if not board:
            return 0, 0
        behind = (sender.top - sender.nxt) & MASK
        nxt = board.base + sender.in_flight
        hole = board.hole(nxt, nxt + behind)
        return (behind, 0) if hole is None else (hole[0] - nxt, hole[1] - hole[0])

    # Time

    def arm(self, now: float) -> None:
        """Something is outstanding and being repaired: the timers run from now."""
        sender = self._sender
        self._timeout_at = now + sender.rtt.rto
        sender.deadline = min(self._timeout_at, self._reorder_at)

    def on_deadline(self, now: float) -> bool:
        """A timer rang.  False when it was the retransmission timer."""
        sender = self._sender
        board = self.board
        if board is None:
            return False
        if self._reorder_at <= now:
            self._reorder_at = NEVER
            board.lost = max(board.lost, self._reorder_edge)
            self._await_late(now)
            self._begin_if_lost()
            if self._timeout_at <= now:
                self._timeout_at = now + sender.rtt.rto
            sender.deadline = min(self._timeout_at, self._reorder_at)
            return True
        if sender.repairing or not sender.rtt.srtt or not sender.window or sender.nxt != sender.top:
            return False
        # A tail-loss probe, once; if it is not answered either, the retransmission timer follows.
        if sender.in_flight < 2 * sender.mss and self._waited_for != sender.una:
            self._waited_for = sender.una
            sender.deadline = now + ACK_DELAY
            return True
        self._tail_due = True
        sender.repairing = True
        self.arm(now)
        return True

    def timed_out(self) -> None:
        """The retransmission timer: everything begins again at SND.UNA (RFC 6675 section 5.1, RFC 2018 section 8)."""
        sender = self._sender
        self.active = False
        self.point = sender.top
        self.duplicates = 0
        self._due = self._tail_due = False
        self._probe_end = None
        self._undo = None
        self._reorder_at = NEVER
        if self.board is not None:
            self.board.clear()
        sender.repairing = True

"""The sending half of a connection: SND variables, the queue, retransmission and probes.

Written octets stay in the queue, in the chunks in which they came, until the guest acknowledged them.  A segment never
spans two chunks, so its payload is one view and nothing is copied.  Nothing here sends: `next_data` says what could
leave now, and `sent` takes note that it left.

One timer serves retransmission, the persist timer and the override of silly window avoidance, as at most one of them
can run (RFC 9293 sections 3.8.1 and 3.8.6).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import TYPE_CHECKING, Final

from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.tcp.budget import Budget
from vpnkit.proto.tcp.congestion import NewReno
from vpnkit.proto.tcp.recovery import Recovery
from vpnkit.proto.tcp.rtt import RttEstimator
from vpnkit.proto.tcp.seq import HALF, MASK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vpnkit.wire.checksum import Buffer
    from vpnkit.wire.tcp import Block

MAX_BUFFERED: Final = 1 << 20  # octets of one connection that wait for the guest
MAX_RETRANSMISSIONS: Final = 15  # R2: more than 100 s (SHLD-11), so a paused guest survives


class Sender:
    __slots__ = (
        "_chunks",
        "_cursor",
        "_timed_at",
        "_timed_sequence",
        "budget",
        "congestion",
        "deadline",
        "end",
        "fin_sent",
        "finishing",
        "limit",
        "mss",
        "nxt",
        "probe_due",
        "recovery",
        "repairing",
        "retransmissions",
        "retransmitted",
        "rtt",
        "scale",
        "top",
        "una",
        "window",
        "window_max",
        "wl1",
        "wl2",
    )

    def __init__(
        self,
        iss: int,
        mss: int,
        limit: int,
        scale: int,
        window: int,
        *,
        sack: bool = False,
        budget: Budget | None = None,
    ) -> None:
        """`mss` is the effective send MSS, `limit` the most octets of one segment, more than `mss` when the link
        segments.  `window` is the guest's first window, not scaled, `scale` the guest's shift; `sack`: he reports
        what he holds."""
        self.una = (iss + 1) & MASK  # SND.UNA; our SYN is acknowledged when a Sender is made
        self.nxt = self.una  # SND.NXT, set back by a timeout
        self.top = self.una  # the highest SND.NXT that there was
        self.end = self.una  # after the last octet written
        self.mss = mss
        self.limit = max(limit - limit % mss, mss)
        self.scale = scale
        self.window = window
        self.window_max = window
        self.wl1 = 0
        self.wl2 = 0
        self.budget = budget or Budget()
        self.congestion = NewReno(mss)
        self.rtt = RttEstimator(probes=sack)
        self.recovery = Recovery(self, sack=sack)
        self.repairing = False  # something is missing or may be: what `recovery` says comes first
        self.deadline = NEVER
        self.finishing = False  # a FIN follows the last octet
        self.fin_sent = False
        self.retransmissions = 0  # in a row
        self.retransmitted = 0  # segments, over the connection's life
        self.probe_due = False
        self._chunks: deque[tuple[int, Buffer]] = deque()
        self._cursor = 0  # index of the chunk that SND.NXT points into, or one past the last
        self._timed_sequence: int | None = None  # the end of the segment being timed
        self._timed_at = 0.0

    # What the relay asks

    @property
    def in_flight(self) -> int:
        return (self.nxt - self.una) & MASK

    @property
    def queued(self) -> int:
        """Octets that the guest has not acknowledged, sent or not."""
        queued = (self.end - self.una) & MASK
        return 0 if queued & HALF else queued  # SND.UNA is past the FIN

    @property
    def unsent(self) -> int:
        """Octets between SND.NXT and the end of the queue."""
        unsent = (self.end - self.nxt) & MASK
        return 0 if unsent & HALF else unsent  # SND.NXT is past the FIN

    def room(self, now: float = 0.0) -> int:
        """How much the relay may hand over now; 0 until half of what is allowed at all is free.

        To read and to send in few big lumps wakes the programs at both ends less often.  With nothing queued it is
        never nothing, so that the persist timer has something to probe a closed window with.
        """
        una = self.una
        queued = (self.end - una) & MASK
        if not queued and now - self._timed_at > self.rtt.rto:
            self.congestion.idle()
        allowed = self.congestion.window
        window = self.window
        if window < allowed:
            allowed = window
        if allowed > MAX_BUFFERED:
            allowed = MAX_BUFFERED
        budget = self.budget
        if budget.used > budget.ample:
            allowed = min(allowed, budget.share())
        if queued:
            if self.repairing:
                left = min(
                    self.recovery.allowed() - self.unsent, min(window, MAX_BUFFERED, self.budget.share()) - queued
                )
                return left if left >= self.mss else 0
            left = allowed - queued
            return left if 2 * left >= allowed and left >= self.mss else 0
        return allowed if allowed >= self.mss else self.mss

    def write(self, data: Buffer) -> None:
        """Append to the queue.  The sender keeps `data`; the caller must not change it."""
        self._chunks.append((self.end, data))
        self.budget.used += len(data)
        self.end = (self.end + len(data)) & MASK

    @property
    def may_stream(self) -> bool:
        """Nothing waits and nothing is being repaired: what is written next may leave at once, by `streamed`."""
        return self.nxt == self.end == self.top and not (self.finishing or self.repairing)

    def streamed(self, data: Buffer, octets: int, now: float) -> None:
        """`write` and `sent` in one: of a chunk within `room`, the first `octets` have left while `may_stream` held."""
        start = self.nxt
        length = len(data)
        self._chunks.append((start, data))
        self.budget.used += length
        self.end = (start + length) & MASK
        self.nxt = self.top = end = (start + octets) & MASK
        if octets == length:
            self._cursor += 1
        elif not octets:
            return
        if self._timed_sequence is None:
            self._timed_sequence = end
            self._timed_at = now
        if self.deadline == NEVER:
            self.deadline = now + self.rtt.first

    def finish(self) -> None:
        self.finishing = True
        self.budget.used += 1  # as the FIN's ACK will say

    def release(self) -> None:
        """Nothing of the queue will be acknowledged any more."""
        self.budget.used -= (self.end + self.finishing - self.una) & MASK
        self.budget = Budget()

    @property
    def last_sent(self) -> float:
        """When something new left last, within a round trip."""
        return self._timed_at

    @property
    def is_done(self) -> bool:
        """Everything, the FIN included, is acknowledged."""
        return self.fin_sent and self.una == ((self.end + 1) & MASK)

    # What may leave

    def ack_sequence(self) -> int:
        """SEG.SEQ of a segment without data: what the guest expects next if nothing was lost, within his window."""
        if (self.top - self.una) & MASK <= self.window:
            return self.top
        return (self.una + self.window) & MASK

    def next_data(self) -> tuple[int, Buffer, bool] | None:
        """(sequence, payload, FIN) of the next segment, or None when nothing may leave now."""
        usable = self.congestion.window
        limit = self.limit
        if self.repairing:
            data = self.recovery.next_data()
            if data is not None:
                return data
            if self.nxt != self.top:
                skip, length = self.recovery.next_unheld()
                limit = min(limit, length) or limit
                if skip:
                    self.nxt = (self.nxt + skip) & MASK
                    self._seek()
            usable = self.recovery.allowed()
        nxt = self.nxt
        unsent = (self.end - nxt) & MASK
        if unsent & HALF:  # SND.NXT is past the FIN
            return None
        flight = (nxt - self.una) & MASK
        if unsent == 0:
            return (nxt, b"", True) if self.finishing else None
        if not self.repairing:
            usable -= flight
        if self.window - flight < usable:
            usable = self.window - flight
        if self.probe_due:
            return self._at(nxt, self._cursor, max(1, min(usable, self.mss)))
        if usable <= 0:
            return None
        if usable < unsent and usable < self.mss and (flight or usable < self.window_max // 2):
            return None  # silly window avoidance, MUST-38
        if usable < limit:
            # Cut at a whole segment when more follows, so that no runt is made in the middle of a stream.
            limit = usable - usable % self.mss if self.mss < usable < unsent else usable
        return self._at(nxt, self._cursor, limit)

    def segment_at(self, sequence: int, limit: int) -> tuple[int, Buffer, bool]:
        """The segment of at most `limit` octets at `sequence`, which was sent before."""
        chunks = self._chunks
        if not chunks:
            return sequence, b"", True
        first = chunks[0][0]
        offset = (sequence - first) & MASK
        index = bisect_right(chunks, offset, key=lambda chunk: (chunk[0] - first) & MASK) - 1
        if offset >= (self.end - first) & MASK:
            index = len(chunks)
        return self._at(sequence, index, limit)

    def last_segment(self) -> tuple[int, Buffer, bool]:
        """The end of what was sent, an MSS at most."""
        last = (self.top - self.fin_sent) & MASK
        length = (last - self.una) & MASK
        if not length or length & HALF or not self._chunks:
            return self.una, b"", True
        start = (last - min(length, self.mss)) & MASK
        sequence, payload, _ = self.segment_at(start, self.mss)
        while (sequence + len(payload) - last) & HALF:  # a segment never spans two chunks
            sequence, payload, _ = self.segment_at((sequence + len(payload)) & MASK, self.mss)
        return self.segment_at(sequence, (last - sequence) & MASK)

    def _at(self, sequence: int, index: int, limit: int) -> tuple[int, Buffer, bool]:
        """The segment at `sequence`, which lies in chunk `index`, or is the FIN behind the last one."""
        chunks = self._chunks
        if index >= len(chunks):
            return sequence, b"", True
        start, data = chunks[index]
        skip = (sequence - start) & MASK
        length = len(data) - skip
        if length > limit:
            length = limit
        payload = data if length == len(data) else memoryview(data)[skip : skip + length]
        last = self.finishing and (sequence + length) & MASK == self.end
        return sequence, payload, last

    def sent(self, sequence: int, length: int, fin: bool, now: float) -> None:
        """Take note that the segment which `next_data` gave has left."""
        end = (sequence + length + fin) & MASK
        if self.repairing and self.recovery.sent(sequence, length + fin):
            self.retransmitted += 1
            self._timed_sequence = None
            if sequence == self.una:
                self.recovery.arm(now)
            return
        if self._timed_sequence is None and self.nxt == self.top:
            self._timed_sequence = end
            self._timed_at = now
        self.probe_due = False
        if fin:
            self.fin_sent = True
        if sequence == self.nxt:
            if self.nxt != self.top:
                self.retransmitted += 1
            self.nxt = end
            if ((self.top - end) & HALF) != 0:
                self.top = end
            if self._cursor < len(self._chunks):
                start, data = self._chunks[self._cursor]
                if (end - start) & MASK >= len(data):
                    self._cursor += 1
        if self.deadline == NEVER or sequence == self.una:  # a persist timer has nothing to wait for any more
            if self.repairing:
                self.recovery.arm(now)
            else:
                self.deadline = now + self.rtt.first

    # What the guest says

    def acknowledge(
        self,
        sequence: int,
        acknowledgement: int,
        window: int,
        has_data: bool,
        now: float,
        blocks: Sequence[Block] = (),
    ) -> bool:
        """One acceptable segment's ACK, window and SACK blocks.

        False when it acknowledges what was never sent, or what was acknowledged long ago (RFC 5961 section 5).
        """
        una = self.una
        acked = (acknowledgement - una) & MASK
        window <<= self.scale
        if acked:
            if acked & HALF:
                return -acked & MASK <= self.window_max  # an old duplicate; its window is old too
            if acked > (self.top - una) & MASK:
                return False
            if blocks:
                self._heard(acknowledgement, blocks)
            self._advance(acknowledgement, acked, now)
        elif window == 0 == self.window:
            self.retransmissions = 0  # a probe was answered: stay open for as long as they are (MUST-37)
        elif una != self.top and (blocks or (not has_data and window == self.window)):  # RFC 5681 section 2
            self.recovery.duplicate(blocks, now)
        # RFC 9293 section 3.10.7.4: only a newer segment moves the window.  One that acknowledges more is newer, else
        # SND.UNA would carry an old window to where nobody offered it.
        newer = (sequence - self.wl1) & MASK
        if acked or (newer < HALF if newer else not (acknowledgement - self.wl2) & HALF):
            self.wl1 = sequence
            self.wl2 = acknowledgement
            if window != self.window:
                if self.window == 0:
                    self._reopen()
                self.window = window
                if window > self.window_max:
                    self.window_max = window
        return True

    def _heard(self, acknowledgement: int, blocks: Sequence[Block]) -> None:
        if self.recovery.heard(acknowledgement, blocks):
            self.repairing = True

    def _advance(self, acknowledgement: int, acked: int, now: float) -> None:
        nxt = self.nxt
        flight = (nxt - self.una) & MASK
        self.una = acknowledgement
        self.budget.used -= acked
        if (nxt - acknowledgement) & HALF:
            self.nxt = nxt = acknowledgement  # a timeout set it back, and the guest had more than we thought
        timed = self._timed_sequence
        if timed is not None and not (acknowledgement - timed) & HALF:
            self.rtt.sample(now - self._timed_at)
            self._timed_sequence = None
        if self.retransmissions:
            self.retransmissions = 0
            self.rtt.restart()
        self.probe_due = False
        chunks = self._chunks
        cursor = self._cursor
        while chunks:
            start, data = chunks[0]
            passed = (acknowledgement - start) & MASK
            if passed < len(data) or passed & HALF:
                break
            chunks.popleft()
            cursor -= 1
        self._cursor = cursor if cursor > 0 else 0
        if cursor < 0 or nxt == acknowledgement:
            self._seek()
        if self.repairing:
            self.recovery.advanced(acked, now)
        elif 2 * flight > self.congestion.window:  # it limits us (RFC 7661 section 4.3); `room` lets half run out
            self.congestion.acknowledged(acked)
        if nxt == acknowledgement:
            self.deadline = NEVER
        elif self.repairing:
            self.recovery.arm(now)
        else:
            self.deadline = now + self.rtt.first

    def _reopen(self) -> None:
        """The window was closed and opened: a probe in flight was not taken, so begin at SND.UNA at once."""
        self.nxt = self.una
        self._cursor = 0
        self._timed_sequence = None
        self.probe_due = False
        self.retransmissions = 0
        self.rtt.restart()
        self.deadline = NEVER

    def too_big(self, sequence: int, mss: int) -> bool:
        """The guest says that our segment at `sequence` was larger than `mss`.  True when it is believed: then what is
        outstanding is sent again in smaller ones, and the congestion window stays (RFC 1191 section 6.4).

        It must be about something outstanding (RFC 5927 section 7), and makes segments never larger.
        """
        if mss >= self.mss or (sequence - self.una) & MASK >= (self.top - self.una) & MASK:
            return False
        self.limit = mss if self.limit == self.mss else max(self.limit - self.limit % mss, mss)
        self.mss = self.congestion.mss = mss
        self.nxt = self.una
        self._cursor = 0
        self._timed_sequence = None
        self.recovery.timed_out()
        self.deadline = NEVER
        return True

    def _seek(self) -> None:
        """Put the cursor on the chunk of SND.NXT after SND.NXT jumped; it rarely moves."""
        chunks = self._chunks
        cursor = min(self._cursor, len(chunks))
        while cursor < len(chunks):
            start, data = chunks[cursor]
            if (self.nxt - start) & MASK < len(data) or (self.nxt - start) & HALF:
                break
            cursor += 1
        self._cursor = cursor

    # What time says

    def needs_timer(self, now: float) -> None:
        """Called when nothing more may leave: octets that wait without anything in flight need a probe later."""
        if self.deadline == NEVER and (self.una != self.nxt or self.unsent):
            self.deadline = now + self.rtt.rto

    def on_deadline(self, now: float) -> bool:
        """The timer ran out.  False when the guest has been silent for too long: the connection is dead."""
        if self.una == self.nxt:
            if not self.unsent:
                self.deadline = NEVER
                return True
            # Zero or silly window: probe, for as long as the probes are answered (MUST-36, MUST-37).
            self.probe_due = True
            self.rtt.back_off()
            self.deadline = now + self.rtt.rto
            return True
        if self.recovery.on_deadline(now):
            return True
        self.retransmissions += 1
        window_closed = self.window == 0
        if self.retransmissions > MAX_RETRANSMISSIONS:
            return False
        if not window_closed:
            self.congestion.timed_out(self.in_flight)
        self.rtt.back_off()
        self.nxt = self.una
        self._cursor = 0
        self._timed_sequence = None
        self.recovery.timed_out()
        self.probe_due = window_closed
        self.deadline = now + self.rtt.rto
        return True

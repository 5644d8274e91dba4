"""The receiving half of a connection: RCV variables, our window, and what is still to be acknowledged.

`inbox` holds what came in order and nobody took yet, as views into the burst's buffers; `buffered` counts the octets
that were taken but have not left us, because the host's socket was full.  The window reopens only when they left:
that is the whole back-pressure.
"""

from __future__ import annotations

from typing import Final

from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.tcp.assembler import Assembler
from vpnkit.proto.tcp.budget import Budget
from vpnkit.proto.tcp.seq import MASK, distance
from vpnkit.wire.tcp import MAX_SACK_BLOCKS, encode_sack

WINDOW_SCALE: Final = 7  # ours: windows of up to 8 MiB in steps of 128 octets
CAPACITY: Final = 1 << 20  # octets that we are ready to take before anything left
FIRST_CAPACITY: Final = 1 << 17  # the same, before anything was taken; it doubles while the host keeps up
DELAYED_ACK: Final = 0.002  # seconds; the link has no delay of its own, and 40 ms would stall a Nagle sender's tail
MAX_EARLY_ACKS: Final = 3  # at a time: as many as make a sender without SACK repeat what is missing
ROUNDING: Final = 1 << 16  # octets above it that rounding windows up may cost in all


class Receiver:
    __slots__ = (
        "_tuned_at",
        "ack_deadline",
        "ack_due",
        "assembler",
        "budget",
        "buffered",
        "capacity",
        "delayed_octets",
        "early",
        "early_acks",
        "edge",
        "fin_sequence",
        "finished",
        "heard_at",
        "inbox",
        "interactive",
        "most",
        "nxt",
        "sack",
        "scale",
        "twice",
    )

    def __init__(self, irs: int, scale: int, *, sack: bool = False, budget: Budget | None = None) -> None:
        """`irs` is the guest's initial sequence; `scale` our window scale, 0 when it was not negotiated; `sack`: the
        guest wants to know what we hold."""
        self.nxt = (irs + 1) & MASK  # RCV.NXT
        self.scale = scale
        self.budget = budget or Budget()
        self.most = CAPACITY if scale else 65535  # that `capacity` becomes
        self.capacity = min(self.most, FIRST_CAPACITY)
        self._tuned_at = self.nxt  # RCV.NXT when `capacity` was looked at last
        self.edge = self.nxt  # the right edge of the window that we advertised last
        self.buffered = 0
        self.inbox: list[memoryview | bytes] = []
        self.assembler = Assembler()
        self.early = False  # something came before its turn: data in the assembler, or a FIN
        self.sack = sack
        self.twice: tuple[int, int] | None = None  # a block that came again, for a SACK option (RFC 2883)
        self.early_acks = 0  # ACKs that are due for segments that came early, one each (RFC 5681 section 3.2)
        self.fin_sequence: int | None = None  # of a FIN that came before the data in front of it
        self.finished = False  # the FIN is behind RCV.NXT
        self.ack_due = False
        self.ack_deadline = NEVER  # of an ACK that waits for data to travel with
        self.delayed_octets = 0  # received since the last ACK
        self.heard_at = 0.0  # when data came last
        self.interactive = False  # data of the guest is answered by data of the host, at once

    def window_field(self) -> int:
        """SEG.WND for the next segment; moves the edge, never to the left (RFC 7323 section 2.4).

        What was offered and is no multiple of our scale's step is rounded up, so that nothing is taken back.  A guest
        that sends an octet at a time would grow a closed window for ever by that, so there is a limit, and then it is
        rounded down; what was offered once is still taken.
        """
        offered = distance(self.nxt, self.edge)
        if (self.nxt - self._tuned_at) & MASK > self.capacity:
            self._tune()
        free = self.capacity - self.buffered
        scale = self.scale
        field = free >> scale
        if field << scale < offered:
            field = (offered + (1 << scale) - 1) >> scale
            if (field << scale) - free > ROUNDING:
                field = offered >> scale
        if field > 65535:
            field = 65535
        elif field < 0:
            field = 0
        if field << scale > offered:
            self.edge = (self.nxt + (field << scale)) & MASK
        return field

    def _tune(self) -> None:
        """As much as the capacity went through: it may be more if the host took it all."""
        self._tuned_at = self.nxt
        if not self.buffered and self.capacity < self.most:
            self.capacity = min(2 * self.capacity, self.most)
        self._share()

    def _share(self) -> None:
        budget = self.budget
        if budget.used > budget.ample:
            self.capacity = min(self.capacity, budget.share())

    def keep(self, octets: int) -> None:
        """`octets` that were taken from the inbox wait for the host."""
        self.buffered += octets
        self.budget.used += octets
        self._share()

    def leave(self, octets: int) -> None:
        """`octets` of them have left."""
        self.buffered -= octets
        self.budget.used -= octets

    def release(self) -> None:
        """Nothing that is kept will leave any more."""
        self.budget.used -= self.buffered + self.assembler.octets
        self.budget = Budget()

    def window_update_due(self, mss: int) -> bool:
        """Whether the window grew enough to tell the guest without being asked (RFC 9293 section 3.8.6.2.2)."""
        offered = distance(self.nxt, self.edge)
        gained = self.capacity - self.buffered - offered
        return gained >= self.capacity // 2 or (offered < 2 * mss and gained >= min(2 * mss, self.capacity // 2))

    def hear(self, octets: int, full: int, now: float) -> None:
        """New data in order: its ACK is due at once, or waits a moment for an answer of the host to travel with.

        It waits when the last data was answered so quickly, and less than two full segments of `full` octets are not
        acknowledged (RFC 9293 MUST-40, SHLD-18, SHLD-19).
        """
        self.delayed_octets += octets
        self.heard_at = now
        if self.interactive and self.delayed_octets < 2 * full:
            if self.ack_deadline == NEVER:
                self.ack_deadline = now + DELAYED_ACK
        else:
            self.ack_due = True

    def told(self, with_data: bool, now: float) -> None:
        """A segment with our ACK has left."""
        self.ack_due = False
        self.ack_deadline = NEVER
        self.delayed_octets = 0
        if with_data:
            self.interactive = now - self.heard_at < DELAYED_ACK

    def on_deadline(self, now: float) -> None:
        """Nothing came to travel with."""
        if now >= self.ack_deadline:
            self.ack_deadline = NEVER
            self.ack_due = True
            self.interactive = False

    def is_acceptable(self, sequence: int, length: int) -> bool:
        """The test of RFC 9293 section 3.4 (table 6), but an ACK right at the edge is good: the guest filled the
        window, and a part of that was lost."""
        start = distance(self.nxt, sequence)
        window = distance(self.nxt, self.edge)
        if length == 0:
            return 0 <= start <= max(window, 0)
        return window > 0 and (0 <= start < window or 0 <= start + length - 1 < window)

    def report(self) -> bytes:
        """The SACK option of the ACK that leaves next; none when nothing came early or twice."""
        if not self.sack:
            return b""
        twice = self.twice
        if twice is None:
            return encode_sack(self.assembler.blocks(MAX_SACK_BLOCKS)) if self.early else b""
        self.twice = None
        return encode_sack([twice, *self.assembler.blocks(MAX_SACK_BLOCKS - 1)])

    def repeated(self, sequence: int, length: int) -> None:
        """A segment whose octets were all taken before."""
        if length:
            self.twice = (sequence, (sequence + length) & MASK)

    def accept(self, sequence: int, payload: memoryview, fin: bool, full: int, now: float) -> bool:
        """Take an acceptable segment's data: in order to the inbox, early to the assembler, the rest is trimmed.

        `full` is for `hear`: as in the fast path, what is in order and nothing else may be acknowledged later.
        True when that made the guest's FIN the next thing in order; it is behind RCV.NXT now.
        """
        early = self.assembler.octets
        try:
            return self._accept(sequence, payload, fin, full, now)
        finally:
            self.budget.used += self.assembler.octets - early

    def _accept(self, sequence: int, payload: memoryview, fin: bool, full: int, now: float) -> bool:
        start = distance(self.nxt, sequence)
        length = len(payload)
        if fin and self.fin_sequence is None:
            self.fin_sequence = (sequence + length) & MASK
        room = distance(self.nxt, self.edge)
        fin_sequence = self.fin_sequence
        if fin_sequence is not None:
            room = min(room, distance(self.nxt, fin_sequence))  # nothing comes after a FIN
        if start + length > room:
            payload = payload[: max(room - start, 0)]
        if start > 0:
            if len(payload):
                self.assembler.add(self.nxt, sequence, payload)
            self.early = bool(self.assembler) or fin_sequence is not None
            self.ack_due = True
            self.early_acks = min(self.early_acks + 1, MAX_EARLY_ACKS)
            return False
        if start < 0:
            payload = payload[-start:]
            self.ack_due = True  # the guest repeats itself: it needs to hear where we are
        if len(payload):
            self.inbox.append(payload)
            self.nxt = (self.nxt + len(payload)) & MASK
            self.early_acks = 0
            self.hear(len(payload), full, now)
        if self.assembler:
            while (data := self.assembler.take(self.nxt)) is not None:
                if fin_sequence is not None:
                    data = data[: distance(self.nxt, fin_sequence)]
                self.inbox.append(data)
                self.nxt = (self.nxt + len(data)) & MASK
            self.ack_due = True
        if fin_sequence == self.nxt and not self.finished:
            self.nxt = (self.nxt + 1) & MASK
            self.finished = True
            self.ack_due = True
            self.assembler.clear()
            return True
        self.early = bool(self.assembler) or fin_sequence is not None
        return False

"""A guest's TCP, small and on its own: offsets instead of sequence numbers, go-back-N, a fixed congestion window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.sim.history import octets
from tests.sim.packets import ACK, FIN, PSH, RST, SYN, TCP, Packet, tcp_segment

if TYPE_CHECKING:
    from tests.sim.guest import SimGuest
    from tests.sim.history import Side
    from tests.sim.scenario import TcpPlan

WORD: Final = 1 << 32
RTO: Final = 0.3
MAX_RTO: Final = 8.0
MAX_RETRIES: Final = 40
SYN_RETRIES: Final = 7
TIME_WAIT: Final = 30.0
KEEPALIVE: Final = 60.0
MAX_EARLY: Final = 40  # segments kept before their turn


def near(sequence: int, base: int) -> int:
    """The distance from `base` to `sequence`, as a signed number."""
    return (sequence - base + WORD // 2) % WORD - WORD // 2


class GuestTcp:
    def __init__(
        self, stack: SimGuest, plan: TcpPlan, side: Side, local: bytes, lport: int, remote: bytes, rport: int
    ) -> None:
        self.stack = stack
        self.plan = plan
        self.me = plan.guest
        self.side = side
        self.local, self.lport, self.remote, self.rport = local, lport, remote, rport
        rng = stack.rng
        self.iss = rng.randrange(WORD)
        if rng.random() < 0.1:
            self.iss = WORD - 1 - rng.randrange(2000)
            stack.faults.counts["seq_wrap"] += 1
        self.irs = 0
        self.state = "syn-sent"
        self.una = self.nxt = self.top = 0  # offsets in our stream
        self.edge = 0  # how far we may send
        self.peer_mss = 536
        self.peer_scale = 0
        self.scale = 0
        self.finishing = False
        self.duplicates = 0
        self.rcv = 0  # offset of the next octet that we expect
        self.rcv_edge = 0  # how far we said that we take
        self.rcv_fin: int | None = None
        self.early: dict[int, bytes] = {}
        self.unread = 0
        self.reading = False  # a slow program is about to
        self.retries = 0
        self.timer = float("inf")
        self.writes_left = len(self.me.writes)
        self.ack_owed = 0

    def __str__(self) -> str:
        return (
            f"flow {self.plan.number} {self.state}: una {self.una} nxt {self.nxt} of {self.side.wrote} "
            f"edge {self.edge} fin {self.finishing}, rcv {self.rcv} edge {self.rcv_edge} fin {self.rcv_fin}, "
            f"retries {self.retries} timer {self.timer}"
        )

    # The application

    def open(self) -> None:
        self._send_syn()
        self._arm()
        self._run_application()

    def accept(self, syn: Packet) -> None:
        self.state = "syn-received"
        self._heard_syn(syn)
        self._send_syn()
        self._arm()
        self._run_application()

    def _run_application(self) -> None:
        after = self.stack.agenda.after
        for when, count in self.me.writes:
            after(when, self._write, count)
        if self.me.end == "rst":
            after(self.me.end_at, self.abort)
        if self.me.reads == "stall":
            after(self.me.stall, self._read_all)
        if not self.me.writes:
            after(0.0, self._wrote_all)
        if self.stack.world.is_calm:
            after(0.5, self.calm)

    def _write(self, count: int) -> None:
        self.writes_left -= 1
        if self.state in ("closed", "time-wait") or self.finishing:
            return
        self.side.wrote += count
        self._wrote_all()
        self.pump()

    def _wrote_all(self) -> None:
        end = self.me.end
        if self.writes_left or self.finishing or self.state == "closed":
            return
        if end == "fin" or (end == "after" and self.rcv_fin is not None and self.rcv > self.rcv_fin):
            self.finish()

    def finish(self) -> None:
        """No more is written: FIN."""
        if not self.finishing and self.state != "closed":
            self.finishing = True
            self.side.fin_sent = True
            if self.rcv_fin is None:
                self.stack.faults.counts["guest_half_close"] += 1
            self.pump()

    def abort(self) -> None:
        if self.state in ("closed", "time-wait"):
            return
        self.side.causes.append("the guest's reset")
        self.side.rst_sent = True
        self.stack.faults.counts["guest_rst"] += 1
        if self.state != "syn-sent":
            self._send(self.top, RST | ACK, b"")
        self.close()

    def calm(self) -> None:
        """Everybody comes to an end now."""
        self.me.reads = "fast"
        self._read_all()
        self.writes_left = 0
        self.finish()
        self.stack.agenda.after(KEEPALIVE, self._keep_alive)

    def _keep_alive(self) -> None:
        if self.state == "open":
            self._send(self.nxt - 1, ACK, b"")
            self.stack.agenda.after(KEEPALIVE, self._keep_alive)

    def close(self) -> None:
        self.state = "closed"
        self.side.over = True
        self.timer = float("inf")
        self.stack.forget(self)

    def _read_some(self) -> None:
        self.reading = False
        if self.state != "closed" and self.me.reads == "slow":
            self._read(self.stack.rng.randrange(500, 5000))
            self._read_later()

    def _read_later(self) -> None:
        if self.unread and not self.reading and self.me.reads == "slow":
            self.reading = True
            self.stack.agenda.after(0.05, self._read_some)

    def _read_all(self) -> None:
        self.me.reads = "fast"
        if self.state != "closed":
            self._read(self.unread)

    def _read(self, count: int) -> None:
        self.unread -= min(count, self.unread)
        if self.state == "open" and not self.stack.paused:
            free = self.me.buffer - self.unread
            if self.rcv + free - self.rcv_edge >= min(self.me.buffer // 2, 1460):
                self._send(self.nxt, ACK, b"")  # a window update

    # Segments out

    def content(self, offset: int, count: int) -> bytes:
        """What we write."""
        return octets(self.side.stream, offset, count)

    def _window(self) -> int:
        free = max(self.me.buffer - self.unread, 0)
        edge = max(self.rcv + free, self.rcv_edge)
        field = min((edge - self.rcv + (1 << self.scale) - 1) >> self.scale, 65535)
        self.rcv_edge = max(self.rcv_edge, self.rcv + (field << self.scale))
        if not field:
            self.stack.faults.counts["zero_window"] += 1
        return field

    def _send(self, offset: int, flags: int, payload: bytes) -> None:
        self.ack_owed = 0
        segment = tcp_segment(
            self.local,
            self.remote,
            self.lport,
            self.rport,
            (self.iss + 1 + offset) % WORD,
            (self.irs + 1 + self.rcv) % WORD if flags & ACK else 0,
            flags,
            self._window() if not flags & RST else 0,
            payload,
        )
        self.stack.ip(self.local, self.remote, TCP, segment)

    def _send_syn(self) -> None:
        options = b"\x02\x04" + self.me.mss.to_bytes(2, "big")
        if self.me.scale is not None and (self.state == "syn-sent" or self.scale):
            options += b"\x01\x03\x03" + bytes((self.me.scale,))
        window = min(self.me.buffer, 65535)
        flags = SYN if self.state == "syn-sent" else SYN | ACK
        acknowledgement = (self.irs + 1) % WORD if flags & ACK else 0
        self.rcv_edge = window
        segment = tcp_segment(
            self.local, self.remote, self.lport, self.rport, self.iss, acknowledgement, flags, window, b"", options
        )
        self.stack.ip(self.local, self.remote, TCP, segment)

    def _segment_at(self, offset: int, room: int) -> int:
        """Send what begins at `offset`; returns the offset behind it."""
        count = max(min(self.side.wrote - offset, room, self.peer_mss, self.me.mss), 0)
        fin = self.finishing and offset + count == self.side.wrote
        if not count and not fin:
            return offset
        self._send(offset, ACK | (PSH if count else 0) | (FIN if fin else 0), self.content(offset, count))
        return offset + count + fin

    def pump(self) -> None:
        if self.state != "open" or self.stack.paused:
            return
        while True:
            room = min(self.edge, self.una + 8 * self.me.mss) - self.nxt
            if self.nxt > self.side.wrote or (room <= 0 and self.nxt < self.side.wrote):
                break
            after = self._segment_at(self.nxt, room)
            if after == self.nxt:
                break
            self.nxt = after
            self.top = max(self.top, after)
        self._arm()

    def _arm(self) -> None:
        waiting = self.state in ("syn-sent", "syn-received") or self.una < self.nxt or self.nxt < self.side.wrote
        if not waiting:
            self.timer = float("inf")
        elif self.timer == float("inf"):
            base = 1.0 if self.state != "open" else RTO
            self.timer = self.stack.now() + min(base * 2**self.retries, MAX_RTO)
            self.stack.agenda.at(self.timer, self._tick, self.timer)

    def _tick(self, when: float) -> None:
        if when != self.timer or self.state == "closed":
            return
        if self.stack.paused:
            self.stack.agenda.at(self.stack.resumes, self._tick, when)
            return
        self.timer = float("inf")
        if self.state == "time-wait":
            self.close()
            return
        self.retries += 1
        if self.retries > (MAX_RETRIES if self.state == "open" else SYN_RETRIES):
            self.side.causes.append("the guest gave up")
            if self.state == "open":
                self._send(self.top, RST | ACK, b"")
                self.side.rst_sent = True
            self.close()
            return
        if self.state != "open":
            self._send_syn()
        elif self.una == self.nxt:
            self._segment_at(self.nxt, 1)  # a probe
            self.nxt = self.top = max(self.top, self.nxt + 1)
        else:
            self.nxt = self.una
            self.nxt = self._segment_at(self.una, max(self.edge - self.una, 1))
            self.top = max(self.top, self.nxt)
        self._arm()

    # Segments in

    def _heard_syn(self, syn: Packet) -> None:
        self.irs = syn.seq
        self.peer_mss = syn.mss or 536
        if syn.wscale is not None and self.me.scale is not None:
            self.peer_scale = syn.wscale
            self.scale = self.me.scale
        self.edge = syn.window

    def receive(self, packet: Packet) -> None:
        if self.state == "syn-sent":
            self._receive_syn_sent(packet)
            return
        offset = self.rcv + near(packet.seq, (self.irs + 1 + self.rcv) % WORD)
        flags = packet.flags
        if flags & RST:
            if offset == self.rcv:
                if self.state != "time-wait":  # a stray ACK of ours, to a connection that is over (RFC 1337)
                    self.side.rst_seen = True
                    self.close()
            elif self.rcv < offset < self.rcv_edge:
                self._send(self.nxt, ACK, b"")
            return
        if flags & SYN:
            if self.state == "syn-received" and not flags & ACK:
                self._send_syn()
            else:
                self._send(self.nxt, ACK, b"")
            return
        acknowledged = self.una + near(packet.ack, (self.iss + 1 + self.una) % WORD)
        if self.state == "syn-received":
            if acknowledged < 0 or acknowledged > self.top:
                return
            self.state = "open"
            self.side.connected = True
            self.retries = 0
            self.timer = float("inf")
        if acknowledged > self.top:
            self._send(self.nxt, ACK, b"")
            return
        self._acknowledge(acknowledged, packet)
        if self.state == "closed":
            return
        length = len(packet.payload) + (flags & FIN)
        if length or offset != self.rcv:
            self._take(offset, packet.payload, bool(flags & FIN))
        self.pump()
        if self.state == "open" and self.finishing and self.una > self.side.wrote and self._finished():
            self.state = "time-wait"
            self.side.over = True
            self.timer = self.stack.now() + TIME_WAIT
            self.stack.agenda.at(self.timer, self._tick, self.timer)

    def _finished(self) -> bool:
        return self.rcv_fin is not None and self.rcv > self.rcv_fin

    def _receive_syn_sent(self, packet: Packet) -> None:
        good = packet.ack == (self.iss + 1) % WORD
        if packet.flags & RST:
            if packet.flags & ACK and good:
                self.side.rst_seen = True
                self.close()
        elif packet.flags & SYN and packet.flags & ACK and good:
            self._heard_syn(packet)
            self.state = "open"
            self.side.connected = True
            self.retries = 0
            self.timer = float("inf")
            self._send(0, ACK, b"")
            self.pump()
        elif packet.flags & ACK:
            segment = tcp_segment(self.local, self.remote, self.lport, self.rport, packet.ack, 0, RST, 0)
            self.stack.ip(self.local, self.remote, TCP, segment)  # of an earlier life (RFC 9293 section 3.10.7.3)

    def _acknowledge(self, acknowledged: int, packet: Packet) -> None:
        if acknowledged > self.una:
            self.una = acknowledged
            self.nxt = max(self.nxt, acknowledged)
            self.retries = 0
            self.duplicates = 0
            self.timer = float("inf")
        elif acknowledged == self.una and self.una < self.nxt and not packet.payload:
            self.duplicates += 1
            if self.duplicates == 3:
                self._segment_at(self.una, self.me.mss)
        if acknowledged == self.una:
            self.edge = max(self.edge, acknowledged + (packet.window << self.peer_scale))
            if self.retries and self.una == self.nxt:
                self.retries = min(self.retries, 5)  # a probe was answered

    def _take(self, offset: int, payload: bytes, fin: bool) -> None:
        if fin and offset + len(payload) <= self.rcv_edge:
            self.rcv_fin = offset + len(payload)
        end = min(offset + len(payload), self.rcv_edge)
        if offset < self.rcv:
            payload = payload[self.rcv - offset :]
            offset = self.rcv
        payload = payload[: max(end - offset, 0)]
        before = self.rcv
        known = self.early.get(offset)
        if len(payload) > len(known or b"") and (known or offset == self.rcv or len(self.early) < MAX_EARLY):
            self.early[offset] = payload
        moved = True
        while moved:
            moved = False
            for start in sorted(self.early):
                if start <= self.rcv:
                    data = self.early.pop(start)[self.rcv - start :]
                    self.side.read += data
                    self.rcv += len(data)
                    if self.me.reads != "fast":
                        self.unread += len(data)
                        self._read_later()
                    moved = True
        if self.rcv_fin == self.rcv:
            self.rcv += 1
            self.rcv_edge = max(self.rcv_edge, self.rcv)
            self.side.fin_seen = True
            self._wrote_all()
        if self.me.lazy_ack and self.rcv > before and not self.early and not fin and self.ack_owed < 1:
            self.ack_owed += 1
            self.stack.agenda.after(0.04, self._late_ack)
        else:
            self._send(self.nxt, ACK, b"")

    def _late_ack(self) -> None:
        if self.ack_owed and self.state != "closed":
            self._send(self.nxt, ACK, b"")

"""A whole guest under attack, without tasks and without a network: frames go in, frames come out, and afterwards he
must still be served as if nothing had been.

`Victim.feed` and `Victim.check` are plain functions, so that hypothesis and atheris can drive them inside `trio.run`.
"""

from __future__ import annotations

import errno
import random
import socket
import struct
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio
from trio.testing import MockClock

from tests.fuzz import frames, frames6
from tests.vpnkit.net.still_guest import MuteHost, MuteSocket, StillGuest
from vpnkit.net import icmp, lan, tcp, udp
from vpnkit.net.leasing import dhcpv6_server
from vpnkit.net.naming import resolver_for
from vpnkit.net.network import NetworkOptions
from vpnkit.net.reachability import Reachability
from vpnkit.services import dns as dns_service
from vpnkit.services.dhcpv6 import Dhcpv6Service
from vpnkit.services.dns import DnsService

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tapdev.link import LinkCapabilities

DNS_NAME = "host.internal"


MAX_SEGMENTS = 64  # UDP_MAX_SEGMENTS of Linux: what one sendmsg with UDP_SEGMENT may cut


class RecordingSocket(MuteSocket):
    """Takes every datagram, and has its host remember the last ones."""

    host: RecordingHost

    def sendto(self, data, *_where):  # type: ignore[no-untyped-def, override]
        self.host.sent += 1
        self.host.heard.append(bytes(data))
        return len(data)

    def sendmsg(self, buffers, ancillary=(), *_rest):  # type: ignore[no-untyped-def, override]
        self.host.sent += 1
        whole = b"".join(map(bytes, buffers))
        size = struct.unpack("=H", ancillary[0][2])[0] if ancillary else len(whole) or 1
        if -(-len(whole) // size) > MAX_SEGMENTS:
            raise OSError(errno.EINVAL, "too many segments")
        self.host.heard.extend(whole[start : start + size] for start in range(0, len(whole), size))
        return len(whole)


class RecordingHost(MuteHost):
    """`heard` is what UDP and ping sockets were given.  The far ends of TCP stay open as long as the near ones."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: deque[bytes] = deque(maxlen=1000)
        self.sent = 0  # system calls
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._look_at = 128

    def tcp_socket(self, family: int = socket.AF_INET) -> socket.socket:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        self._pairs.append((near, far))
        self.far.append(far)
        if len(self._pairs) > self._look_at:
            for near_end, far_end in self._pairs:
                if near_end.fileno() < 0:
                    far_end.close()
            self._pairs = [pair for pair in self._pairs if pair[0].fileno() >= 0]
            self.far = deque(far_end for _, far_end in self._pairs)
            self._look_at = 2 * len(self._pairs) + 128
        return near

    @staticmethod
    def start_connect(made: socket.socket, address: tuple[str, int]) -> int:
        number = MuteHost.start_connect(made, address)
        if number == errno.EINPROGRESS:  # it must not look writable
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            try:
                while True:
                    made.send(bytes(4096))
            except BlockingIOError:
                pass
        return number

    def close(self) -> None:
        for _, far in self._pairs:
            far.close()

    def udp_socket(self, family: int = socket.AF_INET, *, gro: bool) -> socket.socket:  # type: ignore[override]
        made = RecordingSocket(socket.AF_INET, socket.SOCK_DGRAM)
        made.host = self
        made.setblocking(False)
        return made

    def ping_socket(self, family: int = socket.AF_INET) -> tuple[socket.socket, bool]:  # type: ignore[override]
        return self.udp_socket(gro=False), False


class Victim:
    """One guest with every service, his DNS server a socket that never answers."""

    def __init__(
        self,
        nursery: trio.Nursery,
        clock: MockClock,
        *,
        capabilities: LinkCapabilities | None = None,
        verify_checksums: bool = False,
        queue_frames: int = 4096,
        ipv6: str = "off",
    ) -> None:
        """`ipv6` is what is offered of it, with DHCPv6."""
        self.clock = clock
        self.still = StillGuest(
            nursery, verify_checksums=verify_checksums, capabilities=capabilities, queue_frames=queue_frames, ipv6=ipv6
        )
        self.guest = self.still.guest
        if ipv6 != "off":
            server = dhcpv6_server(self.guest.plan, self.guest.station.lan)
            assert server is not None
            self.guest.gateway.dhcpv6_service = Dhcpv6Service(server)
        self.link = self.still.link
        self.still.host = self.host = RecordingHost()
        self.guest.host = self.host  # type: ignore[assignment]
        self.upstream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.upstream.setblocking(False)
        self.upstream.bind(("127.0.0.1", 0))
        guest = self.guest
        upstream = self.upstream.getsockname()[:2]
        options = NetworkOptions(dns=[upstream], rng=random.Random(5))
        reachability = Reachability(guest.plan, self.host, "off")  # type: ignore[arg-type]
        guest.gateway.dns = DnsService(
            resolver_for(guest.plan, options, reachability),
            guest.poller,
            guest.deadlines,
            guest.now,
            random.Random(5),
        )
        self._port = 20_000
        self._before = dict(guest.counters)

    @property
    def far(self) -> deque[socket.socket]:
        """The host's ends of TCP connections, the newest last."""
        return self.host.far

    # What the guest does

    def feed(self, *bad: bytes) -> list[bytes]:
        """Frames of the guest, in bursts; returns what he is told until all is quiet."""
        out = []
        for start in range(0, len(bad) or 1, 256):
            out += self.still.feed(*(frame for frame in bad[start : start + 256] if len(frame) >= 14))
            while self.guest.station.port.pending:  # the guest's own task does it where there are tasks
                self.guest.station.port.flush()
                out += self.still.output()
        return out

    def raw(self, frame: bytes, gso_type: int = 0, gso_size: int = 0, *, partial: bool = False) -> list[bytes]:
        """One frame of any length with any metadata, as a link that checks nothing would deliver it."""
        guest = self.guest
        guest.link.gso_type, guest.link.gso_size, guest.link.checksum_partial = gso_type, gso_size, partial
        view = memoryview(bytearray(frame))
        real = guest.link.receive
        pending = [view]
        guest.link.receive = lambda: pending.pop() if pending else None  # type: ignore[method-assign]
        try:
            guest.burst()
        finally:
            guest.link.receive = real  # type: ignore[method-assign]
            guest.link.gso_type = guest.link.gso_size = 0
            guest.link.checksum_partial = False
        return self.feed()

    def passes(self, seconds: float) -> list[bytes]:
        """Time passes, and what was due happens.  Returns what the guest is told."""
        self.clock.jump(seconds)
        self.still.deadlines()
        return self.feed()

    def connect(self, *, port: int | None = None, dport: int = 8080, iss: int = 5000, options: bytes = b"") -> Peer:
        """An open connection of the guest, to a port whose host answers at once."""
        if port is None:
            self._port += 1
            port = self._port
        return Peer(self, port, dport, iss, options)

    def connect6(self, *, port: int | None = None, dport: int = 8080, iss: int = 5000, options: bytes = b"") -> Peer:
        """The same by IPv6."""
        if port is None:
            self._port += 1
            port = self._port
        return Peer6(self, port, dport, iss, options)

    def received_by_host(self, size: int = 1 << 20) -> bytes:
        """What the host's end of the newest connection got."""
        got = bytearray()
        while True:
            try:
                data = self.far[-1].recv(size)
            except BlockingIOError:
                return bytes(got)
            if not data:
                return bytes(got)
            got += data

    # What must hold

    def grew(self) -> dict[str, int]:
        """The counters that moved since the last call."""
        now = dict(self.guest.counters)
        moved = {
            what: count - self._before.get(what, 0) for what, count in now.items() if count != self._before.get(what)
        }
        self._before = now
        return moved

    def check_tables(self) -> None:
        guest = self.guest
        assert guest.counters["internal_error"] == 0, guest.counters
        assert len(guest.tcp.flows) <= tcp.MAX_FLOWS
        assert len(guest.tcp._held) <= tcp.MAX_HELD
        assert len(guest.tcp._time_wait) <= tcp.MAX_TIME_WAIT
        assert len(guest.udp.mappings) <= udp.MAX_MAPPINGS
        assert len(guest.icmp.sessions) <= icmp.MAX_SESSIONS
        assert len(guest.counters) < 80
        assert len(guest.station.addresses) <= lan.MAX_ADDRESSES
        assert guest.gateway.dns is not None
        assert guest.gateway.dns.statistics().failed == 0
        assert guest.gateway.dns.statistics().sockets <= dns_service.MAX_SOCKETS

    def check(self) -> None:
        """He is served as if nothing had been: ARP, ping, DNS, UDP and a TCP connection with data both ways."""
        self.passes(1.0)  # the rate limit of errors forgets
        self.check_tables()
        (reply,) = [f for f in self.feed(frames.arp()) if f[12:14] == b"\x08\x06"]
        assert reply[28:32] == frames.packed(frames.GATEWAY)
        assert [f for f in self.feed(frames.ping(b"alive?")) if f[23] == 1 and f[42:] == b"alive?"]
        answers = [f for f in self.feed(frames.dns(frames.dns_query(DNS_NAME))) if f[23] == 17]
        assert answers, "no answer of the name server"
        assert answers[-1].endswith(frames.packed(frames.HOST))
        self._check_peer(self.connect())
        self._check_ipv6()
        assert self.guest.counters["internal_error"] == 0

    def _check_peer(self, peer: Peer) -> None:
        peer.say(b"still here")
        assert self.received_by_host() == b"still here"
        self.far[-1].send(b"so am I")
        assert peer.hears() == b"so am I"
        peer.say(flags=frames.RST)

    def _check_ipv6(self) -> None:
        """By IPv6: a neighbour's question, ping, DNS and TCP."""
        (reply,) = [f for f in self.feed(frames6.solicitation()) if _is6(f, frames6.ICMP) and f[54] == 136]
        assert (reply[62:78], reply[80:86]) == (frames6.GATEWAY, frames.SERVER_MAC)
        assert [f for f in self.feed(frames6.ping(b"alive?")) if _is6(f, frames6.ICMP) and f[62:] == b"alive?"]
        answers = [f for f in self.feed(frames6.dns(frames.dns_query(DNS_NAME))) if _is6(f, frames6.UDP)]
        assert answers, "no answer of the name server by IPv6"
        assert answers[-1].endswith(frames.packed(frames.HOST))
        self._check_peer(self.connect6())

    def close(self) -> None:
        self.still.close()
        self.upstream.close()


def _is6(frame: bytes, protocol: int) -> bool:
    return frame[12:14] == b"\x86\xdd" and frame[20] == protocol


class Peer:
    """The guest's end of one connection: as much TCP as a test needs."""

    kind = b"\x08\x00"
    protocol_at = 23
    start = 34  # of TCP's header in a frame
    remote: str | bytes = frames.REMOTE
    frame = staticmethod(frames.tcp)

    def __init__(self, victim: Victim, port: int, dport: int, iss: int, options: bytes = b"") -> None:
        self.victim = victim
        self.fields = {"sport": port, "dport": dport, "dst": self.remote}
        self.seq = iss
        self.ack = 0
        self.got = bytearray()
        out = victim.feed(self.frame(seq=self.seq, flags=frames.SYN, options=options, **self.fields))
        self.seq = self.seq + 1 & 0xFFFFFFFF
        self._take(out)
        assert self.ack, "no SYN-ACK"
        self.say()

    def segment(self, payload: bytes = b"", **fields: object) -> bytes:
        fields = {"seq": self.seq, "ack": self.ack, "flags": frames.ACK, **self.fields, **fields}
        return self.frame(payload, **fields)

    def say(self, payload: bytes = b"", **fields: object) -> list[bytes]:
        """The next segment in order; returns what of this connection came back."""
        out = self.victim.feed(self.segment(payload, **fields))
        if "seq" not in fields:
            self.seq = self.seq + len(payload) & 0xFFFFFFFF
        return self._take(out)

    def hears(self, octets: int = 0) -> bytes:
        """What the host said, at least `octets` if they come within two minutes; everything is acknowledged."""
        self._take(self.victim.feed())
        for _ in range(1000):
            before = len(self.got)
            self.say()
            if len(self.got) == before:
                if before >= octets:
                    break
                self._take(self.victim.passes(0.2))
        return bytes(self.got)

    def _take(self, out: list[bytes]) -> list[bytes]:
        mine = [f for f in out if f[12:14] == self.kind and f[self.protocol_at] == 6 and self._is_mine(f)]
        for frame in mine:
            sequence, _, offset, flags = struct.unpack_from("!IIBB", frame, self.start + 4)
            payload = frame[self.start + (offset >> 4) * 4 : self._end(frame)]
            if flags & frames.SYN:
                self.ack = sequence + 1 & 0xFFFFFFFF
            elif payload and sequence == self.ack:
                self.got += payload
                self.ack = self.ack + len(payload) & 0xFFFFFFFF
        return mine

    def _is_mine(self, frame: bytes) -> bool:
        return struct.unpack_from("!HH", frame, self.start) == (self.fields["dport"], self.fields["sport"])

    @staticmethod
    def _end(frame: bytes) -> int:
        return 14 + int(struct.unpack_from("!H", frame, 16)[0])


class Peer6(Peer):
    """The same by IPv6."""

    kind = b"\x86\xdd"
    protocol_at = 20
    start = 54
    remote = frames6.REMOTE
    frame = staticmethod(frames6.tcp)

    @staticmethod
    def _end(frame: bytes) -> int:
        return 54 + int(struct.unpack_from("!H", frame, 18)[0])


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """The body takes less than so many seconds of this thread's own time, whatever else the machine does."""
    start = time.thread_time()
    yield
    assert time.thread_time() - start < seconds


def run(body: Callable[[trio.Nursery, MockClock], None]) -> None:
    """Call `body` inside a trio run with a clock that stands still until it is moved."""
    clock = MockClock()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            body(nursery, clock)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)

"""The guest's TCP: which flow a segment belongs to, what a SYN leads to, and what a segment of no flow is told.

A SYN is a question.  It is held, within bounds and with duplicates absorbed, until the host's `connect` answers: then
SYN-ACK, RST, the ICMP error that fits, or silence, as a real network would give it.
"""

from __future__ import annotations

import errno
import hashlib
import logging
from typing import TYPE_CHECKING, Final

from vpnkit.errors import WireError
from vpnkit.flow import error_queue
from vpnkit.flow import host as host_sockets
from vpnkit.flow.host import Failure
from vpnkit.flow.marks import USUAL_TTLS, mark_connected, mark_connection
from vpnkit.flow.splice import SpliceFlow
from vpnkit.flow.stream import GuestStream, StreamFlow
from vpnkit.net.policy import Host, Protocol, Refuse, Service, target
from vpnkit.net.problems import Problem, problem_of
from vpnkit.proto.tcp.budget import Budget
from vpnkit.proto.tcp.connection import Offer, TcpConnection
from vpnkit.proto.tcp.keepalive import Keepalive
from vpnkit.proto.tcp.seq import MASK, after
from vpnkit.proto.tcp.state import State
from vpnkit.wire import ipv4, ipv6, tcp
from vpnkit.wire.tcp import ACK, FIN, RST, SYN, FrameTemplate, FrameTemplate6, Segment

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from vpnkit.flow.tcp_flow import TcpFlow
    from vpnkit.net.guest import Guest
    from vpnkit.net.output import IpPacket

log = logging.getLogger(__name__)

KEEPALIVE: Final = Keepalive()
MAX_FLOWS: Final = 16384  # of one guest; a SYN beyond is refused
MAX_HELD: Final = 512  # SYNs whose host has not answered; the oldest makes place
MAX_HELD_PER_DESTINATION: Final = 64
TIME_WAIT_SECONDS: Final = 60.0
MAX_TIME_WAIT: Final = 16384  # oldest first
EPHEMERAL_PORTS: Final = range(49152, 65536)

_PROBLEM: Final = {
    Failure.NET_UNREACHABLE: Problem.NET_UNREACHABLE,
    Failure.HOST_UNREACHABLE: Problem.HOST_UNREACHABLE,
    Failure.PROTOCOL_UNREACHABLE: Problem.PROTOCOL_UNREACHABLE,
    Failure.PROHIBITED: Problem.PROHIBITED,
}
TCP_OVERHEAD: Final = {4: 40, 16: 60}  # length of an address -> octets of the headers of a segment
MAX_DATAGRAM: Final = 65535


class TcpTable:
    """Every TCP flow of one guest."""

    def __init__(
        self, guest: Guest, secret: bytes, *, keepalive: Keepalive | None = KEEPALIVE, budget: Budget | None = None
    ) -> None:
        """`secret` is what initial sequence numbers hang on; `budget` is shared with other guests."""
        self._guest = guest
        self._secret = secret
        self._keepalive = keepalive
        self._budget = budget or Budget()
        self.flows: dict[bytes, TcpFlow] = {}
        # flow key of a held SYN -> the datagram, for an ICMP error to quote, and the socket that asks
        self._held: dict[bytes, tuple[bytes, socket.socket]] = {}
        self._held_to: dict[bytes, int] = {}  # destination address and port -> how many
        # key -> (our SND.NXT, our RCV.NXT, when it ends); in the order in which they end
        self._time_wait: dict[bytes, tuple[int, int, float]] = {}

    # Segments

    def segment(self, packet: IpPacket, source_mac: bytes, now: float) -> None:
        """One segment that the fast path did not take.  Raises WireError."""
        segment = tcp.decode(packet.payload)
        key = packet.source + packet.destination + bytes(packet.payload[:4])
        flow = self.flows.get(key)
        if (
            flow is not None
            and flow.connection.is_held
            and segment.flags & (SYN | ACK | RST | FIN) == SYN
            and (segment.sequence + 1) & MASK != flow.connection.receiver.nxt
        ):
            flow.connection.abort("the guest asked anew", reset=False)
            self.forget(flow, now)
            flow = None
        if flow is None:
            self._segment_of_no_flow(packet, segment, key, source_mac, now)
            return
        connection = flow.connection
        if flow.pending_ack is not None:
            flow.take_pending_ack(now)
        if connection.state is State.SYN_SENT:
            if not connection.receive_syn_sent(
                segment.sequence,
                segment.acknowledgement,
                segment.flags,
                segment.window,
                tcp.decode_syn_options(segment.options, _default_mss(key)),
            ):
                self._reset(key, segment, source_mac)
        else:
            connection.receive(
                segment.sequence,
                segment.acknowledgement,
                segment.flags,
                segment.window,
                segment.payload,
                now,
                tcp.decode_sack(segment.options) if segment.options else (),
            )
        self._guest.touch(flow)

    def _segment_of_no_flow(
        self, packet: IpPacket, segment: Segment, key: bytes, source_mac: bytes, now: float
    ) -> None:
        if not segment.source_port or not segment.destination_port:
            raise WireError("TCP port 0")
        waiting = self._time_wait.get(key)
        if waiting is not None:
            if not self._in_time_wait(key, segment, waiting, source_mac, now):
                return
            del self._time_wait[key]
        flags = segment.flags & (SYN | ACK | RST | FIN)
        if flags == SYN:
            self._syn(packet, segment, key, source_mac, now)
        elif not flags & RST:
            self._guest.count("tcp_no_flow")
            self._reset(key, segment, source_mac)

    def _in_time_wait(
        self, key: bytes, segment: Segment, waiting: tuple[int, int, float], source_mac: bytes, now: float
    ) -> bool:
        """RFC 9293 section 3.10.7.4 for TIME-WAIT.  True when a new connection may take the place (MAY-2)."""
        our_next, their_next, ends = waiting
        if now >= ends:
            return True
        if segment.flags & RST:
            return False
        if segment.flags & (SYN | ACK | FIN) == SYN and after(segment.sequence, their_next):
            return True
        if not len(segment.payload) and not segment.flags & (SYN | FIN):
            return False  # two ends that answer an ACK by an ACK never stop
        template = self._template(key, source_mac)
        frame = template.with_options(our_next, their_next, ACK, 0, b"")
        self._guest.out.frame((frame,))
        return False

    def _reset(self, key: bytes, segment: Segment, source_mac: bytes) -> None:
        """A RST for a segment that no flow expects (RFC 9293 section 3.10.7.1)."""
        if segment.flags & RST:
            return
        template = self._template(key, source_mac)
        if segment.flags & ACK:
            frame = template.with_options(segment.acknowledgement, 0, RST, 0, b"")
        else:
            length = len(segment.payload) + (segment.flags & FIN) + (segment.flags & SYN != 0)
            frame = template.with_options(0, (segment.sequence + length) & MASK, RST | ACK, 0, b"")
        self._guest.out.frame((frame,))

    def _template(self, key: bytes, guest_mac: bytes) -> FrameTemplate:
        source, destination, ports = parts(key)
        back = ports[2:] + ports[:2]
        mac = self._guest.plan.server_mac
        if len(source) == 4:
            return FrameTemplate(guest_mac, mac, destination, source, back)
        label = hashlib.blake2s(key, key=self._secret, digest_size=3, person=b"label").digest()  # RFC 6437
        return FrameTemplate6(guest_mac, mac, destination, source, back, int.from_bytes(label, "big") & 0xFFFFF)

    def _initial_sequence(self, key: bytes, now: float) -> int:
        """RFC 9293 section 3.4.1: a 4 us clock and a keyed hash of the four-tuple."""
        digest = hashlib.blake2s(key, key=self._secret, digest_size=4).digest()
        return (int.from_bytes(digest, "big") + int(now * 250_000)) & MASK

    def _offer(self, key: bytes) -> Offer:
        capabilities = self._guest.link.capabilities
        size = (len(key) - 4) // 2
        overhead = TCP_OVERHEAD[size]
        mss = capabilities.mtu - overhead
        offload = capabilities.tso4 if size == 4 else capabilities.tso6
        return Offer(mss, MAX_DATAGRAM - overhead if offload else mss)

    # Flows that the guest opens

    def _syn(self, packet: IpPacket, segment: Segment, key: bytes, source_mac: bytes, now: float) -> None:
        guest = self._guest
        aim = target(Protocol.TCP, packet.destination, segment.destination_port, guest.plan, nat64=guest.nat64)
        if isinstance(aim, Host) and guest.gateway.intercepts(aim):
            aim = Service.HTTP_PROXY
        if aim is Refuse.SILENT:
            guest.count("tcp_bad_destination")
            return
        if aim is Refuse.PROHIBITED:
            guest.out.icmp_error(packet, Problem.PROHIBITED)
            return
        if isinstance(aim, Refuse) or (isinstance(aim, Service) and not guest.gateway.serves(aim)):
            self._reset(key, segment, source_mac)
            return
        if len(self.flows) >= MAX_FLOWS or not guest.admit():
            guest.count("tcp_limit")
            self._reset(key, segment, source_mac)
            return
        options = tcp.decode_syn_options(segment.options, _default_mss(key))
        connection = TcpConnection.passive(
            self._initial_sequence(key, now),
            self._offer(key),
            segment.sequence,
            options,
            segment.window,
            keepalive=self._keepalive,
            budget=self._budget,
        )
        template = self._template(key, source_mac)
        if isinstance(aim, Host):
            if guest.out.expired(packet):
                return
            self._dial(packet, key, connection, template, (aim.address, aim.port))
        else:
            flow = StreamFlow(guest, guest.next_number(), key, connection, template)
            flow.remote = aim.name.lower()
            self.flows[key] = flow
            connection.accept(now)
            guest.touch(flow)
            guest.gateway.serve(aim, GuestStream(flow), packet.source)

    def _dial(
        self,
        packet: IpPacket,
        key: bytes,
        connection: TcpConnection,
        template: FrameTemplate,
        address: host_sockets.Address,
    ) -> None:
        guest = self._guest
        destination = _called(key)
        if self._held_to.get(destination, 0) >= MAX_HELD_PER_DESTINATION:
            guest.count("tcp_held_limit")  # dropped: the guest asks again
            return
        if len(self._held) >= MAX_HELD:
            self._drop_oldest_held()
        try:
            made = guest.host.tcp_socket(host_sockets.family_of(address[0]))
        except OSError:
            guest.count("tcp_connect_exhausted")
            connection.abort("no descriptor")
            self._send_reset(connection, template)
            return
        mark_connection(made, packet.ttl, packet.tos)
        number = guest.host.start_connect(made, address)
        flow = SpliceFlow(guest, guest.next_number(), key, connection, template, made, guest.poller)
        flow.remote = host_sockets.text(address)
        self.flows[key] = flow
        if number == errno.EINPROGRESS:
            self._held[key] = bytes(packet.header) + bytes(packet.payload), made
            self._held_to[destination] = self._held_to.get(destination, 0) + 1
            flow.wait_for_host(self._host_answered)
        else:
            self._answer(flow, number, bytes(packet.header) + bytes(packet.payload), made)

    def _drop_oldest_held(self) -> None:
        """So that black holes, which take minutes, do not keep the guest from everybody else."""
        self._guest.count("tcp_held_evicted")
        flow = self.flows[next(iter(self._held))]
        flow.connection.abort("made place for a newer SYN", reset=False)
        self.forget(flow, self._guest.now())

    def _send_reset(self, connection: TcpConnection, template: FrameTemplate) -> None:
        segment = connection.next_segment()
        if segment is not None:
            acknowledgement, window = connection.acknowledgement_fields(segment.flags)
            self._guest.out.frame(
                (template.with_options(segment.sequence, acknowledgement, segment.flags, window, b""),)
            )

    def _host_answered(self, flow: SpliceFlow, number: int) -> None:
        held = self._release_held(flow.key)
        if held is not None:
            self._answer(flow, number, *held)

    def _release_held(self, key: bytes) -> tuple[bytes, socket.socket] | None:
        held = self._held.pop(key, None)
        if held is not None:
            destination = _called(key)
            left = self._held_to[destination] - 1
            if left:
                self._held_to[destination] = left
            else:
                del self._held_to[destination]
        return held

    def _answer(self, flow: SpliceFlow, number: int, quoted: bytes, made: socket.socket) -> None:
        """The host's `connect` ended with `number`: say to the guest what a real network would."""
        guest = self._guest
        connection = flow.connection
        if connection.is_closed:
            guest.touch(flow)
            return
        if number == 0:
            mark_connected(made, _ttl(quoted))
            flow.opened()
            connection.accept(guest.now())
            guest.touch(flow)
            return
        what = host_sockets.failure(number)
        guest.count(f"tcp_connect_{what.name.lower()}")
        problem = _PROBLEM.get(what)
        expired = None
        if what is Failure.HOST_UNREACHABLE and _ttl(quoted) not in USUAL_TTLS:
            expired = next((e for e in error_queue.take(made) if e.from_network and _is_expiry(e)), None)
        if expired is not None:
            guest.out.icmp_passed_on(expired, quoted)
        elif problem is not None:
            guest.out.icmp_quote(quoted, problem)
        reset = what is Failure.REFUSED or what is Failure.EXHAUSTED
        connection.abort(f"connect: {errno.errorcode.get(number, number)}", reset=reset)
        guest.touch(flow)

    # Flows that the host opens

    def call(
        self,
        source: bytes,
        destination: bytes,
        port: int,
        made: socket.socket,
        guest_mac: bytes,
        *,
        source_port: int | None = None,
        first: bytes = b"",
    ) -> SpliceFlow:
        """Call the guest at `destination`:`port` from `source`, for the connected host socket `made`.

        `source_port` is taken if it is free towards that port; `first` goes to the guest before anything else.
        Raises OSError: EADDRNOTAVAIL when every source port is in use, ENOBUFS when the guest has too many flows.
        """
        guest = self._guest
        now = guest.now()
        tail = port.to_bytes(2, "big")
        for ours in self.ports(source_port):
            key = destination + source + tail + ours.to_bytes(2, "big")
            if key not in self.flows and key not in self._time_wait:
                break
        else:
            raise OSError(errno.EADDRNOTAVAIL, "every port towards the guest is in use")
        if len(self.flows) >= MAX_FLOWS:
            raise OSError(errno.ENOBUFS, "the guest has too many flows")
        connection = TcpConnection.active(
            self._initial_sequence(key, now), self._offer(key), now, keepalive=self._keepalive, budget=self._budget
        )
        template = self._template(key, guest_mac)
        flow = SpliceFlow(guest, guest.next_number(), key, connection, template, made, guest.poller, inbound=True)
        peer = made.getpeername()
        flow.remote = host_sockets.text(peer) if isinstance(peer, tuple) else str(peer)
        flow.first = first
        flow.opened()
        self.flows[key] = flow
        return flow

    def ports(self, wanted: int | None) -> Iterator[int]:
        """Ports to call the guest from, in the order in which they are to be tried: unguessable (RFC 6056)."""
        if wanted:
            yield wanted
        start = self._guest.random.randrange(len(EPHEMERAL_PORTS))
        for i in range(len(EPHEMERAL_PORTS)):
            yield EPHEMERAL_PORTS[(start + i) % len(EPHEMERAL_PORTS)]

    # Endings

    def forget(self, flow: TcpFlow, now: float) -> None:
        """`flow` is over: release what it holds, keep what TIME-WAIT needs."""
        if self.flows.get(flow.key) is not flow:
            return  # forgotten before; another one may have its ports now
        del self.flows[flow.key]
        self._release_held(flow.key)
        flow.release()
        connection = flow.connection
        connection.release()
        if connection.state is State.TIME_WAIT:
            self._expire_time_wait(now)
            if len(self._time_wait) >= MAX_TIME_WAIT:
                del self._time_wait[next(iter(self._time_wait))]
            ends = now + TIME_WAIT_SECONDS
            self._time_wait[flow.key] = (connection.sender.nxt, connection.receiver.nxt, ends)
        if connection.aborted:
            self._guest.count("tcp_aborted")

    def _expire_time_wait(self, now: float) -> None:
        while self._time_wait:
            key = next(iter(self._time_wait))
            if self._time_wait[key][2] > now:
                return
            del self._time_wait[key]

    def icmp_error(self, problem: Problem | None, quoted: IpPacket, mtu: int) -> None:
        """The guest's ICMP error about a segment of ours: only a call that was not answered yet can fail by it, when
        its SYN is quoted (RFC 5927 section 4.1).  `mtu` is what TOO_LARGE says."""
        if len(quoted.payload) < 8:
            return
        key = quoted.destination + quoted.source + bytes(quoted.payload[2:4]) + bytes(quoted.payload[0:2])
        flow = self.flows.get(key)
        if flow is None:
            return
        connection = flow.connection
        sequence = int.from_bytes(quoted.payload[4:8], "big")
        if problem is Problem.TOO_LARGE:
            mss = max(mtu - TCP_OVERHEAD[len(quoted.source)], _default_mss(key))  # less is of who does not know
            if connection.state.synchronized and connection.sender.too_big(sequence, mss):
                self._guest.touch(flow)
        elif (
            problem in (Problem.PROTOCOL_UNREACHABLE, Problem.PORT_UNREACHABLE)
            and connection.state is State.SYN_SENT
            and sequence == connection.iss
        ):
            connection.abort("unreachable in the guest", reset=False)
            self._guest.touch(flow)

    def close(self) -> None:
        """The guest is gone: give up every flow."""
        for flow in list(self.flows.values()):
            flow.connection.abort("the guest is gone", reset=False)
            flow.release()
            flow.connection.release()
        self.flows.clear()
        self._held.clear()
        self._held_to.clear()
        self._time_wait.clear()


def parts(key: bytes) -> tuple[bytes, bytes, bytes]:
    """Of a flow's key: source and destination address, and both ports in 4 octets."""
    size = (len(key) - 4) // 2
    return key[:size], key[size:-4], key[-4:]


def _called(key: bytes) -> bytes:
    """Destination address and port."""
    return key[(len(key) - 4) // 2 : -4] + key[-2:]


def _default_mss(key: bytes) -> int:
    return tcp.DEFAULT_MSS if len(key) == 12 else tcp.DEFAULT_MSS6


def _ttl(quoted: bytes) -> int:
    return quoted[ipv4.TTL_OFFSET if quoted[0] >> 4 == 4 else ipv6.HOP_LIMIT_OFFSET]


def _is_expiry(error: error_queue.HostError) -> bool:
    return problem_of(error.version, error.kind, error.code) is Problem.EXPIRED

"""The history checker: what must hold in every world, from what was seen outside the network under test.

Frames are judged one by one as they cross the network's own end of the link; connections are judged when they are
over, from what both applications wrote, read and saw.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.sim.packets import ACK, FIN, ICMP, ICMPV6, RST, SYN, TCP, UDP, Bad, Packet, Reassembly, address
from tests.sim.packets6 import parse
from tests.sim.wire import OUTGOING

if TYPE_CHECKING:
    from collections.abc import Container

    from tests.sim.checker6 import RouterChecker
    from tests.sim.history import FlowHistory, History, Side

WORD: Final = 1 << 32
# What a guest must see of an error of `connect`, by the length of the address that he called.
REFUSALS: Final = {
    4: {
        errno.ECONNREFUSED: "RST",
        errno.ECONNRESET: "RST",
        errno.ENETUNREACH: "ICMP 3.0",
        errno.EHOSTUNREACH: "ICMP 3.1",
        errno.EINVAL: "ICMP 3.1",
        errno.ENOPROTOOPT: "ICMP 3.2",
        errno.EACCES: "ICMP 3.13",
        errno.EPERM: "ICMP 3.13",
        errno.ETIMEDOUT: "",
    },
    16: {
        errno.ECONNREFUSED: "RST",
        errno.ECONNRESET: "RST",
        errno.ENETUNREACH: "ICMP 1.0",
        errno.EHOSTUNREACH: "ICMP 1.3",
        errno.EINVAL: "ICMP 1.3",
        errno.ENOPROTOOPT: "ICMP 4.1",
        errno.EACCES: "ICMP 1.1",
        errno.EPERM: "ICMP 1.1",
        errno.ETIMEDOUT: "",
    },
}


class Broken(AssertionError):
    """An invariant does not hold."""


def ahead(sequence: int, base: int) -> int:
    return (sequence - base + WORD // 2) % WORD - WORD // 2


@dataclass(slots=True)
class Seen:
    """One connection as its frames show it.  `ours` is what the network sent, `theirs` what the guest sent."""

    our_iss: int | None = None
    their_iss: int | None = None
    our_scale: int | None = None  # as offered in the SYN; both must offer
    their_scale: int | None = None
    edge: int | None = None  # the right edge that we offered
    their_edge: int | None = None  # that the guest offered
    their_fin: int | None = None  # the sequence number of the guest's FIN
    our_end: int | None = None
    our_fin: int | None = None
    scaled: bool = field(default=False)


class FrameChecker:
    """I3, I4 and I5, frame by frame."""

    def __init__(self, server_mac: bytes, *, mtu: int, router: RouterChecker | None = None) -> None:
        self._server_mac = server_mac
        self._mtu = mtu
        self._router = router
        self._reassembly = Reassembly()
        self.seen: dict[tuple[bytes, int, bytes, int], Seen] = {}
        self._asked: dict[tuple[bytes, int, bytes, int], dict[int, Packet]] = {}  # SYNs of the guest, by number
        self.repeated: set[tuple[bytes, int]] = set()  # where the same SYN went more than once
        self.frames = 0

    def frame(self, direction: int, frame: bytes, partial: bool, gso_size: int) -> Packet | None:
        """One frame; returns it taken apart.  Raises Broken."""
        self.frames += 1
        if direction == OUTGOING:
            return self._sent(frame, partial, gso_size)
        try:
            packet = parse(frame)
        except Bad:
            return None  # a corrupted one, which we should not even look at
        if packet.protocol == TCP and packet.fragment is None:
            key = (packet.source, packet.sport, packet.destination, packet.dport)
            self._heard_tcp(key, packet)
        return packet

    def forget(self, key: tuple[bytes, int, bytes, int]) -> None:
        """This connection is over for good."""
        self.seen.pop(key, None)
        self._asked.pop(key, None)

    def _sent(self, frame: bytes, partial: bool, gso_size: int) -> Packet:
        try:
            packet = parse(frame, mtu=self._mtu, partial=partial, gso_size=gso_size)
            if packet.ttl == 0 and packet.protocol:
                raise Bad("hop limit 0")
            whole = packet if packet.fragment is None else self._reassembly.add(packet)
            if whole is not None and whole.protocol == ICMPV6 and self._router is not None:
                self._router.sent(whole)
        except Bad as bad:
            raise Broken(f"{'' if str(bad)[:3] == 'I11' else 'I5: '}{bad}: {frame[:80].hex()}") from None
        if packet.source_mac != self._server_mac:
            raise Broken("I5: not from our MAC address")
        if packet.protocol == TCP:
            self._sent_tcp((packet.destination, packet.dport, packet.source, packet.sport), packet)
        elif packet.protocol not in (0, UDP, ICMP, ICMPV6):
            raise Broken(f"I5: protocol {packet.protocol}")
        return packet

    def _heard_tcp(self, key: tuple[bytes, int, bytes, int], packet: Packet) -> None:
        seen = self.seen.get(key)
        if packet.flags & (SYN | ACK) == SYN:
            # It is a connection when we say so; until then there may be an older one.
            asked = self._asked.setdefault(key, {})
            if packet.seq in asked:
                self.repeated.add((packet.destination, packet.dport))
            asked[packet.seq] = packet
            return
        if seen is None:
            return
        if packet.flags & SYN:
            seen.their_iss = packet.seq
            seen.their_scale = packet.wscale
        if packet.flags & FIN:
            seen.their_fin = (packet.seq + len(packet.payload)) % WORD
        if packet.flags & ACK:
            seen.scaled = seen.our_scale is not None and seen.their_scale is not None
            scale = seen.their_scale if seen.scaled and seen.their_scale and not packet.flags & SYN else 0
            edge = (packet.ack + (packet.window << scale)) % WORD
            if seen.their_edge is None or ahead(edge, seen.their_edge) > 0:
                seen.their_edge = edge

    def _sent_tcp(self, key: tuple[bytes, int, bytes, int], packet: Packet) -> None:
        flags = packet.flags
        seen = self.seen.get(key)
        again = seen is not None and flags & SYN and seen.our_iss == packet.seq  # its window is an old one
        if flags & SYN and not again:
            seen = self.seen[key] = Seen()
            if flags & ACK:
                self._answer(seen, key, packet)
        if seen is None:
            if not flags & RST and not flags & SYN:
                raise Broken("I2: a segment on a connection that nobody opened")
            return
        if flags & RST:
            return
        if flags & SYN:
            seen.our_iss = packet.seq
            seen.our_scale = packet.wscale
            if flags & ACK and seen.their_scale is None and packet.wscale is not None:
                raise Broken("I5: window scaling that the guest did not offer")
        if flags & ACK and not again:
            self._check_edge(seen, packet)
        if not flags & SYN:
            self._check_flight(seen, packet)

    def _answer(self, seen: Seen, key: tuple[bytes, int, bytes, int], packet: Packet) -> None:
        """Our SYN-ACK: the guest's SYN became a connection."""
        syn = self._asked.get(key, {}).get((packet.ack - 1) % WORD)
        if syn is None:
            raise Broken("I2: an answer to a SYN that was not there")
        seen.their_iss = syn.seq
        seen.their_scale = syn.wscale

    @staticmethod
    def _check_edge(seen: Seen, packet: Packet) -> None:
        if seen.their_fin is not None and ahead(packet.ack, seen.their_fin) > 0:
            return  # nothing can come any more
        scale = seen.our_scale if seen.our_scale and seen.their_scale is not None and not packet.flags & SYN else 0
        edge = (packet.ack + (packet.window << scale)) % WORD
        if seen.edge is not None and ahead(edge, seen.edge) < 0:
            raise Broken(f"I3: the right edge moved {-ahead(edge, seen.edge)} octets to the left")
        seen.edge = edge

    @staticmethod
    def _check_flight(seen: Seen, packet: Packet) -> None:
        end = (packet.seq + len(packet.payload)) % WORD
        if packet.payload:
            if seen.their_edge is None:
                raise Broken("I4: data before the guest said how much he takes")
            if ahead(end, seen.their_edge) > 1:
                raise Broken(f"I4: {ahead(end, seen.their_edge)} octets beyond the guest's window")
            if seen.our_fin is not None and ahead(end, seen.our_fin) > 0:
                raise Broken("I2: data behind our FIN")
        if packet.flags & FIN:
            if seen.our_fin is not None and seen.our_fin != end:
                raise Broken("I2: our FIN moved")
            seen.our_fin = end


class FlowChecker:
    """I1 and I2, connection by connection."""

    def __init__(self, history: History, *, small_tables: bool, repeated: Container[tuple[bytes, int]] = ()) -> None:
        """`repeated`: where the same SYN went more than once."""
        self._history = history
        self._repeated = repeated
        self._excused = small_tables

    def check(self, flow: FlowHistory) -> None:
        """Raises Broken."""
        pairs = self._pairs(flow)
        for guest, host in pairs:
            self._pair(flow, guest, host)
        paired = [id(side) for pair in pairs for side in pair]
        for side in flow.guest:
            if id(side) not in paired:
                self._lonely_guest(flow, side)
        for side in flow.host:
            if id(side) not in paired:
                if side.read:
                    raise Broken(f"I1: flow {flow.plan.number}: the host read what no guest wrote")
                if side.fin_seen:
                    raise Broken(f"I2: flow {flow.plan.number}: the host saw an end that nobody made")
                if not (side.rst_seen and self._may_be_alone(flow)):
                    self._excuse(flow, side, None, "a host connection without a guest")

    def _may_be_alone(self, flow: FlowHistory) -> bool:
        """A call that the guest did not take; or an old duplicate of a SYN, which nobody can know from a new one."""
        plan = flow.plan
        if plan.forward:
            return plan.answer != "accept"
        return (address(plan.address), plan.port) in self._repeated and any(side.over for side in flow.guest)

    def _pairs(self, flow: FlowHistory) -> list[tuple[Side, Side]]:
        """Which connection of the guest goes with which socket of the host: what was read tells it."""
        pairs = []
        hosts = list(flow.host)
        for guest in flow.guest:
            for host in hosts:
                if self._matches(guest, host) and self._matches(host, guest) and (host.read or guest.read):
                    pairs.append((guest, host))
                    hosts.remove(host)
                    break
        left = [guest for guest in flow.guest if not any(guest is one for one, _ in pairs) and guest.connected]
        silent = [host for host in hosts if not host.read]
        for guest in left:
            possible = [
                host
                for host in silent
                if flow.plan.forward or (not guest.read and not host.read and host.began >= guest.began)
            ]
            if possible:
                host = min(possible, key=lambda host: self._ends_differ(guest, host))
                pairs.append((guest, host))
                silent.remove(host)
        return pairs

    @staticmethod
    def _ends_differ(guest: Side, host: Side) -> int:
        """How many ends were seen on one side and not made on the other, or the other way round."""
        return (guest.fin_seen != host.fin_sent) + (host.fin_seen != guest.fin_sent)

    @staticmethod
    def _matches(writer: Side, reader: Side) -> bool:
        return writer.expected()[: len(reader.read)] == reader.read

    def _pair(self, flow: FlowHistory, guest: Side, host: Side) -> None:
        name = f"flow {flow.plan.number}"
        for writer, reader, who in ((guest, host, "the host"), (host, guest, "the guest")):
            expected = writer.expected()
            if expected[: len(reader.read)] != reader.read:
                raise Broken(f"I1: {name}: {who} read what was not written")
            if reader.fin_seen:
                if not writer.fin_sent:
                    raise Broken(f"I2: {name}: {who} saw an end that nobody made")
                if len(reader.read) != writer.wrote:
                    raise Broken(f"I1: {name}: {who} read {len(reader.read)} of {writer.wrote} octets and then the end")
            if reader.rst_seen:
                self._excuse(flow, guest, host, f"{who} saw a reset")
        if not (guest.fin_seen and host.fin_seen and guest.over and host.over):
            self._excuse(flow, guest, host, f"did not end on both sides: {brief(guest)} | {brief(host)}")

    def _lonely_guest(self, flow: FlowHistory, guest: Side) -> None:
        plan = flow.plan
        if guest.read:
            raise Broken(f"I1: flow {plan.number}: the guest read what no host wrote")
        if plan.forward:
            self._excuse(flow, guest, None, "a call of the host that is not there")
        elif flow.errors and not guest.connected:
            self._check_refusal(flow, guest)  # a host is there where the same SYN came once more, too late for him
        elif flow.errors and not flow.host:
            raise Broken(f"I2: flow {plan.number}: connected to a host that did not answer")
        else:
            self._excuse(flow, guest, None, f"the host was never asked: {brief(guest)}")

    def _check_refusal(self, flow: FlowHistory, guest: Side) -> None:
        wanted = {REFUSALS[len(address(flow.plan.address))][number] for number in flow.errors}
        saw = guest.refused or ("RST" if guest.rst_seen else "")
        if saw not in wanted:
            said = " and ".join(errno.errorcode[number] for number in sorted(flow.errors))
            self._excuse(flow, guest, None, f"connect said {said}, the guest saw {saw or 'nothing'}")

    def _excuse(self, flow: FlowHistory, one: Side, other: Side | None, what: str) -> None:
        """Bad ends have a cause in the world outside."""
        if self._excused or self._history.everywhere or one.causes or (other is not None and other.causes):
            return
        if any(side.causes for side in (*flow.guest, *flow.host)):
            return
        raise Broken(f"I2: flow {flow.plan.number}: {what}, for no reason")


def brief(side: Side) -> str:
    said = [
        name for name in ("connected", "fin_sent", "fin_seen", "rst_sent", "rst_seen", "over") if getattr(side, name)
    ]
    return f"wrote {side.wrote} read {len(side.read)} {' '.join(said)}"

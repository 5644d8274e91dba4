"""A whole guest under attack by both IPs at once: TCP, UDP, ICMPv6, neighbour discovery, DHCPv6 and fragments in any
order, while honest connections of both families go on (conformance.md B2, B13, I10)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from tests.fuzz import frames, frames6
from tests.fuzz.frames6 import ALL_NODES, GATEWAY, GUEST, HOST, LINK_LOCAL, REMOTE, ROUTER, UNSPECIFIED, packed
from tests.fuzz.test_stateful_guest import FLAGS, NUMBERS, PORTS, SLOW, UnderAttack, run_machine
from vpnkit.net import icmp, tcp, udp
from vpnkit.net.lan import MAX_ADDRESSES
from vpnkit.proto import dhcpv6
from vpnkit.proto.reassembly import HIGH_WATER

EVERYDAY = settings(max_examples=25, stateful_step_count=40, deadline=None)
THOROUGH = settings(max_examples=200, stateful_step_count=60, deadline=None)

OTHERS = st.integers(0, 255).map(lambda last: packed(f"fd65:7670:6e6b::{last:x}"))
SOURCES = st.sampled_from([GUEST, GUEST, LINK_LOCAL, UNSPECIFIED, GATEWAY, ROUTER, packed("2001:db8::1")]) | OTHERS
SERVERS = st.sampled_from(
    [
        *(GATEWAY, HOST, REMOTE, REMOTE, ROUTER, ALL_NODES, packed("fe80::1"), packed("::1"), packed("ff0e::1")),
        *(packed("64:ff9b::909:909"), packed("::ffff:9.9.9.9"), packed("fd65:7670:6e6b::77"), packed("fd00:ec2::254")),
    ]
)
NEIGHBOURS = st.sampled_from([GATEWAY, HOST, ROUTER, GUEST, LINK_LOCAL, REMOTE, ALL_NODES]) | OTHERS
MACS = st.sampled_from([frames.MAC, frames.SERVER_MAC, frames.BROADCAST, bytes(6), b"\x02\0\0\0\0\x09"])
SIZES = st.sampled_from([0, 1, 12, 300, 1452])


def option(code: int, value: bytes) -> bytes:
    return struct.pack("!HH", code, len(value)) + value


class UnderAttack6(UnderAttack):
    """What `UnderAttack` does goes on as well."""

    ipv6 = "on"

    def __init__(self) -> None:
        super().__init__()
        self.faithful6 = self.victim.connect6(port=4446)
        self.host_end6 = self.victim.far[-1]
        self.ends.append(self.host_end6)

    @rule(src=SOURCES, dst=SERVERS, sport=PORTS, dport=PORTS, size=SIZES, repeat=st.integers(1, 3))
    def datagram6(self, src, dst, sport, dport, size, repeat):
        self.victim.feed(*[frames6.udp(bytes(size), src=src, dst=dst, sport=sport, dport=dport)] * repeat)

    @rule(
        src=SOURCES,
        dst=SERVERS,
        ident=st.integers(0, 5),
        size=st.sampled_from([0, 56, 1400]),
        kind=st.sampled_from([128, 128, 129, 143, 130, 255]),
    )
    def ping6(self, src, dst, ident, size, kind):
        self.victim.feed(frames6.icmp(kind, 0, struct.pack("!HH", ident, 1) + bytes(size), src=src, dst=dst))

    @rule(
        src=SOURCES,
        dst=SERVERS,
        sport=PORTS,
        dport=PORTS,
        flags=FLAGS,
        seq=NUMBERS,
        ack=NUMBERS,
        size=st.sampled_from([0, 1, 1400]),
        hops=st.sampled_from([64, 64, 1, 0]),
    )
    def segment6(self, src, dst, sport, dport, flags, seq, ack, size, hops):
        """Of a flow that may be there: its numbers are known to him."""
        flow = self.victim.guest.tcp.flows.get(src + dst + struct.pack("!HH", sport, dport))
        if flow is not None and flow.connection._heard:
            seq += flow.connection.receiver.nxt
            ack += flow.connection.sender.top
        fields = {"sport": sport, "dport": dport, "flags": flags, "seq": seq, "ack": ack}
        self.victim.feed(frames6.tcp(bytes(size), src=src, dst=dst, hops=hops, **fields))

    @rule(
        kind=st.sampled_from([1, 1, 2, 3, 4, 4, 0, 5]),
        code=st.integers(0, 7),
        sport=st.sampled_from([4446, 4446, 4446, 5000, 5001]),
        dport=st.sampled_from([8080, 8080, 8080, 8081, 8082]),
        parameter=st.sampled_from([0, 68, 1279, 1280, 1500, 2**32 - 1]),
        seq=NUMBERS,
    )
    def icmp_error6(self, kind, code, sport, dport, parameter, seq):
        """About a segment of ours, also of the honest connection: its numbers are known to him."""
        flow = self.victim.guest.tcp.flows.get(GUEST + REMOTE + struct.pack("!HH", sport, dport))
        if flow is not None and flow.connection._heard:
            seq += flow.connection.sender.una
        ours = frames.tcp_segment(sport=dport, dport=sport, seq=seq, src=REMOTE, dst=GUEST)
        quoted = frames.ipv6(ours, 6, src=REMOTE, dst=GUEST)
        self.victim.feed(frames6.icmp(kind, code, struct.pack("!I", parameter) + quoted, dst=REMOTE))

    @rule(
        ident=st.integers(0, 3),
        start=st.integers(0, 20),
        size=st.integers(0, 40),
        more=st.booleans(),
        protocol=st.sampled_from([17, 6, 58, 44, 0, 60]),
        dst=SERVERS,
    )
    def fragment6(self, ident, start, size, more, protocol, dst):
        share = bytes(8 * size)
        self.victim.feed(frames6.fragment(share, 8 * start, ident=ident, more=more, protocol=protocol, dst=dst))

    @rule(
        kind=st.integers(132, 138),
        src=SOURCES,
        dst=NEIGHBOURS,
        asked=NEIGHBOURS,
        told=MACS,
        which=st.integers(0, 3),
        hops=st.sampled_from([255, 255, 255, 64]),
        flags=st.sampled_from([0, 0x20, 0x60, 0xE0]),
    )
    def neighbour(self, kind, src, dst, asked, told, which, hops, flags):
        rest = {133: b"", 134: bytes(8)}.get(kind, asked) + (bytes(16) if kind == 137 else b"")
        body = bytes((flags, 0, 0, 0)) + rest + (frames6.option(which, told) if which else b"")
        self.victim.feed(frames6.icmp(kind, 0, body, src=src, dst=dst, hops=hops))

    @rule(
        kind=st.integers(0, 14),
        src=SOURCES,
        wanted=OTHERS,
        iaid=st.integers(0, 6),
        association=st.sampled_from([3, 4, 25]),
        client=MACS,
        server=st.sampled_from([b"", b"\0\3\0\1" + frames.SERVER_MAC, b"\0\3\0\1" + frames.MAC]),
    )
    def lease6(self, kind, src, wanted, iaid, association, client, server):
        head = struct.pack("!III", iaid, 0, 0)[: 4 if association == 4 else 12]
        options = option(1, b"\0\3\0\1" + client) + option(8, bytes(2))
        options += option(association, head + option(5, wanted + bytes(8)))
        if server:
            options += option(2, server)
        self.victim.feed(frames6.dhcp(bytes((kind, 1, 2, 3)) + options, src=src))

    @rule(question=st.sampled_from(["host.internal", "a.example", ""]), qtype=st.sampled_from([1, 28, 12, 255]))
    def name6(self, question, qtype):
        self.victim.feed(frames6.dns(frames.dns_query(question, qtype=qtype)))

    @rule(chain=st.lists(st.sampled_from([0, 43, 44, 60, 59, 51, 99]), max_size=12), dst=SERVERS)
    def chain(self, chain, dst):
        following, payload = 17, frames.udp_datagram(b"chained", src=GUEST, dst=dst)
        for header in reversed(chain):
            payload = bytes((following, 0)) + bytes(6) + payload
            following = header
        self.victim.feed(frames6.ether(frames.ipv6(payload, following, src=GUEST, dst=dst)))

    @invariant()
    def bounded6(self):
        guest = self.victim.guest
        assert len(guest.station.addresses) <= MAX_ADDRESSES
        assert guest.intake._reassembler6.octets <= HIGH_WATER
        server = guest.gateway.dhcpv6_service.server
        assert len(server.leases(guest.now())) <= dhcpv6.MAX_BINDINGS
        assert server.declined() <= dhcpv6.MAX_DECLINED

    @invariant()
    def nobody_has_what_is_ours(self):
        assert not {GATEWAY, HOST, ROUTER} & set(self.victim.guest.station.addresses)

    @invariant()
    def faithful_is_not_hurt_by_ipv6(self):
        self.faithful6.say(b"+")
        assert self.host_end6.recv(10) == b"+"


@pytest.fixture
def small_tables(monkeypatch):
    monkeypatch.setattr(tcp, "MAX_HELD", 4)
    monkeypatch.setattr(tcp, "MAX_TIME_WAIT", 4)
    monkeypatch.setattr(udp, "MAX_MAPPINGS", 3)
    monkeypatch.setattr(icmp, "MAX_SESSIONS", 3)


@pytest.mark.parametrize("how", [EVERYDAY, pytest.param(THOROUGH, marks=SLOW)], ids=["everyday", "thorough"])
def test_a_guest_under_attack_by_both_ips(how, small_tables):
    run_machine(UnderAttack6, how)

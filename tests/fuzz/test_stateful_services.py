"""The DHCP server and the DNS forwarder with clients who say anything in any order (conformance.md B2)."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vpnkit.net.leasing import dhcp_config
from vpnkit.net.plan import Plan
from vpnkit.proto import dns as dns_rules
from vpnkit.proto.dhcp import DhcpReply, DhcpServer
from vpnkit.proto.dhcp_bindings import MAX_BINDINGS, MAX_DECLINED
from vpnkit.proto.dns import MAX_WAITERS, TOTAL_SECONDS, Forwarder
from vpnkit.proto.dns_upstreams import MAX_SERVERS, Server
from vpnkit.proto.leases import BOUND
from vpnkit.wire import dhcp, dns

MACS = st.integers(0, 20).map(lambda number: bytes((2, 0, 0, 0, 0, number)))


def octet(last: int) -> bytes:
    return bytes((192, 168, 65, last))


ADDRESSES = st.integers(0, 16).map(octet) | st.sampled_from([octet(255), bytes(4), bytes((8, 8, 8, 8)), b"", b"\1"])


class DhcpClients(RuleBasedStateMachine):
    @initialize(last=st.integers(3, 12))
    def start(self, last):
        from dataclasses import replace
        from ipaddress import IPv4Network

        plan = Plan(subnet=IPv4Network("192.168.65.0/24"))
        self.server = DhcpServer(replace(dhcp_config(plan), last=octet(last)))
        self.now = 0.0
        self.users: dict[bytes, bytes] = {}  # address -> MAC of who is seen to use it
        self.server.is_taken = lambda ip, mac: self.users.get(ip, mac) != mac
        self.server.is_used = lambda ip: ip in self.users
        self.server.on_released = lambda ip: self.users.pop(ip, None)
        self.granted: dict[bytes, tuple[bytes, float]] = {}  # address -> client, end of the lease

    @rule(
        mac=MACS,
        kind=st.integers(0, 9),
        client_id=st.none() | st.sampled_from([b"", b"a", b"b", b"\1" + bytes((2, 0, 0, 0, 0, 1)), b"x" * 255]),
        wanted=st.none() | ADDRESSES,
        ciaddr=st.sampled_from([dhcp.ANY]) | st.integers(0, 16).map(octet),
        server=st.sampled_from([None, octet(1), octet(1), octet(9), b"\1"]),
        lease=st.sampled_from([None, b"\0\0\0\0", b"\0\0\0\x64", b"\xff\xff\xff\xff", b"\1"]),
        uses=st.booleans(),
    )
    def says(self, mac, kind, client_id, wanted, ciaddr, server, lease, uses):
        said = {
            dhcp.MESSAGE_TYPE: bytes((kind,)),
            dhcp.CLIENT_ID: client_id,
            dhcp.REQUESTED_ADDRESS: wanted,
            dhcp.SERVER_ID: server,
            dhcp.LEASE_TIME: lease,
        }
        options = {code: value for code, value in said.items() if value is not None}
        message = dhcp.DhcpMessage(op=dhcp.BOOTREQUEST, xid=7, chaddr=mac, options=options, ciaddr=ciaddr)
        used_before = dict(self.users)
        reply = self.server.receive(message, self.now)
        if not isinstance(reply, DhcpReply):
            return
        told = reply.message
        assert len(told.encode()) <= 576 - 28
        assert dhcp.decode(told.encode()).kind == told.kind
        ip = told.yiaddr
        if told.kind == dhcp.NAK or ip == dhcp.ANY:
            return
        assert self.server.in_pool(ip) or self.server.address_of(mac) == ip
        assert ip not in (octet(0), octet(1), octet(2), octet(255))
        assert used_before.get(ip, mac) == mac, "an address that somebody else uses"
        if told.kind == dhcp.ACK and uses:
            self.users[ip] = mac

    @rule(mac=MACS, ip=st.integers(3, 12).map(octet))
    def reserved(self, mac, ip):
        self.server.reserve(mac, ip)

    @rule(mac=MACS)
    def unreserved(self, mac):
        self.server.unreserve(mac)

    @rule(ip=st.integers(3, 12).map(octet))
    def leaves(self, ip):
        self.users.pop(ip, None)

    @rule(seconds=st.sampled_from([0.0, 1.0, 61.0, 601.0, 90_000.0]))
    def time(self, seconds):
        self.now += seconds

    @invariant()
    def consistent(self):
        server = getattr(self, "server", None)
        if server is None:
            return
        leases = server.leases(self.now)
        assert len({lease.ip for lease in leases}) == len(leases) == server.statistics().bindings <= MAX_BINDINGS
        assert server.statistics().declined <= MAX_DECLINED
        assert len(server._by_ip) == len(server._bindings)
        for lease in leases:
            if lease.state == BOUND:
                assert lease.expires_at > self.now


class DnsClients(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 100))
    def start(self, seed):
        self.forwarder = Forwarder(random.Random(seed))
        self.now = 0.0
        self.asked: list[dns_rules.Lookup] = []
        self.told: list[bytes] = []
        self.waiting = 0

    @rule(
        number=st.integers(0, 5),
        ident=st.integers(0, 65535),
        upper=st.booleans(),
        servers=st.integers(0, 5),
        flags=st.sampled_from([0x0100, 0x0110, 0]),
    )
    def asks(self, number, ident, upper, servers, flags):
        name = b"\x01" + (b"ABCDEF" if upper else b"abcdef")[number : number + 1] + b"\0"
        message = ident.to_bytes(2, "big") + flags.to_bytes(2, "big") + b"\0\1" + bytes(6) + name + b"\0\1\0\1"
        query = dns.decode_query(message)
        if self.forwarder.is_full():
            return
        told_before = self.forwarder.counters.crowded

        def reply(data: bytes) -> None:
            assert data[:2] == ident.to_bytes(2, "big"), "another's id"
            if data[4:6] == b"\0\1" and len(data) > 12:
                assert data[12 : 12 + len(name)] == name, "another's spelling"
            assert len(data) <= 512
            self.told.append(data)

        upstream = [Server("127.0.0.1", 53 + i) for i in range(servers)]
        lookup = self.forwarder.ask(query, message, upstream, reply, self.now)
        self.waiting += self.forwarder.counters.crowded == told_before
        if lookup is not None:
            self.asked.append(lookup)
            self.next(lookup)

    def next(self, lookup, silent: bool = False) -> None:
        if not self.forwarder.advance(lookup, self.now, silent=silent):
            self.end(lookup, None)

    def end(self, lookup, answer) -> None:
        for reply, data in self.forwarder.finish(lookup, answer):
            reply(data)
            self.waiting -= 1
        if lookup in self.asked:
            self.asked.remove(lookup)

    @rule(
        data=st.data(), rcode=st.integers(0, 15), size=st.sampled_from([0, 1, 500, 600, 5000]), spoil=st.integers(0, 20)
    )
    def answers(self, data, rcode, size, spoil):
        if not self.asked:
            return
        lookup = data.draw(st.sampled_from(self.asked))
        answer = bytearray(lookup.message[:2] + bytes((0x81, 0x80 | rcode)) + lookup.message[4:] + bytes(size))
        if spoil < len(answer) and spoil < 12:
            answer[spoil] ^= 0x40
        verdict = lookup.judge(max(lookup.at, 0), bytes(answer))
        if verdict == dns_rules.FINAL:
            self.end(lookup, bytes(answer))
        elif verdict == dns_rules.UNWILLING:
            self.next(lookup)

    @rule(noise=st.binary(max_size=60), data=st.data())
    def noise(self, noise, data):
        if self.asked:
            lookup = data.draw(st.sampled_from(self.asked))
            if lookup.judge(0, noise) == dns_rules.FINAL:
                assert noise[:2] == lookup.message[:2]
                self.end(lookup, noise)

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 1.5, 5.0]))
    def time(self, seconds):
        self.now += seconds
        for _ in range(20):
            due = self.forwarder.overdue(self.now)
            if not due:
                break
            for lookup in due:
                self.next(lookup, silent=True)
        assert not self.forwarder.overdue(self.now)

    @invariant()
    def consistent(self):
        forwarder = getattr(self, "forwarder", None)
        if forwarder is None:
            return
        assert len(forwarder) == len(self.asked)
        assert self.waiting == sum(len(lookup.waiters) for lookup in self.asked)
        for lookup in self.asked:
            assert 1 <= len(lookup.waiters) <= MAX_WAITERS
            assert len(lookup.servers) <= MAX_SERVERS
            assert self.now - lookup.started <= TOTAL_SECONDS + 5.0
            assert lookup.deadline > self.now

    def teardown(self):
        if getattr(self, "forwarder", None) is not None:
            self.now += TOTAL_SECONDS
            self.time(0.0)
            self.time(1.0)
            assert not self.asked, "a lookup that never ends"
            assert self.waiting == 0


class TestDhcpClients(DhcpClients.TestCase):
    settings = settings(max_examples=30, stateful_step_count=50, deadline=None)


class TestDnsClients(DnsClients.TestCase):
    settings = settings(max_examples=30, stateful_step_count=50, deadline=None)

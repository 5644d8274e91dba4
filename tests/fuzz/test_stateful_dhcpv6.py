"""The DHCPv6 server with clients who say anything in any order, and a LAN where others have addresses too."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vpnkit.proto import dhcpv6 as rules
from vpnkit.proto.dhcpv6 import Dhcpv6Config, Dhcpv6Reply, Dhcpv6Server
from vpnkit.proto.leases import BOUND
from vpnkit.wire import dhcpv6

PREFIX = bytes.fromhex("fd6576706e6b0000")
MACS = st.integers(0, 5).map(lambda number: bytes((2, 0, 0, 0, 0, number)))
DUIDS = st.sampled_from([b"\0\3\0\1a", b"\0\3\0\1b", b"\0\2" + b"long" * 32])
IAIDS = st.sampled_from([b"\0\0\0\0", b"\0\0\0\1"])


def address(number: int) -> bytes:
    return PREFIX + number.to_bytes(8, "big")


ADDRESSES = st.integers(rules.FIRST_ID, rules.FIRST_ID + 8).map(address) | st.sampled_from(
    [address(0), address(1), address(2), address(rules.FIRST_ID - 1), address(rules.LAST_ID + 1), bytes(16)]
)


class Dhcpv6Clients(RuleBasedStateMachine):
    @initialize()
    def start(self):
        self.server = Dhcpv6Server(Dhcpv6Config(PREFIX, bytes.fromhex("f61636bcf9c6"), dns=(address(1),)))
        self.now = 0.0
        self.users: dict[bytes, bytes] = {}  # address -> MAC of who is seen to use it
        self.server.is_taken = lambda ip, mac: self.users.get(ip, mac) != mac
        self.server.is_used = lambda ip: ip in self.users
        self.server.on_released = lambda ip: self.users.pop(ip, None)

    @rule(
        mac=MACS,
        kind=st.integers(0, 11) | st.just(14),
        duid=st.none() | DUIDS,
        to=st.sampled_from(["ours", "ours", None, "other"]),
        code=st.sampled_from([dhcpv6.IA_NA, dhcpv6.IA_NA, dhcpv6.IA_TA, dhcpv6.IA_PD]),
        associations=st.lists(st.tuples(IAIDS, st.lists(ADDRESSES, max_size=4)), max_size=3),
        rapid=st.booleans(),
        multicast=st.sampled_from([True, True, True, False]),
    )
    def says(self, mac, kind, duid, to, code, associations, rapid, multicast):
        options = [
            dhcpv6.encode_association(code, iaid, [dhcpv6.encode_address(ip, 0, 0) for ip in addresses])
            for iaid, addresses in associations
        ]
        if duid is not None:
            options.append((dhcpv6.CLIENTID, duid))
        if to is not None and kind not in (dhcpv6.SOLICIT, dhcpv6.CONFIRM, dhcpv6.REBIND):
            options.append((dhcpv6.SERVERID, self.server.duid if to == "ours" else b"\0\3\0\1x"))
        if rapid:
            options.append((dhcpv6.RAPID_COMMIT, b""))
        message = dhcpv6.decode(dhcpv6.Dhcpv6Message(kind, b"abc", options).encode())
        before = {lease.ip: lease.mac for lease in self.server.leases(self.now) if lease.state == BOUND}
        reply = self.server.receive(message, mac, self.now, multicast=multicast)
        if not isinstance(reply, Dhcpv6Reply):
            return
        octets = reply.message.encode()
        assert len(octets) <= rules.MAX_REPLY
        told = dhcpv6.decode(octets)
        assert told.get(dhcpv6.SERVERID) == self.server.duid
        assert told.get(dhcpv6.CLIENTID) == duid
        if multicast and kind in (dhcpv6.SOLICIT, dhcpv6.REQUEST, dhcpv6.RENEW, dhcpv6.REBIND):
            assert [asked.iaid for asked in told.associations] == [iaid for iaid, _ in associations]
        now_bound = {lease.ip: lease.mac for lease in self.server.leases(self.now) if lease.state == BOUND}
        for ip in reply.assigned:
            assert rules.FIRST_ID <= int.from_bytes(ip[8:], "big") <= rules.LAST_ID
            assert ip[:8] == PREFIX
            assert self.users.get(ip, mac) == mac, "an address that somebody else uses"
            assert now_bound[ip] == mac
            self.users[ip] = mac
        if kind in (dhcpv6.RELEASE, dhcpv6.DECLINE):
            assert all(before[ip] == mac for ip in before.keys() - now_bound.keys()), "what was another's is gone"
        if not multicast:
            assert not reply.assigned
            assert before == now_bound

    @rule(mac=MACS, ip=ADDRESSES)
    def comes_with_an_address_of_its_own(self, mac, ip):
        self.users.setdefault(ip, mac)

    @rule(ip=ADDRESSES)
    def leaves(self, ip):
        self.users.pop(ip, None)

    @rule(seconds=st.sampled_from([0.0, 1.0, 601.0, 90_000.0]))
    def time(self, seconds):
        self.now += seconds

    @invariant()
    def consistent(self):
        server = getattr(self, "server", None)
        if server is None:
            return
        leases = server.leases(self.now)
        assert len({lease.ip for lease in leases}) == len(leases) == len(server._bindings) <= rules.MAX_BINDINGS
        assert server.declined() <= rules.MAX_DECLINED
        for lease in leases:
            assert (lease.state == BOUND) <= (lease.expires_at > self.now)


class TestDhcpv6Clients(Dhcpv6Clients.TestCase):
    settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

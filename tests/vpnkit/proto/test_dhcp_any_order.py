"""The DHCP server with messages of any kind in any order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.vpnkit.proto.test_dhcp import SERVER, Client, config, ip, mac
from vpnkit.proto.dhcp import DhcpReply, DhcpServer
from vpnkit.proto.leases import Drop
from vpnkit.wire import dhcp
from vpnkit.wire.dhcp import DhcpMessage

addresses = st.integers(0, 15).map(ip) | st.just(dhcp.ANY) | st.binary(min_size=4, max_size=4)
requests = st.builds(
    DhcpMessage,
    op=st.just(1),
    xid=st.integers(0, 2**32 - 1),
    chaddr=st.integers(1, 8).map(mac) | st.binary(min_size=6, max_size=6),
    options=st.fixed_dictionaries(
        {53: st.integers(1, 8).map(lambda n: bytes((n,)))},
        optional={
            50: addresses,
            51: st.binary(min_size=4, max_size=4),
            54: st.just(SERVER) | addresses,
            55: st.binary(max_size=20),
            57: st.binary(max_size=3),
            61: st.binary(max_size=4),
            12: st.binary(max_size=20),
        },
    ),
    flags=st.sampled_from((0, 0x8000, 0x7FFF)),
    ciaddr=addresses,
)


@pytest.mark.requirement("RFC2131 4.3.1-2")
@settings(max_examples=60)
@given(st.lists(requests, max_size=60))
def test_schema_of_every_reply(messages: list[DhcpMessage]) -> None:
    """Whatever is asked, replies have the options of RFC 2131 table 3 and fit everybody's buffer."""
    server = DhcpServer(config(last=ip(10), domain="lan", search=("a.lan",)))
    server.reserve(mac(3), ip(7))
    for now, message in enumerate(messages):
        reply = server.receive(message, float(now))
        if isinstance(reply, Drop):
            continue
        options = reply.message.options
        assert next(iter(options)) == 53
        assert 300 <= len(reply.message.encode()) <= 548
        assert not options.keys() & {50, 52, 55, 57}
        assert options.pop(61, b"") == message.options.get(61, b"")  # RFC 6842
        assert reply.message.xid == message.xid
        assert reply.destination_mac == (b"\xff" * 6 if reply.broadcast else message.chaddr)
        if reply.message.kind == dhcp.NAK:
            assert options.keys() == {53, 54, 56}
            assert reply.broadcast
        elif message.kind == dhcp.INFORM:
            assert 51 not in options
        else:
            assert options.keys() >= {1, 3, 6, 51, 53, 54}
            assert ip(3) <= reply.message.yiaddr <= ip(10)
            assert (reply.message.yiaddr == ip(7)) == (message.chaddr == mac(3)) or message.chaddr == mac(3)


class NobodySharesAnAddress(RuleBasedStateMachine):
    """The clients' own view: an address that one was ACKed for is nobody else's before the lease ends."""

    def __init__(self) -> None:
        super().__init__()
        self.server = DhcpServer(config(last=ip(6), lease=600))
        self.now = 0.0
        self.held: dict[bytes, tuple[int, float]] = {}

    @rule(number=st.integers(1, 7), message=st.sampled_from(["boot", "renew", "reboot"]), last=st.integers(2, 8))
    def configures(self, number: int, message: str, last: int) -> None:
        client = Client(self.server, number)
        address = ip(last)
        if message == "boot":
            offer = client.says(dhcp.DISCOVER, self.now, requested=address)
            if isinstance(offer, Drop):
                return
            address = offer.message.yiaddr
            reply = client.says(dhcp.REQUEST, self.now, requested=address, server=SERVER)
        elif message == "renew":
            reply = client.says(dhcp.REQUEST, self.now, ciaddr=address)
        else:
            reply = client.says(dhcp.REQUEST, self.now, requested=address)
        assert isinstance(reply, DhcpReply)
        if reply.message.kind == dhcp.NAK:
            return
        owner, until = self.held.get(address, (number, 0.0))
        assert owner == number or until <= self.now
        assert reply.message.yiaddr == address
        self.held[address] = (number, self.now + 600)

    @rule(number=st.integers(1, 7), last=st.integers(2, 8), kind=st.sampled_from([dhcp.RELEASE, dhcp.DECLINE]))
    def gives_back(self, number: int, last: int, kind: int) -> None:
        reply = Client(self.server, number).says(kind, self.now, ciaddr=ip(last), server=SERVER)
        if reply != Drop("not the owner"):
            assert self.held.get(ip(last), (number, 0))[0] == number
            self.held.pop(ip(last), None)

    @rule(seconds=st.sampled_from([1.0, 61.0, 601.0]))
    def waits(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def tables_agree(self) -> None:
        leases = self.server.leases(self.now)
        assert len({lease.ip for lease in leases}) == len(leases) == self.server.statistics().bindings <= 4


NobodySharesAnAddress.TestCase.settings = settings(max_examples=50, stateful_step_count=40)
TestNobodySharesAnAddress = NobodySharesAnAddress.TestCase

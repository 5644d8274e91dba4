from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_Advertise,
    DHCP6_InfoRequest,
    DHCP6_RelayForward,
    DHCP6_Reply,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptClientId,
    DHCP6OptDNSDomains,
    DHCP6OptDNSServers,
    DHCP6OptIA_NA,
    DHCP6OptOptReq,
    DHCP6OptPref,
    DHCP6OptServerId,
)

from vpnkit.proto.dhcpv6 import Dhcpv6Config, Dhcpv6Server
from vpnkit.services.dhcpv6 import Dhcpv6Service

MAC = bytes.fromhex("025000000001")
PREFIX = bytes.fromhex("fd6576706e6b0000")
CLIENT = DHCP6OptClientId(duid=DUID_LL(lladdr="02:50:00:00:00:01"))


@pytest.fixture
def service() -> Dhcpv6Service:
    return make()


def make(is_offered=lambda: True) -> Dhcpv6Service:
    config = Dhcpv6Config(
        PREFIX, bytes.fromhex("f61636bcf9c6"), dns=(PREFIX + bytes(7) + b"\1",), search=("vm.example",)
    )
    return Dhcpv6Service(Dhcpv6Server(config), is_offered)


def test_four_messages_read_by_scapy(service):
    solicit = DHCP6_Solicit(trid=7) / CLIENT / DHCP6OptIA_NA(iaid=9) / DHCP6OptOptReq(reqopts=[23, 24])
    answer = service.datagram(memoryview(bytes(solicit)), MAC, 0.0, multicast=True)
    assert answer is not None
    assert answer.assigned == ()
    offer = DHCP6_Advertise(answer.payload)
    assert (offer.trid, offer[DHCP6OptPref].prefval) == (7, 255)
    assert offer[DHCP6OptServerId].duid.lladdr == "f6:16:36:bc:f9:c6"
    assert offer[DHCP6OptClientId].duid.lladdr == "02:50:00:00:00:01"
    assert offer[DHCP6OptDNSServers].dnsservers == ["fd65:7670:6e6b::1"]
    assert offer[DHCP6OptDNSDomains].dnsdomains == ["vm.example."]
    offered = offer[DHCP6OptIA_NA].ianaopts[0]
    request = (
        DHCP6_Request(trid=8)
        / CLIENT
        / DHCP6OptServerId(duid=offer[DHCP6OptServerId].duid)
        / DHCP6OptIA_NA(iaid=9, ianaopts=[offered])
    )
    answer = service.datagram(bytes(request), MAC, 1.0, multicast=True)
    assert answer is not None
    reply = DHCP6_Reply(answer.payload)
    given_ = reply[DHCP6OptIA_NA].ianaopts[0]
    assert (reply.trid, given_.addr, given_.validlft) == (8, offered.addr, 86400)
    assert given_.addr.startswith("fd65:7670:6e6b::1:")
    assert len(answer.assigned) == 1
    assert (service.received, service.answered, dict(service.dropped)) == (2, 2, {})


def test_what_is_dropped_is_counted(service):
    relayed = bytes(DHCP6_RelayForward(linkaddr="::", peeraddr="fe80::1"))
    cut = bytes(DHCP6_Solicit(trid=7) / CLIENT)[:-1]
    for octets in (b"", cut, relayed, bytes(DHCP6_Solicit(trid=7))):
        assert service.datagram(octets, MAC, 0.0, multicast=True) is None
    assert service.dropped == {"malformed": 2, "relayed": 1, "no client identifier": 1}


def test_without_ipv6_there_is_no_answer():
    offered = False
    service = make(lambda: offered)
    question = bytes(DHCP6_InfoRequest(trid=7) / CLIENT)
    assert service.datagram(question, MAC, 0.0, multicast=True) is None
    assert service.dropped == {"not offered": 1}
    offered = True
    assert service.datagram(question, MAC, 0.0, multicast=True) is not None


@given(st.binary(max_size=300), st.booleans())
def test_any_octets(octets, multicast):
    make().datagram(octets, MAC, 0.0, multicast=multicast)

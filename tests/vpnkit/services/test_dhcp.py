from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP

from vpnkit.proto.dhcp import DhcpServer
from vpnkit.proto.dhcp_options import DhcpConfig
from vpnkit.services.dhcp import DhcpAnswer, DhcpService
from vpnkit.wire import dhcp

MAC = bytes.fromhex("025000000001")
GATEWAY = bytes((192, 168, 65, 1))
GUEST = bytes((192, 168, 65, 3))


@pytest.fixture
def service() -> DhcpService:
    return make()


def make() -> DhcpService:
    config = DhcpConfig(
        server_ip=GATEWAY,
        server_mac=bytes.fromhex("f61636bcf9c6"),
        first=GUEST,
        last=bytes((192, 168, 65, 254)),
        mask=bytes((255, 255, 255, 0)),
        routers=(GATEWAY,),
        dns=(GATEWAY,),
        mtu=1500,
    )
    return DhcpService(DhcpServer(config))


def scapy_request(*options: tuple[str, object], **fields: object) -> bytes:
    return bytes(BOOTP(chaddr=MAC, xid=0x12345678, **fields) / DHCP(options=[*options, "end"]))


def told(answer: DhcpAnswer) -> dict[str, object]:
    return {
        name: value
        for name, value, *_ in (
            o for o in BOOTP(answer.payload)[DHCP].options if len(o) > 1 and o != "pad" and o != "end"
        )
    }


def test_the_vmnet_client(service: DhcpService) -> None:
    request = (
        bytes.fromhex("01010600 01000000 0000 8000") + bytes(16) + MAC + bytes(202) + bytes.fromhex("63825363 350101ff")
    )
    answer = service.datagram(memoryview(request), MAC, bytes(4), 0.0)
    assert answer is not None
    assert (answer.destination_mac, answer.destination_ip) == (b"\xff" * 6, b"\xff" * 4)
    data = answer.payload
    assert len(data) >= 300
    assert data[0] == 2
    assert data[4:8] == b"\1\0\0\0"
    assert data[16:20] == GUEST
    assert data[240:243] == b"\x35\1\2"


def test_four_messages_read_by_scapy(service: DhcpService) -> None:
    offer = service.datagram(
        scapy_request(("message-type", "discover"), ("param_req_list", [1, 3, 6])), MAC, bytes(4), 0
    )
    assert offer is not None
    assert (offer.destination_mac, offer.destination_ip) == (MAC, GUEST)
    assert BOOTP(offer.payload).yiaddr == "192.168.65.3"
    assert BOOTP(offer.payload).xid == 0x12345678
    request = scapy_request(
        ("message-type", "request"), ("requested_addr", "192.168.65.3"), ("server_id", "192.168.65.1")
    )
    ack = service.datagram(request, MAC, bytes(4), 1.0)
    assert ack is not None
    assert told(ack) == {
        "message-type": dhcp.ACK,
        "server_id": "192.168.65.1",
        "lease_time": 86400,
        "renewal_time": 43200,
        "rebinding_time": 75600,
        "subnet_mask": "255.255.255.0",
        "router": "192.168.65.1",
        "name_server": "192.168.65.1",
        "interface-mtu": 1500,
        "broadcast_address": "192.168.65.255",
    }
    assert (service.received, service.answered, service.dropped) == (2, 2, {})


def test_release_in_somebody_elses_name(service: DhcpService) -> None:
    take = scapy_request(("message-type", "request"), ("requested_addr", "192.168.65.3"))
    assert service.datagram(take, MAC, bytes(4), 0.0) is not None
    release = scapy_request(("message-type", "release"), ciaddr="192.168.65.3")
    assert service.datagram(release, bytes.fromhex("025000000002"), GUEST, 1.0) is None
    assert service.server.leases()[0].state == "bound"
    assert service.datagram(release, MAC, GUEST, 1.0) is None
    assert service.server.leases()[0].state == "released"
    assert service.dropped == {"not the owner": 1, "released": 1}


def test_inform_without_its_address(service: DhcpService) -> None:
    answer = service.datagram(scapy_request(("message-type", "inform")), MAC, bytes((192, 168, 65, 9)), 0.0)
    assert answer is not None
    assert (answer.destination_mac, answer.destination_ip) == (MAC, bytes((192, 168, 65, 9)))


@given(st.lists(st.binary(max_size=320), max_size=5))
def test_any_bytes(datagrams: list[bytes]) -> None:
    """Whatever a guest sends, it is answered or counted."""
    service = make()
    head = scapy_request(("message-type", "discover"))[:240]
    for data in datagrams:
        service.datagram(data, MAC, bytes(4), 0.0)
        service.datagram(head + data, MAC, bytes(4), 0.0)
    assert service.received == service.answered + service.dropped.total() == 2 * len(datagrams)

"""DHCPv6 messages of two clients, several in a row: kind, identifiers and an area of options; and any octets at all."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from tests.fuzz.targets.common import Octets, timed
from vpnkit.proto.dhcpv6 import FIRST_ID, LAST_ID, MAX_BINDINGS, MAX_DECLINED, MAX_REPLY, Dhcpv6Config, Dhcpv6Server
from vpnkit.services.dhcpv6 import Dhcpv6Service
from vpnkit.wire import dhcpv6

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

PREFIX = IPv6Address("fd65:7670:6e6b::").packed[:8]
MACS = [bytes.fromhex("025000000001"), bytes.fromhex("025000000002")]
RENEW_EVERY = 2000  # inputs: a new server, so that a finding depends on few of them

RAW, UNICAST, OTHER, SERVER = 16, 32, 64, 128  # of the first octet; the lower four bits are the kind


def area(*options: tuple[int, bytes]) -> bytes:
    encoded = dhcpv6.encode_options(options)
    return bytes((len(encoded),)) + encoded


ADDRESS = dhcpv6.encode_address(PREFIX + (FIRST_ID + 5).to_bytes(8, "big"), 0, 0)
NA = dhcpv6.encode_association(dhcpv6.IA_NA, b"iaid", [ADDRESS])
PD = dhcpv6.encode_association(dhcpv6.IA_PD, b"iaid", [])
TA = dhcpv6.encode_association(dhcpv6.IA_TA, b"iaid", [ADDRESS])
OPTIONS = [(dhcpv6.ORO, b"\0\x17\0\x18\0\x52"), (dhcpv6.RAPID_COMMIT, b""), (dhcpv6.CLIENT_FQDN, b"\1\2vm\0")]
SEEDS = [
    *(bytes((kind,)) + area(NA, PD, TA, *OPTIONS) for kind in (1, 4, 6)),
    *(bytes((kind | SERVER,)) + area(NA, PD) for kind in (3, 5, 8, 9)),
    bytes((11,)) + area(OPTIONS[0]),
    bytes((1,)) + area(NA, OPTIONS[1]) + bytes((3 | OTHER | SERVER,)) + area(NA) + bytes((9 | SERVER,)) + area(NA),
    bytes((3 | UNICAST | SERVER,)) + area(NA),
    bytes((12 | RAW,)) + b"\x22\x0c" + bytes(33),
]


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    service = made()
    count = 0

    def one(data: bytes) -> None:
        nonlocal service, count
        count += 1
        if count % RENEW_EVERY == 0:
            service = made()
        octets = Octets(data)
        while octets:
            say(service, octets, float(count * 100))
        server = service.server
        assert len(server.leases(0.0)) <= MAX_BINDINGS
        assert server.declined() <= MAX_DECLINED
        assert len(service.dropped) < 15, "reasons are few"

    return timed(one)


def made() -> Dhcpv6Service:
    config = Dhcpv6Config(PREFIX, bytes.fromhex("f61636bcf9c6"), dns=(PREFIX + bytes(8),), search=("vm.example",))
    return Dhcpv6Service(Dhcpv6Server(config))


def say(service: Dhcpv6Service, octets: Octets, now: float) -> None:
    how = octets.byte()
    message = octets.block()
    mac = MACS[how // OTHER & 1]
    if not how & RAW:
        identifiers = [(dhcpv6.CLIENTID, dhcpv6.DUID_LL + mac)]
        if how & SERVER:
            identifiers.append((dhcpv6.SERVERID, service.server.duid))
        message = bytes((how & 15,)) + b"abc" + dhcpv6.encode_options(identifiers) + message
    answer = service.datagram(memoryview(message), mac, now, multicast=not how & UNICAST)
    if answer is None:
        return
    assert len(answer.payload) <= MAX_REPLY
    reply = dhcpv6.decode(answer.payload)
    assert reply.kind in (dhcpv6.ADVERTISE, dhcpv6.REPLY)
    assert reply.transaction == message[1:4]
    assert reply.get(dhcpv6.CLIENTID) == dhcpv6.decode(message).get(dhcpv6.CLIENTID)
    for address in answer.assigned:
        assert address[:8] == PREFIX
        assert FIRST_ID <= int.from_bytes(address[8:], "big") <= LAST_ID

"""What outlives a run and what the operator says: restored leases, reservations with names, marks; boot files."""

from __future__ import annotations

import pytest

from vpnkit.errors import ConfigError
from vpnkit.proto.dhcp import DhcpReply, DhcpServer
from vpnkit.proto.dhcp_bindings import DECLINE_SECONDS, MAX_BINDINGS
from vpnkit.proto.dhcp_options import DhcpConfig
from vpnkit.proto.leases import BOUND, EXPIRED, RELEASED, Drop, Lease
from vpnkit.wire import dhcp
from vpnkit.wire.dhcp import DhcpMessage

SERVER = bytes((192, 168, 65, 1))


def ip(last: int) -> bytes:
    return bytes((192, 168, 65, last))


def mac(number: int) -> bytes:
    return b"\x02\x50" + number.to_bytes(4, "big")


def make(**changes) -> DhcpServer:
    values = {
        "server_ip": SERVER,
        "server_mac": bytes.fromhex("f61636bcf9c6"),
        "first": ip(3),
        "last": ip(254),
        "mask": bytes((255, 255, 255, 0)),
        "routers": (SERVER,),
        "dns": (SERVER,),
    }
    return DhcpServer(DhcpConfig(**(values | changes)))


def says(server: DhcpServer, kind: int, now: float = 0.0, *, number: int = 1, **options: bytes) -> DhcpMessage:
    codes = {"requested": 50, "to": 54, "parameters": 55, "hostname": 12, "client": 61}
    sent = {53: bytes((kind,))} | {codes[name]: value for name, value in options.items()}
    reply = server.receive(DhcpMessage(1, 7, mac(number), sent), now)
    assert isinstance(reply, DhcpReply), reply
    assert len(reply.message.encode()) <= 548
    return reply.message


def obtain(server: DhcpServer, now: float = 0.0, number: int = 1, **options: bytes) -> bytes:
    address = says(server, dhcp.DISCOVER, now, number=number, **options).yiaddr
    reply = says(server, dhcp.REQUEST, now, number=number, requested=address, to=SERVER, **options)
    assert reply.kind == dhcp.ACK
    return address


# Another run


def test_addresses_of_another_run_are_their_clients():
    first = make()
    obtain(first, number=9)
    by_mac = obtain(first, number=1)
    by_id = obtain(first, number=2, client=b"\xff\0\0\0\1duid", hostname=b"web")
    server = make()
    assert server.restore(first.leases()) == 3
    assert obtain(server, number=3) not in (ip(3), by_mac, by_id)
    assert obtain(server, number=2, client=b"\xff\0\0\0\1duid") == by_id
    assert obtain(server, number=1) == by_mac
    assert server.leases()[2].hostname == "web"
    assert server.address_of(mac(9)) == ip(3)


def test_states_and_times_are_those_of_the_other_run():
    first = make()
    obtain(first)
    released = obtain(first, number=2)
    first.receive(DhcpMessage(1, 7, mac(2), {53: bytes((dhcp.RELEASE,)), 54: SERVER}, ciaddr=released), 5.0)
    server = make()
    server.restore(first.leases())
    assert [lease.state for lease in server.leases(100.0)] == [BOUND, RELEASED]
    assert [lease.state for lease in server.leases(86401.0)] == [EXPIRED, RELEASED]


def lease(address: bytes, number: int, client_id: bytes = b"") -> Lease:
    return Lease(address, mac(number), client_id, "", 1000.0, BOUND)


def test_what_does_not_fit_is_left_out():
    server = make(last=ip(20))
    server.reserve(mac(5), ip(100))
    server.reserve(mac(6), ip(7))
    fit = [lease(ip(4), 1), lease(ip(100), 5)]
    unfit = [
        lease(ip(21), 2),  # behind the pool
        lease(SERVER, 3),
        lease(bytes((10, 0, 0, 9)), 4),
        lease(ip(7), 7),  # reserved for another
        lease(ip(4), 8),  # had by another
        lease(ip(5), 1),  # has one
    ]
    assert server.restore([*fit, *unfit]) == 2
    assert [known.ip for known in server.leases()] == [ip(4), ip(100)]


def test_no_more_are_restored_than_there_may_be():
    server = make(first=bytes((192, 168, 0, 1)), mask=bytes((255, 255, 0, 0)))
    many = [lease(bytes((192, 168, n >> 8, n & 255)), n) for n in range(1, MAX_BINDINGS + 100)]
    assert server.restore(many) == MAX_BINDINGS


def test_changes_are_told():
    server = make()
    changes = []
    server.on_changed = lambda: changes.append(1)
    says(server, dhcp.DISCOVER)
    assert len(changes) == 0  # an offer is none
    address = obtain(server)
    assert len(changes) == 1
    server.receive(DhcpMessage(1, 7, mac(1), {53: bytes((dhcp.RELEASE,)), 54: SERVER}, ciaddr=address), 5.0)
    assert len(changes) == 2
    server.mark(ip(50), 0.0)
    server.assign(mac(9), ip(60), "static", 0.0)
    assert len(changes) == 4


# Reservations


def test_a_reservation_with_a_name():
    server = make()
    server.reserve(mac(1), ip(42), "db")
    offer = says(server, dhcp.DISCOVER, client=b"\xffduid", hostname=b"other")
    assert (offer.yiaddr, offer.options[dhcp.HOST_NAME]) == (ip(42), b"db")
    assert server.leases()[0].hostname == "db"
    assert dhcp.HOST_NAME in says(server, dhcp.DISCOVER, parameters=bytes((1, 12))).options
    assert dhcp.HOST_NAME not in says(server, dhcp.DISCOVER, parameters=bytes((1, 3))).options
    assert dhcp.HOST_NAME not in says(server, dhcp.DISCOVER, number=2, hostname=b"mine").options
    server.unreserve(mac(1))
    assert server.name(mac(1)) == ""


def test_a_reservation_moves_with_its_name():
    server = make()
    server.reserve(mac(1), ip(42), "db")
    server.reserve(mac(2), ip(42), "db2")
    assert (server.name(mac(1)), server.name(mac(2))) == ("", "db2")
    assert says(server, dhcp.DISCOVER, number=1).yiaddr != ip(42)


# Marks


def test_a_marked_address_is_not_offered():
    server = make()
    assert says(server, dhcp.DISCOVER).yiaddr == ip(3)
    server.mark(ip(3), 0.0)
    assert server.leases() == []
    assert says(server, dhcp.DISCOVER).yiaddr == ip(4)
    assert says(server, dhcp.DISCOVER, DECLINE_SECONDS + 61, number=2, requested=ip(3)).yiaddr == ip(3)


@pytest.mark.parametrize(
    ("before", "fresh"),
    [(None, True), ("offered", True), ("bound", False), ("ended", False)],
)
def test_an_offer_says_whether_it_is_new_to_the_client(before, fresh):
    server = make()
    if before == "offered":
        says(server, dhcp.DISCOVER)
    elif before:
        obtain(server)
    reply = server.receive(DhcpMessage(1, 7, mac(1), {53: b"\1"}), 90000.0 if before == "ended" else 1.0)
    assert isinstance(reply, DhcpReply)
    assert reply.fresh is fresh


# What is told


@pytest.mark.requirement("RFC6842 3")
def test_the_client_identifier_comes_back():
    """RFC 6842."""
    server = make()
    assert says(server, dhcp.DISCOVER, client=b"\xffid").options[61] == b"\xffid"
    nak = says(server, dhcp.REQUEST, client=b"\xffid", requested=bytes((10, 0, 0, 1)))
    assert nak.kind == dhcp.NAK
    assert nak.options[61] == b"\xffid"
    assert 61 not in says(server, dhcp.DISCOVER).options
    longest = says(server, dhcp.DISCOVER, client=b"x" * 255)
    assert longest.options.keys() >= {1, 3, 6, 51, 53, 54}
    message = DhcpMessage(1, 7, mac(1), {53: b"\1", 61: b"x" * 256})
    assert server.receive(message, 0.0) == Drop("malformed option")


def test_boot_file():
    server = make(next_server=ip(9), boot_file="http://192.168.65.9/boot.ipxe")
    offer = says(server, dhcp.DISCOVER, parameters=bytes((1, 3)))
    assert (offer.siaddr, offer.file) == (ip(9), b"http://192.168.65.9/boot.ipxe")
    assert not offer.options.keys() & {66, 67}
    offer = says(server, dhcp.DISCOVER, parameters=bytes((66, 67)))
    assert (offer.options[66], offer.options[67]) == (b"192.168.65.9", b"http://192.168.65.9/boot.ipxe")
    inform = server.receive(DhcpMessage(1, 7, mac(1), {53: b"\x08"}, ciaddr=ip(77)), 0.0)
    assert isinstance(inform, DhcpReply)
    assert inform.message.siaddr == ip(9)


def test_a_boot_file_that_is_too_long_for_its_field():
    name = "http://192.168.65.9/" + "x" * 120
    offer = says(make(boot_file=name), dhcp.DISCOVER, parameters=b"\1")
    assert (offer.file, offer.siaddr, offer.options[67]) == (b"", SERVER, name.encode())
    with pytest.raises(ConfigError):
        make(boot_file="x" * 256)


def test_another_domain_from_now_on():
    server = make(domain="old.example")
    assert says(server, dhcp.DISCOVER).options[15] == b"old.example"
    server.rename("new.example", ("a.example",))
    offer = says(server, dhcp.DISCOVER)
    assert (offer.options[15], offer.options[119]) == (b"new.example", b"\1a\7example\0")
    with pytest.raises(ConfigError):
        server.rename("bad..name", ())
    assert says(server, dhcp.DISCOVER).options[15] == b"new.example"

from __future__ import annotations

import pytest

from vpnkit.errors import ConfigError
from vpnkit.proto import dhcp_bindings as rules
from vpnkit.proto import leases
from vpnkit.proto.dhcp import DhcpReply, DhcpServer
from vpnkit.proto.dhcp_options import DhcpConfig
from vpnkit.proto.leases import Drop
from vpnkit.wire import dhcp
from vpnkit.wire.dhcp import DhcpMessage

SERVER = bytes((192, 168, 65, 1))
SERVER_MAC = bytes.fromhex("f61636bcf9c6")
BROADCAST = (b"\xff" * 4, b"\xff" * 6, True)


def ip(last: int) -> bytes:
    return bytes((192, 168, 65, last))


def mac(number: int) -> bytes:
    return b"\x02\x50" + number.to_bytes(4, "big")


def config(**changes: object) -> DhcpConfig:
    values: dict[str, object] = {
        "server_ip": SERVER,
        "server_mac": SERVER_MAC,
        "first": ip(3),
        "last": ip(254),
        "mask": bytes((255, 255, 255, 0)),
        "routers": (SERVER,),
        "dns": (SERVER,),
        "mtu": 65520,
    }
    return DhcpConfig(**(values | changes))  # type: ignore[arg-type]


class Client:
    """A guest's side of the conversation."""

    def __init__(self, server: DhcpServer, number: int = 1, client_id: bytes = b"") -> None:
        self.server = server
        self.mac = mac(number)
        self.client_id = client_id

    def says(
        self, kind: int, now: float = 0.0, *, ciaddr: bytes = dhcp.ANY, flags: int = 0, **options: bytes
    ) -> DhcpReply | Drop:
        codes = {"requested": 50, "server": 54, "parameters": 55, "lease": 51, "hostname": 12, "size": 57}
        sent = {53: bytes((kind,))} | {codes[name]: value for name, value in options.items()}
        if self.client_id:
            sent[61] = self.client_id
        return self.server.receive(DhcpMessage(1, 7, self.mac, sent, flags=flags, ciaddr=ciaddr), now)

    def offered(self, now: float = 0.0, **options: bytes) -> bytes:
        reply = self.says(dhcp.DISCOVER, now, **options)
        assert isinstance(reply, DhcpReply), reply
        assert reply.message.kind == dhcp.OFFER
        return reply.message.yiaddr

    def gets(self, now: float = 0.0) -> bytes:
        address = self.offered(now)
        reply = self.says(dhcp.REQUEST, now, requested=address, server=SERVER)
        assert isinstance(reply, DhcpReply)
        assert reply.message.kind == dhcp.ACK
        assert reply.message.yiaddr == address
        return address


def to(reply: DhcpReply | Drop) -> tuple[bytes, bytes, bool]:
    assert isinstance(reply, DhcpReply), reply
    return reply.destination_ip, reply.destination_mac, reply.broadcast


def kind(reply: DhcpReply | Drop) -> int | str:
    return reply.reason if isinstance(reply, Drop) else reply.message.kind


@pytest.fixture
def server() -> DhcpServer:
    return DhcpServer(config())


@pytest.mark.requirement("RFC2131 4.4.5")
def test_offer_without_a_parameter_list(server: DhcpServer) -> None:
    reply = Client(server).says(dhcp.DISCOVER)
    assert isinstance(reply, DhcpReply)
    message = reply.message
    assert list(message.options) == [53, 54, 51, 58, 59, 1, 3, 6, 26, 28]
    assert message.options[51] == (86400).to_bytes(4, "big")
    assert message.options[58] == (43200).to_bytes(4, "big")
    assert message.options[59] == (75600).to_bytes(4, "big")
    assert message.options[1] == bytes((255, 255, 255, 0))
    assert message.options[28] == ip(255)
    assert message.options[26] == b"\xff\xf0"
    assert (message.op, message.xid, message.yiaddr, message.chaddr) == (2, 7, ip(3), mac(1))
    assert message.encode()[240:243] == bytes((53, 1, dhcp.OFFER))


@pytest.mark.requirement("RFC2131 3.5")
def test_options_on_demand() -> None:
    server = DhcpServer(config(domain="corp.example", search=("a.example", "b.example"), ntp=(SERVER,)))
    client = Client(server)
    reply = client.says(dhcp.DISCOVER)
    assert isinstance(reply, DhcpReply)
    assert reply.message.options[15] == b"corp.example"
    assert reply.message.options[119] == b"\1a\7example\0\1b\7example\0"
    assert reply.message.options[42] == SERVER
    assert 121 not in reply.message.options
    reply = client.says(dhcp.DISCOVER, parameters=bytes((1, 3, 121)))
    assert isinstance(reply, DhcpReply)
    assert reply.message.options[121] == b"\0" + SERVER


@pytest.mark.requirement("RFC3442 1")
def test_classless_routes_end_with_the_default() -> None:
    server = DhcpServer(config(routes=((bytes((10, 0, 0, 0)), 8, ip(2)),)))
    reply = Client(server).says(dhcp.DISCOVER, parameters=b"\x79")
    assert isinstance(reply, DhcpReply)
    assert reply.message.options[121] == b"\x08\x0a" + ip(2) + b"\0" + SERVER


@pytest.mark.requirement("RFC2131 4.1-4")
def test_a_reply_always_fits_576_octets() -> None:
    search = tuple(f"department-{number}.example.com" for number in range(20))
    server = DhcpServer(config(domain="x" * 60 + ".example", search=search))
    reply = Client(server).says(dhcp.DISCOVER, size=b"\xff\xff", parameters=b"\x79")
    assert isinstance(reply, DhcpReply)
    assert len(reply.message.encode()) <= 576 - 28
    assert reply.message.options.keys() >= {1, 3, 6, 15, 26, 28, 121}
    sent = reply.message.options[119]
    assert sent == dhcp.encode_domains(search[: sent.count(b"\7example")])
    assert len(sent) > 50
    assert server.statistics().shortened == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"first": ip(9), "last": ip(8)},
        {"lease": 0},
        {"lease": 2**32},
        {"mtu": 67},
        {"mtu": 65536},
        {"domain": "a..b"},
        {"search": ("x" * 64,)},
    ],
)
def test_bad_configuration(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        DhcpServer(config(**changes))


@pytest.mark.requirement("RFC2131 4.3.2-1")
def test_selecting(server: DhcpServer) -> None:
    client = Client(server)
    assert client.offered() == ip(3)
    reply = client.says(dhcp.REQUEST, requested=ip(3), server=SERVER)
    assert kind(reply) == dhcp.ACK
    assert to(reply) == (ip(3), mac(1), False)
    [lease] = server.leases()
    assert (lease.ip, lease.mac, lease.state, lease.expires_at) == (ip(3), mac(1), "bound", 86400.0)


def test_selecting_something_else_is_refused(server: DhcpServer) -> None:
    client = Client(server)
    client.offered()
    reply = client.says(dhcp.REQUEST, requested=ip(77), server=SERVER)
    assert kind(reply) == dhcp.NAK
    assert to(reply) == BROADCAST
    assert isinstance(reply, DhcpReply)
    assert list(reply.message.options) == [53, 54, 56]
    assert reply.message.yiaddr == reply.message.siaddr == reply.message.ciaddr == dhcp.ANY


@pytest.mark.requirement("RFC2131 4.3.2-1")
def test_another_servers_offer_frees_ours(server: DhcpServer) -> None:
    client = Client(server)
    assert client.offered(0.0) == ip(3)
    assert kind(client.says(dhcp.REQUEST, 1.0, requested=ip(9), server=ip(9))) == "for another server"
    assert kind(Client(server, 2).says(dhcp.DISCOVER, 2.0, requested=ip(3))) == dhcp.OFFER
    assert server.leases()[0].mac == mac(2)


@pytest.mark.requirement("RFC2131 4.1-1")
def test_broadcast_flag(server: DhcpServer) -> None:
    client = Client(server)
    assert to(client.says(dhcp.DISCOVER, flags=0x8000)) == BROADCAST
    assert to(client.says(dhcp.REQUEST, requested=ip(3), server=SERVER, flags=0x8000)) == BROADCAST
    # a client that has an address hears unicast, whatever the flag
    assert to(client.says(dhcp.REQUEST, ciaddr=ip(3), flags=0x8000)) == (ip(3), mac(1), False)


@pytest.mark.requirement("RFC2131 4.3.2-4")
def test_renewing_extends(server: DhcpServer) -> None:
    client = Client(server)
    client.gets(0.0)
    reply = client.says(dhcp.REQUEST, 43200.0, ciaddr=ip(3))
    assert kind(reply) == dhcp.ACK
    assert isinstance(reply, DhcpReply)
    assert reply.message.ciaddr == reply.message.yiaddr == ip(3)
    assert server.leases()[0].expires_at == 43200.0 + 86400.0


@pytest.mark.requirement("RFC2131 4.3.2-2")
@pytest.mark.parametrize("address", [ip(1), ip(2), ip(255), bytes((10, 0, 0, 5))])
def test_init_reboot_in_the_wrong_net(server: DhcpServer, address: bytes) -> None:
    reply = Client(server).says(dhcp.REQUEST, requested=address)
    assert kind(reply) == dhcp.NAK
    assert to(reply) == BROADCAST
    assert kind(Client(server).says(dhcp.REQUEST, ciaddr=address)) == dhcp.NAK


@pytest.mark.requirement("RFC2131 4.3.2-3")
def test_init_reboot_and_renewal_after_our_restart(server: DhcpServer) -> None:
    assert kind(Client(server, 1).says(dhcp.REQUEST, requested=ip(40))) == dhcp.ACK
    assert kind(Client(server, 2).says(dhcp.REQUEST, ciaddr=ip(41))) == dhcp.ACK
    assert kind(Client(server, 3).says(dhcp.REQUEST, requested=ip(40))) == dhcp.NAK
    assert [lease.ip for lease in server.leases()] == [ip(40), ip(41)]


def test_no_address_requested(server: DhcpServer) -> None:
    assert kind(Client(server).says(dhcp.REQUEST, server=SERVER)) == "no address requested"


@pytest.mark.requirement("RFC2131 4.3.1-1")
def test_each_client_has_its_own_and_keeps_it(server: DhcpServer) -> None:
    clients = [Client(server, number) for number in range(1, 6)]
    first = [client.gets(0.0) for client in clients]
    assert first == [ip(3), ip(4), ip(5), ip(6), ip(7)]
    assert [client.gets(1e6) for client in reversed(clients)] == first[::-1]


@pytest.mark.requirement("RFC2131 4.2")
def test_client_id_is_the_identity(server: DhcpServer) -> None:
    address = Client(server, 1, b"\xffmachine").gets()
    assert Client(server, 2, b"\xffmachine").offered() == address
    assert Client(server, 1, b"\xffother").offered() != address
    assert Client(server, 1).offered() != address


@pytest.mark.requirement("RFC2131 4.2")
def test_a_client_id_that_is_the_mac_address(server: DhcpServer) -> None:
    """udhcpc in an initramfs, then dhclient."""
    address = Client(server, 1, b"\1" + mac(1)).gets()
    assert Client(server, 1).gets() == address
    assert Client(server, 2, b"\1" + mac(1)).offered() != address
    assert len(server.leases()) == 2


@pytest.mark.requirement("RFC2131 4.3.1-1")
def test_wishes(server: DhcpServer) -> None:
    client = Client(server)
    assert client.offered(requested=ip(50)) == ip(50)
    assert client.offered(requested=ip(51)) == ip(50)  # his offer stands
    assert Client(server, 2).offered(requested=ip(50)) == ip(3)  # somebody else's
    assert Client(server, 3).offered(requested=ip(1)) == ip(4)  # ours


@pytest.mark.parametrize(
    ("wish", "lease"), [(0, 60), (3600, 3600), (86400, 86400), (86401, 86400), (0xFFFFFFFF, 86400)]
)
def test_lease_time(server: DhcpServer, wish: int, lease: int) -> None:
    reply = Client(server).says(dhcp.DISCOVER, lease=wish.to_bytes(4, "big"))
    assert isinstance(reply, DhcpReply)
    assert int.from_bytes(reply.message.options[51], "big") == lease


def test_infinite_lease() -> None:
    server = DhcpServer(config(lease=leases.INFINITE))
    client = Client(server)
    client.gets()
    reply = client.says(dhcp.REQUEST, ciaddr=ip(3))
    assert isinstance(reply, DhcpReply)
    assert reply.message.options[51] == b"\xff" * 4
    assert 58 not in reply.message.options
    assert server.leases()[0].expires_at == leases.FOREVER


@pytest.mark.requirement("RFC2131 4.3.4")
def test_release_is_the_owners_and_leaves_a_hint(server: DhcpServer) -> None:
    client, thief = Client(server, 1), Client(server, 2)
    address = client.gets()
    assert kind(thief.says(dhcp.RELEASE, ciaddr=address, server=SERVER)) == "not the owner"
    assert server.leases()[0].state == "bound"
    assert kind(client.says(dhcp.RELEASE, ciaddr=address, server=SERVER)) == "released"
    assert server.leases()[0].state == "released"
    assert thief.offered() != address
    assert client.offered() == address


@pytest.mark.requirement("RFC2131 4.3.3")
def test_decline_marks_the_address(server: DhcpServer) -> None:
    client = Client(server)
    address = client.gets(0.0)
    assert kind(Client(server, 2).says(dhcp.DECLINE, requested=address, server=SERVER)) == "not the owner"
    assert kind(client.says(dhcp.DECLINE, requested=address, server=ip(9))) == "not the owner"
    assert kind(client.says(dhcp.DECLINE, requested=address, server=SERVER)) == "declined"
    assert client.offered(1.0) == ip(4)
    assert Client(server, 2).offered(1.0, requested=address) == ip(5)
    assert Client(server, 3).offered(rules.DECLINE_SECONDS) == address


def test_declines_never_exhaust_the_pool() -> None:
    server = DhcpServer(config(last=ip(10)))
    client = Client(server)
    for _ in range(10 * rules.MAX_DECLINED):
        address = client.offered()
        assert kind(client.says(dhcp.DECLINE, requested=address, server=SERVER)) == "declined"
    assert server.statistics().declined <= 8
    assert server.statistics().recycled > 100


def test_declined_table_is_bounded(server: DhcpServer) -> None:
    client = Client(server)
    for _ in range(2 * rules.MAX_DECLINED):
        client.says(dhcp.DECLINE, requested=client.offered(), server=SERVER)
    assert server.statistics().declined == rules.MAX_DECLINED


@pytest.mark.requirement("RFC2131 4.3.5")
def test_inform(server: DhcpServer) -> None:
    reply = Client(server).says(dhcp.INFORM, ciaddr=ip(200), flags=0x8000)
    assert isinstance(reply, DhcpReply)
    assert list(reply.message.options) == [53, 54, 1, 3, 6, 26, 28]
    assert (reply.message.yiaddr, reply.message.ciaddr) == (dhcp.ANY, ip(200))
    assert to(reply) == (ip(200), mac(1), False)
    assert server.leases() == []
    for elsewhere in (dhcp.ANY, bytes((10, 0, 0, 1)), ip(0), ip(255)):
        assert isinstance(Client(server).says(dhcp.INFORM, ciaddr=elsewhere), Drop)


def test_reservation(server: DhcpServer) -> None:
    server.reserve(mac(7), ip(9))
    assert Client(server, 7).gets() == ip(9)
    assert Client(server, 7, b"\xffdhclient").gets() == ip(9)
    assert Client(server, 1).offered(requested=ip(9)) == ip(3)
    assert kind(Client(server, 7).says(dhcp.REQUEST, requested=ip(10))) == dhcp.NAK
    assert len(server.leases()) == 2


def test_reservation_takes_the_address_from_its_holder(server: DhcpServer) -> None:
    client = Client(server, 1)
    assert client.gets() == ip(3)
    server.reserve(mac(7), ip(3))
    assert kind(client.says(dhcp.REQUEST, ciaddr=ip(3))) == dhcp.NAK
    assert client.gets() == ip(4)
    assert Client(server, 7).gets() == ip(3)
    server.reserve(mac(8), ip(3))  # and again
    assert Client(server, 8).gets() == ip(3)
    assert Client(server, 7).gets() == ip(5)


def test_a_declined_reservation_falls_back_to_the_pool(server: DhcpServer) -> None:
    server.reserve(mac(7), ip(9))
    client = Client(server, 7)
    client.says(dhcp.DECLINE, 0.0, requested=client.gets(0.0), server=SERVER)
    assert client.gets(1.0) == ip(3)
    assert client.gets(rules.DECLINE_SECONDS) == ip(9)


def test_assign(server: DhcpServer) -> None:
    server.assign(mac(7), ip(3), "static", 0.0)
    [lease] = server.leases(1e12)
    assert (lease.ip, lease.hostname, lease.state, lease.expires_at) == (ip(3), "static", "static", leases.FOREVER)
    assert Client(server, 1).gets() == ip(4)
    assert Client(server, 7).gets() == ip(3)  # he asks after all
    assert Client(server, 7).says(dhcp.RELEASE, ciaddr=ip(3)) == Drop("released")
    assert server.leases(1e12)[0].state == "static"


def test_excluded() -> None:
    server = DhcpServer(config(first=ip(1), last=ip(4), excluded=frozenset({ip(2)})))
    assert [Client(server, n).gets() for n in (1, 2)] == [ip(3), ip(4)]
    assert kind(Client(server, 3).says(dhcp.DISCOVER)) == "no address left"
    assert server.statistics().exhausted == 1


def test_a_full_pool_gives_what_ended_first() -> None:
    server = DhcpServer(config(last=ip(5)))
    for number in (1, 2, 3):
        assert Client(server, number).gets(float(number)) == ip(2 + number)
    assert kind(Client(server, 4).says(dhcp.DISCOVER, 100.0)) == "no address left"
    assert Client(server, 4).gets(86402.5) == ip(3)  # 1 and 2 are over, 1 longer
    assert kind(Client(server, 1).says(dhcp.REQUEST, 86402.5, ciaddr=ip(3))) == dhcp.NAK
    assert {lease.state for lease in server.leases(86402.5)} == {"bound", "expired"}


@pytest.mark.requirement("RFC2131 4.3.1-3")
def test_offers_do_not_starve() -> None:
    server = DhcpServer(config(last=ip(5)))
    for number in range(1, 100):
        Client(server, number).offered(float(number) / 100)
    assert Client(server, 500).gets(1.0)
    assert server.statistics().bindings == 3


def test_bindings_are_bounded() -> None:
    server = DhcpServer(config(mask=bytes((255, 255, 0, 0)), last=bytes((192, 168, 255, 254))))
    for number in range(1, rules.MAX_BINDINGS + 10):
        Client(server, number).gets(float(number))
    statistics = server.statistics()
    assert (statistics.bindings, statistics.evicted) == (rules.MAX_BINDINGS, 9)


@pytest.mark.requirement("RFC2131 4.1-2")
@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (DhcpMessage(2, 1, mac(1), {53: b"\1"}), "not a request"),
        (DhcpMessage(1, 1, mac(1), {53: b"\1"}, giaddr=ip(9)), "relayed"),
        (DhcpMessage(1, 1, b"\xff" * 6, {53: b"\1"}), "not a station's address"),
        (DhcpMessage(1, 1, bytes(6), {53: b"\1"}), "not a station's address"),
        (DhcpMessage(1, 1, SERVER_MAC, {53: b"\1"}), "not a station's address"),
        (DhcpMessage(1, 1, mac(1), {53: b"\1", 50: b"abc"}), "malformed option"),
        (DhcpMessage(1, 1, mac(1), {53: b"\3", 54: b""}), "malformed option"),
        (DhcpMessage(1, 1, mac(1)), "no message type"),
        (DhcpMessage(1, 1, mac(1), {53: b"\2"}), "unknown message type"),
        (DhcpMessage(1, 1, mac(1), {53: b"\xc8"}), "unknown message type"),
    ],
)
def test_drops(server: DhcpServer, message: DhcpMessage, reason: str) -> None:
    assert server.receive(message, 0.0) == Drop(reason)
    assert server.leases() == []


def test_hostname_is_made_harmless(server: DhcpServer) -> None:
    Client(server).offered(hostname=b"web-1\x1b[31m\n\xff.lan")
    assert server.leases()[0].hostname == "web-131m.lan"

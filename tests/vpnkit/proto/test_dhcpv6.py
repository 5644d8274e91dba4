from __future__ import annotations

import struct

import pytest

from vpnkit.errors import ConfigError
from vpnkit.proto import dhcpv6 as rules
from vpnkit.proto.dhcpv6 import Dhcpv6Config, Dhcpv6Reply, Dhcpv6Server
from vpnkit.proto.leases import BOUND, EXPIRED, RELEASED, Drop
from vpnkit.wire import dhcpv6
from vpnkit.wire.dhcpv6 import IA_NA, IA_PD, IA_TA, Dhcpv6Message

SERVER_MAC = bytes.fromhex("f61636bcf9c6")
MAC = bytes.fromhex("025000000001")
OTHER_MAC = bytes.fromhex("025000000002")
DUID = dhcpv6.DUID_LL + MAC
OTHER_DUID = dhcpv6.DUID_LL + OTHER_MAC
PREFIX = bytes.fromhex("fd6576706e6b0000")
GATEWAY = PREFIX + bytes(7) + b"\1"
ELSEWHERE = bytes.fromhex("20010db8") + bytes(11) + b"\5"


def make(**changes) -> Dhcpv6Server:
    return Dhcpv6Server(Dhcpv6Config(**{"prefix": PREFIX, "server_mac": SERVER_MAC, "dns": (GATEWAY,)} | changes))


@pytest.fixture
def server() -> Dhcpv6Server:
    return make()


def address(number: int) -> bytes:
    return PREFIX + number.to_bytes(8, "big")


def ia(*addresses: bytes, iaid: bytes = b"\0\0\0\1", code: int = IA_NA):
    return dhcpv6.encode_association(code, iaid, [dhcpv6.encode_address(ip, 0, 0) for ip in addresses])


def message(kind: int, *options, duid: bytes | None = DUID, server: Dhcpv6Server | None = None) -> Dhcpv6Message:
    """What a client says; with `server` to that one."""
    said = list(options)
    if duid is not None:
        said.append((dhcpv6.CLIENTID, duid))
    if server is not None:
        said.append((dhcpv6.SERVERID, server.duid))
    return dhcpv6.decode(Dhcpv6Message(kind, b"abc", said).encode())


def told(reply: Dhcpv6Reply | Drop) -> Dhcpv6Message:
    assert isinstance(reply, Dhcpv6Reply), reply
    octets = reply.message.encode()
    assert len(octets) <= rules.MAX_REPLY
    assert reply.message.transaction == b"abc"
    return dhcpv6.decode(octets)


def status(value: bytes | None) -> int | None:
    return None if value is None else int.from_bytes(value[:2], "big")


def in_ia(reply: Dhcpv6Message, at: int = 0) -> tuple[list[tuple[bytes, int, int]], int | None]:
    """The addresses with both lifetimes, and the status, of an association of a reply."""
    value = [value for code, value in reply.options if code in dhcpv6.ASSOCIATIONS][at]
    code = [code for code, value in reply.options if code in dhcpv6.ASSOCIATIONS][at]
    inner = dhcpv6.decode(b"\0abc" + value[4 if code == IA_TA else 12 :])
    addresses = [(v[:16], *struct.unpack("!II", v[16:24])) for c, v in inner.options if c == dhcpv6.IAADDR]
    return addresses, status(inner.get(dhcpv6.STATUS_CODE))


def obtain(server: Dhcpv6Server, duid: bytes = DUID, mac: bytes = MAC, now: float = 0.0, iaid=b"\0\0\0\1") -> bytes:
    """An address by Solicit with Rapid Commit."""
    said = message(dhcpv6.SOLICIT, ia(iaid=iaid), (dhcpv6.RAPID_COMMIT, b""), duid=duid)
    reply = server.receive(said, mac, now, multicast=True)
    (given,) = in_ia(told(reply))[0]
    assert reply.assigned == (given[0],)
    return given[0]


@pytest.mark.requirement("RFC8415 18.3.1", "RFC3646 3")
def test_four_messages(server):
    offer = server.receive(message(dhcpv6.SOLICIT, ia()), MAC, 0.0, multicast=True)
    advertised = told(offer)
    assert advertised.kind == dhcpv6.ADVERTISE
    assert offer.assigned == ()
    assert server.leases(0.0) == []  # a promise costs nothing
    assert advertised.get(dhcpv6.SERVERID) == b"\0\3\0\1" + SERVER_MAC
    assert advertised.get(dhcpv6.CLIENTID) == DUID
    assert advertised.get(dhcpv6.PREFERENCE) == b"\xff"
    ((ip, preferred, valid),), refused = in_ia(advertised)
    assert (preferred, valid, refused) == (86400, 86400, None)
    said = message(dhcpv6.REQUEST, ia(ip), server=server)
    reply = server.receive(said, MAC, 1.0, multicast=True)
    assert reply.assigned == (ip,)
    confirmed = told(reply)
    assert confirmed.kind == dhcpv6.REPLY
    assert confirmed.get(dhcpv6.DNS_SERVERS) == GATEWAY
    assert confirmed.get(dhcpv6.PREFERENCE) is None
    assert in_ia(confirmed) == ([(ip, 86400, 86400)], None)
    (lease,) = server.leases(1.0)
    assert (lease.ip, lease.mac, lease.client_id, lease.state, lease.expires_at) == (ip, MAC, DUID, BOUND, 86401.0)


@pytest.mark.requirement("RFC8415 21.4")
def test_times_to_renew(server):
    reply = told(server.receive(message(dhcpv6.SOLICIT, ia()), MAC, 0.0, multicast=True))
    assert struct.unpack("!II", reply.get(IA_NA)[4:12]) == (43200, 69120)
    endless = make(lease=0xFFFFFFFF)
    reply = told(endless.receive(message(dhcpv6.SOLICIT, ia()), MAC, 0.0, multicast=True))
    assert struct.unpack("!II", reply.get(IA_NA)[4:12]) == (0xFFFFFFFF, 0xFFFFFFFF)
    obtain(endless)
    assert endless.leases(1e9)[0].state == BOUND


@pytest.mark.requirement("RFC8415 18.3.1")
def test_rapid_commit(server):
    said = message(dhcpv6.SOLICIT, ia(), (dhcpv6.RAPID_COMMIT, b""))
    reply = told(server.receive(said, MAC, 0.0, multicast=True))
    assert reply.kind == dhcpv6.REPLY
    assert reply.get(dhcpv6.RAPID_COMMIT) == b""
    assert len(server.leases(0.0)) == 1


def test_addresses_are_in_the_documented_range_and_survive_a_restart(server):
    given = [obtain(server, DUID, iaid=bytes((0, 0, 0, n))) for n in range(200)]
    assert len(set(given)) == 200
    for ip in given:
        assert ip[:8] == PREFIX
        assert 0x10000 <= int.from_bytes(ip[8:], "big") <= 0x1FFFF
    again = make()
    assert obtain(again, iaid=bytes(4)) == given[0]


def test_two_clients_whose_hash_is_the_same(server, monkeypatch):
    class SameForAll:
        def __init__(self, octets, digest_size): ...

        def digest(self):
            return b"\xff" * 8

    monkeypatch.setattr(rules, "blake2s", SameForAll)
    assert obtain(server) == address(rules.LAST_ID)
    assert obtain(server, OTHER_DUID, OTHER_MAC) == address(rules.FIRST_ID)  # the next, from the beginning again


def test_a_wish_is_fulfilled_if_it_is_in_the_range(server):
    free = address(0x10042)
    for kind in (dhcpv6.REQUEST, dhcpv6.RENEW):
        reply = told(server.receive(message(kind, ia(free), server=server), MAC, 0.0, multicast=True))
        assert in_ia(reply)[0] == [(free, 86400, 86400)]
    for wish in (GATEWAY, address(2), address(0x20000), address(0), PREFIX + b"\2\x50\0\xff\xfe\0\0\1"):
        reply = told(server.receive(message(dhcpv6.SOLICIT, ia(wish), duid=OTHER_DUID), MAC, 0.0, multicast=True))
        assert in_ia(reply)[0][0][0] != wish


@pytest.mark.requirement("RFC8415 18.3.2")
def test_request_of_an_address_of_another_link(server):
    said = message(dhcpv6.REQUEST, ia(ELSEWHERE), ia(iaid=b"\0\0\0\2"), server=server)
    reply = server.receive(said, MAC, 0.0, multicast=True)
    assert in_ia(told(reply)) == ([], dhcpv6.NOT_ON_LINK)
    assert len(in_ia(told(reply), 1)[0]) == 1
    assert len(reply.assigned) == 1


@pytest.mark.requirement("RFC8415 18.3.4")
def test_renew(server):
    ip = obtain(server)
    said = message(dhcpv6.RENEW, ia(ip), server=server)
    assert in_ia(told(server.receive(said, MAC, 40000.0, multicast=True))) == ([(ip, 86400, 86400)], None)
    assert server.leases(0.0)[0].expires_at == 126400.0


@pytest.mark.requirement("RFC8415 18.3.4", "RFC8415 18.3.5")
@pytest.mark.parametrize("kind", [dhcpv6.RENEW, dhcpv6.REBIND])
def test_renew_of_what_is_not_remembered(server, kind):
    """We were restarted, he was not."""
    ip = address(0x12345)
    said = message(kind, ia(ip), server=server if kind == dhcpv6.RENEW else None)
    reply = server.receive(said, MAC, 0.0, multicast=True)
    assert in_ia(told(reply)) == ([(ip, 86400, 86400)], None)
    assert reply.assigned == (ip,)


@pytest.mark.requirement("RFC8415 18.3.4", "RFC8415 18.3.5")
def test_renew_ends_the_addresses_that_are_not_his(server):
    ip = obtain(server)
    said = message(dhcpv6.REBIND, ia(ELSEWHERE, ip))
    assert in_ia(told(server.receive(said, MAC, 0.0, multicast=True)))[0] == [(ip, 86400, 86400), (ELSEWHERE, 0, 0)]


def test_renew_of_an_address_that_somebody_else_uses(server):
    ip = obtain(server)
    server.is_taken = lambda wanted, mac: wanted == ip and mac == MAC
    said = message(dhcpv6.RENEW, ia(ip), server=server)
    (new, old), _ = in_ia(told(server.receive(said, MAC, 0.0, multicast=True)))
    assert new[0] != ip
    assert old == (ip, 0, 0)


def test_an_expired_lease_is_still_his(server):
    ip = obtain(server)
    assert server.leases(86400.0)[0].state == EXPIRED
    assert obtain(server, now=100000.0) == ip
    assert server.leases(100000.0)[0].state == BOUND


@pytest.mark.requirement("RFC8415 18.3.3")
def test_confirm(server):
    on_link = ia(address(0x10005))
    for options, expected in (
        ([on_link], dhcpv6.SUCCESS),
        ([on_link, ia(ELSEWHERE, iaid=b"\0\0\0\2")], dhcpv6.NOT_ON_LINK),
        ([ia(ELSEWHERE, code=IA_TA)], dhcpv6.NOT_ON_LINK),
    ):
        reply = told(server.receive(message(dhcpv6.CONFIRM, *options), MAC, 0.0, multicast=True))
        assert status(reply.get(dhcpv6.STATUS_CODE)) == expected
    assert server.receive(message(dhcpv6.CONFIRM, ia()), MAC, 0.0, multicast=True) == Drop("nothing to confirm")
    assert server.receive(message(dhcpv6.CONFIRM), MAC, 0.0, multicast=True) == Drop("nothing to confirm")


@pytest.mark.requirement("RFC8415 18.3.7")
def test_release(server):
    ip = obtain(server)
    freed = []
    server.on_released = freed.append
    said = message(dhcpv6.RELEASE, ia(ip), ia(iaid=b"\0\0\0\x09"), server=server)
    reply = told(server.receive(said, MAC, 5.0, multicast=True))
    assert status(reply.get(dhcpv6.STATUS_CODE)) == dhcpv6.SUCCESS
    assert in_ia(reply) == ([], dhcpv6.NO_BINDING)  # about the second only
    assert freed == [ip]
    assert server.leases(6.0)[0].state == RELEASED
    assert server.addresses_of(MAC) == []
    assert obtain(server, now=7.0) == ip


@pytest.mark.requirement("RFC8415 18.3.7")
@pytest.mark.parametrize("kind", [dhcpv6.RELEASE, dhcpv6.DECLINE])
def test_nobody_gives_up_what_is_another_s(server, kind):
    ip = obtain(server)
    said = message(kind, ia(ip), server=server)
    reply = told(server.receive(said, OTHER_MAC, 5.0, multicast=True))
    assert in_ia(reply) == ([], dhcpv6.NO_BINDING)
    assert server.leases(6.0)[0].state == BOUND
    said = message(kind, ia(address(0x10077)), server=server)  # his own association, not his address
    server.receive(said, MAC, 5.0, multicast=True)
    assert server.leases(6.0)[0].state == BOUND


@pytest.mark.requirement("RFC8415 18.3.8")
def test_decline(server):
    ip = obtain(server)
    said = message(dhcpv6.DECLINE, ia(ip), server=server)
    assert status(told(server.receive(said, MAC, 5.0, multicast=True)).get(dhcpv6.STATUS_CODE)) == dhcpv6.SUCCESS
    other = obtain(server, now=6.0)
    assert other != ip
    server.receive(message(dhcpv6.RELEASE, ia(other), server=server), MAC, 7.0, multicast=True)
    assert obtain(server, OTHER_DUID, OTHER_MAC, now=8.0) not in (ip, other)
    third = message(dhcpv6.REQUEST, ia(ip), duid=b"third", server=server)
    assert in_ia(told(server.receive(third, MAC, 10.0, multicast=True)))[0][0][0] != ip
    fourth = message(dhcpv6.REQUEST, ia(ip), duid=b"fourth", server=server)
    assert in_ia(told(server.receive(fourth, MAC, 606.0, multicast=True)))[0][0][0] == ip


def test_declines_without_end(server):
    for n in range(3 * rules.MAX_DECLINED):
        ip = obtain(server, now=float(n))
        server.receive(message(dhcpv6.DECLINE, ia(ip), server=server), MAC, float(n), multicast=True)
        assert server.declined() <= rules.MAX_DECLINED


@pytest.mark.requirement("RFC8415 21.5")
def test_temporary_addresses_and_prefixes(server):
    na, ta, pd = (ia(iaid=bytes((0, 0, 0, n)), code=code) for n, code in enumerate((IA_NA, IA_TA, IA_PD)))
    reply = told(server.receive(message(dhcpv6.SOLICIT, ta, pd, na), MAC, 0.0, multicast=True))
    assert in_ia(reply, 0) == ([], dhcpv6.NO_ADDRS_AVAIL)
    assert in_ia(reply, 1) == ([], dhcpv6.NO_PREFIX_AVAIL)
    assert len(in_ia(reply, 2)[0]) == 1
    reply = told(server.receive(message(dhcpv6.RENEW, pd, server=server), MAC, 0.0, multicast=True))
    assert in_ia(reply) == ([], dhcpv6.NO_BINDING)


@pytest.mark.requirement("RFC8415 18.3.6", "RFC8415 21.24")
def test_information(server):
    said = message(dhcpv6.INFORMATION_REQUEST, (dhcpv6.ORO, b"\0\x17\0\x53"), duid=None)
    reply = told(server.receive(said, MAC, 0.0, multicast=True))
    assert (reply.kind, reply.get(dhcpv6.CLIENTID)) == (dhcpv6.REPLY, None)
    assert reply.get(dhcpv6.DNS_SERVERS) == GATEWAY
    assert reply.get(dhcpv6.INF_MAX_RT) == b"\0\0\0\x3c"
    assert reply.get(dhcpv6.SOL_MAX_RT) is None
    said = message(dhcpv6.INFORMATION_REQUEST, server=server)
    assert told(server.receive(said, MAC, 0.0, multicast=True)).get(dhcpv6.CLIENTID) == DUID


def test_time_servers_are_for_those_who_ask():
    """RFC 5908 section 4."""
    server = make(ntp=(GATEWAY,))
    said = message(dhcpv6.INFORMATION_REQUEST, (dhcpv6.ORO, b"\0\x38"), duid=None)
    reply = told(server.receive(said, MAC, 0.0, multicast=True))
    assert reply.get(dhcpv6.NTP_SERVER) == b"\0\1\0\x10" + GATEWAY
    said = message(dhcpv6.INFORMATION_REQUEST, duid=None)
    assert told(server.receive(said, MAC, 0.0, multicast=True)).get(dhcpv6.NTP_SERVER) is None


@pytest.mark.requirement("RFC3646 3")
def test_search_list():
    server = make(search=("one.example", "two.example"))
    reply = told(server.receive(message(dhcpv6.SOLICIT, ia()), MAC, 0.0, multicast=True))
    assert reply.get(dhcpv6.DOMAIN_LIST) == b"\3one\7example\0\3two\7example\0"
    with pytest.raises(ConfigError):
        make(search=("one..example",))
    with pytest.raises(ConfigError):
        make(lease=0)


@pytest.mark.requirement("RFC8415 18.3.9")
def test_a_reply_fits_the_least_mtu_whatever_is_asked():
    server = make(search=tuple(f"{n}.{'x' * 60}.example" for n in range(20)))
    associations = [ia(ELSEWHERE, GATEWAY, ELSEWHERE, iaid=bytes((0, 0, 0, n))) for n in range(20)]
    said = message(dhcpv6.REBIND, *associations, (dhcpv6.ORO, b"\0\x52\0\x53"), duid=b"d" * 130)
    reply = told(server.receive(said, MAC, 0.0, multicast=True))
    assert reply.get(dhcpv6.DNS_SERVERS) == GATEWAY
    assert reply.get(dhcpv6.DOMAIN_LIST) is None
    assert server.shortened == 1
    assert len(server.leases(0.0)) == rules.MAX_ASSOCIATIONS


# Section 16: which message may come with which identifiers, and how

OURS = "ours"
PRESENCE = [
    # kind, needs a client's DUID, the server's: None must not, OURS must; may be unicast
    (dhcpv6.SOLICIT, None, False),
    (dhcpv6.REQUEST, OURS, True),
    (dhcpv6.CONFIRM, None, False),
    (dhcpv6.RENEW, OURS, True),
    (dhcpv6.REBIND, None, False),
    (dhcpv6.RELEASE, OURS, True),
    (dhcpv6.DECLINE, OURS, True),
]


@pytest.mark.requirement("RFC8415 16-2", "RFC8415 18.4")
@pytest.mark.parametrize(("kind", "needs", "told_to_multicast"), PRESENCE)
def test_presence(server, kind, needs, told_to_multicast):
    right = [ia(address(0x10001))]
    if needs:
        right.append((dhcpv6.SERVERID, server.duid))
    assert isinstance(server.receive(message(kind, *right), MAC, 0.0, multicast=True), Dhcpv6Reply)
    assert server.receive(message(kind, *right, duid=None), MAC, 0.0, multicast=True) == Drop("no client identifier")
    before = server.leases(0.0)
    unicast = server.receive(message(kind, *right), MAC, 0.0, multicast=False)
    if told_to_multicast:
        reply = told(unicast)
        assert [code for code, _ in reply.options] == [dhcpv6.SERVERID, dhcpv6.CLIENTID, dhcpv6.STATUS_CODE]
        assert status(reply.get(dhcpv6.STATUS_CODE)) == dhcpv6.USE_MULTICAST
    else:
        assert unicast == Drop("unicast")
    assert server.leases(0.0) == before
    foreign = [right[0], (dhcpv6.SERVERID, b"\0\3\0\1foreig")]
    expected = Drop("for another server") if needs else Drop("unexpected option")
    assert server.receive(message(kind, *foreign), MAC, 0.0, multicast=True) == expected
    if needs:
        assert server.receive(message(kind, right[0]), MAC, 0.0, multicast=True) == Drop("no server identifier")
    else:
        said = message(kind, right[0], server=server)
        assert server.receive(said, MAC, 0.0, multicast=True) == Drop("unexpected option")


@pytest.mark.requirement("RFC8415 16.12")
def test_presence_in_an_information_request(server):
    kind = dhcpv6.INFORMATION_REQUEST
    assert server.receive(message(kind), MAC, 0.0, multicast=False) == Drop("unicast")
    assert server.receive(message(kind, ia()), MAC, 0.0, multicast=True) == Drop("unexpected option")
    said = message(kind, (dhcpv6.SERVERID, b"\0\3\0\1foreig"))
    assert server.receive(said, MAC, 0.0, multicast=True) == Drop("for another server")


@pytest.mark.requirement("RFC8415 16-3")
@pytest.mark.parametrize("kind", [dhcpv6.ADVERTISE, dhcpv6.REPLY, dhcpv6.RECONFIGURE])
def test_what_servers_say_is_not_for_us(server, kind):
    assert server.receive(message(kind, ia(), server=server), MAC, 0.0, multicast=True) == Drop("not for a server")


@pytest.mark.requirement("RFC8415 16-1")
@pytest.mark.parametrize("kind", [0, 14, 36, 255])
def test_unknown_kinds(server, kind):
    assert server.receive(message(kind, ia()), MAC, 0.0, multicast=True) == Drop("unknown message type")


# More clients than there should be


def test_two_guests_made_of_one_disk_image(server):
    """The same DUID and IAID, and both are here."""
    users: dict[bytes, bytes] = {}
    server.is_taken = lambda ip, mac: users.get(ip, mac) != mac
    first = obtain(server)
    users[first] = MAC
    second = obtain(server, mac=OTHER_MAC)
    assert second != first
    users[second] = OTHER_MAC
    for mac, ip in ((MAC, first), (OTHER_MAC, second)) * 2:
        reply = server.receive(message(dhcpv6.RENEW, ia(ip), server=server), mac, 1.0, multicast=True)
        assert in_ia(told(reply))[0] == [(ip, 86400, 86400)]


def test_a_guest_that_changed_its_mac_address(server):
    ip = obtain(server)
    assert obtain(server, mac=OTHER_MAC) == ip
    assert server.addresses_of(OTHER_MAC) == [ip]


def test_invented_clients_do_not_take_what_is_in_use(server):
    mine = obtain(server)
    server.is_used = lambda ip: ip == mine
    for n in range(2 * rules.MAX_BINDINGS):
        obtain(server, b"invented" + n.to_bytes(4, "big"), OTHER_MAC, now=1.0 + n)
    assert len(server.leases(0.0)) == rules.MAX_BINDINGS
    assert server.evicted == rules.MAX_BINDINGS + 1
    assert server.addresses_of(MAC) == [mine]


@pytest.mark.requirement("RFC8415 21.13")
def test_no_address_left(server):
    server.is_taken = lambda ip, mac: True
    reply = told(server.receive(message(dhcpv6.SOLICIT, ia()), MAC, 0.0, multicast=True))
    assert in_ia(reply) == ([], dhcpv6.NO_ADDRS_AVAIL)
    said = message(dhcpv6.RENEW, ia(), server=server)
    reply = server.receive(said, MAC, 0.0, multicast=True)
    assert in_ia(told(reply)) == ([], dhcpv6.NO_BINDING)
    assert reply.assigned == ()
    assert server.exhausted == 2


def test_host_name(server):
    said = message(dhcpv6.REQUEST, ia(), (dhcpv6.CLIENT_FQDN, b"\0\4vm\n1\7example\0"), server=server)
    server.receive(said, MAC, 0.0, multicast=True)
    assert server.leases(0.0)[0].hostname == "vm1.example"

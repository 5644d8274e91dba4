"""The NAT for UDP: RFC 4787, and what RFC 7857 and RFC 6888 add."""

from __future__ import annotations

import errno
import itertools
import random

import pytest
from scapy.layers.inet import ICMP, IP, UDP

from tests.conformance.wire import GUEST, HOST, Internet, datagram, errors, far

IDLE = 300  # seconds


class Far:
    """A host far away, 203.0.113.`number`."""

    def __init__(self, wire, number: int) -> None:
        self.wire = wire
        self.address = far(number)
        self.socket = wire.server(f"127.0.0.{number}")
        self.port = self.socket.getsockname()[1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def called(self, source_port: int = 5000) -> int:
        """The guest calls; returns the port by which he is known here."""
        assert not errors(self.wire.send(datagram(b"question", self.port, self.address, source_port)))
        data, peer = self.socket.recvfrom(100)
        assert data == b"question"
        return peer[1]

    def answers(self, port: int) -> list[tuple[str, int, int]]:
        """What the guest gets of a datagram to `port`: source address, source port, destination port."""
        self.socket.sendto(b"answer", ("127.0.0.1", port))
        return [(f[IP].src, f[UDP].sport, f[UDP].dport) for f in self.wire.work() if UDP in f]


@pytest.fixture
async def hosts(wire):
    """Three hosts far away."""
    with Far(wire, 2) as one, Far(wire, 3) as two, Far(wire, 4) as three:
        yield one, two, three


async def test_rfc4787_req_1_all_servers_see_the_same_port(hosts):
    assert len({host.called() for host in hosts}) == 1


async def test_rfc4787_req_1_so_it_is_for_other_ports_of_one_server(wire, hosts):
    first = hosts[0].called()
    with Far(wire, 2) as other:
        assert other.called() == first


async def test_rfc4787_req_1_what_one_learnt_serves_another(hosts):
    """A peer that the guest called reaches him by the port that a third one saw."""
    one, two, _ = hosts
    port = one.called()
    two.called()
    assert two.answers(port) == [(two.address, two.port, 5000)]


async def test_rfc4787_req_3_no_two_ports_of_the_guest_share_one(hosts):
    ports = [hosts[0].called(source_port) for source_port in range(1, 200)]
    assert len(set(ports)) == len(ports)


async def test_rfc4787_req_3_no_two_guests_share_one(make_wire):
    ports = []
    for _ in range(2):
        wire = make_wire()
        with Far(wire, 2) as host:
            ports += [host.called(source_port) for source_port in range(1, 50)]
    assert len(set(ports)) == len(ports)


async def test_rfc4787_req_5_a_mapping_lives_for_five_minutes(wire, hosts):
    port = hosts[0].called()
    wire.pass_time(IDLE - 1)
    assert hosts[0].answers(port)


async def test_rfc4787_req_5_and_ends_then(wire, hosts):
    port = hosts[0].called()
    wire.pass_time(IDLE + 1)
    assert not wire.guest.udp.mappings
    assert wire.counters["udp_expired"] == 1
    assert not hosts[0].answers(port)


async def test_rfc4787_req_6_outbound_refreshes(wire, hosts):
    port = hosts[0].called()
    for _ in range(10):
        wire.pass_time(IDLE - 1)
        assert hosts[0].called() == port


async def test_rfc4787_req_6_outbound_to_one_refreshes_for_all(wire, hosts):
    one, two, _ = hosts
    port = one.called()
    wire.pass_time(IDLE - 1)
    two.called()
    wire.pass_time(IDLE - 1)
    assert one.answers(port)


async def test_rfc4787_req_6_inbound_refreshes_too(wire, hosts):
    port = hosts[0].called()
    for _ in range(10):
        wire.pass_time(IDLE - 1)
        assert hosts[0].answers(port)


async def test_rfc4787_req_8_another_host_is_filtered(wire, hosts):
    one, two, _ = hosts
    port = one.called()
    assert not two.answers(port)
    assert wire.counters["udp_filtered"] == 1
    assert one.answers(port)


async def test_rfc4787_req_8_another_port_of_the_host_is_not(wire, hosts):
    port = hosts[0].called()
    with Far(wire, 2) as other:
        assert other.answers(port) == [(other.address, other.port, 5000)]


async def test_rfc4787_req_8_the_filter_is_that_of_the_port(hosts):
    """Another port of the guest called him, not this one."""
    one, two, _ = hosts
    port = one.called(5000)
    two.called(5001)
    assert not two.answers(port)


async def test_rfc4787_req_9_hairpinning_with_the_external_address_as_the_source(wire):
    """Two ports of the guest, each of which knows the other as others know it."""
    with wire.server() as stun:
        known_as = {}
        for source_port in (5000, 5001):
            wire.send(datagram(b"who am I?", stun.getsockname()[1], source_port=source_port))
            known_as[source_port] = stun.recvfrom(100)[1][1]
    [frame] = wire.send(datagram(b"hello", known_as[5001], source_port=5000))
    assert (frame[IP].src, frame[IP].dst) == (HOST, GUEST)
    assert (frame[UDP].sport, frame[UDP].dport, bytes(frame[UDP].payload)) == (known_as[5000], 5001, b"hello")


ADDRESSED = b"INVITE sip:bob@192.168.65.3:5000\r\nc=IN IP4 192.168.65.3\r\nPORT 192,168,65,3,19,136\r\n\xc0\xa8\x41\x03"


async def test_rfc4787_req_10_addresses_in_the_data_stay_as_they_are(wire, hosts):
    host = hosts[0]
    wire.send(datagram(ADDRESSED, host.port, host.address))
    data, peer = host.socket.recvfrom(500)
    assert data == ADDRESSED
    host.socket.sendto(ADDRESSED, peer)
    [frame] = wire.work()
    assert bytes(frame[UDP].payload) == ADDRESSED


async def test_rfc4787_req_11_load_changes_neither_mapping_nor_filter(wire, hosts):
    """Any order, any number of ports: each is known by one port, and hears whom it called."""
    dice = random.Random(4787)
    known: dict[int, int] = {}
    called: dict[int, set[int]] = {}
    for _ in range(600):
        source_port, i = dice.randrange(5000, 5150), dice.randrange(3)
        port = hosts[i].called(source_port)
        assert known.setdefault(source_port, port) == port
        called.setdefault(source_port, set()).add(i)
        j = dice.randrange(3)
        heard = hosts[j].answers(port)
        assert heard == ([(hosts[j].address, hosts[j].port, source_port)] if j in called[source_port] else [])
    assert len(set(known.values())) == len(known)


ICMP_ERRORS = [(3, code) for code in range(16)] + [(4, 0), (5, 0), (5, 1), (11, 0), (11, 1), (12, 0), (12, 1), (13, 0)]


@pytest.mark.parametrize("offender", ["198.51.100.7", far(2), "192.168.65.3", "127.0.0.1", "0.0.0.0"])
async def test_rfc4787_req_12_icmp_of_the_network_never_ends_a_mapping(wire, hosts, offender):
    """Whoever says it, and whatever it is."""
    host = hosts[0]
    port = host.called()
    [made] = wire.internet.opened
    for kind, code in ICMP_ERRORS:
        about = (host.address, host.port)
        wire.network_says(made, errno.EHOSTUNREACH, kind, code, about, b"question", info=1400, offender=offender)
        wire.work()
        assert host.called() == port
        assert host.answers(port)


@pytest.mark.parametrize(("kind", "code"), ICMP_ERRORS)
async def test_rfc4787_req_12_icmp_of_the_guest_never_ends_a_mapping(wire, hosts, kind, code):
    host = hosts[0]
    port = host.called()
    about = IP(src=host.address, dst=GUEST) / UDP(sport=host.port, dport=5000) / b"answer"
    assert not wire.send(IP(src=GUEST, dst=host.address) / ICMP(type=kind, code=code) / bytes(about))
    assert host.answers(port)
    assert host.called() == port


@pytest.mark.parametrize("code", [0, 1, 2, 3, 9, 10, 13])
async def test_rfc4787_req_12_unreachable_is_told_to_the_guest(wire, hosts, code):
    """REQ-12b, and REQ-12a: from a router that the guest never called."""
    host = hosts[0]
    host.called()
    [made] = wire.internet.opened
    wire.network_says(made, errno.EHOSTUNREACH, 3, code, (host.address, host.port), b"question")
    [frame] = wire.work()
    assert errors([frame]) == [(3, code)]
    assert (frame[IP].src, frame[IP].dst) == ("198.51.100.7", GUEST)
    quoted = IP(bytes(frame)[42:])
    assert (quoted.src, quoted.dst, quoted[UDP].sport, quoted[UDP].dport) == (GUEST, host.address, 5000, host.port)


async def test_rfc7857_7_what_is_filtered_keeps_nothing_open(wire, hosts):
    """A stranger who sends every two minutes."""
    port = hosts[0].called()
    for _ in range(3):
        wire.pass_time(IDLE / 3)
        assert not hosts[1].answers(port)
    wire.pass_time(2)
    assert not wire.guest.udp.mappings


async def test_rfc7857_7_1_icmp_errors_of_the_guest_keep_nothing_open(wire, hosts):
    host = hosts[0]
    host.called()
    about = IP(src=host.address, dst=GUEST) / UDP(sport=host.port, dport=5000) / b"answer"
    for _ in range(3):
        wire.pass_time(IDLE / 3)
        assert not wire.send(IP(src=GUEST, dst=host.address) / ICMP(type=3, code=3) / bytes(about))
    wire.pass_time(2)
    assert not wire.guest.udp.mappings


async def test_rfc7857_7_1_icmp_errors_of_the_network_keep_nothing_open(wire, hosts):
    host = hosts[0]
    host.called()
    [made] = wire.internet.opened
    for _ in range(3):
        wire.pass_time(IDLE / 3)
        if made.fileno() >= 0:
            wire.network_says(made, errno.EHOSTUNREACH, 3, 1, (host.address, host.port), b"question")
    wire.pass_time(2)
    assert not wire.guest.udp.mappings


async def test_rfc7857_8_ports_of_either_parity_work(hosts):
    for source_port in range(5000, 5020):
        assert hosts[0].answers(hosts[0].called(source_port))


@pytest.mark.requirement("RFC6888 REQ-15")
async def test_rfc7857_9_external_ports_are_not_in_a_row(hosts):
    """Ports of the guest in a row, ports of the host anywhere: the next one is not told by the last."""
    ports = [hosts[0].called(source_port) for source_port in range(5000, 5064)]
    steps = [b - a for a, b in itertools.pairwise(ports)]
    assert len(set(steps)) > 40
    assert max(ports) - min(ports) > 4096


async def test_rfc6888_req_5_what_one_mapping_may_remember_is_bounded(wire, monkeypatch):
    from vpnkit.net import udp_mapping

    monkeypatch.setattr(udp_mapping, "MAX_PEERS", 8)
    for i in range(100):
        wire.send(datagram(b"?", 9, far(100 + i)))
    [mapping] = wire.guest.udp.mappings.values()
    assert len(mapping.routes) <= 8
    assert len(mapping._peers) <= 8
    assert len(wire.guest.udp.routes) <= 8


async def test_rfc4787_req_7_a_network_behind_the_host_may_have_the_guests_addresses(make_wire):
    """The host's LAN is 192.168.65.0/24 as well: what is there is not mistaken for the guest or the gateway, and the
    rest of the world is reached."""

    class SameLan(Internet):
        def udp_socket(self, family: int = 2, *, gro: bool):
            made = super().udp_socket(family, gro=gro)
            receive = made.recvfrom
            made.recvfrom = lambda *sizes: (lambda data, source: (data, moved(source)))(*receive(*sizes))
            return made

    def moved(source: tuple[str, int]) -> tuple[str, int]:
        return (GUEST, source[1]) if source[0] == far(3) else source

    wire = make_wire(host=SameLan())
    with Far(wire, 2) as one, Far(wire, 3) as twin:
        port = one.called()
        assert not twin.answers(port)  # a host of that LAN with the guest's own address
        assert wire.counters["udp_filtered"] == 1
        assert one.answers(port) == [(one.address, one.port, 5000)]

"""The NAT for ICMP: RFC 5508, and what RFC 7857 says of it."""

from __future__ import annotations

import errno
import struct

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from tests.conformance.wire import GATEWAY, GUEST, HOST, EchoSocket, Internet, Nowhere, datagram, errors, far, ping
from vpnkit.net import icmp as icmp_table

IDLE = 60  # seconds


def replies(frames) -> list[tuple[str, int, int, bytes]]:
    """Source, identifier, sequence and data of the echo replies among `frames`."""
    return [
        (f[IP].src, f[ICMP].id, f[ICMP].seq, bytes(f[ICMP].payload)) for f in frames if ICMP in f and f[ICMP].type == 0
    ]


async def test_rfc5508_req_1_queries_pass_and_are_answered(wire):
    found = wire.send(ping(far(2), b"data", identifier=77, sequence=5))
    assert replies(found) == [(far(2), 77, 5, b"data")]
    assert found[0][IP].dst == GUEST


async def test_rfc5508_req_1_identifiers_of_the_guest_are_kept_apart(wire):
    wire.send(ping(far(2), identifier=1), ping(far(2), identifier=2))
    assert len(wire.internet.opened) == 2
    one, two = wire.internet.opened
    assert not {id_of(message) for _, message in one.asked} & {id_of(message) for _, message in two.asked} - {0}


def id_of(message: bytes) -> int:
    return int.from_bytes(message[4:6], "big")


async def test_rfc5508_req_1_an_answer_from_a_host_that_was_not_asked_is_dropped(wire):
    wire.send(ping(far(2)))
    [made] = wire.internet.opened
    made.answer(far(3), bytes(ICMP(type=0, id=0, seq=1) / b"ping"))
    assert not wire.work()
    assert wire.counters["icmp_filtered"] == 1


async def test_rfc5508_req_1a_the_mapping_does_not_depend_on_the_destination(wire):
    found = wire.send(*(ping(far(i), identifier=77, sequence=i) for i in (2, 3, 4)))
    assert [(source, identifier) for source, identifier, _, _ in replies(found)] == [(far(i), 77) for i in (2, 3, 4)]
    assert len(wire.internet.opened) == 1


async def test_rfc5508_req_2_a_session_lives_for_a_minute(wire):
    wire.send(ping(far(2)))
    [made] = wire.internet.opened
    wire.pass_time(IDLE - 1)
    made.answer(far(2), bytes(ICMP(type=0, id=0, seq=1) / b"late"))
    assert replies(wire.work()) == [(far(2), 77, 1, b"late")]


@pytest.mark.requirement("RFC7857 11")
async def test_rfc5508_req_2_and_ends_by_time_alone(wire):
    wire.send(ping(far(2)))
    wire.pass_time(IDLE + 1)
    assert not wire.guest.icmp.sessions
    assert wire.internet.opened[0].fileno() == -1


async def test_rfc5508_req_2_queries_refresh_it(wire):
    for _ in range(5):
        wire.send(ping(far(2)))
        wire.pass_time(IDLE - 1)
    assert len(wire.internet.opened) == 1


def guest_error(quoted: bytes, kind: int = 3, code: int = 3, destination: str = HOST) -> IP:
    return IP(src=GUEST, dst=destination) / ICMP(type=kind, code=code) / Raw(quoted)


@pytest.fixture
async def answered(wire):
    """A mapping of UDP, and a datagram that the guest got by it: what he could complain about."""
    with wire.server() as server:
        wire.send(datagram(b"?", server.getsockname()[1]))
        _, peer = server.recvfrom(100)
        server.sendto(b"answer", peer)
        [frame] = wire.until(UDP)
    return bytes(frame[IP])


async def test_rfc5508_req_3_a_bad_icmp_checksum_is_dropped(wire, answered):
    packet = guest_error(answered)
    packet[ICMP].chksum = 0x1234
    assert not wire.send(packet)
    assert wire.counters["malformed"] == 1
    assert not wire.counters["udp_guest_error"]


@pytest.mark.parametrize("octet", range(20))
async def test_rfc5508_req_3_a_bad_checksum_of_the_quoted_header_is_dropped(wire, answered, octet):
    quoted = bytearray(answered)
    quoted[octet] ^= 0x10
    assert not wire.send(guest_error(bytes(quoted)))
    assert wire.counters["malformed"] == 1


async def test_rfc5508_req_3_options_in_the_quoted_header_are_passed_over(wire, answered):
    quoted = bytearray(answered[:20] + b"\x01\x01\x01\x01" + answered[20:])
    quoted[0] = 0x46
    quoted[10:12] = bytes(2)
    quoted[10:12] = (0xFFFF - int.from_bytes(quoted[:24], "big") % 0xFFFF).to_bytes(2, "big")
    wire.send(guest_error(bytes(quoted)))
    assert wire.counters["udp_guest_error"] == 1


async def test_rfc5508_req_3_the_quoted_transport_checksum_is_not_looked_at(wire, answered):
    wire.send(guest_error(answered[:26] + b"\x12\x34" + answered[28:]))
    assert wire.counters["udp_guest_error"] == 1


async def test_rfc5508_req_3_extensions_behind_the_quote_are_passed_over(wire, answered):
    wire.send(guest_error(answered.ljust(128, b"\0") + b"\x20\0\xdf\xff\0\x08\x01\x01\0\x01\x01\x01"))
    assert wire.counters["udp_guest_error"] == 1


async def test_rfc5508_req_3_a_quote_of_eight_octets_is_enough(wire, answered):
    wire.send(guest_error(answered[:28]))
    assert wire.counters["udp_guest_error"] == 1


async def test_rfc5508_req_3_less_is_dropped(wire, answered):
    for length in range(28):
        assert not wire.send(guest_error(answered[:length]))
    assert wire.counters["malformed"] == 28


@pytest.mark.parametrize(("kind", "code"), [(3, 0), (3, 1), (3, 13), (11, 0), (11, 1)])
async def test_rfc5508_req_4_an_error_about_a_ping_quotes_what_the_guest_sent(wire, kind, code):
    """His address, his identifier, no address or identifier of the host; type, code and who said it stay."""
    sent = ping(far(2), b"a ping that does not arrive", identifier=4242, sequence=9, ttl=5)
    made = silent(wire, far(2))
    wire.send(sent)
    [(_, message)] = made.asked[-1:]
    wire.network_says(made, errno.EHOSTUNREACH, kind, code, (far(2), 0), message)
    [frame] = wire.work()
    assert errors([frame]) == [(kind, code)]
    assert (frame[IP].src, frame[IP].dst) == ("198.51.100.7", GUEST)
    quoted = IP(bytes(frame)[42:])
    assert (quoted.src, quoted.dst, quoted.proto, quoted.len) == (GUEST, far(2), 1, len(sent))
    assert bytes(quoted.payload) == bytes(sent[ICMP])


def silent(wire, address: str) -> EchoSocket:
    """The socket of the identifier 4242, whose pings to `address` are not answered."""
    wire.send(ping(far(9), identifier=4242))
    [made] = wire.internet.opened[-1:]
    made.silent.add(address)
    return made


async def test_rfc5508_req_4_an_error_about_a_datagram_quotes_what_the_guest_sent(wire):
    with wire.server("127.0.0.2") as server:
        port = server.getsockname()[1]
        sent = datagram(b"a datagram that does not arrive", port, far(2), ttl=5)
        wire.send(sent)
        [made] = wire.internet.opened
        wire.network_says(made, errno.EHOSTUNREACH, 11, 0, (far(2), port), b"a datagram that does not arrive")
        [frame] = wire.work()
    assert errors([frame]) == [(11, 0)]
    quoted = IP(bytes(frame)[42:])
    assert (quoted.src, quoted.dst, quoted.len, quoted[UDP].sport, quoted[UDP].dport) == (
        GUEST,
        far(2),
        len(sent),
        5000,
        port,
    )


async def test_rfc5508_req_4_an_error_about_what_the_guest_did_not_send_is_dropped(wire):
    made = silent(wire, far(2))
    wire.network_says(made, errno.EHOSTUNREACH, 3, 1, (far(3), 0), bytes(ICMP(type=8, seq=1)))
    wire.network_says(made, errno.EHOSTUNREACH, 3, 1, (far(9), 0), b"\x08\x00")
    wire.network_says(made, errno.EHOSTUNREACH, 3, 1, (far(9), 0), bytes(ICMP(type=13, seq=1)))
    assert not wire.work()


@pytest.mark.parametrize("offender", ["127.0.0.1", "192.168.65.77", GATEWAY, "0.0.0.0", "224.0.0.1"])
async def test_rfc5508_req_4_an_address_that_means_something_else_to_the_guest_is_not_shown(wire, offender):
    made = silent(wire, far(2))
    wire.send(ping(far(2), identifier=4242))
    wire.network_says(made, errno.EHOSTUNREACH, 3, 1, (far(2), 0), made.asked[-1][1], offender=offender)
    [frame] = wire.work()
    assert frame[IP].src == GATEWAY


async def test_rfc5508_req_5_an_error_of_the_guest_is_matched_and_goes_no_further(wire, answered):
    """It was for the host's datagram, and a host socket cannot say it."""
    assert not wire.send(guest_error(answered))
    assert wire.counters["udp_guest_error"] == 1
    assert len(wire.internet.opened) == 1


@pytest.mark.parametrize(
    "about",
    [
        IP(src=HOST, dst=GUEST) / UDP(sport=99, dport=5001),
        IP(src="9.9.9.9", dst=GUEST) / UDP(sport=99, dport=5000),
        IP(src=HOST, dst="192.168.65.9") / UDP(sport=99, dport=5000),
        IP(src=HOST, dst=GUEST) / ICMP(type=0, id=3),
        IP(src=HOST, dst=GUEST, proto=132) / bytes(20),
        IP(src=GUEST, dst=HOST) / UDP(sport=5000, dport=99),
    ],
    ids=["another port", "another host", "another guest", "icmp", "another protocol", "his own"],
)
async def test_rfc5508_req_5_an_error_about_what_he_did_not_get_is_dropped(wire, answered, about):
    assert not wire.send(guest_error(bytes(about)))
    assert wire.counters["icmp_error_unmatched"] == 1


async def test_rfc5508_req_6_errors_do_not_refresh_a_session(wire):
    made = silent(wire, far(2))
    wire.send(ping(far(2), identifier=4242))
    for _ in range(3):
        wire.pass_time(IDLE / 3)
        if made.fileno() >= 0:
            wire.network_says(made, errno.EHOSTUNREACH, 3, 1, (far(2), 0), made.asked[-1][1])
    wire.pass_time(1)
    assert not wire.guest.icmp.sessions


async def test_rfc5508_req_6_errors_do_not_end_a_session(wire):
    made = silent(wire, far(2))
    for code in range(16):
        wire.send(ping(far(2), identifier=4242))
        wire.network_says(made, errno.EHOSTUNREACH, 3, code, (far(2), 0), made.asked[-1][1], info=1400)
        wire.work()
    assert replies(wire.send(ping(far(3), identifier=4242))) == [(far(3), 4242, 1, b"ping")]
    assert len(wire.internet.opened) == 1


async def test_rfc5508_req_8_without_a_session_the_guest_is_told(make_wire, caplog):
    """No socket to be had: "prohibited", and the operator hears it once."""
    wire = make_wire(host=Nowhere())
    for _ in range(3):
        [frame] = wire.send(ping(far(2)))
        assert errors([frame]) == [(3, 13)]
    assert len([record for record in caplog.records if "ping" in record.message]) == 1


async def test_rfc5508_req_8_sessions_are_bounded_and_the_longest_idle_makes_place(wire, monkeypatch):
    monkeypatch.setattr(icmp_table, "MAX_SESSIONS", 4)
    for identifier in range(1, 11):
        assert replies(wire.send(ping(far(2), identifier=identifier)))
    assert [session.identifier for session in wire.guest.icmp.sessions.values()] == [7, 8, 9, 10]
    assert wire.counters["icmp_evicted"] == 6


async def test_rfc5508_req_9_policy_suppresses_queries(wire):
    """169.254.0.0/16 is not the guest's business, and the address of a neighbour is the neighbour's."""
    assert errors(wire.send(ping("169.254.169.254"))) == [(3, 13)]
    assert not wire.send(ping("192.168.65.77"))
    assert not wire.internet.opened


async def test_rfc5508_req_10_time_exceeded_unreachable_and_echo_are_carried(wire):
    assert replies(wire.send(ping(far(2))))
    made = silent(wire, far(2))
    for kind, code in ((3, 1), (11, 0)):
        wire.send(ping(far(2), identifier=4242))
        wire.network_says(made, errno.EHOSTUNREACH, kind, code, (far(2), 0), made.asked[-1][1])
        assert errors(wire.work()) == [(kind, code)]


async def test_rfc5508_req_10_the_ttl_of_a_ping_goes_with_it(wire):
    """One less: there is a router between."""
    wire.send(ping(far(2), ttl=5))
    assert wire.internet.opened[0].getsockopt(0, 2) == 4  # IPPROTO_IP, IP_TTL
    wire.send(ping(far(2), ttl=9))
    assert wire.internet.opened[0].getsockopt(0, 2) == 8


@pytest.mark.parametrize("kind", [4, 5, 9, 10, 12, 13, 14, 15, 16, 17, 18])
async def test_rfc5508_req_11_other_messages_are_dropped(wire, kind):
    message = IP(src=GUEST, dst=far(2)) / ICMP(type=kind) / bytes(IP(src=far(2), dst=GUEST) / TCP())
    assert not wire.send(message)
    assert not wire.internet.opened


@pytest.mark.parametrize("kind", [4, 5, 12])
async def test_rfc5508_req_11_other_errors_of_the_network_are_dropped(wire, kind):
    made = silent(wire, far(2))
    wire.send(ping(far(2), identifier=4242))
    wire.network_says(made, errno.EPROTO, kind, 0, (far(2), 0), made.asked[-1][1])
    assert not wire.work()
    assert wire.counters["icmp_error_ignored"] == 1


async def test_rfc7857_12_a_ping_to_the_hosts_own_address_is_answered(wire):
    """Hairpinning: the alias is what stands in front of the guest."""
    assert replies(wire.send(ping(HOST, b"me"))) == [(HOST, 77, 1, b"me")]


async def test_rfc5508_req_1_a_raw_socket_hears_only_its_own(make_wire):
    """Where the host has no ping sockets: the kernel hands everybody's replies to everybody's raw socket."""

    class Raw(Internet):
        def ping_socket(self, family: int = 2):
            made, _ = super().ping_socket(family)
            real = made.recvfrom

            def with_header(*sizes: int) -> tuple[bytes, tuple[str, int]]:
                data, source = real(*sizes)
                return bytes([0x45]) + bytes(19) + data, source

            made.recvfrom = with_header
            return made, True

    wire = make_wire(host=Raw())
    assert replies(wire.send(ping(far(2)))) == [(far(2), 77, 1, b"ping")]
    [made] = wire.internet.opened
    ours = id_of(made.asked[0][1])
    made.answer(far(2), struct.pack("!BBHHH", 0, 0, 0, ours ^ 1, 1) + b"somebody else's")
    assert not wire.work()

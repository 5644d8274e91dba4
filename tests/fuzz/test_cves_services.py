"""Inputs that broke other stacks: DHCP, DNS and TFTP.  See test_cves.py."""

from __future__ import annotations

import itertools
import random
import struct

import pytest
import trio

from tests.fuzz import frames
from tests.fuzz.frames import ACK, GATEWAY, REMOTE, dhcp, dhcp_message, dns, dns_query
from tests.fuzz.victim import cpu_limit
from vpnkit.proto.dhcp_bindings import MAX_BINDINGS, MAX_DECLINED
from vpnkit.proto.dns import MAX_WAITERS

DISCOVER, REQUEST, DECLINE, RELEASE, INFORM = (bytes((kind,)) for kind in (1, 3, 4, 7, 8))
OPTIONS_AT = 240  # octets into a DHCP message


def options_of(frame: bytes) -> dict[int, bytes]:
    """The options of an answer; every one ends inside it."""
    area = frame[42 + OPTIONS_AT :]
    found, i = {}, 0
    while area[i] != 255:
        if area[i]:
            assert i + 2 + area[i + 1] <= len(area)
            found[area[i]] = area[i + 2 : i + 2 + area[i + 1]]
            i += 1 + area[i + 1]
        i += 1
    return found


def dropped(victim) -> dict[str, int]:
    return dict(victim.guest.gateway._dhcp.dropped)


# DHCP


async def test_cve_2021_3592_dhcp_shorter_than_its_fixed_part(victim):
    whole = dhcp_message((53, DISCOVER))
    for length in range(OPTIONS_AT):
        assert victim.feed(dhcp(whole[:length])) == []
    assert dropped(victim) == {"malformed": OPTIONS_AT}
    assert victim.grew() == {}


async def test_cve_2021_3592_no_stale_octets_in_an_answer(victim):
    """Ten octets of the heap leaked: whatever was there before, two equal questions get equal answers."""
    question = dhcp(dhcp_message((53, DISCOVER)))
    (first,) = victim.feed(question)
    victim.feed(*(dhcp(b"\xee" * size) for size in range(0, 1400, 7)), *(frames.ping(b"\xee" * 1400),) * 5)
    (again,) = victim.feed(question)
    assert again == first
    assert first[42 + 44 : 42 + 236] == bytes(192), "sname and file"
    assert b"\xee" not in again


@pytest.mark.parametrize("first", range(0, 256, 32))
async def test_cve_2017_11434_dhcp_option_length_past_the_end(victim, first):
    """Also CVE-2024-7490, CVE-2007-0061: every option with every kind of wrong length, and no END."""
    codes = range(first, first + 32)
    for code, kind, cut in itertools.product(codes, (DISCOVER, REQUEST, INFORM), (0, 1, 2)):
        for length in (0, 1, 3, 4, 5, 64, 254, 255):
            area = bytes((code, length)) + b"\x01" * max(min(length, 300) - cut, 0)
            for answer in victim.feed(dhcp(dhcp_message((53, kind), end=area))):
                options_of(answer)
                assert len(answer) <= 14 + 576


async def test_dhcp_code_without_a_length_at_the_very_end(victim):
    for code in range(1, 255):
        victim.feed(dhcp(dhcp_message((53, DISCOVER), end=bytes((code,)))))
    assert dropped(victim)["malformed"] == 254


@pytest.mark.parametrize("size", [b"", b"\0", b"\0\0", b"\0\1", b"\2\x3f", b"\xff\xff", bytes(200)])
async def test_cve_2007_0062_maximum_message_size_is_not_believed(victim, size):
    for answer in victim.feed(dhcp(dhcp_message((53, DISCOVER), (57, size), (55, bytes(range(1, 255)))))):
        assert 300 <= len(answer) - 42 <= 576 - 28


async def test_dhcp_types_that_are_none(victim):
    for value in (b"", b"\0", b"\0\1", b"\1\1", *(bytes((kind,)) for kind in (2, 5, 6, 9, 10, 128, 255))):
        assert victim.feed(dhcp(dhcp_message((53, value)))) == []
    assert victim.feed(dhcp(dhcp_message((53, DISCOVER), (53, DISCOVER)))) == []


async def test_dhcp_of_other_hardware_and_from_nobody(victim):
    strange = [{"op": 0}, {"op": 2}, {"op": 255}, {"htype": 0}, {"htype": 6}, {"hlen": 0}, {"hlen": 16}, {"hlen": 255}]
    strange += [{"mac": bytes(6)}, {"mac": b"\xff" * 6}, {"mac": frames.SERVER_MAC}, {"giaddr": b"\1\2\3\4"}]
    for fields in strange:
        assert victim.feed(dhcp(dhcp_message((53, DISCOVER), **fields))) == []


async def test_dhcp_replies_are_not_answered(victim):
    """CVE-2024-2169: loops of datagrams that answer each other."""
    (offer,) = victim.feed(dhcp(dhcp_message((53, DISCOVER))))
    assert victim.feed(dhcp(offer[42:]), frames.udp(offer[42:], dst=GATEWAY, sport=67, dport=67)) == []


@pytest.mark.parametrize(
    "ip", [GATEWAY, "192.168.65.2", "192.168.65.255", "192.168.65.0", "0.0.0.0", "127.0.0.1", "8.8.8.8"]
)
async def test_libslirp_request_for_an_address_that_nobody_may_have(victim, ip):
    requests = [
        dhcp(dhcp_message((53, REQUEST), (50, frames.packed(ip)))),
        dhcp(dhcp_message((53, REQUEST), ciaddr=frames.packed(ip))),
        dhcp(dhcp_message((53, DISCOVER), (50, frames.packed(ip)))),
        dhcp(dhcp_message((53, RELEASE), ciaddr=frames.packed(ip))),
        dhcp(dhcp_message((53, DECLINE), (50, frames.packed(ip)))),
    ]
    for answer in victim.feed(*requests):
        assert answer[42 + 16 : 42 + 20] != frames.packed(ip)
    assert frames.packed(ip) not in victim.guest.station.addresses


async def test_smoltcp_lease_times_that_make_no_sense(victim):
    """The renewal comes before the rebinding, and that before the end, whatever was wished."""
    for wish in (0, 1, 2, 59, 60, 2**31, 2**32 - 1):
        (answer,) = victim.feed(dhcp(dhcp_message((53, DISCOVER), (51, struct.pack("!I", wish)))))
        lease, renewal, rebinding = (int.from_bytes(options_of(answer)[code], "big") for code in (51, 58, 59))
        assert 0 < renewal < rebinding < lease


async def test_cve_2017_4950_release_and_renew_races(victim):
    """Every order of what a client may say about one address."""
    ip = frames.packed(frames.GUEST)
    words = [
        dhcp(dhcp_message((53, REQUEST), (50, ip))),
        dhcp(dhcp_message((53, RELEASE), ciaddr=ip)),
        dhcp(dhcp_message((53, DECLINE), (50, ip))),
        dhcp(dhcp_message((53, DISCOVER))),
    ]
    for order in itertools.permutations(words * 2, 4):
        victim.feed(*order)
    server = victim.guest.gateway._dhcp.server
    assert server.statistics().declined <= MAX_DECLINED
    assert server.statistics().bindings <= MAX_BINDINGS
    victim.passes(601.0)
    (offer,) = victim.feed(dhcp(dhcp_message((53, DISCOVER))))
    (answer,) = victim.feed(dhcp(dhcp_message((53, REQUEST), (50, offer[42 + 16 : 42 + 20]))))
    assert options_of(answer)[53] == b"\x05"


async def test_dhcp_host_names_are_made_harmless(victim):
    """What people read in a list: no escape sequences, no line ends."""
    victim.feed(dhcp(dhcp_message((53, REQUEST), (50, frames.packed(frames.GUEST)), (12, bytes(range(255))))))
    (lease,) = victim.guest.gateway._dhcp.server.leases()
    assert lease.hostname.isascii()
    assert set(lease.hostname) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")


# TFTP, and every other port of the gateway


async def test_cve_2021_3595_and_2020_7211_there_is_no_tftp(victim):
    requests = [b"", b"\0", b"\0\1", b"\0\1" + b"..\\..\\boot.ini\0octet\0", b"\0\1" + b"../../etc/passwd\0octet\0"]
    requests += [b"\0\1" + b"A" * 1400, b"\0\6blksize\x0065464\0"]
    for payload in requests:
        (answer,) = victim.feed(frames.udp(payload, dst=GATEWAY, dport=69))
        assert answer[34:36] == b"\x03\x03", "port unreachable"


async def test_cve_2025_9074_ports_of_the_gateway(victim):
    """gvproxy answers its control API inside the guest's network (80), Docker Desktop its engine: here 53 is all."""
    opened = []
    for port in [*range(1, 1024), 2375, 2376, 7777, 8080, 10000, 24224, 65535]:
        victim.passes(0.01)
        answers = victim.feed(frames.tcp(dst=GATEWAY, dport=port, sport=9999))
        opened += [port for answer in answers if answer[23] == 6 and answer[47] & frames.SYN]
        victim.feed(frames.tcp(dst=GATEWAY, dport=port, sport=9999, seq=1001, flags=frames.RST))
    assert opened == [53]


# DNS


def statistics(victim):
    return victim.guest.gateway.dns.statistics()


async def test_cve_2026_62309_dns_of_every_length(victim):
    whole = dns_query("a.example", counts=(1, 0, 0, 1), rest=b"\0\0\x29\x04\xd0\0\0\0\0\0\0")
    for length in range(len(whole)):
        for answer in victim.feed(dns(whole[:length])):
            assert answer[42:44] == whole[:2]
            assert answer[45] & 15 == 1, "FORMERR"
    assert statistics(victim).malformed == len(whole) - 1, "an empty datagram is no message"


async def test_cve_2024_2169_responses_are_not_answered(victim):
    for flags in (0x8000, 0x8180, 0xFFFF, 0x8400):
        assert victim.feed(dns(dns_query(flags=flags), sport=53), dns(dns_query(flags=flags))) == []
    assert statistics(victim).responses == 8


@pytest.mark.parametrize("pointer", [0, 1, 11, 12, 13, 20, 27, 28, 255, 0x3FFF])
async def test_name_wreck_compression_pointers(victim, pointer):
    """To itself, forward, outside, into the header; in the question and in a record: CVE-2020-25681 among others."""
    target = struct.pack("!H", 0xC000 | pointer)
    with cpu_limit(0.5):
        victim.feed(dns(dns_query(target)), dns(dns_query(b"\1a" + target)))
        for count in (1, 100, 65535):
            rest = (target + struct.pack("!HHIH", 41, 4096, 0, 0)) * 100
            victim.feed(dns(dns_query("a.b", counts=(1, 0, 0, count), rest=rest)))
    assert statistics(victim).malformed == 5


async def test_cve_2020_17440_labels_and_counts_that_lie(victim):
    """AMNESIA:33: label lengths 64 to 191, names without an end, counts of what is not there."""
    bad = 0
    for length in range(256):
        victim.feed(dns(dns_query(bytes((length,)) + b"a" * 20)))
    for counts in itertools.product((0, 1, 2, 65535), repeat=4):
        if counts != (1, 0, 0, 0):
            bad += len(victim.feed(dns(dns_query("b.example", counts=counts))))
    assert bad == 255
    long_name = b"\x3f" + b"a" * 63
    for labels in (3, 4, 5, 20):
        victim.feed(dns(dns_query(long_name * labels + b"\0")))
    assert statistics(victim).in_flight <= 8


async def test_cve_2026_12725_names_with_anything_in_them(victim):
    """Control characters, dots inside labels, NULs, escape sequences, format directives."""
    for label in (b"\0\0\0", b"\x1b[31m", b"%s%n%x", b"a.b", b"\xff\xfe", b"*", b"\\000", b"\r\n", b"xn--\xff"):
        victim.feed(dns(dns_query(bytes((len(label),)) + label + b"\x07in-addr\x04arpa\0", qtype=12)))
        victim.feed(dns(dns_query(bytes((len(label),)) + label + b"\x09localhost\0")))
        victim.feed(dns(dns_query(bytes((len(label),)) + label + b"\0")))


async def test_reverse_names_that_are_almost_addresses(victim):
    names = ["1.2.3.in-addr.arpa", "1.2.3.4.5.in-addr.arpa", "256.2.3.4.in-addr.arpa", "01.002.3.4.in-addr.arpa"]
    names += ["-1.2.3.4.in-addr.arpa", "1e1.2.3.4.in-addr.arpa", "in-addr.arpa", "ip6.arpa", "arpa", ""]
    names += [".".join("g" * 32) + ".ip6.arpa", ".".join("0" * 31) + ".ip6.arpa", ".".join("0" * 33) + ".ip6.arpa"]
    for text in [*names, "٣.2.3.4.in-addr.arpa"]:
        victim.feed(dns(dns_query(text, qtype=12)))


async def test_dns_every_opcode_class_and_type(victim):
    for opcode in range(16):
        victim.feed(dns(dns_query(flags=opcode << 11)))
    for qtype, qclass in itertools.product(
        (0, 1, 28, 41, 249, 250, 251, 252, 255, 256, 65535), (0, 1, 3, 254, 255, 65535)
    ):
        victim.feed(dns(dns_query(qtype=qtype, qclass=qclass)))


async def test_cve_2020_25686_a_question_repeated_waits_for_one_lookup(victim):
    out = victim.feed(*(dns(dns_query("same.example", ident=i), sport=2000 + i) for i in range(100)))
    assert out == []
    assert statistics(victim).sockets == statistics(victim).in_flight == 1
    assert statistics(victim).merged == MAX_WAITERS - 1
    assert statistics(victim).crowded == 100 - MAX_WAITERS


async def test_cve_2023_29483_wrong_answers_are_passed_over(victim):
    """Answers of the server's own socket that are something else: wrong id, a query, other name, cut, noise."""
    victim.feed(dns(dns_query("x.example", ident=500)))
    question, asker = victim.upstream.recvfrom(2000)
    good = question[:2] + b"\x81\x80" + question[4:]
    rng = random.Random(1)
    wrong = [b"", question, question[:11], good[:12], good[:-1], b"\0\0" + good[2:], good.replace(b"\1x", b"\1y")]
    wrong += [bytes(12), b"\xff" * 4000, *(rng.randbytes(28) for _ in range(20))]
    for data in wrong:
        victim.upstream.sendto(data, asker)
    assert victim.feed() == []
    victim.upstream.sendto(good, asker)
    (answer,) = victim.feed()
    assert answer[42:44] == struct.pack("!H", 500)
    assert statistics(victim).in_flight == 0


@pytest.mark.parametrize("counts", [(1, 1, 0, 0), (1, 65535, 65535, 65535), (0, 0, 0, 0), (1, 0, 0, 1), (2, 0, 0, 0)])
async def test_cve_2018_16598_answers_of_servers_that_lie(victim, counts):
    """They are the client's affair, but to cut one must not fail; it is no longer than the client can take."""
    rng = random.Random(2)
    for size in (0, 1, 11, 500, 513, 4000):
        victim.feed(dns(dns_query(f"s{size}.example", ident=500)))
        question, asker = victim.upstream.recvfrom(2000)
        rest = rng.choice([bytes(size), b"\xc0\x0c" * (size // 2), rng.randbytes(size)])
        victim.upstream.sendto(question[:2] + b"\x81\x80" + struct.pack("!HHHH", *counts) + question[12:] + rest, asker)
        for _ in range(3):
            for answer in victim.feed():
                assert len(answer) - 42 <= 512
    victim.passes(10.0)


async def test_cve_2024_8418_idle_dns_connections_block_nobody(victim):
    """TCP to port 53: connections that say nothing, half a length, a length of 0, and noise; then a question."""
    peers = []
    for words in (b"", b"\0", b"\0\0", b"\xff\xff", b"\0\1\0" * 50, b"\x00\x0c" + bytes(12), bytes(range(256)) * 4):
        port = 15000 + len(peers)
        syn_ack = victim.feed(frames.tcp(dst=GATEWAY, dport=53, sport=port))[0]
        fields = {"dst": GATEWAY, "dport": 53, "sport": port, "ack": int.from_bytes(syn_ack[38:42], "big") + 1}
        victim.feed(frames.tcp(seq=1001, flags=ACK, **fields))
        peers.append((words, fields))
    await trio.testing.wait_all_tasks_blocked()
    for words, fields in peers:
        victim.feed(frames.tcp(words, seq=1001, flags=ACK, **fields))
        await trio.testing.wait_all_tasks_blocked()
        victim.feed()
    message = dns_query()
    fields = peers[0][1]
    victim.feed(frames.tcp(struct.pack("!H", len(message)) + message, seq=1001, flags=ACK, **fields))
    await trio.testing.wait_all_tasks_blocked()
    assert any(frame.endswith(frames.packed(frames.HOST)) for frame in victim.feed())
    for words, fields in peers:
        victim.feed(frames.tcp(seq=1001 + len(words), flags=frames.RST, **fields))


async def test_strangers_get_no_name_service(victim):
    """Port 53 of somebody else is somebody else's; the gateway's is for those who are on the LAN."""
    victim.feed(frames.udp(dns_query(), dst=REMOTE, dport=53))
    assert victim.feed(frames.udp(dns_query(), src="8.8.8.8", dst=GATEWAY, dport=53)) == []
    assert victim.feed(frames.udp(dns_query(), dst=GATEWAY, dport=53, sport=0)) == []
    assert statistics(victim).udp_queries == 0
    assert list(victim.host.heard) == [dns_query()]

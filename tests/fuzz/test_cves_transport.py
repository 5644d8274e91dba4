"""Inputs that broke other stacks: TCP, UDP and ICMP.  See test_cves.py."""

from __future__ import annotations

import random
import struct

import pytest

from tests.fuzz import frames
from tests.fuzz.frames import ACK, FIN, GATEWAY, GUEST, HOST, PSH, REMOTE, RST, SYN, URG, ether, ipv4
from tests.fuzz.victim import cpu_limit
from vpnkit.net import tcp as tcp_table

EMULATED = [21, 53, 69, 70, 113, 514, 554, 6667, 6668, 7070]

# UDP


@pytest.mark.parametrize("dst", [REMOTE, HOST, GATEWAY])
async def test_cve_2021_3594_udp_shorter_than_its_header(victim, dst):
    for length in range(8):
        datagram = frames.udp_datagram(b"", dst=dst)[:length]
        assert victim.feed(ether(ipv4(datagram, 17, dst=dst))) == []
    assert victim.grew() == {"malformed": 8}


@pytest.mark.parametrize("dst", [REMOTE, HOST, GATEWAY])
async def test_cve_2021_3594_udp_length_against_ip_length(victim, dst):
    for size in (0, 1, 100, 1472):
        for length in (0, 1, 7, size + 9, size + 20, 65535):
            victim.feed(frames.udp(bytes(size), dst=dst, length=length, dport=53, sport=9))
    assert victim.grew() == {"malformed": 24}
    victim.feed(frames.udp(b"shown and hidden", length=8 + 5))
    assert set(victim.host.heard) <= {b"shown"}


async def test_slirp4netns_227_datagrams_of_no_length(victim):
    for _ in range(100):
        victim.feed(frames.udp(b""))
    assert list(victim.host.heard) == [b""] * 100


async def test_udp_checksums_of_every_kind(victim):
    for sport, check in enumerate((None, 0, 1, 0xFFFF), 5000):
        victim.feed(frames.udp(b"x", check=check, sport=sport))
    assert victim.grew().keys() <= {"malformed"}


@pytest.mark.parametrize("size", [0, 1, 12, 1472])
@pytest.mark.parametrize("gso_type", [0, 1, 3, 4, 5, 0x80, 0x81, 255])
async def test_cve_2020_27617_metadata_on_frames_that_are_something_else(victim, gso_type, size):
    """A link that says `super-frame` of what is none: ARP, ICMP, a fragment, a short segment."""
    others = [
        frames.arp(),
        frames.ping(bytes(100)),
        frames.udp(bytes(1000), dport=53, dst=GATEWAY),
        frames.udp(bytes(1000)),
        frames.udp(b""),
        frames.tcp(bytes(1000), flags=ACK),
        frames.dhcp(frames.dhcp_message((53, b"\1"))),
        *frames.fragments(frames.udp_datagram(bytes(1000)), [0, 512]),
    ]
    for frame in others:
        with cpu_limit(0.2):
            victim.raw(frame, gso_type, size, partial=True)


async def test_a_super_frame_of_one_octet_segments(victim):
    """65,000 datagrams in one frame: it may be refused, or cost no more than many frames do."""
    with cpu_limit(1.5):
        victim.raw(frames.udp(bytes(65000)), 5, 1)
        victim.raw(frames.udp(bytes(65000), dst=GATEWAY, dport=53), 5, 1)
        victim.raw(frames.udp(bytes(65000), dst=GATEWAY, dport=53), 5, 12)


# TCP


@pytest.mark.parametrize("flags", [SYN, SYN | ACK, ACK, PSH | ACK, RST, FIN | ACK, 0, 255])
async def test_cve_2018_16603_tcp_shorter_than_its_header(victim, flags):
    segment = frames.tcp_segment(flags=flags)
    for length in range(20):
        assert victim.feed(ether(ipv4(segment[:length], 6))) == []
    for offset in (0, 1, 4, 6, 15):
        victim.feed(frames.tcp(flags=flags, offset=offset))
    assert victim.grew() == {"malformed": 25}


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, 5, 8, 15, 19, 28, 30, 34, 69, 253, 254, 255])
async def test_tcp_options_of_every_length(victim, kind):
    """AMNESIA:33 CVE-2020-24337 and Nut/Net CVE-2026-120596: length 0 of a kind that nobody knows."""
    for length in range(256):
        options = bytes((kind, length)).ljust(40, b"\x02")
        for flags in (SYN, SYN | ACK, ACK):
            with cpu_limit(0.1):
                victim.feed(frames.tcp(options=options, flags=flags, sport=7000 + length, dport=8082))
    victim.passes(200)


async def test_cve_2020_13988_mss_at_the_very_end(victim):
    for options in (b"\1\1\1\2", b"\1\1\2\4", b"\2\3\1\1", b"\2\2\1\1", b"\1\2\4\5", b"\3\1\1\1", b"\1\1\3\3"):
        victim.feed(frames.tcp(options=options, flags=SYN))
    assert victim.grew().keys() <= {"malformed"}


@pytest.mark.parametrize("mss", [0, 1, 7, 48, 63, 64, 65535])
async def test_smoltcp_mss_zero_and_cve_2019_11477_sack_panic(victim, mss):
    """A segment of nothing but headers: data still comes, in not too many pieces."""
    options = struct.pack("!BBHBBBB", 2, 4, mss, 1, 1, 4, 2)
    peer_port = 7777
    out = victim.feed(frames.tcp(options=options, sport=peer_port))
    (syn_ack,) = [f for f in out if f[23] == 6]
    ours = struct.unpack_from("!I", syn_ack, 38)[0]
    fields = {"sport": peer_port, "seq": 1001, "ack": ours + 1, "flags": ACK}
    victim.feed(frames.tcp(**fields))
    victim.far[-1].send(bytes(5000))
    with cpu_limit(0.5):
        out = victim.feed()
        sack = b"\1\1\5\x0a" + struct.pack("!II", ours + 100, ours + 148)
        for _ in range(200):
            out += victim.feed(frames.tcp(options=sack, **fields))
    data = [f for f in out if f[23] == 6 and struct.unpack_from("!H", f, 16)[0] > 40]
    assert data
    assert len(data) < 500
    assert not victim.guest.counters["malformed"]
    victim.feed(frames.tcp(**{**fields, "flags": RST}))


async def test_smoltcp_sack_blocks_that_wrap_or_lie(victim):
    peer = victim.connect()
    victim.far[-1].send(bytes(20000))
    victim.feed()
    una = peer.ack
    blocks = [(0, 0xFFFFFFFF), (una, una), (una + 10, una), (una - 1, una + 1), (una + 5, una + 1 << 31), (7, 3)]
    for left, right in blocks:
        block = struct.pack("!II", left & 0xFFFFFFFF, right & 0xFFFFFFFF)
        for options in (
            b"\1\1\5\x0a" + block,
            b"\1\1\5\x12" + block * 2,
            b"\1\1\5\x22" + block * 4,
            b"\1\1\5\x09" + block,
        ):
            for _ in range(4):
                victim.feed(peer.segment(options=options))
    assert peer.hears(20000) == bytes(20000)


@pytest.mark.parametrize("urgent", [0, 1, 2, 5, 6, 100, 1460, 1461, 32767, 32768, 65534, 65535])
async def test_cve_2026_9539_urgent_pointer_all_values(victim, urgent):
    """Larger than the data, than the window, repeated and shrinking: what arrives is the data, all of it, in line."""
    peer = victim.connect()
    text = bytes(range(256)) * 8
    for start in range(0, len(text), 64):
        peer.say(text[start : start + 64], flags=ACK | URG, urgent=urgent)
        peer.say(flags=ACK | URG, urgent=urgent >> 1)
        victim.feed(peer.segment(b"early", seq=peer.seq + 5000, flags=ACK | URG, urgent=urgent))
        victim.feed(
            peer.segment(text[start : start + 64], seq=peer.seq - 64, flags=ACK | URG | PSH, urgent=65535 - urgent)
        )
    assert victim.received_by_host() == text
    peer.say(flags=RST)


@pytest.mark.parametrize("port", EMULATED)
async def test_cve_2020_7039_no_emulation_touches_a_payload(victim, port):
    """Also CVE-2019-6778, CVE-2019-9824, CVE-2020-8608: ident, FTP, IRC DCC, RealAudio, rsh."""
    port = port & ~3 or 4  # a host of `MuteHost` that answers
    texts = [
        b"\x01DCC CHAT chat 3232252163 6000\x01\r\n",
        b"\x01DCC SEND file 3232252163 6000 99999999999999\x01\r\n",
        b"PORT 192,168,65,3,4,1\r\n",
        b"227 Entering Passive Mode (192,168,65,3,200,1)\r\n",
        b"6193, 23\r\n",
        b"99999999999999, 99999999999999" + b"9" * 1400,
        b"PNA" + bytes(1000),
        bytes(range(256)) * 5,
    ]
    peer = victim.connect(dport=port)
    for text in texts:
        peer.say(text)
        victim.far[-1].send(text)
    assert victim.received_by_host() == b"".join(texts)
    assert peer.hears() == b"".join(texts)
    peer.say(flags=RST)


@pytest.mark.parametrize("port", [113, 6667, 21, 7070])
async def test_cve_2019_6778_tcp_port_113_long_data(victim, port):
    """A line of 64 KiB that never ends, to a port that peers emulated: to a host that refuses, and one that is mute."""
    for sequence in range(0, 65536, 1400):
        victim.feed(frames.tcp(b"A" * 1400, seq=sequence, flags=ACK | PSH, dport=port))
    victim.feed(frames.tcp(dport=port), frames.tcp(b"A" * 1400, seq=1001, flags=ACK | PSH, dport=port))
    victim.passes(200)


async def test_cve_2017_13711_reset_while_data_is_queued(victim):
    """The reset comes while both directions have something under way; and again, and a FIN, and another SYN."""
    for last in (RST, RST | ACK, FIN | ACK, SYN):
        for _ in range(50):
            peer = victim.connect()
            peer.say(b"x" * 1000)
            victim.far[-1].send(b"y" * 50000)
            storm = [peer.segment(flags=last), peer.segment(b"late"), peer.segment(flags=last), peer.segment(flags=RST)]
            victim.feed(*storm, *storm, *(peer.segment(seq=peer.seq + taken, flags=RST) for taken in range(10)))
    assert not victim.guest.tcp.flows


async def test_lwip_2026_rst_handling_leaks_nothing(victim):
    """MirageOS leaked a connection per reset; every reset and every SYN here is for ports that were used before."""
    for _ in range(2200):
        victim.connect(port=7000).say(flags=RST)
    assert not victim.guest.tcp.flows
    assert len(victim.guest.deadlines.queue) < 2100


async def test_smoltcp_ack_of_nothing_in_syn_received(victim):
    for ack in (0, 1, 2**31, 2**32 - 1):
        victim.feed(frames.tcp(sport=7001))
        victim.feed(frames.tcp(sport=7001, seq=1001, ack=ack, flags=ACK))
        victim.feed(frames.tcp(b"data", sport=7001, seq=1001, ack=ack, flags=ACK))
        victim.feed(frames.tcp(sport=7001, seq=1001, flags=RST))
    assert not victim.guest.tcp.flows
    assert not victim.received_by_host()


@pytest.mark.parametrize("iss", [0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])
async def test_smoltcp_initial_sequence_numbers_that_wrap(victim, iss):
    peer = victim.connect(iss=iss)
    peer.say(b"0123456789" * 100)
    assert victim.received_by_host() == b"0123456789" * 100
    peer.say(flags=RST)
    assert not victim.guest.tcp.flows


async def test_smoltcp_zero_window_makes_no_storm(victim):
    """A closed window for an hour: probes, few, and then everything."""
    peer = victim.connect()
    victim.far[-1].send(b"z" * 3000)
    peer.say(window=0)
    said = 0
    for _ in range(360):
        out = victim.passes(10.0)
        said += len(out)
        for _ in out:
            peer.say(window=0)
    assert said < 400
    assert peer.hears(3000) == b"z" * 3000


async def test_smoltcp_challenge_acks_end(victim):
    """Two ends that answer each other's ACKs, for ever; and CVE-2016-5696: the limit is each connection's own."""
    one, other = victim.connect(), victim.connect()
    wrong = [one.segment(seq=one.seq + 100, flags=RST), one.segment(flags=SYN), one.segment(ack=one.ack + 99999)]
    said = sum(len(victim.feed(*wrong)) for _ in range(500))
    assert said < 600
    assert len(other._take(victim.feed(other.segment(flags=SYN, seq=other.seq + 10)))) == 1
    one.say(b"alive")
    other.say(b"alive")


async def test_cve_2018_5390_segmentsmack(victim):
    """Ten thousand segments of one octet, each with a hole before it, against CPU time; the stream is whole then."""
    peer = victim.connect()
    early = [peer.segment(bytes([i % 256]), seq=peer.seq + i) for i in range(8001, 1, -2)]
    with cpu_limit(4.0):
        victim.feed(*early)
        victim.feed(*early)
    text = bytes(i % 256 for i in range(8002))
    for start in range(0, len(text), 1000):
        peer.say(text[start : start + 1000])
    assert victim.received_by_host() == text


async def test_blind_segments_hurt_nobody(victim):
    """RFC 5961; URGENT/11 CVE-2019-12258: bad options in a segment of the same ports reset the connection."""
    peer = victim.connect()
    rng = random.Random(4)
    for _ in range(1000):
        far = peer.seq + rng.randrange(2**21, 2**32 - 2**21)
        options = bytes(rng.choices(range(256), k=4 * rng.randrange(10)))
        victim.feed(
            peer.segment(
                rng.randbytes(9), seq=far, flags=rng.choice([RST, SYN, RST | ACK, FIN | ACK, URG, 0]), options=options
            )
        )
    victim.feed(peer.segment(seq=peer.seq, options=b"\x02\x00\x00\x00", flags=SYN))
    peer.say(b"survived")
    assert victim.received_by_host() == b"survived"


async def test_syn_on_a_live_connection(victim):
    peer = victim.connect()
    for sequence in (peer.seq, peer.seq - 1, peer.seq + 1, 0, 2**31):
        victim.feed(peer.segment(seq=sequence, flags=SYN), peer.segment(seq=sequence, flags=SYN | ACK))
    peer.say(b"survived")
    assert victim.received_by_host() == b"survived"


@pytest.mark.parametrize("flags", range(64))
async def test_every_set_of_flags_in_every_state(victim, flags):
    """Held, SYN received, open, half closed either way, TIME-WAIT, none."""
    body = (b"", b"data")
    ports = iter(range(30000, 40000))
    held = next(ports)
    victim.feed(frames.tcp(sport=held, dport=8082))
    syn_received = next(ports)
    victim.feed(frames.tcp(sport=syn_received))
    for payload in body:
        victim.feed(frames.tcp(payload, sport=held, dport=8082, seq=1001, flags=flags))
        victim.feed(frames.tcp(payload, sport=syn_received, seq=1001, flags=flags))
        victim.feed(frames.tcp(payload, sport=next(ports), seq=1001, flags=flags))
        for closed in ("nobody", "guest", "host", "both"):
            peer = victim.connect()
            if closed in ("host", "both"):
                victim.far[-1].shutdown(1)
                victim.feed()
                peer.say(ack=peer.ack + 1)
                peer.ack += 1
            if closed in ("guest", "both"):
                peer.say(flags=FIN | ACK)
                peer.seq += 1
            for sequence in (peer.seq, peer.seq + 1, peer.seq - 1, peer.seq + 2**20 + 99):
                victim.feed(peer.segment(payload, seq=sequence, flags=flags))
    assert victim.guest.counters["internal_error"] == 0


async def test_cve_2026_120831_flows_between_bulk_and_talk(victim):
    """Bursts that change between one octet and many, over flows that take turns; each gets what was sent."""
    peers = [victim.connect() for _ in range(20)]
    fars = list(victim.far)[-20:]
    for round_ in range(20):
        for number, far in enumerate(fars):
            far.send(bytes([number]) * (1 if (round_ + number) % 3 else 4000))
        victim.feed()
        peers[round_].say(window=[0, 1, 500, 65535][round_ % 4])
    for number, peer in enumerate(peers):
        wanted = sum(1 if (round_ + number) % 3 else 4000 for round_ in range(20))
        assert peer.hears(wanted) == bytes([number]) * wanted
        peer.say(flags=RST)


# ICMP


async def test_cve_2026_120830_quotes_are_cut_to_what_came(victim):
    """An error of ours about a frame whose header promises more than there is, and about the largest: at most 576."""
    for size in (0, 1, 7, 8, 500, 548, 556, 1400):
        for dst in (GATEWAY, REMOTE):
            for frame in (
                frames.udp(bytes(size), dst=dst, dport=7),
                ether(ipv4(bytes(size), 99, dst=dst)),
                ether(ipv4(bytes(size), 99, dst=dst, options=b"\x07\x27\x04".ljust(40, b"\0"))),
                ether(ipv4(bytes(size), 99, dst=dst, total=1500)),
            ):
                for error in victim.feed(frame):
                    assert len(error) <= 14 + 576
                    quoted = error[42:]
                    assert frame[14:].startswith(quoted)


async def test_cve_2026_115449_echo_of_every_length(victim):
    """The answer is as long as the question, and shows no address of the host."""
    for size in [*range(64), 1000, 1471, 1472]:
        (answer,) = victim.feed(frames.ping(bytes(size)))
        assert struct.unpack_from("!H", answer, 16)[0] == 28 + size == len(answer) - 14
        assert answer[26:34] == frames.packed(GATEWAY) + frames.packed(GUEST)
    for length in range(8):
        victim.feed(ether(ipv4(frames.icmp_message(8, 0, b"\0\1\0\1")[:length], 1, dst=GATEWAY)))
    assert victim.grew() == {"malformed": 8}


@pytest.mark.parametrize("kind", range(45))
async def test_icmp_of_every_type_and_code(victim, kind):
    for code in (0, 1, 2, 3, 4, 5, 13, 15, 16, 255):
        for size in (0, 1, 8, 20, 28, 64):
            message = frames.icmp_message(kind, code, b"\xff\xff\xff\xff", b"\x45" * size)
            out = victim.feed(ether(ipv4(message, 1, dst=GATEWAY)))
            assert not out or kind == 8
    assert victim.grew().keys() <= {"malformed", "icmp_ignored"}


async def test_icmp_errors_with_quotes_that_lie(victim):
    """Truncated, of other protocols, other addresses, header lengths beyond the quote; an open connection lives."""
    peer = victim.connect()
    ours = frames.tcp_segment(sport=8080, dport=peer.fields["sport"], src=REMOTE, dst=GUEST)
    quote = ipv4(ours, 6, src=REMOTE, dst=GUEST)
    for kind, code in [(3, code) for code in range(16)] + [(4, 0), (5, 0), (5, 1), (11, 0), (11, 1), (12, 0)]:
        for length in (0, 1, 19, 20, 24, 27, 28, 40):
            victim.feed(frames.icmp_error(kind, code, quote[:length]))
        for ihl in (0, 4, 6, 15):
            victim.feed(frames.icmp_error(kind, code, ipv4(ours, 6, src=REMOTE, dst=GUEST, ihl=ihl)))
        for protocol in (0, 1, 17, 58, 255):
            victim.feed(frames.icmp_error(kind, code, ipv4(ours, protocol, src=REMOTE, dst=GUEST)))
        victim.feed(frames.icmp_error(kind, code, ipv4(ours, 6, src=GUEST, dst=REMOTE)))
    peer.say(b"survived")
    assert victim.received_by_host() == b"survived"


async def test_no_error_about_an_error_and_none_to_a_group(victim):
    """G8: nobody is flooded by what a guest forges."""
    error = frames.icmp_message(3, 3, bytes(4), ipv4(bytes(8), 17))
    silent = [
        ether(ipv4(error, 1, dst="192.168.65.77")),
        ether(ipv4(bytes(8), 99, dst="224.0.0.9")),
        ether(ipv4(bytes(8), 99), dst=frames.BROADCAST),
        frames.udp(b"x", dst="192.168.65.255", dport=7),
        frames.udp(b"x", dst=GATEWAY, dport=7, mac=frames.BROADCAST),
    ]
    assert victim.feed(*silent) == []


async def test_table_bounds_are_what_this_file_believes():
    assert tcp_table.MAX_HELD <= 512
    assert tcp_table.MAX_HELD_PER_DESTINATION <= 64

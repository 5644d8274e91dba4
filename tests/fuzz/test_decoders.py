"""Every decoder takes any octets and raises its documented exception or nothing, quickly; and on valid frames says the
same as parsers that others wrote (scapy, dpkt)."""

from __future__ import annotations

import struct

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP
from scapy.layers.dns import DNS
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether

from tapdev.http_connect import looks_like_http
from tapdev.link import LinkCapabilities
from tapdev.vmnet import HandshakeError, decode_command, decode_init, decode_response
from tests.fuzz import frames
from vpnkit.errors import ConfigError, WireError
from vpnkit.proto import dns64
from vpnkit.proto.dns_cache import Cache
from vpnkit.proto.dns_names import reverse_address
from vpnkit.services import dns_file, hosts
from vpnkit.wire import arp, dhcp, dns, icmp, icmpv6, ipv4, ipv6, offload, tcp, udp

OCTETS = st.binary(max_size=200)
PORT = st.integers(0, 65535)
NUMBER = st.integers(0, 0xFFFFFFFF)
ADDRESS = st.binary(min_size=4, max_size=4)
PAYLOAD = st.binary(max_size=1400)


DNS_QUERY = dns.decode_query(frames.dns_query("a.example", counts=(1, 0, 0, 1), rest=b"\0\0\x29\4\xd0\0\0\0\0\0\0"))


def kept(data: bytes) -> None:
    """A server's response goes into the cache, and what comes out again is well-formed."""
    cache = Cache()
    response = b"\0\0\x81\x80\0\1\0\1\0\0\0\0" + DNS_QUERY.question + data
    cache.store(DNS_QUERY, response, 0.0)
    entry = cache.find(DNS_QUERY)
    if entry is not None:
        dns.records(cache.answer(entry, DNS_QUERY, b"\0\0", 0.5))
        dns.records(cache.stale_answer(entry, DNS_QUERY, 1e6))


def views(decode):
    return lambda data: decode(memoryview(data))


DECODERS = {
    "arp": (arp.decode, WireError),
    "ipv4": (views(ipv4.decode), WireError),
    "ipv6": (views(ipv6.decode), WireError),
    "ipv6 quote": (views(ipv6.decode_quote), WireError),
    "icmpv6": (icmpv6.decode_echo, WireError),
    "tcp": (views(tcp.decode), WireError),
    "tcp options": (tcp.decode_syn_options, WireError),
    "udp": (views(udp.decode), WireError),
    "icmp": (icmp.decode_echo, WireError),
    "icmp check": (icmp.check, WireError),
    "dhcp": (dhcp.decode, WireError),
    "dns query": (dns.decode_query, WireError),
    "dns name": (lambda data: dns.read_name(data, len(data) // 2), WireError),
    "dns skip": (lambda data: dns.skip_name(data, len(data) // 3), WireError),
    "dns record": (lambda data: dns.record(data, len(data) // 3), WireError),
    "dns records": (dns.records, WireError),
    "dns options": (dns.split_options, WireError),
    "dns cache": (kept, ()),
    "dns64": (lambda data: dns64.synthesize(DNS_QUERY, data.ljust(12, b"\0"), data.ljust(12, b"\0")), ()),
    "dns64 reverse": (lambda data: dns64.mapped_answer(DNS_QUERY, b"\0", data.ljust(12, b"\0")), ()),
    "dns file": (lambda data: dns_file.parse(data.decode("latin-1")), ConfigError),
    "hosts file": (lambda data: list(hosts.parse(data.decode("latin-1"))), ()),
    "dns reverse": (lambda data: reverse_address(name_of(data)), ()),
    "dns truncate": (lambda data: dns.truncate(data.ljust(12, b"\0"), 12 + len(data) // 2), ()),
    "offload locate": (offload.locate, ()),
    "offload complete": (offload.complete_checksum, ()),
    "offload partial": (offload.partial_checksum, ()),
    "vmnet init": (lambda data: decode_init(data.ljust(49, b"\0")[:49]), HandshakeError),
    "vmnet command": (lambda data: decode_command(data.ljust(41, b"\0")[:41]), HandshakeError),
    "vmnet response": (lambda data: decode_response(data.ljust(258, b"\0")[:258]), HandshakeError),
    "http": (looks_like_http, ()),
}


def name_of(data: bytes) -> bytes:
    """A well-formed name of `data`'s octets, as the decoder would give it."""
    labels = [data[i : i + 3] for i in range(0, min(len(data), 60), 3)]
    suffix = b"\7in-addr\4arpa\0" if len(data) % 2 else b"\3ip6\4arpa\0"
    return b"".join(bytes((len(label),)) + label for label in labels) + suffix


WHOLE = [
    frames.arp()[14:],
    frames.tcp(b"data", options=b"\2\4\5\xb4\1\3\3\7")[14:],
    frames.tcp(b"data", options=b"\2\4\5\xb4\1\3\3\7")[34:],
    b"\2\4\5\xb4\1\3\3\7",
    frames.udp(b"data")[14:],
    frames.udp(b"data")[34:],
    frames.ping()[34:],
    frames.ipv6(bytes((60, 0)) + bytes(6) + bytes((44, 0)) + bytes(6) + bytes(24), 0, src=bytes(16), dst=bytes(16)),
    frames.ipv6(bytes((17, 0, 0, 1)) + bytes(36), 44, src=bytes(16), dst=bytes(16)),
    frames.dhcp_message((53, b"\1"), (55, b"\1\3"), (52, b"\3")),
    frames.dns_query("a.example", counts=(1, 0, 0, 1), rest=b"\0\0\x29\4\xd0\0\0\0\0\0\0"),
    frames.udp(b"data"),
    frames.tcp(b"data"),
    b"VMN3T\x16\0\0\0" + b"0" * 40,
    b"POST /connect HTTP/1.1\r\n\r\n",
]


@st.composite
def spoilt(draw):
    data = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=100)
@given(data=OCTETS | spoilt())
def test_any_octets(name, data):
    decode, documented = DECODERS[name]
    try:
        decode(data)
    except documented:
        pass


# Second opinions


@given(sport=PORT, dport=PORT, seq=NUMBER, ack=NUMBER, flags=st.integers(0, 255), window=PORT, payload=PAYLOAD)
@settings(max_examples=100)
def test_tcp_as_scapy_and_dpkt_read_it(sport, dport, seq, ack, flags, window, payload):
    wire = frames.tcp_segment(payload, sport=sport, dport=dport, seq=seq, ack=ack, flags=flags, window=window)
    ours = tcp.decode(memoryview(wire))
    scapy, other = TCP(wire), dpkt.tcp.TCP(wire)
    said = (ours.source_port, ours.destination_port, ours.sequence, ours.acknowledgement, ours.flags, ours.window)
    assert said == (scapy.sport, scapy.dport, scapy.seq, scapy.ack, int(scapy.flags) & 255, scapy.window)
    assert said == (other.sport, other.dport, other.seq, other.ack, other.flags & 255, other.win)
    assert bytes(ours.payload) == payload == other.data


@given(mss=PORT, scale=st.integers(0, 14), order=st.permutations(["mss", "scale", "nop", "sack", "time"]))
@settings(max_examples=100)
def test_tcp_options_as_scapy_writes_them(mss, scale, order):
    known = {
        "mss": ("MSS", mss),
        "scale": ("WScale", scale),
        "nop": ("NOP", None),
        "sack": ("SAckOK", b""),
        "time": ("Timestamp", (1, 2)),
    }
    wire = bytes(TCP(flags="S", options=[known[each] for each in order]))
    found = tcp.decode_syn_options(tcp.decode(memoryview(wire)).options)
    assert (found.mss, found.window_scale) == (mss, scale)


@given(src=ADDRESS, dst=ADDRESS, ttl=st.integers(0, 255), tos=st.integers(0, 255), ident=PORT, payload=PAYLOAD)
@settings(max_examples=100)
def test_ipv4_as_scapy_and_dpkt_read_it(src, dst, ttl, tos, ident, payload):
    wire = frames.ipv4(payload, 99, src=src, dst=dst, ttl=ttl, tos=tos, ident=ident, flags_offset=0x4000) + b"padding"
    ours = ipv4.decode(memoryview(wire))
    scapy, other = IP(wire), dpkt.ip.IP(wire)
    assert (ours.ttl, ours.tos, ours.identification, ours.protocol) == (scapy.ttl, scapy.tos, scapy.id, scapy.proto)
    assert (ours.source, ours.destination) == (other.src, other.dst)
    assert bytes(ours.payload) == payload == bytes(other.data)
    assert ours.dont_fragment
    assert not ours.is_fragment


@given(src=ADDRESS, dst=ADDRESS, length=st.integers(0, 1400), ttl=st.integers(0, 255), protocol=st.integers(0, 255))
@settings(max_examples=100)
def test_headers_that_we_write_as_scapy_reads_them(src, dst, length, ttl, protocol):
    wire = bytes(ipv4.encode_header(src, dst, protocol, length, ttl=ttl)) + bytes(length)
    read = IP(wire)
    assert (read.ttl, read.proto, read.len, read.ihl) == (ttl, protocol, length + 20, 5)
    again = IP(wire)
    del again.chksum
    assert IP(bytes(again)).chksum % 0xFFFF == read.chksum % 0xFFFF


@given(sport=PORT, dport=PORT, payload=PAYLOAD)
@settings(max_examples=100)
def test_udp_as_scapy_and_dpkt_read_it(sport, dport, payload):
    wire = frames.udp_datagram(payload, sport=sport, dport=dport)
    source, destination, check, data = udp.decode(memoryview(wire))
    assert (source, destination, check) == (UDP(wire).sport, UDP(wire).dport, UDP(wire).chksum)
    assert bytes(data) == payload == dpkt.udp.UDP(wire).data


@given(op=st.integers(1, 2), sender=ADDRESS, target=ADDRESS, mac=st.binary(min_size=6, max_size=6))
@settings(max_examples=50)
def test_arp_as_scapy_reads_it(op, sender, target, mac):
    wire = frames.arp_packet(target, op=op, sender=sender, sender_mac=mac)
    ours, scapy = arp.decode(wire), ARP(wire)
    assert ours.encode() == wire
    assert (ours.operation, ours.sender_mac.hex(":")) == (scapy.op, scapy.hwsrc)
    assert ".".join(map(str, ours.sender_ip)) == scapy.psrc
    assert ".".join(map(str, ours.target_ip)) == scapy.pdst


@given(ident=PORT, seq=PORT, data=PAYLOAD, kind=st.sampled_from([0, 8]))
@settings(max_examples=50)
def test_icmp_as_scapy_reads_it(ident, seq, data, kind):
    wire = icmp.encode(kind, 0, ident, seq, data)
    read, again = ICMP(wire), ICMP(wire)
    assert (read.type, read.code, read.id, read.seq) == (kind, 0, ident, seq) == icmp.decode_echo(wire)[:4]
    del again.chksum
    assert ICMP(bytes(again)).chksum % 0xFFFF == read.chksum % 0xFFFF


@given(
    mac=st.binary(min_size=6, max_size=6),
    xid=NUMBER,
    options=st.lists(
        st.tuples(st.integers(1, 254).filter(lambda code: code != 52), st.binary(max_size=40)), max_size=8
    ),
)
@settings(max_examples=100)
def test_dhcp_as_dpkt_reads_it(mac, xid, options):
    wire = frames.dhcp_message(*options, mac=mac, xid=xid)
    ours, other = dhcp.decode(wire), dpkt.dhcp.DHCP(wire)
    assert (ours.chaddr, ours.xid, ours.op) == (other.chaddr[:6], other.xid, other.op)
    joined: dict[int, bytes] = {}
    for code, value in other.opts:
        joined[code] = joined.get(code, b"") + value
    assert ours.options == joined
    assert BOOTP(ours.encode()).xid == xid


LABEL = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-", min_size=1, max_size=20)


@given(labels=st.lists(LABEL, min_size=1, max_size=8), qtype=PORT, ident=PORT)
@settings(max_examples=100)
def test_dns_as_scapy_and_dpkt_read_it(labels, qtype, ident):
    name = ".".join(labels)
    wire = frames.dns_query(name, qtype=qtype, ident=ident)
    ours, scapy, other = dns.decode_query(wire), DNS(wire), dpkt.dns.DNS(wire)
    assert (ours.ident, ours.qtype) == (scapy.id, scapy.qd[0].qtype) == (other.id, other.qd[0].type)
    assert ours.name == frames.name(name.lower())
    assert scapy.qd[0].qname.decode().rstrip(".") == name == other.qd[0].name


ABLE = LinkCapabilities(mtu=65520, checksum=True, tso4=True, tso6=True, uso=True)


@given(
    size=st.integers(0, 20_000),
    gso_size=st.integers(64, 3000),
    mtu=st.integers(576, 2000),
    seq=NUMBER,
    flags=st.sampled_from([16, 24, 25, 0x98]),
)
@settings(max_examples=40)
def test_super_frames_are_cut_as_scapy_reads_them(size, gso_size, mtu, seq, flags):
    payload = bytes(i % 251 for i in range(size))
    whole = bytearray(frames.tcp(payload, seq=seq, flags=flags))
    whole[50:52] = struct.pack("!H", ipv4.pseudo_sum(whole[26:30], whole[30:34], 6, size + 20) or 65535)
    gso_type = 1 if size > gso_size else 0
    plain = LinkCapabilities(mtu=mtu)
    cut = offload.adapt(whole, gso_type, gso_size, True, ABLE, plain)
    assert cut
    data, expected = b"", seq
    for number, (parts, start, *_rest) in enumerate(cut):
        wire = b"".join(map(bytes, parts))
        assert start == 0
        assert len(wire) <= 14 + mtu
        read, again = Ether(wire), Ether(wire)
        assert read[TCP].seq == expected
        for layer in (IP, TCP):
            del again[layer].chksum
        wanted = Ether(bytes(again))
        assert wanted[IP].chksum % 0xFFFF == read[IP].chksum % 0xFFFF
        assert wanted[TCP].chksum % 0xFFFF == read[TCP].chksum % 0xFFFF
        piece = wire[54 : 14 + read[IP].len]
        data += piece
        expected = (expected + len(piece)) & 0xFFFFFFFF
        last = number == len(cut) - 1
        assert int(read[TCP].flags) & 9 == (flags & 9 if last else 0), "FIN and PSH are the last one's"
    assert data == payload

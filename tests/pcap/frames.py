"""Frames for the tests of captures, made by scapy: a second opinion on every field."""

from __future__ import annotations

import logging

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

from hypothesis import strategies as st  # noqa: E402
from scapy.layers.dns import DNS, DNSQR, DNSRR  # noqa: E402
from scapy.layers.inet import ICMP, IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment  # noqa: E402
from scapy.layers.l2 import ARP, Dot1Q, Ether  # noqa: E402

GUEST, GATEWAY = "192.168.65.3", "192.168.65.1"
GUEST6, GATEWAY6 = "fd65:7670:6e6b::3", "fd65:7670:6e6b::1"
ETHER = Ether(src="02:50:00:00:00:01", dst="f6:16:36:bc:f9:c6")
OUT, BACK = IP(src=GUEST, dst=GATEWAY), IP(src=GATEWAY, dst=GUEST)
OUT6 = IPv6(src=GUEST6, dst=GATEWAY6)
QUESTION = DNSQR(qname="host.internal")
LATER_FRAGMENT = IP(src=GUEST, dst=GATEWAY, frag=100, proto=17)

FRAMES = {
    "dns query": ETHER / OUT / UDP(sport=40000, dport=53) / DNS(id=1, qd=QUESTION),
    "dns answer": ETHER
    / BACK
    / UDP(sport=53, dport=40000)
    / DNS(id=1, qr=1, qd=QUESTION, an=DNSRR(rrname="host.internal", rdata="192.168.65.2")),
    "dns refused": ETHER / BACK / UDP(sport=53, dport=40000) / DNS(id=1, qr=1, rcode=3, qd=QUESTION),
    "dns unknown record": ETHER
    / BACK
    / UDP(sport=53, dport=40000)
    / DNS(id=1, qr=1, qd=DNSQR(qname="a.b", qtype=65), an=DNSRR(rrname="a.b", type=65, rdata=b"\0\1\0")),
    "dns over tcp": ETHER / OUT / TCP(sport=40000, dport=53, flags="PA") / DNS(id=1, qd=QUESTION),
    "syn": ETHER / OUT / TCP(sport=40001, dport=80, flags="S", seq=7, window=64240),
    "tcp data": ETHER / BACK / TCP(sport=80, dport=40001, flags="PA", seq=1, ack=8, window=500) / b"hello",
    "udp": ETHER / OUT / UDP(sport=1000, dport=2000) / b"12345",
    "tagged udp": ETHER / Dot1Q(vlan=5) / OUT / UDP(sport=1000, dport=2000) / b"12345",
    "fragment": ETHER / LATER_FRAGMENT / b"\x03\xe8\x07\xd0 not ports",
    "ping": ETHER / OUT / ICMP(type=8, id=4, seq=2) / b"payload",
    "unreachable": ETHER / BACK / ICMP(type=3, code=3) / OUT / UDP(sport=1000, dport=2000),
    "arp": ETHER / ARP(op=1, psrc=GUEST, pdst=GATEWAY),
    "arp reply": ETHER / ARP(op=2, psrc=GATEWAY, hwsrc="f6:16:36:bc:f9:c6", pdst=GUEST),
    "udp6": ETHER / OUT6 / UDP(sport=1000, dport=2000) / b"12345",
    "udp6 with options": ETHER / OUT6 / IPv6ExtHdrDestOpt() / UDP(sport=1000, dport=2000) / b"12345",
    "udp6 first fragment": ETHER / OUT6 / IPv6ExtHdrFragment(m=1) / UDP(sport=1000, dport=2000) / b"12345",
    "udp6 fragment": ETHER / OUT6 / IPv6ExtHdrFragment(offset=9, nh=17) / b"\x03\xe8\x07\xd0 not ports",
    "ping6": ETHER / OUT6 / ICMPv6EchoRequest(id=4, seq=2),
    "solicitation": ETHER / OUT6 / ICMPv6ND_NS(tgt=GATEWAY6),
    "unknown": Ether(src="02:50:00:00:00:01", dst="ff:ff:ff:ff:ff:ff", type=0x88B5) / b"?",
}
FRAMES = {name: bytes(packet) for name, packet in FRAMES.items()}


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A frame from above with some octets changed and its end cut off."""
    data = bytearray(draw(st.sampled_from(sorted(FRAMES.values()))))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


ANY_BYTES = st.one_of(st.binary(max_size=200), damaged())

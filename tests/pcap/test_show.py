from __future__ import annotations

from datetime import UTC, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcap.ring import Direction, Packet
from pcap.show import clock, describe, show
from tests.pcap.frames import ANY_BYTES, FRAMES

NOON = 1_700_049_601_123_456_789  # 2023-11-15 12:00:01 UTC

LINES = {
    "dns query": "192.168.65.3 > 192.168.65.1 DNS query A host.internal",
    "dns answer": "192.168.65.1 > 192.168.65.3 DNS answer A host.internal 192.168.65.2",
    "dns refused": "192.168.65.1 > 192.168.65.3 DNS answer A host.internal NXDOMAIN",
    "dns unknown record": "192.168.65.1 > 192.168.65.3 DNS answer HTTPS a.b 1 record",
    "dns over tcp": "192.168.65.3 > 192.168.65.1 DNS query A host.internal",
    "syn": "192.168.65.3:40001 > 192.168.65.1:80 TCP S seq 7 win 64240 length 0",
    "tcp data": "192.168.65.1:80 > 192.168.65.3:40001 TCP P. seq 1 ack 8 win 500 length 5",
    "udp": "192.168.65.3:1000 > 192.168.65.1:2000 UDP length 5",
    "tagged udp": "192.168.65.3:1000 > 192.168.65.1:2000 UDP length 5",
    "ping": "192.168.65.3 > 192.168.65.1 ICMP echo request id 4 seq 2",
    "unreachable": "192.168.65.1 > 192.168.65.3 ICMP unreachable code 3",
    "arp": "ARP who has 192.168.65.1, tell 192.168.65.3",
    "arp reply": "ARP 192.168.65.1 is at f6:16:36:bc:f9:c6",
    "udp6": "[fd65:7670:6e6b::3]:1000 > [fd65:7670:6e6b::1]:2000 UDP length 5",
    "ping6": "fd65:7670:6e6b::3 > fd65:7670:6e6b::1 ICMPv6 echo request id 4 seq 2",
    "solicitation": "fd65:7670:6e6b::3 > fd65:7670:6e6b::1 ICMPv6 neighbor solicitation",
    "unknown": "02:50:00:00:00:01 > ff:ff:ff:ff:ff:ff ethertype 0x88b5, 15 octets",
}


@pytest.mark.parametrize("name", LINES)
def test_lines(name):
    frame = FRAMES[name]
    assert describe(Packet(NOON, len(frame), frame)) == LINES[name]


def test_a_line_has_the_time():
    frame = FRAMES["dns query"]
    packet = Packet(NOON, len(frame), frame, Direction.IN)
    assert list(show([packet], zone=UTC)) == [f"12:00:01.123456 {LINES['dns query']}"]
    assert clock(NOON, timezone(timedelta(hours=2))) == "14:00:01.123456"
    assert len(clock(NOON)) == len("12:00:01.123456")


@given(data=ANY_BYTES, length=st.integers(0, 2**32), timestamp=st.integers(0, 2**64))
def test_whatever_the_bytes_there_is_one_printable_line(data, length, timestamp):
    (line,) = show([Packet(timestamp, length, data)])
    assert line
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 500


def test_a_name_cannot_write_to_the_terminal():
    from scapy.layers.dns import DNS, DNSQR
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    query = DNS(qd=DNSQR(qname=b"\x1b[2Jevil\n.example"))
    frame = bytes(Ether(dst="ff:ff:ff:ff:ff:ff", src="02:50:00:00:00:01") / IP(src="1.1.1.1") / UDP(dport=53) / query)
    assert describe(Packet(0, len(frame), frame)).endswith(r"DNS query A \x1b[2Jevil\n.example")

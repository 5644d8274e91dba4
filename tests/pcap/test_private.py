from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRRMX, DNSRRSOA, DNSRRSRV
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from pcap.capture import Capture
from pcap.predicates import everything
from pcap.private import redact
from pcap.ring import OVERHEAD, Direction, Rule
from tests.pcap.frames import ANY_BYTES, BACK, ETHER, FRAMES, GATEWAY6, GUEST6

# What of a frame stays: octets of headers.
KEPT = {
    "tcp data": 54, "syn": 54, "dns over tcp": 54, "udp": 42, "tagged udp": 46, "fragment": 34, "ping": 42,
    "unreachable": 42, "arp": 42, "arp reply": 42, "udp6": 62, "udp6 with options": 70, "udp6 first fragment": 70,
    "udp6 fragment": 54, "ping6": 62, "solicitation": 62, "unknown": 14,
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_headers_stay(name):
    assert redact(FRAMES[name]) == FRAMES[name][: KEPT[name]]


def answer(ip=BACK):
    records = [
        DNSRR(rrname="secret.example.com", type="CNAME", rdata="other.example.com"),
        DNSRR(rrname="other.example.com", rdata="192.0.2.1"),
        DNSRRMX(rrname="secret.example.com", preference=5, exchange="mail.example.com"),
        DNSRRSRV(rrname="secret.example.com", priority=1, weight=2, port=3, target="srv.example.com"),
        DNSRR(rrname="secret.example.com", type="TXT", rdata="a secret text"),
    ]
    soa = DNSRRSOA(rrname="example.com", mname="ns.example.com", rname="admin.example.com", serial=7)
    message = DNS(id=7, qr=1, qd=DNSQR(qname="secret.example.com"), an=records, ns=[soa])
    return bytes(ETHER / ip / UDP(sport=53, dport=40000) / message)


SECRETS = (b"secret", b"other", b"example", b"mail", b"srv", b"com", b"admin", b"text")


@pytest.mark.parametrize("ip", [BACK, IPv6(src=GATEWAY6, dst=GUEST6)], ids=["ipv4", "ipv6"])
def test_names_are_hashed_and_the_message_stays_readable(ip):
    frame = answer(ip)
    private = redact(frame)
    assert len(private) == len(frame)
    assert not [secret for secret in SECRETS if secret in private]
    read = Ether(private)
    before = Ether(frame)[DNS]
    after = read[DNS]
    assert (after.id, after.ancount, after.nscount) == (7, before.ancount, before.nscount)
    assert after.an[1].rdata == "192.0.2.1"
    assert after.an[0].rdata == after.an[1].rrname
    assert after.qd[0].qname == after.an[0].rrname == after.an[2].rrname
    assert (after.an[3].port, after.ns[0].serial) == (3, 7)
    assert after.an[4].rdata in ([bytes(13)], [b""] * 14)
    checksum = read[UDP].chksum
    del read[UDP].chksum
    assert checksum in (0, Ether(bytes(read))[UDP].chksum)
    assert checksum or ip is BACK


def test_the_same_name_is_the_same_hash_in_any_case():
    names = []
    for name in ("Secret.example", "sECRET.example", "secreT2.example"):
        frame = bytes(ETHER / BACK / UDP(sport=53, dport=40000) / DNS(qr=1, qd=DNSQR(qname=name)))
        names.append(Ether(redact(frame))[DNS].qd[0].qname)
    assert names[0] == names[1] != names[2]


@given(ANY_BYTES)
def test_whatever_the_bytes_nothing_is_added(frame):
    assert len(redact(frame)) <= len(frame)


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_message_keeps_no_name(at, octet):
    frame = bytearray(answer())
    frame[min(42 + at, len(frame) - 1)] = octet
    private = redact(bytes(frame))
    assert b"example" not in private


def test_a_private_rule_keeps_nothing_else():
    capture = Capture([Rule("p", everything(), 1500, 4000, private=True), Rule("all", everything())])
    frame = answer()
    for _ in range(20):
        capture((frame,), Direction.OUT)
        capture((FRAMES["tcp data"],), Direction.OUT)
    assert {packet.data for packet in capture["p"]} == {redact(frame), FRAMES["tcp data"][:54]}
    assert {packet.length for packet in capture["p"]} == {len(frame), len(FRAMES["tcp data"])}
    assert capture["p"].charged == sum(len(packet.data) + OVERHEAD for packet in capture["p"]) <= 4000
    assert frame in [packet.data for packet in capture["all"]]

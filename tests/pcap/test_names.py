from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import UDP

from pcap.names import MAX_ADDRESSES, MAX_NAMES, NameBook, NameRing
from pcap.predicates import everything
from pcap.ring import Packet, Rule
from tests.pcap.frames import ANY_BYTES, BACK, ETHER, FRAMES, OUT


def answer(name: str, *records: DNSRR, ip=BACK, **fields: int) -> bytes:
    message = DNS(**{"qr": 1, **fields}, qd=DNSQR(qname=name), an=list(records))
    return bytes(ETHER / ip / UDP(sport=53, dport=40000) / message)


def octets(text: str) -> bytes:
    return ip_address(text).packed


def learnt(*frames: bytes) -> NameBook:
    book = NameBook()
    for frame in frames:
        book.learn(frame)
    return book


def test_an_answer_teaches_the_name_that_was_asked_for_and_its_aliases():
    frame = answer(
        "WWW.example.com",
        DNSRR(rrname="www.example.com", type="CNAME", rdata="cdn.example.net"),
        DNSRR(rrname="cdn.example.net", rdata="192.0.2.1"),
        DNSRR(rrname="cdn.example.net", type="AAAA", rdata="2001:db8::1"),
    )
    book = learnt(frame)
    for address in ("192.0.2.1", "2001:db8::1"):
        assert book.names(octets(address)) == ["www.example.com", "cdn.example.net"]
    assert book.names(octets("192.0.2.2")) == []


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("www.example.com", True), ("*.example.com", True), ("*.com", True), ("*", True), ("example.com", False),
        ("*.www.example.com", False), ("*.ample.com", False), ("www.example.org", False),
    ],
)  # fmt: skip
def test_patterns(pattern, wanted):
    book = learnt(answer("www.example.com", DNSRR(rrname="www.example.com", rdata="192.0.2.1")))
    assert book.is_named(octets("192.0.2.1"), pattern) is wanted
    assert not book.is_named(octets("192.0.2.9"), pattern)


RECORD = DNSRR(rrname="www.example.com", rdata="192.0.2.1")


@pytest.mark.parametrize(
    "frame",
    [
        answer("www.example.com", RECORD, qr=0),
        answer("www.example.com", RECORD, rcode=3),
        answer("www.example.com", RECORD, qdcount=2),
        answer("www.example.com", RECORD)[:-3],
        bytes(ETHER / OUT / UDP(sport=5353, dport=40000) / DNS(qr=1, qd=DNSQR(qname="a.b"), an=RECORD)),
        FRAMES["dns query"],
        FRAMES["tcp data"],
    ],
)
def test_what_teaches_nothing(frame):
    assert list(learnt(frame)) == []


def test_a_name_that_points_at_itself_teaches_nothing():
    frame = bytearray(answer("a.b", RECORD))
    frame[42 + 12 : 42 + 14] = b"\xc0\x0c"
    assert list(learnt(bytes(frame))) == []


@given(ANY_BYTES)
def test_whatever_the_bytes_nothing_is_raised(frame):
    learnt(frame)


@given(st.integers(0, 200), st.integers(0, 255))
def test_damaged_answers_are_survived(at, octet):
    frame = bytearray(answer("www.example.com", RECORD, RECORD))
    frame[42 + at % (len(frame) - 42)] = octet
    for _, names in learnt(bytes(frame)):
        assert all(name.isascii() and name.isprintable() for name in names)


def test_the_book_is_bounded():
    book = NameBook()
    address = octets("192.0.2.1")
    for number in range(2 * MAX_NAMES):
        book.learn(answer(f"n{number}.x", DNSRR(rrname=f"n{number}.x", rdata="192.0.2.1")))
    assert book.names(address) == [f"n{number}.x" for number in range(MAX_NAMES, 2 * MAX_NAMES)]
    for number in range(MAX_ADDRESSES):
        book._add(number.to_bytes(4), "other")
    assert len(list(book)) == MAX_ADDRESSES
    assert book.names(address) == []


def test_a_ring_that_learns_keeps_nothing():
    book = NameBook()
    ring = NameRing(Rule("names", everything(), 1500, 2000), book)
    frame = answer("www.example.com", RECORD)
    ring.append(Packet(0, len(frame), frame))
    assert book.names(octets("192.0.2.1")) == ["www.example.com"]
    assert len(ring) == 0

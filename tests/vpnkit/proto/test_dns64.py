"""RFC 6147."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.reversename
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.proto import dns64
from vpnkit.wire import dns as wire


def query_bytes(name: str = "www.example", rdtype: str = "AAAA", **options: Any) -> bytes:
    return dns.message.make_query(name, rdtype, **({"id": 4660} | options)).to_wire()


def response(query: bytes, *records: str, rcode: int = 0, soa: int | None = 50) -> bytes:
    made = dns.message.make_response(dns.message.from_wire(query), recursion_available=True)
    made.set_rcode(dns.rcode.Rcode(rcode))
    made.flags |= dns.flags.AD
    for text in records:
        name, ttl, rdtype, rdata = text.split(" ", 3)
        made.answer.append(dns.rrset.from_text(name, int(ttl), "IN", rdtype, rdata))
    if soa is not None and not records:
        made.authority.append(
            dns.rrset.from_text("example.", soa, "IN", "SOA", "ns.example. a.example. 1 2 3 4 300")
        )  # fmt: skip
    return made.to_wire()


def synthesized(query: bytes, negative: bytes, *records: str, **options: Any) -> dns.message.Message:
    decoded = wire.decode_query(query)
    found = response(dns64.a_query(query, decoded), *records, **options)
    made = dns.message.from_wire(dns64.synthesize(decoded, negative, found))
    assert dns.message.from_wire(query).is_response(made)
    return made


def test_an_address_becomes_one_of_the_prefix() -> None:
    query = query_bytes("WWW.Example")
    made = synthesized(query, response(query), "www.example. 300 A 192.0.2.33", "www.example. 300 A 192.0.2.34")
    assert [str(item) for rrset in made.answer for item in rrset] == ["64:ff9b::c000:221", "64:ff9b::c000:222"]
    assert not made.flags & (dns.flags.AD | dns.flags.AA)


@pytest.mark.parametrize(("soa", "ttl", "expected"), [(50, 300, 50), (500, 300, 300), (None, 3000, 600)])
def test_the_ttl_is_the_least(soa: int | None, ttl: int, expected: int) -> None:
    """Section 5.1.7."""
    query = query_bytes()
    made = synthesized(query, response(query, soa=soa), f"www.example. {ttl} A 192.0.2.33")
    assert made.answer[0].ttl == expected


def test_aliases_are_kept() -> None:
    """Section 5.1.6."""
    query = query_bytes()
    made = synthesized(
        query,
        response(query),
        "www.example. 300 CNAME a.cdn.example.",
        "a.cdn.example. 20 CNAME b.cdn.example.",
        "b.cdn.example. 10 A 192.0.2.33",
    )
    assert [rrset.to_text() for rrset in made.answer] == [
        "www.example. 300 IN CNAME a.cdn.example.",
        "a.cdn.example. 20 IN CNAME b.cdn.example.",
        "b.cdn.example. 10 IN AAAA 64:ff9b::c000:221",
    ]


def test_signatures_are_not_kept() -> None:
    query = query_bytes(use_edns=0, want_dnssec=True)
    signature = "A 8 2 300 20300101000000 20200101000000 1 example. AAAA"
    made = synthesized(query, response(query), "www.example. 300 A 192.0.2.33", f"www.example. 300 RRSIG {signature}")
    assert [rrset.rdtype.name for rrset in made.answer] == ["AAAA"]
    assert made.ednsflags & dns.flags.DO


def test_nothing_comes_of_nothing() -> None:
    query = query_bytes()
    negative = response(query)
    decoded = wire.decode_query(query)
    for found in (response(query), response(query, rcode=3), response(query, rcode=2), b"\0" * 12, negative[:20]):
        assert dns64.synthesize(decoded, negative, found) == negative


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, True),
        ({"use_edns": 0, "want_dnssec": True}, True),
        ({"flags": dns.flags.RD | dns.flags.CD}, True),
        ({"use_edns": 0, "want_dnssec": True, "flags": dns.flags.RD | dns.flags.CD}, False),
        ({"rdtype": "A"}, False),
        ({"rdtype": "ANY"}, False),
        ({"rdclass": "CH"}, False),
    ],
)
def test_do_and_cd(options: dict[str, Any], wanted: bool) -> None:
    """Section 5.5: a validator with DO and CD makes its own."""
    assert dns64.wants(wire.decode_query(query_bytes(**options))) is wanted


def test_when_there_are_real_ones() -> None:
    query = query_bytes()
    assert not dns64.lacks(response(query, "www.example. 300 AAAA 2001:db8::1"))
    assert not dns64.lacks(response(query, rcode=3))
    assert not dns64.lacks(wire.with_tc(response(query)))
    assert dns64.lacks(response(query))
    assert dns64.lacks(response(query, rcode=2))  # section 5.1.3
    assert dns64.lacks(response(query, "www.example. 300 AAAA ::ffff:10.0.0.1"))  # section 5.1.4
    assert dns64.lacks(response(query, "www.example. 300 CNAME b.example."))


def test_names_of_mapped_addresses() -> None:
    """Section 5.3.1."""
    address = IPv6Address("64:ff9b::c000:221")
    query = query_bytes(address.reverse_pointer, "PTR")
    decoded = wire.decode_query(query)
    name = dns64.mapped_name(decoded)
    assert name is not None
    inner = dns64.ptr_query(query, decoded, name)
    question = dns.message.from_wire(inner).question[0]
    assert question.name == dns.reversename.from_address("192.0.2.33")
    found = response(inner, f"{question.name} 77 PTR host.example.")
    made = dns.message.from_wire(dns64.mapped_answer(decoded, name, found))
    assert dns.message.from_wire(query).is_response(made)
    assert [rrset.to_text() for rrset in made.answer] == [
        f"{address.reverse_pointer}. 77 IN CNAME 33.2.0.192.in-addr.arpa.",
        "33.2.0.192.in-addr.arpa. 77 IN PTR host.example.",
    ]
    for rcode in (2, 3, 5):
        told = dns.message.from_wire(dns64.mapped_answer(decoded, name, response(inner, rcode=rcode)))
        assert told.rcode() == rcode


@pytest.mark.parametrize("address", ["64:ff9b:1::c000:221", "2001:db8::1"])
def test_other_addresses_are_not_mapped(address: str) -> None:
    query = wire.decode_query(query_bytes(IPv6Address(address).reverse_pointer, "PTR"))
    assert dns64.mapped_name(query) is None
    mapped = IPv6Address("64:ff9b::c000:221").reverse_pointer
    assert dns64.mapped_name(wire.decode_query(query_bytes(mapped, "A"))) is None


@given(st.binary(max_size=120), st.binary(max_size=120))
def test_any_responses(negative: bytes, found: bytes) -> None:
    query = query_bytes()
    decoded = wire.decode_query(query)
    for tail in (negative, query[12:] + negative):
        message = query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + tail
        dns64.lacks(message)
        made = dns64.synthesize(decoded, message, query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + found)
        assert made[:2] == query[:2]
        dns64.mapped_answer(decoded, b"\0", message)


@given(st.integers(0, 2**32 - 1))
def test_every_address_comes_back(number: int) -> None:
    address = IPv4Address(number)
    query = query_bytes()
    made = synthesized(query, response(query), f"www.example. 300 A {address}")
    found = IPv6Address(str(made.answer[0][0]))
    name = dns64.mapped_name(wire.decode_query(query_bytes(found.reverse_pointer, "PTR")))
    assert name == wire.reverse_name(address.packed)

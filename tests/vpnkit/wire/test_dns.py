from __future__ import annotations

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRROPT

from vpnkit.errors import WireError
from vpnkit.wire import dns as wire


def query_bytes(name: str = "Example.COM", rdtype: str = "A", **options: object) -> bytes:
    return dns.message.make_query(name, rdtype, **({"id": 4660} | options)).to_wire()  # type: ignore[arg-type]


def answer_bytes(query: bytes, count: int, *, edns: bool = False) -> bytes:
    theirs = dns.message.from_wire(query)
    response = dns.message.make_response(theirs, recursion_available=True)
    if edns:
        response.use_edns(0, 0, 4096)
    name = theirs.question[0].name
    for number in range(count):
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", f"10.0.{number // 256}.{number % 256}"))
    return response.to_wire(max_size=65535)


def test_query() -> None:
    query = wire.decode_query(query_bytes(id=7))
    assert (query.ident, query.qtype, query.qclass, query.flags) == (7, wire.A, wire.IN, wire.RD)
    assert query.name == b"\7example\3com\0"
    assert query.question == b"\7Example\3COM\0\0\1\0\1"
    assert (query.udp_size, query.edns_flags) == (512, -1)


@pytest.mark.parametrize(("sent", "size"), [(0, 512), (511, 512), (512, 512), (1232, 1232), (65535, 65535)])
def test_edns_size(sent: int, size: int) -> None:
    raw = bytes(DNS(qd=DNSQR(qname="a.b"), ar=DNSRROPT(rclass=sent)))
    query = wire.decode_query(raw)
    assert query.udp_size == size
    assert query.edns_version == 0


def test_edns_after_other_records() -> None:
    raw = bytes(
        DNS(qd=DNSQR(qname="a.b"), ns=DNSRR(rrname="a.b", rdata="1.2.3.4"), ar=[DNSRROPT(rclass=4096, version=3)])
    )
    query = wire.decode_query(raw)
    assert (query.udp_size, query.edns_version) == (4096, 3)


def test_two_opts_or_a_named_one() -> None:
    with pytest.raises(WireError):
        wire.decode_query(bytes(DNS(qd=DNSQR(qname="a.b"), ar=[DNSRROPT(), DNSRROPT()])))
    with pytest.raises(WireError):
        wire.decode_query(bytes(DNS(qd=DNSQR(qname="a.b"), ar=[DNSRROPT(rrname="a.b")])))


@pytest.mark.parametrize("count", [0, 2, 65535])
def test_not_one_question(count: int) -> None:
    raw = query_bytes()
    with pytest.raises(WireError):
        wire.decode_query(raw[:4] + count.to_bytes(2, "big") + raw[6:])


def test_every_cut_is_an_error() -> None:
    raw = query_bytes(use_edns=0, payload=4096, options=[dns.edns.GenericOption(10, b"12345678")])
    for length in range(len(raw)):
        with pytest.raises(WireError):
            wire.decode_query(raw[:length])
    assert wire.decode_query(raw + b"trailing").udp_size == 4096


HEAD = bytes.fromhex("0001 0100 0001 0000 0000 0000")


@pytest.mark.parametrize(
    "name",
    [
        b"\xc0\x0c",  # itself
        b"\xc0\x00",  # the header
        b"\1a\xc0\x0c",
        b"\x40aaaa\0",  # an unknown label type
        b"\x80\0",
        (b"\x3f" + b"a" * 63) * 4 + b"\0",  # 257 octets
    ],
)
def test_bad_question_names(name: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode_query(HEAD + name + b"\0\1\0\1")


def test_longest_name() -> None:
    name = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61 + b"\0"
    assert len(name) == 255
    assert wire.decode_query(HEAD + name + b"\0\1\0\1").name == name
    assert wire.decode_query(HEAD + b"\1a" * 127 + b"\0\0\1\0\1").name == b"\1a" * 127 + b"\0"
    assert wire.skip_name(name, 0) == len(name) == len(wire.read_name(name, 0))
    with pytest.raises(WireError):
        wire.decode_query(HEAD + b"\1a" * 127 + b"\1a\0\0\1\0\1")


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"\xc0\x00", 0),  # itself
        (b"\xc0\x02\xc0\x00", 0),  # a loop of two
        (b"\1a\xc0\x00", 0),  # a label before itself
        (b"\xc0\x05\0\0\0\0", 0),  # forward
        (b"\xc0", 0),
        (b"\3ab", 0),
        (b"", 0),
        (b"\x41a\0", 0),
    ],
)
def test_names_that_do_not_end(data: bytes, offset: int) -> None:
    with pytest.raises(WireError):
        wire.read_name(data, offset)
    with pytest.raises(WireError):
        wire.skip_name(data, offset)


def test_a_chain_of_pointers_never_grows_past_a_name() -> None:
    data = b"\1a\0" + b"".join(b"\x01b\xc0" + bytes((max(0, 3 + 4 * (i - 1)) if i else 0,)) for i in range(60))
    assert wire.read_name(data, 3 + 4 * 59) == b"\1b" * 60 + b"\1a\0"


@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    """Whatever arrives, every reader returns or raises WireError; what is built from it stays in its bounds."""
    query = wire.decode_query(query_bytes())
    for candidate in (data, HEAD + data, HEAD[:6] + b"\0\1\0\1\0\1" + data):
        for read in (wire.decode_query, lambda d: wire.read_name(d, 0), lambda d: wire.record(d, 0)):
            try:
                read(candidate)
            except WireError:
                pass
        wire.answers_question(candidate, query, query.ident)
        if len(candidate) >= 12:
            assert len(wire.truncate(candidate, 16)) <= 16
            assert len(wire.encode_error(candidate, wire.FORMERR)) == 12


labels = st.lists(st.text("abcXYZ019-_", min_size=1, max_size=20), min_size=1, max_size=6)


@given(labels, st.integers(0, 65535), st.integers(0, 65535))
def test_names_as_dnspython_has_them(parts: list[str], qtype: int, ident: int) -> None:
    name = ".".join(parts)
    theirs = dns.message.make_query(name, dns.rdatatype.from_text(f"TYPE{qtype}"), id=ident)
    query = wire.decode_query(theirs.to_wire())
    assert query.name == wire.encode_name(name) == dns.name.from_text(name.lower()).to_wire()
    assert (query.qtype, query.ident) == (qtype, ident)


def test_reply_with_addresses() -> None:
    query = wire.decode_query(query_bytes("HOST.Internal", id=99))
    records = [wire.encode_record(wire.A, 30, bytes((10, 0, 0, number))) for number in (1, 2)]
    raw = wire.encode_reply(query, wire.NOERROR, records, authoritative=True)
    theirs = dns.message.from_wire(raw)
    assert dns.message.make_query("host.internal", "A", id=99).is_response(theirs)
    assert theirs.question[0].name.to_text() == "HOST.Internal."
    assert [str(item) for item in theirs.answer[0]] == ["10.0.0.1", "10.0.0.2"]
    assert theirs.answer[0].ttl == 30
    assert theirs.flags == dns.flags.QR | dns.flags.AA | dns.flags.RD | dns.flags.RA
    assert DNS(raw).an[1].rdata == "10.0.0.2"
    assert theirs.opt is None


@pytest.mark.parametrize("rcode", [wire.NOERROR, wire.SERVFAIL, wire.NXDOMAIN, wire.NOTIMP, wire.BADVERS])
def test_reply_to_edns(rcode: int) -> None:
    query = wire.decode_query(query_bytes(use_edns=0, want_dnssec=True, payload=4000))
    theirs = dns.message.from_wire(wire.encode_reply(query, rcode))
    assert theirs.rcode() == rcode
    assert (theirs.edns, theirs.payload) == (0, wire.OUR_UDP_SIZE)
    assert theirs.ednsflags & dns.flags.DO


def test_error_without_a_question() -> None:
    theirs = dns.message.from_wire(wire.encode_error(query_bytes(id=5), wire.FORMERR))
    assert (theirs.id, theirs.rcode(), theirs.question) == (5, dns.rcode.FORMERR, [])


# Spoofing: each attribute changed alone

QUERY = query_bytes(id=0x1234)
GOOD = answer_bytes(QUERY, 1)


def test_the_right_answer() -> None:
    query = wire.decode_query(QUERY)
    assert wire.answers_question(GOOD, query, 0x1234)
    assert wire.answers_question(GOOD[:12] + GOOD[12:25].swapcase() + GOOD[25:], query, 0x1234)
    assert not wire.answers_question(GOOD, query, 0x1235)


@pytest.mark.parametrize(
    "change",
    [
        (2, b"\x01"),  # a query
        (2, b"\x91"),  # another opcode
        (4, b"\0\0"),
        (4, b"\0\2"),
        (14, b"b"),  # name
        (26, b"\x1c"),  # type
        (28, b"\3"),  # class
    ],
)
def test_wrong_answers(change: tuple[int, bytes]) -> None:
    offset, octets = change
    wrong = GOOD[:offset] + octets + GOOD[offset + len(octets) :]
    assert wrong != GOOD
    assert not wire.answers_question(wrong, wire.decode_query(QUERY), 0x1234)


def test_types_that_differ_in_case_only() -> None:
    query = query_bytes(rdtype="TYPE65", id=1)
    wrong = query_bytes(rdtype="TYPE97", id=1)
    assert not wire.answers_question(wrong[:2] + b"\x80" + wrong[3:], wire.decode_query(query), 1)


@pytest.mark.parametrize("length", range(30))
def test_cut_answers(length: int) -> None:
    expected = length >= 29  # the whole question
    assert wire.answers_question(GOOD[:length], wire.decode_query(QUERY), 0x1234) is expected


@pytest.mark.parametrize(("rcode", "matches"), [(1, True), (4, True), (0, False), (2, False), (3, False), (5, False)])
def test_refusals_without_a_question(rcode: int, matches: bool) -> None:
    raw = bytes.fromhex("1234 81") + bytes((0x80 | rcode,)) + bytes(8)
    assert wire.answers_question(raw, wire.decode_query(QUERY), 0x1234) is matches


def test_for_client() -> None:
    mine = wire.decode_query(query_bytes("eXAMPLE.com", id=1))
    theirs = dns.message.from_wire(wire.for_client(GOOD, mine))
    assert (theirs.id, theirs.question[0].name.to_text()) == (1, "eXAMPLE.com.")
    assert len(theirs.answer[0]) == 1
    assert wire.for_client(b"\x12\x34\x81\x81" + bytes(8), mine) == b"\0\1\x81\x81" + bytes(8)


# Truncation


@pytest.mark.parametrize("edns", [False, True])
@pytest.mark.parametrize("limit", [512, 1232, 4096])
def test_truncate(limit: int, edns: bool) -> None:
    whole = answer_bytes(query_bytes(), 400, edns=edns)
    assert len(whole) > limit
    cut = wire.truncate(whole, limit)
    assert limit - 16 < len(cut) <= limit
    theirs = dns.message.from_wire(cut, raise_on_truncation=False)
    assert theirs.flags & dns.flags.TC
    assert len(theirs.answer[0]) == int.from_bytes(cut[6:8], "big") > 20
    assert (theirs.edns == 0) is edns
    assert theirs.authority == []


def test_truncate_keeps_as_many_as_fit() -> None:
    query = wire.decode_query(query_bytes("very-big.de"))
    whole = wire.encode_reply(query, 0, [wire.encode_record(wire.A, 0, bytes(4))] * 64)
    assert wire.HEADER.unpack_from(wire.truncate(whole, 512))[3] == (512 - 12 - len(query.question)) // 16
    assert wire.truncate(whole, len(whole)) is whole


def test_truncate_what_cannot_be_read() -> None:
    raw = HEAD[:6] + b"\xff\xff" + bytes(4) + b"\1a\0\0\1\0\1" + b"\xff" * 600
    cut = wire.truncate(raw, 512)
    assert cut == HEAD[:2] + b"\3\0" + b"\0\1" + bytes(6) + b"\1a\0\0\1\0\1"
    raw = HEAD + b"\xff" * 600
    assert wire.truncate(raw, 512)[4:6] in (b"\0\0", b"\0\1")


def test_names() -> None:
    assert wire.encode_name("A.bc.") == b"\1a\2bc\0"
    assert wire.encode_name(".") == b"\0"
    assert wire.encode_name("münchen.de") == b"\x0exn--mnchen-3ya\2de\0"
    for bad in ("a..b", "x" * 64, ".".join(["x" * 63] * 4)):
        with pytest.raises(ValueError, match=r"is not a domain name|longer than"):
            wire.encode_name(bad)
    assert wire.reverse_name(bytes((192, 168, 65, 1))) == b"\x011\x0265\x03168\x03192\7in-addr\4arpa\0"
    assert len(wire.reverse_name(bytes(16))) == 74


def test_records_are_found_in_their_sections() -> None:
    query = dns.message.make_query("www.example", "A")
    response = dns.message.make_response(query)
    response.answer.append(dns.rrset.from_text("www.example.", 60, "IN", "CNAME", "a.example."))
    response.answer.append(dns.rrset.from_text("a.example.", 30, "IN", "A", "10.0.0.1"))
    response.authority.append(dns.rrset.from_text("example.", 20, "IN", "NS", "ns.example."))
    response.additional.append(dns.rrset.from_text("ns.example.", 10, "IN", "A", "10.0.0.2"))
    response.use_edns(0, ednsflags=dns.flags.DO)
    data = response.to_wire()
    start, found = wire.records(data)
    assert data[12:start] == query.to_wire()[12:]
    assert [(r.section, r.rtype, r.ttl) for r in found] == [
        (wire.ANSWER, wire.CNAME, 60),
        (wire.ANSWER, wire.A, 30),
        (wire.AUTHORITY, 2, 20),
        (wire.ADDITIONAL, wire.A, 10),
        (wire.ADDITIONAL, wire.OPT, wire.DO),
    ]
    assert data[found[1].data : found[1].end] == bytes((10, 0, 0, 1))
    assert found[-1].end == len(data)
    for length in range(len(data)):
        with pytest.raises(WireError):
            wire.records(data[:length])


def test_a_ttl_with_the_highest_bit_is_none() -> None:
    """RFC 2181 section 8."""
    query = dns.message.make_query("a", "A").to_wire()
    record = b"\xc0\x0c\0\1\0\1\xff\xff\xff\xff\0\4abcd"
    _, [found] = wire.records(query[:6] + b"\0\1" + query[8:] + record)
    assert found.ttl == 0


def test_edns_options() -> None:
    options = wire.extended_error(wire.STALE_ANSWER) + b"\0\x0a\0\x08abcdefgh" + b"\0\x0c\0\0"
    assert wire.option_codes(options) == [wire.EXTENDED_ERROR, wire.COOKIE, wire.PADDING]
    assert b"".join(whole for _, whole in wire.split_options(options)) == options
    assert wire.split_options(b"") == []
    for cut in (options[:-1], options[:3], b"\0\x0a\0\1"):
        with pytest.raises(WireError):
            wire.split_options(cut)
    data = wire.encode_opt(wire.DO, options)
    query = dns.message.make_query("a", "A").to_wire()
    message = dns.message.from_wire(query[:11] + b"\1" + query[12:] + data)
    assert message.ednsflags & dns.flags.DO
    assert [int(option.otype) for option in message.options] == [15, 10, 12]


def test_a_query_with_more_than_an_opt_record() -> None:
    query = dns.message.make_query("a.example", "A", use_edns=0)
    assert wire.decode_query(query.to_wire()).is_plain
    query.additional.append(dns.rrset.from_text("b.", 60, "IN", "A", "10.0.0.1"))
    decoded = wire.decode_query(query.to_wire())
    assert not decoded.is_plain
    assert decoded.edns_flags == 0


def test_said_to_be_cut() -> None:
    query = dns.message.make_query("a", "A").to_wire()
    assert dns.message.from_wire(wire.with_tc(query)).flags & dns.flags.TC

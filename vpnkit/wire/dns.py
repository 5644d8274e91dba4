"""DNS messages, RFC 1035, as far as a forwarder looks into them: the header, the question, and where records end.

id 2 | flags 2 | questions 2 | answers 2 | authority records 2 | additional records 2 | question | records ...
question: name, type 2, class 2;  record: name, type 2, class 2, TTL 4, length 2, data

A forwarder passes what it does not understand (RFC 5625), so nothing here decodes a record's data, and a message that
is passed on keeps every octet but its id.  Names are kept as they are on the wire, lower-cased for comparing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, NamedTuple

from vpnkit.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADER: Final = struct.Struct("!HHHHHH")
QUESTION: Final = struct.Struct("!HH")
RECORD: Final = struct.Struct("!HHLH")  # what follows a record's name
_OFFSET: Final = struct.Struct("!H")
_START: Final = struct.Struct("!HHH")
_OPTION: Final = struct.Struct("!HHH")

QR: Final = 0x8000
OPCODE: Final = 0x7800
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
CD: Final = 0x0010
RCODE: Final = 0x000F

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
BADVERS: Final = 16  # RFC 6891 section 6.1.3; its high bits are in the OPT record

A: Final = 1
CNAME: Final = 5
SOA: Final = 6
PTR: Final = 12
AAAA: Final = 28
DNAME: Final = 39
OPT: Final = 41
IXFR: Final = 251
AXFR: Final = 252
ANY: Final = 255  # as a type and as a class
IN: Final = 1

MAX_NAME: Final = 255  # octets
MAX_UDP: Final = 512  # without EDNS
OUR_UDP_SIZE: Final = 1232  # what we say in our own OPT records: fits every path without fragments
# the sections that a Record can be in
ANSWER: Final = 0
AUTHORITY: Final = 1
ADDITIONAL: Final = 2

# EDNS options
COOKIE: Final = 10
TCP_KEEPALIVE: Final = 11
PADDING: Final = 12
EXTENDED_ERROR: Final = 15  # RFC 8914
STALE_ANSWER: Final = 3  # its codes
STALE_NXDOMAIN: Final = 19

POINTER_TO_QUESTION: Final = b"\xc0\x0c"

DO: Final = 0x8000  # DNSSEC OK, in the TTL of an OPT record


@dataclass(slots=True)
class Query:
    """One question from a client.  `udp_size` is what it can take in a datagram, at least MAX_UDP."""

    ident: int
    flags: int
    name: bytes  # as on the wire, lower-cased, with the final zero
    qtype: int
    qclass: int
    question: bytes  # name (its case as it came), type and class
    udp_size: int = MAX_UDP
    edns_flags: int = -1  # the TTL field of the OPT record; -1 when there was none
    options: bytes = b""  # the data of the OPT record
    is_plain: bool = True  # there was no record besides an OPT

    @property
    def edns_version(self) -> int:
        return self.edns_flags >> 16 & 0xFF if self.edns_flags >= 0 else 0


def decode_query(data: bytes) -> Query:
    """The query in `data`, which has at least a header.  Raises WireError unless it has exactly one question, its
    records end inside, and at most one of them is an OPT (RFC 6891 section 6.1.1)."""
    if len(data) < HEADER.size:
        raise WireError(f"DNS message of {len(data)} octets")
    ident, flags, questions, answers, authority, additional = HEADER.unpack_from(data)
    if questions != 1:
        raise WireError(f"DNS message with {questions} questions")
    end = _question_name_end(data)
    if end + 4 > len(data):
        raise WireError("DNS question is cut")
    qtype, qclass = QUESTION.unpack_from(data, end)
    query = Query(ident, flags, data[12:end].lower(), qtype, qclass, data[12 : end + 4])
    if answers or authority or additional:
        _find_opt(data, end + 4, answers + authority + additional, query)
    return query


def _question_name_end(data: bytes) -> int:
    """Where the first name ends.  It has nothing before it to point to, so a pointer is an error."""
    i = HEADER.size
    try:
        while length := data[i]:
            if length > 63:
                raise WireError(f"label of {length} octets in a DNS question")
            i += 1 + length
    except IndexError:
        raise WireError("DNS question is cut") from None
    if i + 1 - HEADER.size > MAX_NAME:
        raise WireError("DNS name is longer than 255 octets")
    return i + 1


def _find_opt(data: bytes, offset: int, count: int, query: Query) -> None:
    for _ in range(count):  # as each takes 11 octets or an error, `count` is no promise of work
        name = offset
        offset, rtype, rclass, ttl, start = record(data, offset)
        if rtype != OPT:
            query.is_plain = False
        else:
            if query.edns_flags >= 0 or data[name] != 0:
                raise WireError("two OPT records, or one with a name")
            query.udp_size = max(rclass, MAX_UDP)
            query.edns_flags = ttl
            query.options = data[start:offset]


def record(data: bytes, offset: int) -> tuple[int, int, int, int, int]:
    """The record at `offset`: where the next one is, its type, class, TTL, and where its data begins.

    Raises WireError.
    """
    offset = skip_name(data, offset)
    start = offset + RECORD.size
    if start > len(data):
        raise WireError("DNS record is cut")
    rtype, rclass, ttl, length = RECORD.unpack_from(data, offset)
    if start + length > len(data):
        raise WireError("DNS record is cut")
    return start + length, rtype, rclass, ttl, start


class Record(NamedTuple):
    """Where a record is in its message."""

    section: int
    start: int  # of its name
    data: int
    end: int
    rtype: int
    rclass: int
    ttl: int  # seconds; for an OPT record its flags


def records(data: bytes) -> tuple[int, list[Record]]:
    """Where the question section of a message ends, and its records.  Raises WireError.

    A TTL with the highest bit set is 0 (RFC 2181 section 8).
    """
    if len(data) < HEADER.size:
        raise WireError(f"DNS message of {len(data)} octets")
    _, _, questions, *counts = HEADER.unpack_from(data)
    offset = HEADER.size
    for _ in range(questions):
        offset = skip_name(data, offset) + QUESTION.size
    if offset > len(data):
        raise WireError("DNS question is cut")
    questions_end = offset
    found = []
    for section, count in enumerate(counts):
        for _ in range(count):
            start = offset
            offset, rtype, rclass, ttl, at = record(data, start)
            if ttl >= 1 << 31 and rtype != OPT:
                ttl = 0
            found.append(Record(section, start, at, offset, rtype, rclass, ttl))
    return questions_end, found


def option_codes(options: bytes) -> list[int]:
    """The codes in the data of an OPT record.  Raises WireError."""
    return [code for code, _ in split_options(options)]


def split_options(options: bytes) -> list[tuple[int, bytes]]:
    """The options in the data of an OPT record, each with its code and length in front of it.  Raises WireError."""
    found = []
    offset = 0
    while offset < len(options):
        if offset + 4 > len(options):
            raise WireError("EDNS option is cut")
        code, length = QUESTION.unpack_from(options, offset)
        if offset + 4 + length > len(options):
            raise WireError("EDNS option is cut")
        found.append((code, options[offset : offset + 4 + length]))
        offset += 4 + length
    return found


def extended_error(code: int) -> bytes:
    """An EDNS option that says why, RFC 8914."""
    return _OPTION.pack(EXTENDED_ERROR, 2, code)


def encode_opt(flags: int = 0, options: bytes = b"") -> bytes:
    """An OPT record of ours.  `flags` is its TTL field: the high bits of the rcode, and DO."""
    return b"\0" + RECORD.pack(OPT, OUR_UDP_SIZE, flags, len(options)) + options


def skip_name(data: bytes, offset: int) -> int:
    """Where the name at `offset` ends.  Raises WireError; a pointer forward or to itself is an error already."""
    first = offset
    try:
        while length := data[offset]:
            if length >= 0xC0:
                if (length & 0x3F) << 8 | data[offset + 1] >= first:
                    raise WireError("DNS name that points forward")
                return offset + 2
            if length > 63:
                raise WireError(f"label type {length >> 6} in a DNS name")
            offset += 1 + length
            if offset - first >= MAX_NAME:
                raise WireError("DNS name is longer than 255 octets")
    except IndexError:
        raise WireError("DNS name is cut") from None
    return offset + 1


def read_name(data: bytes, offset: int) -> bytes:
    """The name at `offset` without compression, lower-cased.  Raises WireError.

    Each pointer must point before the piece it ends (RFC 1035 section 4.1.4: "a prior occurrence"), so it terminates.
    """
    out = bytearray()
    first = offset
    try:
        while length := data[offset]:
            if length >= 0xC0:
                offset = (length & 0x3F) << 8 | data[offset + 1]
                if offset >= first:
                    raise WireError("DNS name that points forward")
                first = offset
                continue
            if length > 63 or len(out) + length + 2 > MAX_NAME:
                raise WireError("DNS name is longer than 255 octets, or has an unknown label type")
            if offset + 1 + length > len(data):
                raise WireError("DNS name is cut")
            out += data[offset : offset + 1 + length]
            offset += 1 + length
    except IndexError:
        raise WireError("DNS name is cut") from None
    out.append(0)
    return bytes(out).lower()


def answers_question(data: bytes, query: Query, ident: int) -> bool:
    """Whether `data` is a response to `query` as we sent it under `ident`, RFC 5452 section 9.1.

    The name's case may differ.  A refusal to look at the message may come without the question (RFC 1035 section
    4.1.1 leaves it open, and servers that do not know EDNS do it).
    """
    if len(data) < HEADER.size:
        return False
    their_ident, flags, questions = _START.unpack_from(data)
    if their_ident != ident or not flags & QR or (flags ^ query.flags) & OPCODE:
        return False
    question = query.question
    if questions == 1:
        if data.startswith(question, HEADER.size):
            return True
        theirs = data[12 : 12 + len(question)]
        return theirs[-4:] == question[-4:] and theirs[:-4].lower() == query.name
    return questions == 0 and len(data) == HEADER.size and flags & RCODE in (FORMERR, NOTIMP)


def with_ident(data: bytes, ident: int) -> bytes:
    """`data` under another id."""
    return _OFFSET.pack(ident) + data[2:]


def with_tc(data: bytes) -> bytes:
    """`data`, said to be cut."""
    return data[:2] + bytes((data[2] | TC >> 8,)) + data[3:]


def for_client(data: bytes, query: Query) -> bytes:
    """A response as the client of `query` must see it: its id, and its own spelling of the name."""
    if data[4:6] == b"\0\1":
        return _OFFSET.pack(query.ident) + data[2:12] + query.question + data[12 + len(query.question) :]
    return _OFFSET.pack(query.ident) + data[2:]


def encode_reply(query: Query, rcode: int, answers: Sequence[bytes] = (), *, authoritative: bool = False) -> bytes:
    """A response of ours: the question as it came, records as `answers`, an OPT record if the query had one."""
    flags = QR | RA | (query.flags & (OPCODE | RD | CD)) | (rcode & RCODE)
    if authoritative:
        flags |= AA
    edns = query.edns_flags >= 0
    head = HEADER.pack(query.ident, flags, 1, len(answers), 0, 1 if edns else 0) + query.question
    if edns:
        return head + b"".join(answers) + encode_opt(rcode >> 4 << 24 | query.edns_flags & DO)
    return head + b"".join(answers) if answers else head


def encode_error(data: bytes, rcode: int) -> bytes:
    """A response to a message with a header and nothing else that could be understood."""
    ident, flags = struct.unpack_from("!HH", data)
    return HEADER.pack(ident, QR | RA | (flags & (OPCODE | RD | CD)) | rcode, 0, 0, 0, 0)


def encode_record(rtype: int, ttl: int, rdata: bytes, name: bytes = POINTER_TO_QUESTION) -> bytes:
    """A record of class IN, about the name in the question unless there is another; `ttl` in seconds."""
    return name + RECORD.pack(rtype, IN, ttl, len(rdata)) + rdata


def truncate(data: bytes, limit: int) -> bytes:
    """A response cut to `limit` octets: TC is set, as many answers stay as fit, and the OPT record stays.

    A response that already fits is returned as it is.  What cannot be read is cut right after its header.
    """
    if len(data) <= limit:
        return data
    ident, flags, questions, answers, authority, additional = HEADER.unpack_from(data)
    kept, opt = 0, b""
    offset = end = HEADER.size
    try:
        for _ in range(questions):
            offset = skip_name(data, offset) + 4
        end = offset
        ends = []
        for number in range(answers + authority + additional):
            start = offset
            offset, rtype, *_ = record(data, offset)
            if number < answers:
                ends.append(offset)
            elif rtype == OPT and data[start] == 0:
                opt = data[start:offset]
        if end + len(opt) > limit:
            opt = b""
        for answer_end in ends:
            if answer_end + len(opt) > limit:
                break
            kept, end = kept + 1, answer_end
    except WireError:
        kept, opt = 0, b""
    if end > limit:
        questions, end = 0, HEADER.size
    return HEADER.pack(ident, flags | TC, questions, kept, 0, 1 if opt else 0) + data[HEADER.size : end] + opt


def encode_name(name: str) -> bytes:
    """A name as on the wire, lower-cased.  Raises ValueError for what cannot be one."""
    out = bytearray()
    for label in name.rstrip(".").split(".") if name.rstrip(".") else ():
        raw = label.encode("ascii") if label.isascii() else label.encode("idna")
        if not 1 <= len(raw) <= 63:
            raise ValueError(f"{name!r} is not a domain name")
        out.append(len(raw))
        out += raw.lower()
    out.append(0)
    if len(out) > MAX_NAME:
        raise ValueError(f"{name!r} is longer than 255 octets")
    return bytes(out)


def reverse_name(address: bytes) -> bytes:
    """The name that PTR queries for `address` (4 or 16 octets) ask for, as on the wire."""
    return encode_name(ip_address(address).reverse_pointer)

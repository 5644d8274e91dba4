"""DNS64, RFC 6147: AAAA records for what has only A records, for guests that reach IPv4 through NAT64.

Everything here is a function from messages to messages; who looks things up is elsewhere.  Signatures are not kept
in what is put together here, and AD is cleared: nobody signed it (section 5.5).
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final

from vpnkit.errors import WireError
from vpnkit.proto.dns_names import reverse_address
from vpnkit.wire import dns

if TYPE_CHECKING:
    from vpnkit.wire.dns import Query, Record

PREFIX: Final = IPv6Address("64:ff9b::").packed[:12]  # RFC 6052 section 2.1, /96
NO_SOA_TTL: Final = 600  # seconds; section 5.1.7, when the negative answer does not say

_MAPPED: Final = IPv6Address("::ffff:0:0").packed[:12]  # section 5.1.4: an AAAA like this counts as none


def wants(query: Query) -> bool:
    """Whether the answer to `query` may have to be made from an A record's (section 5.5: not for a validator)."""
    if query.qtype != dns.AAAA or query.qclass != dns.IN or not query.is_plain:
        return False
    return not (query.edns_flags >= 0 and query.edns_flags & dns.DO and query.flags & dns.CD)


def lacks(response: bytes) -> bool:
    """Whether a response to such a query calls for the A records: no AAAA that counts, and not NXDOMAIN.

    A server that fails counts as one that has none (section 5.1.3); what is cut must be asked for over TCP first.
    """
    rcode = response[3] & dns.RCODE
    if rcode == dns.NXDOMAIN or response[2] & (dns.TC >> 8):
        return False
    if rcode != dns.NOERROR:
        return True
    try:
        _, records = dns.records(response)
    except WireError:
        return False
    return not any(
        record.section == dns.ANSWER and record.rtype == dns.AAAA and response[record.data : record.end - 4] != _MAPPED
        for record in records
    )


def a_query(message: bytes, query: Query) -> bytes:
    """The same query, for A records."""
    at = dns.HEADER.size + len(query.name)
    return message[:at] + dns.QUESTION.pack(dns.A, query.qclass) + message[at + 4 :]


def synthesize(query: Query, negative: bytes, found: bytes, prefix: bytes = PREFIX) -> bytes:
    """The answer to `query`, made of the response without AAAA records and the one to `a_query`.

    It is `negative` when there are no A records either, or they cannot be read.
    """
    try:
        _, records = dns.records(found)
        answers = [
            _record(found, record, record.ttl)
            for record in records
            if record.section == dns.ANSWER and record.rtype in (dns.CNAME, dns.DNAME)
        ]
        ttl = _negative_ttl(negative)
        addresses = [
            dns.encode_record(
                dns.AAAA,
                min(record.ttl, ttl),
                prefix + found[record.data : record.end],
                dns.read_name(found, record.start),
            )
            for record in records
            if record.section == dns.ANSWER and record.rtype == dns.A and record.end - record.data == 4
        ]
    except WireError:
        return negative
    if not addresses or found[3] & dns.RCODE != dns.NOERROR:
        return negative
    return dns.encode_reply(query, dns.NOERROR, answers + addresses)


def _negative_ttl(response: bytes) -> int:
    try:
        _, records = dns.records(response)
    except WireError:
        return NO_SOA_TTL
    return min((record.ttl for record in records if record.rtype == dns.SOA), default=NO_SOA_TTL)


def _record(data: bytes, record: Record, ttl: int) -> bytes:
    """A record whose data is one name, without compression.  Raises WireError."""
    return dns.encode_record(
        record.rtype, ttl, dns.read_name(data, record.data), dns.read_name(data, record.start)
    )  # fmt: skip


def mapped_name(query: Query, prefix: bytes = PREFIX) -> bytes | None:
    """Where to ask instead when `query` is about an address of the prefix (section 5.3.1): a name in in-addr.arpa."""
    if query.qtype != dns.PTR or query.qclass != dns.IN or not query.is_plain:
        return None
    address = reverse_address(query.name)
    if address is None or len(address) != 16 or address[:12] != prefix:
        return None
    return dns.reverse_name(address[12:])


def ptr_query(message: bytes, query: Query, name: bytes) -> bytes:
    """The same query, about `name`."""
    at = dns.HEADER.size + len(query.name)
    return message[: dns.HEADER.size] + name + message[at:]


def mapped_answer(query: Query, name: bytes, found: bytes) -> bytes:
    """The answer to `query`, from the response about `name`: a CNAME to it, and what was found there."""
    rcode = found[3] & dns.RCODE
    if rcode not in (dns.NOERROR, dns.NXDOMAIN):
        return dns.encode_reply(query, rcode)
    try:
        _, records = dns.records(found)
        answers = [
            _record(found, record, record.ttl)
            for record in records
            if record.section == dns.ANSWER and record.rtype in (dns.CNAME, dns.DNAME, dns.PTR)
        ]
    except WireError:
        return dns.encode_reply(query, dns.SERVFAIL)
    ttl = min((record.ttl for record in records if record.section == dns.ANSWER), default=NO_SOA_TTL)
    return dns.encode_reply(query, rcode, [dns.encode_record(dns.CNAME, ttl, name), *answers])

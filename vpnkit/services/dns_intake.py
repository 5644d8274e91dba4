"""What a message to the DNS service is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vpnkit.errors import WireError
from vpnkit.wire import dns

if TYPE_CHECKING:
    from vpnkit.services.dns_statistics import Own
    from vpnkit.wire.dns import Query

STREAM_SIZE: Final = 65535  # octets of the largest message over TCP


def understand(message: bytes, own: Own, *, stream: bool = False) -> Query | bytes | None:
    """The query, or an answer that says what is wrong with it, or None: not to be answered at all.

    With `stream` it came over TCP.
    """
    if len(message) < dns.HEADER.size:
        own.malformed += 1
        return None
    if message[2] & 0x80:  # QR: answering responses is how two servers never stop talking (CVE-2024-2169)
        own.responses += 1
        return None
    if message[2] & 0x78:  # an opcode other than QUERY
        own.not_implemented += 1
        return dns.encode_error(message, dns.NOTIMP)
    try:
        query = dns.decode_query(message)
    except WireError:
        own.malformed += 1
        return dns.encode_error(message, dns.FORMERR)
    if query.qtype == dns.AXFR or (stream and query.qtype == dns.IXFR):
        own.not_implemented += 1
        return dns.encode_reply(query, dns.NOTIMP)
    if stream:
        query.udp_size = STREAM_SIZE
    return query

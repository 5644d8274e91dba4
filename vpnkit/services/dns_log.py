"""The query log: one line for every query, when the operator asked for it."""

from __future__ import annotations

import logging
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from vpnkit.wire import dns

if TYPE_CHECKING:
    from collections.abc import Callable

    from vpnkit.wire.dns import Query

log = logging.getLogger("vpnkit.dns.queries")
log.setLevel(logging.INFO)  # whoever asked for it wants to see it, whatever else is logged

TYPES: Final = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 35: "NAPTR",
    43: "DS", 48: "DNSKEY", 52: "TLSA", 64: "SVCB", 65: "HTTPS", 255: "ANY", 257: "CAA",
}  # fmt: skip
RCODES: Final = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}


def printable(name: bytes) -> str:
    """A name as people write it, RFC 4343: what is no letter, digit, hyphen or underscore is \\DDD."""
    labels = []
    i = 0
    while i < len(name) and (length := name[i]):
        label = name[i + 1 : i + 1 + length]
        labels.append("".join(chr(c) if (chr(c).isalnum() and c < 128) or c in b"-_" else f"\\{c:03}" for c in label))
        i += 1 + length
    return ".".join(labels) + "."


def logged(
    query: Query, client_ip: bytes, reply: Callable[[bytes], None], now: float, clock: Callable[[], float]
) -> Callable[[bytes], None]:
    """`reply`, which leaves a line in the log too."""

    def reply_and_log(data: bytes) -> None:
        rcode = data[3] & dns.RCODE
        log.info(
            "%s %s %s %s %d answers %.1f ms",
            ip_address(client_ip),
            printable(query.question[:-4]),
            TYPES.get(query.qtype, f"TYPE{query.qtype}"),
            RCODES.get(rcode, f"RCODE{rcode}"),
            int.from_bytes(data[6:8], "big"),
            (clock() - now) * 1000,
        )
        reply(data)

    return reply_and_log

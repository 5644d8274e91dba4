"""DNS64 for the DNS service: the second question that an answer may call for."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from vpnkit.proto import dns64
from vpnkit.wire import dns

if TYPE_CHECKING:
    from collections.abc import Callable

    from vpnkit.wire.dns import Query

    Reply: TypeAlias = Callable[[bytes], None]


def answers(
    query: Query,
    message: bytes,
    reply: Reply,
    prefix: bytes,
    *,
    known: Callable[[], bool],
    ask: Callable[[bytes, Reply], None],
) -> bool:
    """Whether `query` is one for DNS64; then `reply` is called when the answer is there.

    `prefix` are the first 12 octets of the prefix.  `known` says whether the query has an answer of our own.  `ask`
    asks another question, and tells all of the answer.
    """
    if dns64.wants(query):
        _answer_aaaa(query, message, reply, prefix, ask)
        return True
    name = dns64.mapped_name(query, prefix)
    if name is None or known():
        return False
    mapped = name

    def ptr(found: bytes) -> None:
        reply(dns.truncate(dns64.mapped_answer(query, mapped, found), query.udp_size))

    ask(dns64.ptr_query(message, query, mapped), ptr)
    return True


def _answer_aaaa(
    query: Query, message: bytes, reply: Reply, prefix: bytes, ask: Callable[[bytes, Reply], None]
) -> None:
    """AAAA records, or what is made of A records when there are none (RFC 6147 section 5.1)."""

    def aaaa(negative: bytes) -> None:
        def a(found: bytes) -> None:
            if found[2] & dns.TC >> 8:  # so that the client asks over TCP, and gets all of them
                reply(dns.truncate(dns.with_tc(dns.encode_reply(query, dns.NOERROR)), query.udp_size))
            else:
                reply(dns.truncate(dns64.synthesize(query, negative, found, prefix), query.udp_size))

        if dns64.lacks(negative):
            ask(dns64.a_query(message, query), a)
        else:
            reply(dns.truncate(negative, query.udp_size))

    ask(message, aaaa)

"""What the DNS service of one guest counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vpnkit.proto.dns import ForwarderCounters
    from vpnkit.services.dns_resolver import Resolver


@dataclass(slots=True)
class Own:
    """The counters of the service itself; see DnsStatistics."""

    udp_queries: int = 0
    tcp_queries: int = 0
    local: int = 0
    malformed: int = 0
    responses: int = 0
    not_implemented: int = 0
    mismatched: int = 0
    failed: int = 0
    idle: int = 0
    refused_streams: int = 0
    stream_overflowed: int = 0


@dataclass(frozen=True)
class DnsStatistics:
    udp_queries: int
    tcp_queries: int
    local: int  # answered here
    forwarded: int  # lookups started, UDP and TCP
    merged: int  # queries that waited for a lookup under way
    retried: int  # questions sent to another server, or again
    raced: int  # questions sent to one more server at once
    unanswered: int  # SERVFAIL: no server answered in time
    overflowed: int  # SERVFAIL: too many lookups under way
    crowded: int  # dropped: too many waited for one lookup
    malformed: int  # FORMERR, or dropped when there was not even a header
    responses: int  # dropped: a response where a query belongs
    not_implemented: int
    mismatched: int  # answers from servers to something that was not asked
    truncated: int  # answers cut to the client's buffer
    failed: int  # lookups given up because handling them raised
    idle: int  # connections closed because nothing came
    refused_streams: int  # connections closed because there were too many
    in_flight: int
    sockets: int
    streams: int
    # of all guests of the network:
    cached: int  # answered from the cache
    stale: int  # of answers whose time was over
    prefetched: int  # lookups because the time of an answer was nearly over
    cache_entries: int
    connections: int  # to servers, over TCP and TLS


def statistics(
    own: Own, counters: ForwarderCounters, resolver: Resolver, *, in_flight: int, sockets: int, streams: int
) -> DnsStatistics:
    cache = resolver.cache
    return DnsStatistics(
        udp_queries=own.udp_queries,
        tcp_queries=own.tcp_queries,
        local=own.local,
        forwarded=counters.started,
        merged=counters.merged,
        retried=counters.retried,
        raced=counters.raced,
        unanswered=counters.unanswered,
        overflowed=counters.overflowed + own.stream_overflowed,
        crowded=counters.crowded,
        malformed=own.malformed,
        responses=own.responses,
        not_implemented=own.not_implemented,
        mismatched=own.mismatched + resolver.connections.mismatched,
        truncated=counters.truncated + cache.counters.truncated,
        failed=own.failed,
        idle=own.idle,
        refused_streams=own.refused_streams,
        in_flight=in_flight,
        sockets=sockets,
        streams=streams,
        cached=cache.counters.hits,
        stale=cache.counters.stale,
        prefetched=cache.counters.prefetched,
        cache_entries=len(cache),
        connections=len(resolver.connections),
    )

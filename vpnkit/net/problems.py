"""What ICMP can say about a datagram, as one list for both families.

A router that speaks both translates by such a list too (RFC 7915 sections 4.2 and 5.2), so NAT64 needs no other.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from vpnkit.wire import icmp, icmpv6, ipv6

if TYPE_CHECKING:
    from collections.abc import Mapping


class Problem(Enum):
    """RFC 792 and RFC 4443, as far as a gateway says it or a host's network did."""

    NET_UNREACHABLE = auto()
    HOST_UNREACHABLE = auto()
    PROTOCOL_UNREACHABLE = auto()
    PORT_UNREACHABLE = auto()
    TOO_LARGE = auto()  # its parameter is the next hop's MTU
    PROHIBITED = auto()
    EXPIRED = auto()  # TTL or hop limit
    NOT_REASSEMBLED = auto()


EXPIRIES: Final = frozenset({Problem.EXPIRED, Problem.NOT_REASSEMBLED})  # "time exceeded" of both families

ICMP: Final[Mapping[Problem, tuple[int, int]]] = {
    Problem.NET_UNREACHABLE: (icmp.DEST_UNREACHABLE, icmp.NET_UNREACHABLE),
    Problem.HOST_UNREACHABLE: (icmp.DEST_UNREACHABLE, icmp.HOST_UNREACHABLE),
    Problem.PROTOCOL_UNREACHABLE: (icmp.DEST_UNREACHABLE, icmp.PROTOCOL_UNREACHABLE),
    Problem.PORT_UNREACHABLE: (icmp.DEST_UNREACHABLE, icmp.PORT_UNREACHABLE),
    Problem.TOO_LARGE: (icmp.DEST_UNREACHABLE, icmp.FRAGMENTATION_NEEDED),
    Problem.PROHIBITED: (icmp.DEST_UNREACHABLE, icmp.ADMIN_PROHIBITED),
    Problem.EXPIRED: (icmp.TIME_EXCEEDED, icmp.TTL_EXCEEDED),
    Problem.NOT_REASSEMBLED: (icmp.TIME_EXCEEDED, icmp.REASSEMBLY_TIME_EXCEEDED),
}

ICMPV6: Final[Mapping[Problem, tuple[int, int]]] = {
    Problem.NET_UNREACHABLE: (icmpv6.DEST_UNREACHABLE, icmpv6.NO_ROUTE),
    Problem.HOST_UNREACHABLE: (icmpv6.DEST_UNREACHABLE, icmpv6.ADDRESS_UNREACHABLE),
    Problem.PROTOCOL_UNREACHABLE: (icmpv6.PARAMETER_PROBLEM, ipv6.UNRECOGNIZED_NEXT_HEADER),
    Problem.PORT_UNREACHABLE: (icmpv6.DEST_UNREACHABLE, icmpv6.PORT_UNREACHABLE),
    Problem.TOO_LARGE: (icmpv6.PACKET_TOO_BIG, 0),
    Problem.PROHIBITED: (icmpv6.DEST_UNREACHABLE, icmpv6.ADMIN_PROHIBITED),
    Problem.EXPIRED: (icmpv6.TIME_EXCEEDED, icmpv6.HOP_LIMIT_EXCEEDED),
    Problem.NOT_REASSEMBLED: (icmpv6.TIME_EXCEEDED, icmpv6.REASSEMBLY_TIME_EXCEEDED),
}

_FROM_ICMP: Final = {said: problem for problem, said in ICMP.items()}
_FROM_ICMPV6: Final = {said: problem for problem, said in ICMPV6.items()}
_PROHIBITED: Final = frozenset({9, 10, 13, 15})  # codes of RFC 792's unreachable, RFC 7915 section 4.2


def problem_of(version: int, kind: int, code: int) -> Problem | None:
    """What an ICMP (4) or ICMPv6 (6) error says; None for one that is none of these."""
    if version == 6:
        if kind == icmpv6.PACKET_TOO_BIG:
            return Problem.TOO_LARGE  # whatever its code, RFC 4443 section 3.2
        found = _FROM_ICMPV6.get((kind, code))
        if found is None and kind == icmpv6.DEST_UNREACHABLE:
            return Problem.PROHIBITED if code == icmpv6.SOURCE_POLICY else Problem.NET_UNREACHABLE
        return found
    found = _FROM_ICMP.get((kind, code))
    if found is None and kind == icmp.DEST_UNREACHABLE:
        return Problem.PROHIBITED if code in _PROHIBITED else Problem.NET_UNREACHABLE
    return found


def mtu_behind_nat64(mtu: int) -> int:
    """What an IPv6 guest is told of the MTU of an IPv4 path: the headers differ by 20 octets (RFC 7915 section 4.2)."""
    return max(mtu + ipv6.HEADER_SIZE - 20, ipv6.MIN_MTU)

"""Predicates: which frames a rule wants.

A predicate is called with the first octets of a frame, and says True or False, whatever they are.  Predicates combine
with `&`, `|` and `~`, and print as they were written:

>>> (udp(port=53) | tcp(port=53)) & ~host("192.168.65.1")
(udp(port=53) | tcp(port=53)) & ~host('192.168.65.1')

VLAN tags and IPv6 extension headers are stepped over.  A later fragment of a datagram has no ports.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    Buffer: TypeAlias = bytes | bytearray | memoryview
    Matcher: TypeAlias = Callable[[Buffer, int, int], bool]

IPV4: Final = 0x0800
ARP: Final = 0x0806
IPV6: Final = 0x86DD
VLAN_TAGS: Final = frozenset({0x8100, 0x88A8})
MAX_VLAN_TAGS: Final = 2

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58
FRAGMENT: Final = 44
# Hop-by-hop, routing, destination options, mobility: next header 1, length in units of 8 octets without the first 1.
EXTENSIONS: Final = frozenset({0, 43, 60, 135})
MAX_EXTENSIONS: Final = 8

OR, AND, NOT, ATOM = range(4)  # how tightly a predicate binds when printed


class Predicate:
    """A question about a frame: its first octets, the length of all of it, and its direction (0 unknown, 1 from the
    guest, 2 to it)."""

    __slots__ = ("_binds", "_text", "language", "matches", "of_flow")

    def __init__(
        self, text: str, matches: Matcher, binds: int = ATOM, *, of_flow: bool = True, language: str | None = None
    ) -> None:
        """`of_flow`: of a whole TCP or UDP packet without options or tags, its addresses, ports, protocol and
        direction alone decide, so that the answer for one is the answer for the whole flow."""
        self._text = text
        self._binds = binds
        self.matches = matches
        self.of_flow = of_flow
        self.language = language  # the text, when it was written in the filter language

    def __call__(self, frame: Buffer, length: int | None = None, direction: int = 0) -> bool:
        return self.matches(frame, len(frame) if length is None else length, direction)

    def __repr__(self) -> str:
        return self._text

    def __str__(self) -> str:
        return self._text if self.language is None else self.language

    def _within(self, binds: int) -> str:
        return self._text if self._binds >= binds else f"({self._text})"

    def __and__(self, other: Predicate) -> Predicate:
        if not isinstance(other, Predicate):
            return NotImplemented
        mine, theirs = self.matches, other.matches
        return Predicate(
            f"{self._within(AND)} & {other._within(AND + 1)}",
            lambda frame, length, direction: mine(frame, length, direction) and theirs(frame, length, direction),
            AND,
            of_flow=self.of_flow and other.of_flow,
        )

    def __or__(self, other: Predicate) -> Predicate:
        if not isinstance(other, Predicate):
            return NotImplemented
        mine, theirs = self.matches, other.matches
        return Predicate(
            f"{self._within(OR)} | {other._within(OR + 1)}",
            lambda frame, length, direction: mine(frame, length, direction) or theirs(frame, length, direction),
            OR,
            of_flow=self.of_flow and other.of_flow,
        )

    def __invert__(self) -> Predicate:
        mine = self.matches
        return Predicate(
            f"~{self._within(NOT)}",
            lambda frame, length, direction: not mine(frame, length, direction),
            NOT,
            of_flow=self.of_flow,
        )


def network(frame: Buffer) -> tuple[int, int]:
    """The EtherType under any VLAN tags, and where what it names begins.  (-1, 0) when the frame is too short."""
    at = 12
    for _ in range(MAX_VLAN_TAGS + 1):
        if len(frame) < at + 2:
            break
        kind = frame[at] << 8 | frame[at + 1]
        if kind not in VLAN_TAGS:
            return kind, at + 2
        at += 4
    return -1, 0


class _Last:
    """What `transport` said last, for several predicates are asked about one frame."""

    said: tuple[Buffer, tuple[int, int]] = (b"", (-1, 0))


def transport(frame: Buffer) -> tuple[int, int]:
    """The IP protocol and where its header begins, 0 if that is not in `frame`.  (-1, 0) when the frame is not IP."""
    asked, answer = _Last.said
    if frame is not asked:
        answer = _transport(frame)
        if type(frame) is bytes:  # others may change
            _Last.said = (frame, answer)
    return answer


def _transport(frame: Buffer) -> tuple[int, int]:
    kind, at = network(frame)
    if kind == IPV4:
        if len(frame) < at + 20 or frame[at] >> 4 != 4:
            return -1, 0
        protocol = frame[at + 9]
        if (frame[at + 6] & 0x1F) << 8 | frame[at + 7]:
            return protocol, 0
        header = (frame[at] & 0x0F) * 4
        return protocol, at + header if header >= 20 else 0
    if kind != IPV6 or len(frame) < at + 40 or frame[at] >> 4 != 6:
        return -1, 0
    protocol = frame[at + 6]
    at += 40
    for _ in range(MAX_EXTENSIONS):
        if protocol != FRAGMENT and protocol not in EXTENSIONS:
            return protocol, at
        if len(frame) < at + 8:
            return -1, 0
        if protocol == FRAGMENT:
            protocol = frame[at]
            if frame[at + 2] << 8 | frame[at + 3] & 0xF8:
                return protocol, 0
            at += 8
        else:
            protocol, at = frame[at], at + 8 + 8 * frame[at + 1]
    return -1, 0


def everything() -> Predicate:
    """Every frame."""
    return Predicate("everything()", lambda frame, length, direction: True)


def ethertype(number: int) -> Predicate:
    """Frames of one EtherType, under any VLAN tags."""
    if not 0 <= number <= 0xFFFF:
        raise ValueError(f"{number:#x} is not an EtherType: 0 to 0xffff")
    return Predicate(f"ethertype({number:#06x})", lambda frame, length, direction: network(frame)[0] == number)


def arp() -> Predicate:
    """ARP, requests and replies."""
    return Predicate("arp()", lambda frame, length, direction: network(frame)[0] == ARP)


def icmp() -> Predicate:
    """ICMP over IPv4."""
    return Predicate("icmp()", lambda frame, length, direction: transport(frame)[0] == ICMP)


def icmp6() -> Predicate:
    """ICMPv6, neighbour discovery included."""
    return Predicate("icmp6()", lambda frame, length, direction: transport(frame)[0] == ICMPV6)


def udp(*, port: int | None = None, src_port: int | None = None, dst_port: int | None = None) -> Predicate:
    """UDP: all of it, or what has `port` at either end, `src_port` at its source, `dst_port` at its destination."""
    return _ports("udp", UDP, port, src_port, dst_port)


def tcp(*, port: int | None = None, src_port: int | None = None, dst_port: int | None = None) -> Predicate:
    """TCP: all of it, or what has `port` at either end, `src_port` at its source, `dst_port` at its destination."""
    return _ports("tcp", TCP, port, src_port, dst_port)


def _ports(name: str, protocol: int, port: int | None, src_port: int | None, dst_port: int | None) -> Predicate:
    asked = {"port": port, "src_port": src_port, "dst_port": dst_port}
    given = {key: value for key, value in asked.items() if value is not None}
    for key, value in given.items():
        if not 0 <= value <= 0xFFFF:
            raise ValueError(f"{key}={value} is not a port: 0 to 65535")
    text = f"{name}({', '.join(f'{key}={value}' for key, value in given.items())})"
    if not given:
        return Predicate(text, lambda frame, length, direction: transport(frame)[0] == protocol)

    def matches(frame: Buffer, length: int, direction: int) -> bool:
        found, at = transport(frame)
        if found != protocol or not at or len(frame) < at + 4:
            return False
        source = frame[at] << 8 | frame[at + 1]
        destination = frame[at + 2] << 8 | frame[at + 3]
        return (
            (port is None or source == port or destination == port)
            and (src_port is None or source == src_port)
            and (dst_port is None or destination == dst_port)
        )

    return Predicate(text, matches)


def host(address: str) -> Predicate:
    """Frames from or to an IPv4 or IPv6 address, and ARP about it.  Raises ValueError."""
    parsed = ip_address(address)
    wanted, size = parsed.packed, len(parsed.packed)
    # kind of frame: where the first address is, and how far behind it the second
    places = {IPV4: (12, 4), ARP: (14, 10)} if size == 4 else {IPV6: (8, 16)}

    def matches(frame: Buffer, length: int, direction: int) -> bool:
        kind, at = network(frame)
        place = places.get(kind)
        if place is None:
            return False
        first = at + place[0]
        second = first + place[1]
        if len(frame) < second + size:
            return False
        return frame[first : first + size] == wanted or frame[second : second + size] == wanted

    return Predicate(f"host({str(parsed)!r})", matches)

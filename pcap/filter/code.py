"""From a tree to a Python function of the frame's octets: one expression, in the order in which libpcap would look.

A load behind the end raises, and so the frame is not wanted.  libpcap's optimizer may change the order of loads, and
so what it says of frames that were cut inside of their headers; we say what it says without (`tcpdump -O`).

Everything in the expression is a number of ours or a fixed piece of text; a filter's own text never gets into it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from pcap.errors import FilterError
from pcap.filter.nodes import (
    ARP,
    IPV4,
    IPV6,
    RARP,
    Address4,
    Address6,
    And,
    Arithmetic,
    Comparison,
    EtherType,
    Group,
    Length,
    Load,
    Mac,
    Name,
    Negative,
    Node,
    Not,
    Number,
    Or,
    Ports,
    Side,
    Way,
)
from pcap.filter.nodes import Protocol as IpProtocol
from pcap.filter.parser import parse
from pcap.filter.values import ALL, ETHERTYPES, IP_PROTOCOLS
from pcap.predicates import Predicate

if TYPE_CHECKING:
    from collections.abc import Callable

    from pcap.predicates import Matcher

MAX_NESTING: Final = 60  # of `and` in `or` in `and`: Python's parser has a limit, too

PAYLOAD: Final = 14  # Ethernet without a tag
IPV6_PAYLOAD: Final = PAYLOAD + 40
TRANSPORT: Final = f"{PAYLOAD} + ((f[{PAYLOAD}] & 15) << 2)"
NOT_LATER_FRAGMENT: Final = f"not H(f, {PAYLOAD + 6})[0] & 0x1fff"
IS_IPV4: Final = f"t == {IPV4}"
IS_IPV6: Final = f"t == {IPV6}"

SOURCE: Final = """
def matches(f, n, d):
    try:
        {prelude}
        return {expression}
    except (IndexError, error, ZeroDivisionError):
        return False
"""
PRELUDE: Final = "t = f[12] << 8 | f[13]"

_Code: TypeAlias = "Callable[..., object]"


class Names(Protocol):
    """Which addresses were given for which names."""

    def is_named(self, address: bytes, pattern: str) -> bool:
        """Whether `address` (4 or 16 octets) was given for a name of `pattern`."""
        ...


def compile_filter(text: str, names: Names | None = None) -> Predicate:
    """The predicate that `text` is.  Raises FilterError.

    Without `names` no frame belongs to any name.
    """
    tree = parse(text)
    compiler = _Compiler(names)
    try:
        expression = "True" if tree is None else compiler.node(tree)
    except _TooDeep:
        raise FilterError("`and` and `or` change too often; parentheses make it shorter", text, 1) from None
    prelude = PRELUDE if compiler.looks_at_type else "pass"
    space: dict[str, _Code | type[Exception]] = {
        "H": struct.Struct(">H").unpack_from,
        "I": struct.Struct(">I").unpack_from,
        "error": struct.error,
        "shift_left": _shift_left,
        "is_named": names.is_named if names is not None else _nobody,
    }
    exec(SOURCE.format(prelude=prelude, expression=expression), space)
    matches: Matcher = space["matches"]  # type: ignore[assignment]
    return Predicate(f"compile_filter({text!r})", matches, of_flow=compiler.of_flow, language=text)


def _shift_left(number: int, places: int) -> int:
    return number << places & ALL if places < 32 else 0


def _nobody(address: bytes, pattern: str) -> bool:
    return False


class _TooDeep(Exception):
    pass


class _Compiler:
    def __init__(self, names: Names | None) -> None:
        self.of_flow = True  # addresses, protocol and ports say it all
        self.looks_at_type = False
        self._depth = 0

    def node(self, node: Node) -> str:
        """The Python of `node`: an expression that is True or False."""
        if isinstance(node, (And, Or)):
            return self._joined(node)
        if isinstance(node, Not):
            self._depth += 1
            text = f"not ({self.node(node.inner)})"
            self._depth -= 1
            return text
        if self._depth > MAX_NESTING:
            raise _TooDeep
        text = self._primitive(node)
        self.looks_at_type = self.looks_at_type or "t ==" in text or "t in" in text
        return text

    def _joined(self, node: And | Or) -> str:
        """A chain of equal operators without parentheses of its own."""
        self._depth += 1
        word = "and" if isinstance(node, And) else "or"
        parts: list[Node] = []
        left: Node = node
        while isinstance(left, type(node)):
            parts.append(left.right)
            left = left.left
        text = f" {word} ".join(f"({self.node(part)})" for part in [left, *reversed(parts)])
        self._depth -= 1
        return text

    def _primitive(self, node: Node) -> str:
        if isinstance(node, EtherType):
            return f"t == {node.number}"
        if isinstance(node, IpProtocol):
            return " or ".join(_protocol(node.number, family) for family in node.families)
        if isinstance(node, Address4):
            return _address4(node)
        if isinstance(node, Address6):
            return f"{IS_IPV6} and ({_sides(node.side, _address6(node, 8), _address6(node, 24))})"
        if isinstance(node, Ports):
            return _ports(node)
        if isinstance(node, Way):
            return f"d == {node.direction}"
        self.of_flow = False
        if isinstance(node, Name):
            return _name(node.pattern)
        if isinstance(node, Mac):
            return _sides(node.side, _mac(node.address, 6), _mac(node.address, 0))
        if isinstance(node, Group):
            return GROUPS[node.of]
        assert isinstance(node, Comparison)
        return self._comparison(node)

    def _comparison(self, node: Comparison) -> str:
        needed: dict[str, None] = {}
        left, right = self._number(node.left, needed), self._number(node.right, needed)
        relation = "==" if node.relation == "=" else node.relation
        return " and ".join([*needed, f"{left} {relation} {right}"])

    def _number(self, node: Arithmetic, needed: dict[str, None]) -> str:
        """The Python of a number; what must hold before it is looked at goes to `needed`."""
        if isinstance(node, Number):
            return str(node.value)
        if isinstance(node, Length):
            return "n"
        if isinstance(node, Load):
            return self._load(node, needed)
        if isinstance(node, Negative):
            return f"(-{self._number(node.inner, needed)} & {ALL})"
        # As in libpcap, whether there is such a header is asked for the left side only.
        left, right = self._number(node.left, needed), self._number(node.right, {})
        if node.operator == "<<":
            return f"shift_left({left}, {right})"
        if node.operator in ("+", "-", "*"):
            return f"(({left} {node.operator} {right}) & {ALL})"
        return f"({left} {'//' if node.operator == '/' else node.operator} {right})"

    def _load(self, node: Load, needed: dict[str, None]) -> str:
        header = node.header
        index = self._number(node.index, needed)
        if header == "ether":
            at = index
        elif header in ETHERTYPES:
            needed[f"t == {ETHERTYPES[header]}"] = None
            at = f"{PAYLOAD} + {index}"
        elif header == "icmp6":
            needed[IS_IPV6] = needed[f"f[{PAYLOAD + 6}] == {IP_PROTOCOLS[header][0]}"] = None
            at = f"{IPV6_PAYLOAD} + {index}"
        else:
            for condition in (IS_IPV4, f"f[{PAYLOAD + 9}] == {IP_PROTOCOLS[header][0]}", NOT_LATER_FRAGMENT):
                needed[condition] = None
            at = f"{PAYLOAD} + (((f[{PAYLOAD}] & 15) << 2) + {index} & {ALL})"
        if node.size == 1:
            return f"f[{at}]"
        return f"{'H' if node.size == 2 else 'I'}(f, {at})[0]"


GROUPS: Final = {
    "broadcast": f"I(f, 2)[0] == {ALL} and H(f, 0)[0] == 0xffff",
    "multicast": "(f[0] & 1) != 0",
    "ip": f"{IS_IPV4} and f[{PAYLOAD + 16}] >= 224",
    "ip6": f"{IS_IPV6} and f[{PAYLOAD + 24}] == 255",
}


def _sides(side: Side, source: str, destination: str) -> str:
    if side == "src":
        return source
    if side == "dst":
        return destination
    return f"({source}) {side} ({destination})"


def _protocol(number: int, family: int) -> str:
    if family == IPV4:
        return f"{IS_IPV4} and f[{PAYLOAD + 9}] == {number}"
    following = f"f[{PAYLOAD + 6}]"
    return f"{IS_IPV6} and ({following} == {number} or {following} == 44 and f[{IPV6_PAYLOAD}] == {number})"


def _address4(node: Address4) -> str:
    """ARP has its addresses where Ethernet and IPv4 put them."""
    found = []
    if IPV4 in node.families:
        found.append((IS_IPV4, PAYLOAD + 12, PAYLOAD + 16))
    asked = [family for family in (ARP, RARP) if family in node.families]
    if asked:
        found.append((f"t in {tuple(asked)}", PAYLOAD + 14, PAYLOAD + 24))
    return " or ".join(
        f"{condition} and ({_sides(node.side, _word(node, source), _word(node, destination))})"
        for condition, source, destination in found
    )


def _word(node: Address4, at: int) -> str:
    return f"I(f, {at})[0]{'' if node.mask == ALL else f' & {node.mask}'} == {node.value & node.mask}"


def _address6(node: Address6, at: int) -> str:
    words = []
    for shift in (96, 64, 32, 0):
        mask, value = node.mask >> shift & ALL, node.value >> shift & ALL
        place = PAYLOAD + at + (96 - shift) // 8
        words.append(f"I(f, {place})[0]{'' if mask == ALL else f' & {mask}'} == {value & mask}")
    return " and ".join(words)


def _mac(address: bytes, at: int) -> str:
    return f"I(f, {at + 2})[0] == {int.from_bytes(address[2:])} and H(f, {at})[0] == {int.from_bytes(address[:2])}"


def _ports(node: Ports) -> str:
    carriers = f"in {node.protocols}" if len(node.protocols) > 1 else f"== {node.protocols[0]}"

    def is_wanted(place: str) -> str:
        if node.low == node.high:
            return f"H(f, {place})[0] == {node.low}"
        return f"{node.low} <= H(f, {place})[0] <= {node.high}"

    begins = f"(x := {TRANSPORT})"
    destination = is_wanted(f"{begins} + 2" if node.side == "dst" else "x + 2")
    v4 = _sides(node.side, is_wanted(begins), destination)
    v6 = _sides(node.side, is_wanted(f"{IPV6_PAYLOAD}"), is_wanted(f"{IPV6_PAYLOAD + 2}"))
    return (
        f"{IS_IPV4} and f[{PAYLOAD + 9}] {carriers} and {NOT_LATER_FRAGMENT} and ({v4}) or "
        f"{IS_IPV6} and f[{PAYLOAD + 6}] {carriers} and ({v6})"
    )


def _name(pattern: str) -> str:
    def asked(at: int, size: int) -> str:
        return f"is_named(bytes(f[{PAYLOAD + at}:{PAYLOAD + at + size}]), {pattern!r})"

    return f"{IS_IPV4} and ({asked(12, 4)} or {asked(16, 4)}) or {IS_IPV6} and ({asked(8, 16)} or {asked(24, 16)})"

"""From tokens to a tree, as libpcap's grammar has it.

`and` and `or` bind equally, from the left; `not` binds tighter.  After them a bare number, address or name takes the
qualifiers of what stands before: `tcp port 80 or 443`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pcap.errors import FilterError
from pcap.filter import values
from pcap.filter.lexer import Kind, Token, tokens
from pcap.filter.nodes import (
    And,
    Arithmetic,
    Comparison,
    Group,
    Length,
    Load,
    Name,
    Negative,
    Node,
    Not,
    Number,
    Operation,
    Or,
    Side,
    Way,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_DEPTH: Final = 40  # of parentheses, `not` and minus signs in each other
MAX_TERMS: Final = 500  # all of them together: each is a piece of one Python expression

BINARY: Final = (("|", "&", "^"), ("<<", ">>"), ("+", "-"), ("*", "/", "%"))  # loosest first
VALUES: Final = (Kind.NUMBER, Kind.DOTTED, Kind.IPV6, Kind.MAC, Kind.WORD)
RELATIONS: Final = (">", ">=", "=", "<=", "<", "!=")
UNSUPPORTED: Final = frozenset({
    "vlan", "mpls", "pppoes", "pppoed", "iso", "llc", "wlan", "geneve", "atalk", "aarp", "decnet", "lat", "moprc",
    "mopdl", "stp", "ipx", "netbeui", "byte", "protochain", "gateway",
})  # fmt: skip


class Qualifiers(NamedTuple):
    """What stands before a number, an address or a name."""

    protocol: str = ""
    side: Side = "or"
    kind: str = ""  # host net port portrange proto
    token: Token | None = None  # the first, for errors


class _Syntax(Exception):
    """An attempt failed here; another may do."""

    def __init__(self, token: Token, expected: str) -> None:
        super().__init__()
        self.token = token
        self.expected = expected


def parse(text: str) -> Node | None:
    """The tree of `text`; None for no text, which wants everything.  Raises FilterError."""
    parser = _Parser(text)
    if parser.is_at_end():
        return None
    try:
        node = parser.expression()[0]
        if not parser.is_at_end():
            raise _Syntax(parser.token, "`and`, `or` or the end")
    except _Syntax as error:
        furthest = parser.furthest if parser.furthest and parser.furthest.token.column > error.token.column else error
        token = furthest.token
        raise FilterError(f"expected {furthest.expected}, not {token}", text, token.column) from None
    return node


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.furthest: _Syntax | None = None
        self._tokens = tokens(text)
        self._at = 0
        self._depth = 0
        self._terms = 0

    @property
    def token(self) -> Token:
        return self._tokens[self._at]

    def is_at_end(self) -> bool:
        return self.token.kind is Kind.END

    def take(self) -> Token:
        token = self.token
        if token.kind is not Kind.END:
            self._at += 1
        return token

    def accept(self, *texts: str) -> Token | None:
        return self.take() if self.token.is_(*texts) else None

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise _Syntax(self.token, f"`{text}`")

    def wrong(self, message: str, token: Token) -> FilterError:
        return FilterError(message, self.text, token.column)

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self.wrong(f"more than {MAX_DEPTH} in each other", self.token)

    def _another(self) -> None:
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise self.wrong(f"more than {MAX_TERMS} terms", self.token)

    # and, or, not

    def expression(self) -> tuple[Node, Qualifiers | None]:
        node, qualifiers = self.term()
        while joined := self.accept("and", "or"):
            if self._is_value():
                if qualifiers is None:
                    raise self.wrong(f"{self.token} has nothing to say what it is: host, net, port", self.token)
                right = self.values(qualifiers)
            else:
                right, qualifiers = self.term()
            node = And(node, right) if joined.text == "and" else Or(node, right)
        return node, qualifiers

    def term(self) -> tuple[Node, Qualifiers | None]:
        self._another()
        if self.accept("not"):
            self._deeper()
            node, qualifiers = self.term()
            self._depth -= 1
            return Not(node), qualifiers
        if self._is_arithmetic():
            return self.comparison(), None
        if self.token.is_("("):
            return self._parenthesis()
        return self.primitive()

    def _parenthesis(self) -> tuple[Node, Qualifiers | None]:
        """What is in parentheses may be a number that is compared, or a whole filter."""
        start, depth, terms = self._at, self._depth, self._terms
        try:
            return self.comparison(), None
        except _Syntax as error:
            self._failed(error)
            self._at, self._depth, self._terms = start, depth, terms
        self._deeper()
        self.take()
        node, qualifiers = self.expression()
        self.expect(")")
        self._depth -= 1
        return node, qualifiers

    def _failed(self, error: _Syntax) -> None:
        if self.furthest is None or error.token.column > self.furthest.token.column:
            self.furthest = error

    # Primitives

    def _is_value(self) -> bool:
        """Whether a bare number, address or name, or several in parentheses, come next."""
        at = self._at
        while self._tokens[at].is_("(", "not"):
            at += 1
        return self._tokens[at].kind in VALUES and not self._is_arithmetic(at)

    def _is_arithmetic(self, at: int | None = None) -> bool:
        """Whether a number that is compared comes next."""
        at = self._at if at is None else at
        first, second = self._tokens[at], self._tokens[min(at + 1, len(self._tokens) - 1)]
        if first.is_("len", "-") or (first.kind is Kind.WORD and first.text in values.CONSTANTS):
            return True
        if first.kind is Kind.NUMBER:
            return second.is_(*RELATIONS) or any(second.is_(*level) for level in BINARY)
        return second.is_("[")

    def primitive(self) -> tuple[Node, Qualifiers | None]:
        first = self.token
        if first.is_(*UNSUPPORTED):
            raise self.wrong(f"{first} is not spoken here", first)
        if self.accept("inbound", "outbound"):
            return Way(1 if first.text == "inbound" else 2), None
        if self.accept("less", "greater"):
            return Comparison("<=" if first.text == "less" else ">=", Length(), self._number()), None
        if self.accept("broadcast", "multicast"):
            return Group("broadcast" if first.text == "broadcast" else "multicast"), None
        if self.accept("name"):
            return Name(values.name_pattern(self.take(), self.text)), None
        return self._qualified(first)

    def _qualified(self, first: Token) -> tuple[Node, Qualifiers | None]:
        protocol = self.take().text if first.is_(*values.PROTOCOLS) else ""
        if protocol and (group := self.accept("broadcast", "multicast")):
            return values.group(protocol, group, self.text), None
        side = self._side()
        kind_token = self.token
        kind = self.take().text if kind_token.is_("host", "net", "port", "portrange", "proto") else ""
        if kind == "proto" and side is not None:
            raise self.wrong("`proto` has no source or destination", kind_token)
        if not kind and side is None:
            if protocol:
                return values.whole_protocol(protocol, first, self.text), None
            raise _Syntax(first, "a protocol, `host`, `net`, `port`, `src`, `dst`, `len` or `not`")
        qualifiers = Qualifiers(protocol, side or "or", kind, first)
        if not (self._is_value() or (kind == "proto" and self.token.kind is Kind.KEYWORD)):
            raise _Syntax(self.token, values.EXPECTED[kind])
        return self.values(qualifiers), qualifiers

    def _side(self) -> Side | None:
        first = self.accept("src", "dst")
        if first is None:
            return None
        following = self._tokens[self._at + 1] if self.token.is_("and", "or") else None
        if following is None or not following.is_("src", "dst") or following.text == first.text:
            return "src" if first.text == "src" else "dst"
        joined = self.take().text
        self.take()
        return "and" if joined == "and" else "or"

    def values(self, qualifiers: Qualifiers) -> Node:
        """One number, address or name, or several in parentheses."""
        self._another()
        if self.accept("not"):
            self._deeper()
            node: Node = Not(self.values(qualifiers))
            self._depth -= 1
            return node
        if not self.accept("("):
            return self._value(qualifiers)
        self._deeper()
        node = self.values(qualifiers)
        while joined := self.accept("and", "or"):
            right = self.values(qualifiers)
            node = And(node, right) if joined.text == "and" else Or(node, right)
        self.expect(")")
        self._depth -= 1
        return node

    def _value(self, qualifiers: Qualifiers) -> Node:
        token = self.take()
        if token.kind in (Kind.DOTTED, Kind.IPV6) and self.accept("/"):
            length = self.take()
            if length.kind is not Kind.NUMBER:
                raise _Syntax(length, "the length of a prefix")
            return values.prefix(qualifiers, token, length, self.text)
        if token.kind is Kind.DOTTED and self.accept("mask"):
            mask = self.take()
            if mask.kind is not Kind.DOTTED:
                raise _Syntax(mask, "a mask like 255.255.255.0")
            return values.masked(qualifiers, token, mask, self.text)
        if token.kind not in VALUES and qualifiers.kind != "proto":
            raise _Syntax(token, values.EXPECTED[qualifiers.kind])
        return values.value(qualifiers, token, self.text)

    # Arithmetic

    def comparison(self) -> Node:
        left = self.arithmetic()
        relation = self.accept(*RELATIONS)
        if relation is None:
            raise _Syntax(self.token, "a comparison, like `= 1` or `!= 0`")
        return Comparison(relation.text, left, self.arithmetic())

    def arithmetic(self, level: int = 0) -> Arithmetic:
        if level == len(BINARY):
            return self._operand()
        node = self.arithmetic(level + 1)
        while operator := self.accept(*BINARY[level]):
            self._another()
            right = self.arithmetic(level + 1)
            if operator.text in ("/", "%") and right == Number(0):
                raise self.wrong("division by zero", operator)
            node = Operation(operator.text, node, right)
        return node

    def _operand(self) -> Arithmetic:
        token = self.take()
        if token.kind is Kind.NUMBER:
            return Number(token.number)
        if token.is_("len"):
            return Length()
        if token.kind is Kind.WORD and token.text in values.CONSTANTS:
            return Number(values.CONSTANTS[token.text])
        if token.is_("-"):
            return self._nested(lambda: Negative(self._operand()))
        if token.is_("("):
            node = self._nested(self.arithmetic)
            self.expect(")")
            return node
        if token.is_(*values.PROTOCOLS) and self.token.is_("["):
            return self._load(token)
        raise _Syntax(token, "a number, `len` or octets like `tcp[13]`")

    def _nested(self, inner: Callable[[], Arithmetic]) -> Arithmetic:
        self._deeper()
        node = inner()
        self._depth -= 1
        return node

    def _load(self, header: Token) -> Arithmetic:
        if header.text not in values.HEADERS:
            raise self.wrong(f"octets of {header} cannot be looked into", header)
        self.expect("[")
        index = self._nested(self.arithmetic)
        size = 1
        if self.accept(":"):
            token = self.take()
            if token.kind is not Kind.NUMBER or token.number not in (1, 2, 4):
                raise self.wrong(f"{token} octets cannot be compared: 1, 2 or 4", token)
            size = token.number
        self.expect("]")
        return Load(header.text, index, size)

    def _number(self) -> Number:
        token = self.take()
        if token.kind is not Kind.NUMBER:
            raise _Syntax(token, "a number of octets")
        return Number(token.number)

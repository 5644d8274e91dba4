"""From the text of a filter to tokens, each with its column."""

from __future__ import annotations

import re
from enum import Enum, auto
from ipaddress import AddressValueError, IPv6Address
from typing import Final, NamedTuple

from pcap.errors import FilterError

MAX_TEXT: Final = 4096  # characters of a filter

KEYWORDS: Final = frozenset({
    "src", "dst", "host", "net", "mask", "port", "portrange", "proto", "protochain", "gateway", "and", "or",
    "not", "ether", "ip", "ip6", "arp", "rarp", "tcp", "udp", "sctp", "icmp", "icmp6", "igmp", "pim", "vrrp",
    "ah", "esp", "less", "greater", "len", "broadcast", "multicast", "inbound", "outbound", "name", "vlan",
    "mpls", "pppoes", "pppoed", "iso", "llc", "wlan", "geneve", "atalk", "aarp", "decnet", "lat", "moprc",
    "mopdl", "stp", "ipx", "netbeui", "byte",
})  # fmt: skip
SYNONYMS: Final = {"&&": "and", "||": "or", "!": "not", "==": "=", "length": "len", "link": "ether"}

BLANK: Final = re.compile(r"[ \t\r\n]+")
SYMBOL: Final = re.compile(r"&&|\|\||>=|<=|!=|==|<<|>>|[()\[\]!<>=:/+\-*%&|^]")
WORD: Final = re.compile(r"[A-Za-z0-9](?:[-_.A-Za-z0-9]*[.A-Za-z0-9])?")
COLONS: Final = re.compile(r"[0-9A-Fa-f]*:[0-9A-Fa-f:]*(?:[0-9]+(?:\.[0-9]+){3})?")
NUMBER: Final = re.compile(r"0[xX][0-9A-Fa-f]+|[0-9]+")
DOTTED: Final = re.compile(r"[0-9]+(?:\.[0-9]+){1,3}")
MAC: Final = re.compile(r"[0-9A-Fa-f]{1,2}(?:([:.-])[0-9A-Fa-f]{1,2})(?:\1[0-9A-Fa-f]{1,2}){4}")
PATTERN: Final = re.compile(r"[^\s()]+")


class Kind(Enum):
    """What a token is."""

    KEYWORD = auto()
    SYMBOL = auto()
    NUMBER = auto()
    DOTTED = auto()  # an IPv4 address, or the beginning of one
    IPV6 = auto()
    MAC = auto()
    WORD = auto()
    END = auto()


class Token(NamedTuple):
    """A word of the language.  `column` counts from 1."""

    kind: Kind
    text: str
    column: int
    number: int = 0  # of a NUMBER

    def is_(self, *texts: str) -> bool:
        """Whether this is one of these keywords or symbols."""
        return self.text in texts and self.kind in (Kind.KEYWORD, Kind.SYMBOL)

    def __str__(self) -> str:
        return "the end" if self.kind is Kind.END else repr(self.text)


def tokens(text: str) -> list[Token]:
    """All tokens of `text`, END last.  Raises FilterError."""
    if len(text) > MAX_TEXT:
        raise FilterError(f"a filter has at most {MAX_TEXT} characters", text, MAX_TEXT + 1)
    found: list[Token] = []
    at = 0
    while True:
        blank = BLANK.match(text, at)
        at = blank.end() if blank else at
        if at == len(text):
            found.append(Token(Kind.END, "", at + 1))
            return found
        if found and found[-1].is_("name"):
            match = PATTERN.match(text, at)
            token = Token(Kind.WORD, match.group() if match else "", at + 1)
            width = len(token.text)
        else:
            token, width = _token(text, at)
        found.append(token)
        at += width


def _token(text: str, at: int) -> tuple[Token, int]:
    column = at + 1
    escaped = text[at] == "\\"
    word = WORD.match(text, at + escaped)
    if escaped:
        if word is None:
            raise FilterError("after a backslash comes the name of a protocol", text, column)
        return Token(Kind.WORD, word.group(), column), len(word.group()) + 1
    length = len(word.group()) if word else 0
    colons = COLONS.match(text, at)
    if colons and len(colons.group()) > length and colons.group().count(":") > 1:
        return _with_colons(colons.group(), text, column), len(colons.group())
    if word:
        return _word(word.group(), text, column), length
    symbol = SYMBOL.match(text, at)
    if symbol is None:
        raise FilterError(f"{text[at]!r} means nothing here", text, column)
    name = SYNONYMS.get(symbol.group(), symbol.group())
    return Token(Kind.KEYWORD if name.isalpha() else Kind.SYMBOL, name, column), len(symbol.group())


def _with_colons(word: str, text: str, column: int) -> Token:
    if MAC.fullmatch(word):
        return Token(Kind.MAC, word, column)
    try:
        IPv6Address(word)
    except AddressValueError:
        raise FilterError(f"{word!r} is neither an IPv6 nor a MAC address", text, column) from None
    return Token(Kind.IPV6, word, column)


def _word(word: str, text: str, column: int) -> Token:
    if NUMBER.fullmatch(word):
        try:
            base = 16 if word[:2] in ("0x", "0X") else 8 if word[0] == "0" else 10
            number = int(word, base)
        except ValueError:
            raise FilterError(f"{word!r} is not octal, though it begins with 0", text, column) from None
        if number > 0xFFFFFFFF:
            raise FilterError(f"{word} is more than 32 bits", text, column)
        return Token(Kind.NUMBER, word, column, number)
    if DOTTED.fullmatch(word):
        return Token(Kind.DOTTED, word, column)
    if MAC.fullmatch(word):
        return Token(Kind.MAC, word, column)
    name = SYNONYMS.get(word, word)
    return Token(Kind.KEYWORD if name in KEYWORDS else Kind.WORD, name, column)

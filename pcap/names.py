"""Which address was given for which name: learnt from the answers of DNS that went to guests.

Answers are bytes that somebody on the Internet made.  What is not understood teaches nothing.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from pcap.predicates import UDP, transport
from pcap.ring import RECORD, Ring

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pcap.ring import Rule

MAX_ADDRESSES: Final = 4096  # the longest known makes place
MAX_NAMES: Final = 8  # of an address; likewise
MAX_RECORDS: Final = 64  # of one answer that are looked at
MAX_LABELS: Final = 128
DNS_PORT: Final = 53
ADDRESS_TYPES: Final = {1: 4, 28: 16}  # A and AAAA: octets
_HEADER: Final = struct.Struct(">HHHH")  # identification, flags, questions, answers
_RECORD: Final = struct.Struct(">HHLH")
_PORTS: Final = struct.Struct(">HH")


class NameBook:
    """Names of addresses."""

    def __init__(self) -> None:
        self._names: dict[bytes, dict[str, None]] = {}

    def __iter__(self) -> Iterator[tuple[bytes, list[str]]]:
        return iter([(address, list(names)) for address, names in self._names.items()])

    def names(self, address: bytes) -> list[str]:
        """The names that `address` (4 or 16 octets) was given for, the newest last."""
        return list(self._names.get(address, ()))

    def is_named(self, address: bytes, pattern: str) -> bool:
        """Whether one of them is `pattern`: a name, `*.` and the end of one, or `*`."""
        names = self._names.get(address)
        if not names:
            return False
        if pattern == "*":
            return True
        if pattern.startswith("*."):
            return any(name.endswith(pattern[1:]) for name in names)
        return pattern in names

    def learn(self, frame: bytes) -> None:
        """Remember what the DNS answer in `frame` says, if it is one over UDP."""
        protocol, at = transport(frame)
        if protocol != UDP or not at or len(frame) < at + 20 or _PORTS.unpack_from(frame, at)[0] != DNS_PORT:
            return
        try:
            self._learn(frame[at + 8 :])
        except (struct.error, IndexError, ValueError):
            pass  # cut, or no DNS

    def _learn(self, message: bytes) -> None:
        _, flags, questions, answers = _HEADER.unpack_from(message)
        if flags & 0x800F != 0x8000 or questions != 1:
            return
        asked, at = _name(message, 12)
        at += 4
        for _ in range(min(answers, MAX_RECORDS)):
            owner, at = _name(message, at)
            kind, _, _, length = _RECORD.unpack_from(message, at)
            at += _RECORD.size
            if ADDRESS_TYPES.get(kind) == length and len(message) >= at + length:
                self._add(message[at : at + length], asked)
                if owner != asked:
                    self._add(message[at : at + length], owner)
            at += length

    def _add(self, address: bytes, name: str) -> None:
        names = self._names.pop(address, {})
        if len(self._names) >= MAX_ADDRESSES:
            del self._names[next(iter(self._names))]
        self._names[address] = names
        names.pop(name, None)
        if len(names) >= MAX_NAMES:
            del names[next(iter(names))]
        names[name] = None


class NameRing(Ring):
    """A ring that keeps nothing: its packets are learnt from."""

    __slots__ = ("_book",)

    def __init__(self, rule: Rule, book: NameBook) -> None:
        super().__init__(rule)
        self._book = book

    def put(self, record: bytes) -> None:
        self._book.learn(record[RECORD.size :])


def _name(message: bytes, at: int) -> tuple[str, int]:
    """The name at `at`, in lower case, and where it ends.  Raises IndexError and ValueError."""
    labels: list[str] = []
    end = 0
    for _ in range(MAX_LABELS):
        size = message[at]
        if size >= 0xC0:
            end = end or at + 2
            target = (size & 0x3F) << 8 | message[at + 1]
            if target >= at:
                raise ValueError("a pointer forwards")
            at = target
        elif size > 63:
            raise ValueError("no label")
        elif size:
            label = message[at + 1 : at + 1 + size]
            labels.append("".join(chr(c) if 33 <= c < 127 else "?" for c in label).lower())
            at += 1 + size
        else:
            return ".".join(labels), end or at + 1
    raise ValueError("a name without an end")

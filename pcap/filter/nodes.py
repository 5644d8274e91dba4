"""What a filter says, as a tree: what the parser makes and the compiler reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Side: TypeAlias = Literal["src", "dst", "or", "and"]  # or: either end; and: both

IPV4: Final = 0x0800
ARP: Final = 0x0806
RARP: Final = 0x8035
IPV6: Final = 0x86DD


@dataclass(frozen=True, slots=True)
class EtherType:
    """Frames of one EtherType."""

    number: int


@dataclass(frozen=True, slots=True)
class Protocol:
    """IP packets of one protocol, in these EtherTypes (IPV4, IPV6)."""

    number: int
    families: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Address4:
    """`value` under `mask` in IPv4, or in ARP or RARP, by EtherType."""

    value: int
    mask: int
    side: Side
    families: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Address6:
    """The same in IPv6; 128 bits each."""

    value: int
    mask: int
    side: Side


@dataclass(frozen=True, slots=True)
class Mac:
    """An Ethernet address."""

    address: bytes
    side: Side


@dataclass(frozen=True, slots=True)
class Ports:
    """A port from `low` to `high` of TCP, UDP or SCTP; not in later fragments."""

    low: int
    high: int
    side: Side
    protocols: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Name:
    """Flows to or from an address that DNS gave for a name."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Way:
    """Frames from the guest (1) or to it (2)."""

    direction: int


@dataclass(frozen=True, slots=True)
class Group:
    """Frames or packets to a group: of this protocol."""

    of: Literal["broadcast", "multicast", "ip", "ip6"]


@dataclass(frozen=True, slots=True)
class Number:
    """An unsigned number of 32 bits, as all of arithmetic is."""

    value: int


@dataclass(frozen=True, slots=True)
class Length:
    """The octets of the whole frame, also where fewer were captured."""


@dataclass(frozen=True, slots=True)
class Load:
    """`size` octets behind the beginning of a header."""

    header: str
    index: Arithmetic
    size: int


@dataclass(frozen=True, slots=True)
class Operation:
    """An operator of C, modulo 2^32."""

    operator: str
    left: Arithmetic
    right: Arithmetic


@dataclass(frozen=True, slots=True)
class Negative:
    """0 less a number."""

    inner: Arithmetic


@dataclass(frozen=True, slots=True)
class Comparison:
    """A relation of C.  Not so, too, where a header that is looked into is not there."""

    relation: str
    left: Arithmetic
    right: Arithmetic


@dataclass(frozen=True, slots=True)
class Not:
    inner: Node


@dataclass(frozen=True, slots=True)
class And:
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Or:
    left: Node
    right: Node


Arithmetic: TypeAlias = Number | Length | Load | Operation | Negative
Node: TypeAlias = (
    EtherType | Protocol | Address4 | Address6 | Mac | Ports | Name | Way | Group | Comparison | Not | And | Or
)

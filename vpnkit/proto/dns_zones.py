"""Zones of the operator, added at run time: gvproxy's, with more than it does.

A zone is for the names below its own.  A record's name is what stands before the zone's: a name, `*` or `*.name` for
whatever stands there, or nothing when a regular expression says what it is for.  A name that no record is for has the
zone's default address, and without one does not exist.  The first zone that a name is in answers, in the order in which
zones were added.  Unlike gvproxy's, names have no case, AAAA is answered, and a wildcard is one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from vpnkit.wire import dns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vpnkit.wire.dns import Query

ZONE_TTL: Final = 0  # gvproxy's: records change at run time
MAX_ZONES: Final = 256
MAX_RECORDS: Final = 4096  # of all zones
MAX_PATTERN: Final = 256  # characters of a regular expression
MAX_REPEATS: Final = 2  # in one: each multiplies the time it may take by the length of a name

_REPEAT: Final = re.compile(r"(?<!\\)[*+{]")
_REPEATED_GROUP: Final = re.compile(r"(?<!\\)\)[*+{]")


class ZoneError(ValueError):
    """A zone that cannot be; says what is wrong with it."""


@dataclass(frozen=True)
class ZoneRecord:
    """An address for a name, or for the names that `regexp` is found in."""

    name: str = ""  # before the zone's name
    ip: str = ""
    regexp: str = ""


@dataclass(frozen=True)
class Zone:
    """A zone as its owner wrote it."""

    name: str
    records: tuple[ZoneRecord, ...] = ()
    default_ip: str = ""


@dataclass
class _Compiled:
    zone: Zone
    suffix: bytes  # the zone's name on the wire
    default: tuple[bytes, ...]
    records: list[_CompiledRecord] = field(default_factory=list)


@dataclass
class _CompiledRecord:
    name: bytes  # labels on the wire, without a final zero
    wildcard: bool
    pattern: re.Pattern[str] | None
    address: bytes


class Zones:
    """The zones there are.  `changed` is called after each change."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._zones: list[_Compiled] = []
        self._changed = changed

    def __bool__(self) -> bool:
        return bool(self._zones)

    def list(self) -> list[Zone]:
        """The zones in the order in which they are asked."""
        return [compiled.zone for compiled in self._zones]

    def add(self, zone: Zone) -> None:
        """Add a zone.  When there is one of this name, the new records come before its own and the default address
        is replaced (gvproxy's rule).  Raises ZoneError, and nothing is changed then."""
        compiled = _compile(zone)
        for i, known in enumerate(self._zones):
            if known.suffix == compiled.suffix:
                merged = Zone(known.zone.name, zone.records + known.zone.records, zone.default_ip)
                self._check(len(zone.records))
                self._zones[i] = _compile(merged)
                break
        else:
            if len(self._zones) >= MAX_ZONES:
                raise ZoneError(f"there are {MAX_ZONES} zones already")
            self._check(len(zone.records))
            self._zones.append(compiled)
        self._changed()

    def _check(self, more: int) -> None:
        if sum(len(known.records) for known in self._zones) + more > MAX_RECORDS:
            raise ZoneError(f"more than {MAX_RECORDS} records")

    def remove(self, name: str) -> bool:
        """Forget a zone and its records; whether there was one.  Raises ZoneError."""
        suffix = _name(name)
        kept = [known for known in self._zones if known.suffix != suffix]
        found = len(kept) < len(self._zones)
        self._zones = kept
        if found:
            self._changed()
        return found

    def answer(self, query: Query) -> bytes | None:
        """Our answer, or None when the name is in no zone."""
        if query.qclass not in (dns.IN, dns.ANY):
            return None
        for known in self._zones:
            prefix = _prefix(query.name, known.suffix)
            if prefix:
                addresses = _addresses(known, prefix)
                if addresses is None:
                    return dns.encode_reply(query, dns.NXDOMAIN, authoritative=True)
                return dns.encode_reply(query, dns.NOERROR, _records(query.qtype, addresses), authoritative=True)
        return None


def _records(qtype: int, addresses: Sequence[bytes]) -> list[bytes]:
    found = []
    for address in addresses:
        rtype = dns.A if len(address) == 4 else dns.AAAA
        if qtype in (rtype, dns.ANY):
            found.append(dns.encode_record(rtype, ZONE_TTL, address))
    return found


def _prefix(name: bytes, suffix: bytes) -> bytes:
    """The labels of `name` before `suffix`; empty when it is not below it."""
    i = 0
    while length := name[i]:
        i += 1 + length
        if name[i:] == suffix:
            return name[:i]
    return b""


def _addresses(known: _Compiled, prefix: bytes) -> Sequence[bytes] | None:
    """The addresses of a name in a zone, perhaps none; None when there is no such name."""
    exact = [record.address for record in known.records if record.name == prefix and not record.wildcard]
    if exact:
        return exact
    text = _text(prefix)
    for record in known.records:
        if record.pattern is not None and record.pattern.search(text):
            return [record.address]
    wildcards = [record for record in known.records if record.wildcard and _is_below(prefix, record.name)]
    if wildcards:
        longest = max(len(record.name) for record in wildcards)
        return [record.address for record in wildcards if len(record.name) == longest]
    if known.default:
        return known.default
    if any(_is_below(record.name, prefix) for record in known.records if record.pattern is None):
        return ()  # RFC 8020: there is something below it
    return None


def _is_below(name: bytes, parent: bytes) -> bool:
    """Whether the labels of `name` are more than those of `parent`, and end with them."""
    if not parent:
        return bool(name)
    return bool(_prefix(name + b"\0", parent + b"\0"))


def _text(labels: bytes) -> str:
    """Labels as regular expressions see them."""
    found = []
    i = 0
    while i < len(labels):
        found.append(labels[i + 1 : i + 1 + labels[i]].decode("latin-1"))
        i += 1 + labels[i]
    return ".".join(found)


def _compile(zone: Zone) -> _Compiled:
    default = (_address(zone.default_ip),) if zone.default_ip else ()
    return _Compiled(zone, _name(zone.name), default, [_record(record) for record in zone.records])


def _record(record: ZoneRecord) -> _CompiledRecord:
    address = _address(record.ip)
    if record.regexp:
        return _CompiledRecord(b"", False, _pattern(record.regexp), address)
    wildcard = record.name == "*" or record.name.startswith("*.")
    name = record.name[2:] if wildcard else record.name
    if not name and not wildcard:
        raise ZoneError("a record has neither a name nor a regular expression")
    return _CompiledRecord(_name(name)[:-1], wildcard, None, address)


def _pattern(text: str) -> re.Pattern[str]:
    if len(text) > MAX_PATTERN or len(_REPEAT.findall(text)) > MAX_REPEATS or _REPEATED_GROUP.search(text):
        raise ZoneError(f"the regular expression {text[:MAX_PATTERN]!r} could take too long for a name")
    try:
        return re.compile(text, re.IGNORECASE)
    except (re.error, OverflowError) as error:
        raise ZoneError(f"{text!r} is not a regular expression: {error}") from None


def _name(text: str) -> bytes:
    try:
        return dns.encode_name(text)
    except (ValueError, UnicodeError) as error:
        raise ZoneError(str(error)) from None


def _address(text: str) -> bytes:
    try:
        return ip_address(text).packed
    except ValueError:
        raise ZoneError(f"invalid IP address: {text}") from None

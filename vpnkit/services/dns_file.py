"""The file of the original's --dns.

    nameserver 10.0.0.2            # or 10.0.0.2#5353; these are for the server above them:
    zone corp.example lan          # it is for names in these domains
    timeout 5000                   # milliseconds
    order 1                        # answers of lower orders are preferred
    search a b c                   # for the guests
    assume-offline-after 5         # read, and not needed: how servers do is measured

Servers are asked all at once, those for the longest zone that a name is in, or else those without zones.  What the
original gets wrong and this does not: a comment or a double space within a line, IPv6 addresses written in full or with
a port, and a file whose one bad line leaves no server at all (the last good one stays).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vpnkit.errors import ConfigError
from vpnkit.proto.dns_upstreams import MAX_RACING, Routes, Server
from vpnkit.services.resolvconf import MAX_SEARCH, parse_server
from vpnkit.wire import dns

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_SERVERS: Final = 64
MAX_TIMEOUT: Final = 3_600_000  # milliseconds


@dataclass
class _Written:
    server: Server
    zones: list[str] = field(default_factory=list)


def parse(text: str) -> tuple[Routes, list[str]]:
    """The servers and the search list of such a file.  Raises ConfigError, which names the line."""
    written: list[_Written] = []
    search: list[str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        keyword, *values = line.strip().split() or [""]
        values = _without_comment(values)
        if not values:
            continue
        if keyword == "nameserver":
            written.append(_Written(_server(values[0], number)))
            if len(written) > MAX_SERVERS:
                raise ConfigError(f"line {number}: more than {MAX_SERVERS} nameservers")
        elif keyword == "search" and search is None:  # the first one counts
            search = [name.rstrip(".") for name in values[:MAX_SEARCH] if name.rstrip(".")]
        elif keyword == "assume-offline-after":
            _number(values[0], number, 1 << 31)
        elif written and keyword == "zone":
            written[-1].zones += values
        elif written and keyword == "timeout":
            seconds = _number(values[0], number, MAX_TIMEOUT) / 1000
            written[-1].server = written[-1].server._replace(timeout=seconds)
        elif written and keyword == "order":
            written[-1].server = written[-1].server._replace(order=_number(values[0], number, 1 << 31))
    return _routes(written), search or []


def _without_comment(values: Sequence[str]) -> list[str]:
    kept: list[str] = []
    for value in values:
        if value.startswith("#"):
            break
        kept.append(value)
    return kept


def _server(text: str, number: int) -> Server:
    try:
        return parse_server(text)
    except ConfigError as error:
        raise ConfigError(f"line {number}: {error}") from None


def _number(text: str, number: int, limit: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= limit):
        raise ConfigError(f"line {number}: {text!r} is not a number up to {limit}")
    return int(text)


def _routes(written: Sequence[_Written]) -> Routes:
    zones: dict[bytes, list[Server]] = {}
    default: list[Server] = []
    seen: set[Server] = set()
    for one in written:
        if one.server in seen and not one.zones:
            continue
        seen.add(one.server)
        if not one.zones:
            default.append(one.server)
        for zone in one.zones:
            try:
                zones.setdefault(dns.encode_name(zone), []).append(one.server)
            except (ValueError, UnicodeError) as error:
                raise ConfigError(f"zone {zone!r}: {error}") from None
    if not default:  # all have zones: then all are asked about what is in none, as by the original
        default = list(dict.fromkeys(one.server for one in written))
    ordered = {zone: _ordered(servers) for zone, servers in zones.items()}
    return Routes(_ordered(default), ordered, racing=True)


def _ordered(servers: Sequence[Server]) -> list[Server]:
    return sorted(servers, key=lambda server: server.order)[:MAX_RACING]

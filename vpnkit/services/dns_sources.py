"""Where a resolver's servers come from: the command line, files that are followed, and the operating system."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from vpnkit.errors import ConfigError
from vpnkit.proto.dns_upstreams import Routes, Server
from vpnkit.services import dns_file
from vpnkit.services.followed import Followed
from vpnkit.services.resolvconf import ResolvConf, parse_server
from vpnkit.wire import dns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def parse_source(text: str) -> Server | Path:
    """What `--dns` takes: a server as `parse_server` reads it, or a file of the original's.  Raises ConfigError."""
    try:
        return parse_server(text)
    except ConfigError:
        path = Path(text)
        if not path.is_file():
            if "/" in text:
                raise ConfigError(f"{text!r} is not a file with nameservers") from None
            raise
        try:
            routes, _ = dns_file.parse(path.read_bytes()[: 1 << 20].decode("utf-8", "replace"))
        except OSError as error:
            raise ConfigError(f"{text!r}: {error.strerror}") from None
        except ConfigError as error:
            raise ConfigError(f"{text!r}: {error}") from None
        if not routes.default:
            raise ConfigError(f"{text!r} has no nameserver line") from None
        return path


def parse_zone(text: str) -> tuple[bytes, tuple[Server, ...]]:
    """ZONE=SERVER[,SERVER] of `--dns-zone`.  Raises ConfigError."""
    zone, equals, servers = text.partition("=")
    if not equals or not zone or not servers:
        raise ConfigError(f"{text!r} is not ZONE=SERVER[,SERVER], as in corp.example=10.0.0.2,10.0.0.3#5353")
    try:
        name = dns.encode_name(zone)
    except (ValueError, UnicodeError) as error:
        raise ConfigError(f"{text!r}: {error}") from None
    return name, tuple(parse_server(server) for server in servers.split(","))


class Sources:
    """The servers there are now.  `dns` are servers and files; when it is empty they are resolv.conf's.

    `clock` counts seconds.
    """

    def __init__(
        self,
        dns: Sequence[Server | tuple[str, int] | Path] = (),
        zones: Mapping[bytes, Sequence[Server]] | None = None,
        *,
        resolv_conf: str = "/etc/resolv.conf",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fixed = [Server(*source) for source in dns if not isinstance(source, Path)]
        self._files = [Followed(str(source), clock=clock) for source in dns if isinstance(source, Path)]
        self._read = [(Routes(), list[str]())] * len(self._files)
        self._zones = dict(zones or {})
        self.resolv_conf = ResolvConf(resolv_conf, clock)
        self._routes = Routes((), self._zones)
        self._is_fixed = bool(self._fixed) and not self._files
        self.problems = 0  # files that did not make sense when they were read
        self._from: list[Server] | None = None
        self._assemble()

    def _assemble(self) -> None:
        servers = list(self._fixed)
        zones = dict(self._zones)
        for routes, _ in self._read:
            servers += routes.default
            for zone, of_zone in routes.zones.items():
                zones.setdefault(zone, of_zone)
        self._routes = Routes(servers, zones, racing=bool(self._files))

    def routes(self) -> Routes:
        """Who is asked about what, as of now."""
        if self._is_fixed:
            return self._routes
        if not self._fixed and not self._files:
            servers = self.resolv_conf.servers()
            if servers is not self._from:
                self._from = servers
                self._routes = Routes(servers, self._zones)
            return self._routes
        for i, file in enumerate(self._files):
            text = file.changed()
            if text is not None:
                try:
                    routes, search = dns_file.parse(text)
                except ConfigError:
                    self.problems += 1
                    continue
                if routes.default:
                    self._read[i] = (routes, search)
                    self._assemble()
        return self._routes

    def search(self) -> list[str]:
        """The domains that the files say guests should search."""
        self.routes()
        return [domain for _, search in self._read for domain in search]

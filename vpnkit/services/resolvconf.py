"""The host's resolvers, read from /etc/resolv.conf (resolv.conf(5)) when they change, and servers as texts.

A file that is missing, empty or nonsense for a moment (it is rewritten when networks change) does not unlearn what the
last good one said.
"""

from __future__ import annotations

import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from vpnkit.errors import ConfigError
from vpnkit.proto.dns_upstreams import Server
from vpnkit.services.followed import CHECK_SECONDS, Followed

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CHECK_SECONDS", "ResolvConf", "parse", "parse_server"]

DNS_PORT: Final = 53
TLS_PORT: Final = 853
MAX_SERVERS: Final = 8
MAX_SEARCH: Final = 32
HOST: Final = Server("", 0, "host")  # the operating system's resolver


def parse(text: str) -> tuple[list[Server], list[str]]:
    """The servers and the search list of a resolv.conf; lines that make no sense are skipped.

    The last `search` or `domain` line counts.  A server may be [ADDRESS]:PORT, as on the BSDs and for the original.
    """
    servers: list[Server] = []
    search: list[str] = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split(";", 1)[0].split()
        if len(words) < 2:
            continue
        keyword, *values = words
        if keyword == "nameserver":
            server = _resolv_conf_server(values[0])
            if server is not None and server not in servers and len(servers) < MAX_SERVERS:
                servers.append(server)
        elif keyword in ("search", "domain"):
            search = [name.rstrip(".") for name in values[:MAX_SEARCH] if name.isprintable() and name.rstrip(".")]
    return servers, search


def _resolv_conf_server(text: str) -> Server | None:
    host, bracket, port = text[1:].partition("]:") if text.startswith("[") else (text, "", "")
    address = literal_address(host)
    if address is None:
        return None
    if not bracket:
        return Server(address, DNS_PORT)
    return Server(address, int(port)) if is_port(port) else None


def literal_address(text: str) -> str | None:
    """A literal address in its usual spelling, with its zone; None when it is none, or is nobody's."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return None if address.is_multicast else str(address)


def is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) < 65536


def parse_server(text: str) -> Server:
    """SERVER[#PORT], tls:SERVER[:PORT][#NAME] or host, as in `--dns`.  Raises ConfigError."""
    text = text.strip()
    if text == "host":
        return HOST
    if text.startswith("tls:"):
        return _parse_tls(text)
    host, mark, port = text.partition("#")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    address = literal_address(host)
    if address is None:
        raise ConfigError(f"{text!r} is not a DNS server: an IP address is wanted, as in 1.1.1.1 or 1.1.1.1#5353")
    if not mark:
        return Server(address, DNS_PORT)
    if not is_port(port):
        raise ConfigError(f"{text!r} is not a DNS server: the port after '#' must be 1 to 65535")
    return Server(address, int(port))


def _parse_tls(text: str) -> Server:
    where, mark, name = text.removeprefix("tls:").partition("#")
    host, port = where, str(TLS_PORT)
    if where.startswith("["):
        host, _, rest = where[1:].partition("]")
        port = rest.removeprefix(":") if rest else port
    elif where.count(":") == 1:
        host, _, port = where.partition(":")
    address = literal_address(host)
    if address is None:
        raise ConfigError(f"{text!r} is not a DNS server: an IP address is wanted, as in tls:1.1.1.1#one.one.one.one")
    if not is_port(port):
        raise ConfigError(f"{text!r} is not a DNS server: its port must be 1 to 65535, as in tls:1.1.1.1:853#NAME")
    if mark and not (name.isascii() and name.replace("-", "").replace(".", "").replace("_", "").isalnum()):
        raise ConfigError(f"{text!r} is not a DNS server: after '#' comes the name in its certificate")
    return Server(address, int(port), "tls", name.rstrip("."))


class ResolvConf:
    """One resolv.conf, followed.  `clock` counts seconds."""

    def __init__(self, path: str = "/etc/resolv.conf", clock: Callable[[], float] = time.monotonic) -> None:
        self._file = Followed(path, clock=clock)
        self._servers: list[Server] = []
        self._search: list[str] = []
        self.reloads = 0

    def servers(self) -> list[Server]:
        """Those of the last good file, in its order; empty when there never was one."""
        self._look()
        return self._servers

    def search(self) -> list[str]:
        """The search list of the last good file."""
        self._look()
        return self._search

    def _look(self) -> None:
        text = self._file.changed()
        if text is None:
            return
        servers, search = parse(text)
        if servers:
            self._servers = servers
            self._search = search
            self.reloads += 1

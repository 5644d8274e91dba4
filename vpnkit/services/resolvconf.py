"""The host's resolvers, read from /etc/resolv.conf (resolv.conf(5)) when they change.

Whoever asks for the servers pays for the look: at most one stat a second, and nothing while nobody resolves names.  A
file that is missing, empty or nonsense for a moment (it is rewritten when networks change) does not unlearn what the
last good one said.
"""

from __future__ import annotations

import os
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from vpnkit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

DNS_PORT: Final = 53
MAX_FILE: Final = 64 * 1024  # octets read of resolv.conf
MAX_SERVERS: Final = 8
MAX_SEARCH: Final = 32
CHECK_SECONDS: Final = 1.0  # between two looks at the file


def parse(text: str) -> tuple[list[str], list[str]]:
    """The servers' addresses and the search list of a resolv.conf; lines that make no sense are skipped.

    The last `search` or `domain` line counts.
    """
    servers: list[str] = []
    search: list[str] = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split(";", 1)[0].split()
        if len(words) < 2:
            continue
        keyword, *values = words
        if keyword == "nameserver":
            address = _address(values[0])
            if address is not None and address not in servers and len(servers) < MAX_SERVERS:
                servers.append(address)
        elif keyword in ("search", "domain"):
            search = [name.rstrip(".") for name in values[:MAX_SEARCH] if name.isprintable() and name.rstrip(".")]
    return servers, search


def _address(text: str) -> str | None:
    """A literal address in its usual spelling, with its zone; None when it is none, or is nobody's."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return None if address.is_multicast else str(address)


def parse_server(text: str) -> tuple[str, int]:
    """SERVER[#PORT] of `--dns`, as an address and a port.  Raises ConfigError."""
    host, mark, port = text.strip().partition("#")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    address = _address(host)
    if address is None:
        raise ConfigError(f"{text!r} is not a DNS server: an IP address is wanted, as in 1.1.1.1 or 1.1.1.1#5353")
    if not mark:
        return address, DNS_PORT
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ConfigError(f"{text!r} is not a DNS server: the port after '#' must be 1 to 65535")
    return address, int(port)


class ResolvConf:
    """One resolv.conf, followed.  `clock` counts seconds."""

    def __init__(self, path: str = "/etc/resolv.conf", clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._checked = float("-inf")
        self._signature: tuple[int, int, int] | None = None  # mtime in ns, size, inode
        self._servers: list[tuple[str, int]] = []
        self._search: list[str] = []
        self.reloads = 0

    def servers(self) -> list[tuple[str, int]]:
        """(address, port) in the file's order; empty when there never was a good file."""
        self._look()
        return self._servers

    def search(self) -> list[str]:
        """The search list of the last good file."""
        self._look()
        return self._search

    def _look(self) -> None:
        now = self._clock()
        if now - self._checked < CHECK_SECONDS:
            return
        self._checked = now
        try:
            status = os.stat(self._path)
            signature = (status.st_mtime_ns, status.st_size, status.st_ino)
            if signature == self._signature:
                return
            with open(self._path, "rb") as file:
                raw = file.read(MAX_FILE)
        except OSError:
            self._signature = None  # when it comes back, it is news
            return
        self._signature = signature
        servers, search = parse(raw.decode("utf-8", "replace"))
        if servers:
            self._servers = [(address, DNS_PORT) for address in servers]
            self._search = search
            self.reloads += 1

"""What a DHCP server tells its clients besides their address: the configuration, and the options made of it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from vpnkit.errors import ConfigError
from vpnkit.wire import dhcp
from vpnkit.wire.dhcp import ANY

MAX_BOOT_FILE: Final = 127  # octets that fit the message's field, with a zero behind them; option 67 takes 255
MAX_OPTIONS: Final = 312 - 4  # octets of options that every client takes, RFC 2131 section 2, less the cookie


@dataclass(frozen=True)
class DhcpConfig:
    """What the server tells.  Addresses are 4 octets; `lease` is in seconds, at most INFINITE."""

    server_ip: bytes
    server_mac: bytes
    first: bytes  # the pool, both ends included
    last: bytes
    mask: bytes
    routers: tuple[bytes, ...]
    dns: tuple[bytes, ...]
    excluded: frozenset[bytes] = frozenset()  # addresses in the pool that are never given
    mtu: int | None = None
    domain: str = ""
    search: tuple[str, ...] = ()
    ntp: tuple[bytes, ...] = ()
    routes: tuple[tuple[bytes, int, bytes], ...] = ()  # network, prefix length, router; the default route is added
    lease: int = 86400
    next_server: bytes | None = None  # who has the boot file; None: we, as far as anybody can tell
    boot_file: str = ""  # a path there, or a URL (iPXE)


class Told:
    """The options that are the same for everybody.  Raises ConfigError when `config` cannot be told."""

    def __init__(self, config: DhcpConfig) -> None:
        self._config = config
        self._server = int.from_bytes(config.server_ip, "big")
        self._mask = int.from_bytes(config.mask, "big")
        self._boot_file = config.boot_file.encode()
        if len(self._boot_file) > 255:
            raise ConfigError(f"boot file {config.boot_file!r} is longer than 255 octets")
        self.shortened = 0  # replies that had no room for all options
        self._told = self._static_options()

    def _static_options(self) -> list[tuple[int, bytes]]:
        """The dispensable last."""
        config = self._config
        subnet_broadcast = (self._server | ~self._mask & 0xFFFFFFFF).to_bytes(4, "big")
        told = [(dhcp.SUBNET_MASK, config.mask)]  # before the router, RFC 2132 section 3.3
        if config.routers:
            told.append((dhcp.ROUTER, b"".join(config.routers)))
        if config.dns:
            told.append((dhcp.DNS_SERVER, b"".join(config.dns)))
        if config.mtu is not None:
            if not 68 <= config.mtu <= 65535:
                raise ConfigError(f"mtu {config.mtu} is out of range: 68 to 65535")
            told.append((dhcp.INTERFACE_MTU, config.mtu.to_bytes(2, "big")))
        told.append((dhcp.BROADCAST_ADDRESS, subnet_broadcast))
        try:
            if config.domain:
                dhcp.encode_domains([config.domain])  # only to see that it is one
                told.append((dhcp.DOMAIN_NAME, config.domain.encode("idna")))
            if config.ntp:
                told.append((dhcp.NTP_SERVER, b"".join(config.ntp)))
            if config.search:
                told.append((dhcp.DOMAIN_SEARCH, dhcp.encode_domains(config.search)))
        except ValueError as error:
            raise ConfigError(f"domain or search list: {error}") from None
        return told

    def boot(self) -> tuple[bytes, bytes]:
        """The fields siaddr and file of a reply."""
        fits = len(self._boot_file) <= MAX_BOOT_FILE
        return self._config.next_server or self._config.server_ip, self._boot_file if fits else b""

    def tell(self, options: dict[int, bytes], asked: bytes) -> None:
        """Add the configuration to `options`, for a client whose parameter list is `asked`.

        What would not fit MAX_OPTIONS is left out; a search list is cut between names.
        """
        room = MAX_OPTIONS - 1 - sum(2 + len(value) for value in options.values())
        told = self._told
        if self._config.routers and dhcp.CLASSLESS_ROUTES in asked:
            # Who takes this option ignores option 3, RFC 3442: so the default route is in it too
            routes = (*self._config.routes, (ANY, 0, self._config.routers[0]))
            told = [(dhcp.CLASSLESS_ROUTES, dhcp.encode_routes(routes)), *told]
        if self._boot_file and (dhcp.BOOT_FILE in asked or len(self._boot_file) > MAX_BOOT_FILE):
            told = [*told, (dhcp.BOOT_FILE, self._boot_file)]
        if self._boot_file and dhcp.TFTP_SERVER in asked:
            told = [*told, (dhcp.TFTP_SERVER, str(IPv4Address(self.boot()[0])).encode())]
        for code, whole in told:
            value = whole
            if code == dhcp.DOMAIN_SEARCH:
                names = self._config.search
                while value and len(dhcp.encode_option(code, value)) > room:
                    names = names[:-1]
                    value = dhcp.encode_domains(names)
            if value != whole or len(dhcp.encode_option(code, value)) > room:
                self.shortened += 1
                if value == whole or not value:
                    continue
            options[code] = value
            room -= len(dhcp.encode_option(code, value))

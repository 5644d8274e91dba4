"""The address plan of one virtual network: who has which address, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeAlias

from vpnkit.errors import ConfigError
from vpnkit.wire.ipv6 import link_local

# (tcp or udp, port) of the gateway -> IPv4 address and port
GatewayForwards: TypeAlias = dict[tuple[str, int], tuple[str, int]]

DEFAULT_SUBNET: Final = IPv4Network("192.168.65.0/24")
DEFAULT_PREFIX6: Final = IPv6Network("fd65:7670:6e6b::/64")
IPV6_OFFERS: Final = {
    "auto": "all of it while the host has a way to the IPv6 world, nothing otherwise",
    "on": "all of it, always",
    "local": "addresses for the LAN and this host, but no way out",
    "off": "nothing",
}
LEAST_MTU6: Final = 1280  # RFC 8200 section 5: a smaller link carries no IPv6
SERVER_MAC: Final = bytes.fromhex("f61636bcf9c6")  # the original's
GUEST_MAC_PREFIX: Final = bytes.fromhex("0250")  # then a 32-bit guest number, from 1

GATEWAY_NAMES: Final = ("gateway.internal", "gateway.docker.internal", "gateway.containers.internal")
HOST_NAMES: Final = ("host.internal", "host.docker.internal", "host.containers.internal")
VM_NAMES: Final = ("vm.internal",)


def guest_mac(number: int) -> bytes:
    """The MAC address of guest `number` (from 1)."""
    return GUEST_MAC_PREFIX + number.to_bytes(4, "big")


@dataclass(frozen=True)
class Plan:
    """One virtual LAN.  Raises ConfigError when the addresses do not fit together."""

    subnet: IPv4Network = DEFAULT_SUBNET
    gateway: IPv4Address | None = None  # default: the first address
    host: IPv4Address | None = None  # the alias of the host's loopback; default: the second address
    host_loopback: bool = True  # False: there is no alias
    guest: IPv4Address | None = None  # the first guest; default: the third address
    last_guest: IPv4Address | None = None  # default: the last address
    prefix6: IPv6Network | None = DEFAULT_PREFIX6  # None: there is no IPv6
    mtu: int = 65520
    domain: str = ""
    search: tuple[str, ...] = ()
    host_names: tuple[str, ...] = HOST_NAMES
    gateway_names: tuple[str, ...] = GATEWAY_NAMES
    vm_names: tuple[str, ...] = VM_NAMES
    server_mac: bytes = field(default=SERVER_MAC)
    # ports of the gateway that lead elsewhere, as the host sees it; whoever made the plan may change them
    gateway_forwards: GatewayForwards = field(default_factory=dict, hash=False)
    gateway_api: bool = False  # guests may forward the host's ports to themselves, at port 80 of the gateway
    agents: bool = False  # agents in guests may say what listens there, at port 62374 of the gateway

    def __post_init__(self) -> None:
        if self.subnet.prefixlen > 29:
            raise ConfigError(f"subnet {self.subnet} is too small: a gateway, a host alias and guests need a /29")
        first = self.subnet.network_address
        for name, offset in (("gateway", 1), ("host", 2), ("guest", 3)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, first + offset)
        used: dict[IPv4Address, str] = {}
        for name in ("gateway", "host", "guest"):
            address = getattr(self, name)
            if address not in self.subnet or address in (first, self.subnet.broadcast_address):
                raise ConfigError(f"{name} address {address} is not a host address of subnet {self.subnet}")
            if address in used:
                raise ConfigError(f"{name} address {address} is already the {used[address]} address")
            used[address] = name
        if self.last_guest is not None and not self.guest_ip <= self.last_guest < self.subnet.broadcast_address:
            raise ConfigError(f"last guest address {self.last_guest} is not in {self.subnet} from {self.guest_ip} on")
        if self.prefix6 is not None and self.prefix6.prefixlen != 64:
            raise ConfigError(f"IPv6 prefix {self.prefix6} is no /64, which guests need to make their addresses")
        if not 576 <= self.mtu <= 65520:
            raise ConfigError(f"mtu {self.mtu} is out of range: 576 to 65520")

    @property
    def gateway_ip(self) -> IPv4Address:
        assert self.gateway is not None
        return self.gateway

    @property
    def host_ip(self) -> IPv4Address | None:
        """The alias of the host's loopback, or None when it is disabled."""
        return self.host if self.host_loopback else None

    @property
    def gateway6(self) -> IPv6Address | None:
        """Our IPv6 address, the prefix's first, or None where there is no IPv6."""
        return None if self.prefix6 is None else self.prefix6[1]

    @property
    def host6(self) -> IPv6Address | None:
        """The alias of the host's ::1, the prefix's second, or None when it is disabled."""
        return None if self.prefix6 is None or not self.host_loopback else self.prefix6[2]

    @property
    def link_local(self) -> bytes:
        """The gateway's link-local address, 16 octets: who routers advertise as (RFC 4861 section 6.1.2)."""
        return link_local(self.server_mac)

    def ours(self) -> set[bytes]:
        """Every address that is ours and answered for, 4 and 16 octets."""
        found = (self.gateway_ip, self.host_ip, self.gateway6, self.host6)
        answered = {address.packed for address in found if address is not None}
        return answered if self.prefix6 is None else answered | {self.link_local}

    def reserved(self) -> set[bytes]:
        """Every address that no guest may have: ours, and the alias also where it is disabled."""
        assert self.host is not None
        aliases = {self.host.packed, self.link_local}
        return self.ours() | aliases | ({self.prefix6[2].packed} if self.prefix6 is not None else set())

    def caller(self, guest: bytes) -> bytes:
        """The address from which a guest's address, 4 or 16 octets, is called for the host's programs."""
        if len(guest) == 4:
            return (self.host_ip or self.gateway_ip).packed
        own = self.host6 or self.gateway6
        return self.link_local if own is None or guest[:2] == b"\xfe\x80" else own.packed

    @property
    def guest_ip(self) -> IPv4Address:
        assert self.guest is not None
        return self.guest

    def pool(self) -> tuple[IPv4Address, IPv4Address]:
        """The first and the last address that guests may have (the gateway and the alias excepted)."""
        return self.guest_ip, self.last_guest or self.subnet.broadcast_address - 1

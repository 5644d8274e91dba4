"""Where a flow that the guest opened really goes.  One pure function, and the only place that knows what the plan's
addresses mean."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from vpnkit.net.plan import Plan

DNS_PORT: Final = 53
DHCP_SERVER_PORT: Final = 67
LOOPBACK: Final = "127.0.0.1"


class Protocol(Enum):
    TCP = auto()
    UDP = auto()
    ICMP = auto()


class Service(Enum):
    """What the gateway itself answers."""

    DNS = auto()
    DHCP = auto()
    ECHO = auto()


@dataclass(frozen=True, slots=True)
class Host:
    """A host socket to this address; what the guest called may be another one."""

    address: str
    port: int


class Refuse(Enum):
    CLOSED = auto()  # nobody listens: RST, or port unreachable
    PROHIBITED = auto()  # ICMP, administratively prohibited
    SILENT = auto()  # an address that no packet may have (RFC 1122 section 3.2.1.3): dropped


Target: TypeAlias = Service | Host | Refuse


def target(protocol: Protocol, destination: bytes, port: int, plan: Plan) -> Target:
    """The target of a flow to `destination` (4 octets) and `port` (0 for ICMP)."""
    address = IPv4Address(destination)
    if address == plan.gateway_ip:
        if protocol is Protocol.ICMP:
            return Service.ECHO
        if port == DNS_PORT:
            return Service.DNS
        if protocol is Protocol.UDP and port == DHCP_SERVER_PORT:
            return Service.DHCP
        return Refuse.CLOSED
    if port == 0 and protocol is not Protocol.ICMP:
        return Refuse.SILENT
    if address == plan.host:
        if protocol is Protocol.ICMP:
            return Service.ECHO
        return Host(LOOPBACK, port) if plan.host_loopback else Refuse.CLOSED
    if address in plan.subnet:
        return Refuse.SILENT  # another guest's, or nobody's; its broadcast too
    first = destination[0]
    if first in (0, 127) or first >= 224:
        return Refuse.SILENT  # "this" network, loopback, multicast, reserved, broadcast
    if address.is_link_local:
        return Refuse.PROHIBITED  # a cloud's metadata service is not the guest's business
    return Host(str(address), port)

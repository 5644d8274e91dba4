"""Where a flow that the guest opened really goes.  One pure function, and the only place that knows what the plan's
addresses mean."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Final, TypeAlias

from vpnkit.proto.http_proxy import HTTP_PORT, HTTPS_PORT

if TYPE_CHECKING:
    from vpnkit.net.plan import Plan

DNS_PORT: Final = 53
NTP_PORT: Final = 123
API_PORT: Final = 80
AGENT_PORT: Final = 62374  # portfwd.auto.report
DHCP_SERVER_PORT: Final = 67
DHCPV6_SERVER_PORT: Final = 547
LOOPBACK: Final = "127.0.0.1"
LOOPBACK6: Final = "::1"
NAT64_PREFIX: Final = IPv6Network("64:ff9b::/96")  # the well-known prefix, RFC 6052 section 2.1
_NAT64: Final = NAT64_PREFIX.network_address.packed[:12]

# What a guest may call by IPv6 but nobody has, or only this host should: RFC 4291 section 2.5.
NOWHERE6: Final = tuple(map(IPv6Network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "ff00::/8")))
# Link-local, the site-local of old, and the metadata services of Amazon's and Google's clouds.
PROHIBITED6: Final = tuple(map(IPv6Network, ("fe80::/10", "fec0::/10", "fd00:ec2::254/128", "fd20:ce::254/128")))


class Protocol(Enum):
    TCP = auto()
    UDP = auto()
    ICMP = auto()


class Service(Enum):
    """What the gateway itself answers."""

    DNS = auto()
    DHCP = auto()
    DHCPV6 = auto()
    NTP = auto()
    ECHO = auto()
    API = auto()  # gvproxy's, for guests
    AGENT = auto()  # whom a guest's agent tells what listens there
    HTTP_PROXY = auto()


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


def target(protocol: Protocol, destination: bytes, port: int, plan: Plan, *, nat64: bool = False) -> Target:
    """The target of a flow to `destination` (4 or 16 octets) and `port` (0 for ICMP).

    With `nat64` the IPv4 hosts are reached under NAT64_PREFIX too (RFC 6146).
    """
    if len(destination) == 4:
        return _target4(protocol, IPv4Address(destination), port, plan)
    if nat64 and destination[:12] == _NAT64:
        aim = _target4(protocol, IPv4Address(destination[12:]), port, plan)
        return aim if not isinstance(aim, Service) else Refuse.SILENT
    return _target6(protocol, IPv6Address(destination), port, plan)


def _target4(protocol: Protocol, address: IPv4Address, port: int, plan: Plan) -> Target:
    if address == plan.gateway_ip:
        forwarded = plan.gateway_forwards and plan.gateway_forwards.get((protocol.name.lower(), port))
        if forwarded:
            return Host(*forwarded)
        return _gateway(protocol, port, DHCP_SERVER_PORT, Service.DHCP, plan)
    if port == 0 and protocol is not Protocol.ICMP:
        return Refuse.SILENT
    if address == plan.host:
        return _host(protocol, port, plan, LOOPBACK)
    if address in plan.subnet:
        return Refuse.SILENT  # another guest's, or nobody's; its broadcast too
    first = address.packed[0]
    if first in (0, 127) or first >= 224:
        return Refuse.SILENT  # "this" network, loopback, multicast, reserved, broadcast
    if address.is_link_local:
        return Refuse.PROHIBITED  # a cloud's metadata service is not the guest's business
    return Host(str(address), port)


def _target6(protocol: Protocol, address: IPv6Address, port: int, plan: Plan) -> Target:
    prefix = plan.prefix6
    if prefix is None:
        return Refuse.SILENT
    if address in (plan.gateway6, IPv6Address(plan.link_local)):
        return _gateway(protocol, port, DHCPV6_SERVER_PORT, Service.DHCPV6, plan)
    if port == 0 and protocol is not Protocol.ICMP:
        return Refuse.SILENT
    if address == prefix[2]:
        return _host(protocol, port, plan, LOOPBACK6)
    if address in prefix or any(address in nowhere for nowhere in NOWHERE6):
        return Refuse.SILENT
    if any(address in network for network in PROHIBITED6):
        return Refuse.PROHIBITED
    return Host(str(address), port)


def _gateway(protocol: Protocol, port: int, dhcp_port: int, dhcp: Service, plan: Plan) -> Target:
    if protocol is Protocol.ICMP:
        return Service.ECHO
    if port == DNS_PORT:
        return Service.DNS
    if protocol is Protocol.UDP and port == dhcp_port:
        return dhcp
    if protocol is Protocol.UDP and port == NTP_PORT:
        return Service.NTP
    if protocol is Protocol.TCP and port in (HTTP_PORT, HTTPS_PORT):
        return Service.HTTP_PROXY
    if protocol is Protocol.TCP and port == API_PORT and plan.gateway_api:
        return Service.API
    if protocol is Protocol.TCP and port == AGENT_PORT and plan.agents:
        return Service.AGENT
    return Refuse.CLOSED


def _host(protocol: Protocol, port: int, plan: Plan, loopback: str) -> Target:
    if protocol is Protocol.ICMP:
        return Service.ECHO
    return Host(loopback, port) if plan.host_loopback else Refuse.CLOSED

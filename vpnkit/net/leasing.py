"""The DHCP servers of one LAN: what they tell is made of the plan, and what they give is claimed on the LAN."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vpnkit.errors import ConfigError
from vpnkit.net.lease_options import LeaseOptions
from vpnkit.proto.dhcp_options import DhcpConfig
from vpnkit.proto.dhcpv6 import Dhcpv6Config, Dhcpv6Server
from vpnkit.services.dhcp_json import DhcpJson

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vpnkit.net.lan import Lan
    from vpnkit.net.lease_options import StaticLease
    from vpnkit.net.plan import Plan
    from vpnkit.proto.dhcp import DhcpServer
    from vpnkit.services.dhcp import DhcpService
    from vpnkit.services.dhcp_json import DhcpSettings
    from vpnkit.services.dhcpv6 import Dhcpv6Service


def dhcp_config(plan: Plan, options: LeaseOptions | None = None) -> DhcpConfig:
    """What DHCP for IPv4 tells."""
    options = options or LeaseOptions()
    first, last = plan.pool()
    gateway = plan.gateway_ip.packed
    excluded = frozenset({gateway, plan.host.packed} if plan.host else {gateway})
    return DhcpConfig(
        server_ip=gateway,
        server_mac=plan.server_mac,
        first=first.packed,
        last=last.packed,
        mask=plan.subnet.netmask.packed,
        routers=(gateway,),
        dns=(gateway,),
        excluded=excluded,
        mtu=plan.mtu,
        domain=plan.domain,
        search=plan.search,
        ntp=(*(server.packed for server in options.ntp), gateway),
        next_server=None if options.next_server is None else options.next_server.packed,
        boot_file=options.boot_file,
    )


def reserve(server: DhcpServer, plan: Plan, static: Iterable[StaticLease]) -> None:
    """Keep the operator's addresses for their owners.  Raises ConfigError for one that no guest can have."""
    edges = (plan.subnet.network_address, plan.subnet.broadcast_address)
    for lease in static:
        if lease.ip not in plan.subnet or lease.ip in edges:
            raise ConfigError(f"--lease: {lease.ip} is not a host address of subnet {plan.subnet}")
        if lease.ip in (plan.gateway, plan.host) or lease.mac == plan.server_mac:
            raise ConfigError(f"--lease {lease.mac.hex(':')}={lease.ip} is the gateway's or the host alias's")
        server.reserve(lease.mac, lease.ip.packed, lease.name)


def dhcpv6_server(plan: Plan, lan: Lan) -> Dhcpv6Server | None:
    """The DHCPv6 server of `lan`; None where the plan has no IPv6."""
    if plan.prefix6 is None or plan.gateway6 is None:
        return None
    config = Dhcpv6Config(
        prefix=plan.prefix6.network_address.packed[:8],
        server_mac=plan.server_mac,
        dns=(plan.gateway6.packed,),
        search=plan.search or ((plan.domain,) if plan.domain else ()),
        ntp=(plan.gateway6.packed,),
    )
    server = Dhcpv6Server(config)

    def is_taken(ip: bytes, mac: bytes) -> bool:
        holder = lan.holder(ip)
        return holder is not None and holder.mac != mac

    def released(ip: bytes) -> None:
        holder = lan.holder(ip)
        if holder is not None:
            holder.station.released(ip)

    server.is_taken = is_taken
    server.is_used = lambda ip: lan.holder(ip) is not None
    server.on_released = released
    lan.remembered = server.addresses_of
    return server


def follow(path: Path, plan: Plan, dhcp: DhcpService, dhcpv6: Dhcpv6Service | None) -> None:
    """Keep both up to date with dhcp.json at `path`; what the command line says is stronger.  Raises ConfigError."""
    file = DhcpJson(path)
    told: DhcpSettings | None = None

    def look() -> None:
        nonlocal told
        settings = file.settings()
        if settings is told:
            return
        told = settings
        domain = plan.domain or settings.domain_name
        search = plan.search or settings.search_domains
        dhcp.server.rename(domain, search)
        if dhcpv6 is not None:
            dhcpv6.server.rename(search or ((domain,) if domain else ()))

    look()
    dhcp.on_datagram = look
    if dhcpv6 is not None:
        dhcpv6.on_datagram = look

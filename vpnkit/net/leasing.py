"""The DHCP servers of one LAN: what they tell is made of the plan, and what they give is claimed on the LAN."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vpnkit.proto.dhcp_options import DhcpConfig
from vpnkit.proto.dhcpv6 import Dhcpv6Config, Dhcpv6Server

if TYPE_CHECKING:
    from vpnkit.net.lan import Lan
    from vpnkit.net.plan import Plan


def dhcp_config(plan: Plan) -> DhcpConfig:
    """What DHCP for IPv4 tells."""
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
    )


def dhcpv6_server(plan: Plan, lan: Lan) -> Dhcpv6Server | None:
    """The DHCPv6 server of `lan`; None where the plan has no IPv6."""
    if plan.prefix6 is None or plan.gateway6 is None:
        return None
    config = Dhcpv6Config(
        prefix=plan.prefix6.network_address.packed[:8],
        server_mac=plan.server_mac,
        dns=(plan.gateway6.packed,),
        search=plan.search or ((plan.domain,) if plan.domain else ()),
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

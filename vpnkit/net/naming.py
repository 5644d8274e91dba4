"""The names of one network, and who knows the others: what the plan and the options say, as a Resolver."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from vpnkit.errors import ConfigError
from vpnkit.proto import dns64
from vpnkit.proto.dns_names import LocalNames
from vpnkit.services.dns_resolver import Resolver
from vpnkit.services.dns_sources import Sources
from vpnkit.services.hosts import Hosts

if TYPE_CHECKING:
    from vpnkit.net.lan import Lan
    from vpnkit.net.network import NetworkOptions
    from vpnkit.net.plan import Plan
    from vpnkit.net.reachability import Reachability
    from vpnkit.proto.dhcp import DhcpServer

log = logging.getLogger(__name__)

LINK_LOCAL: Final = b"\xfe\x80"  # fe80::/10, RFC 4291 section 2.4, as everybody makes them


class Naming:
    """Our own names, which have IPv6 addresses while guests are offered IPv6."""

    def __init__(self, plan: Plan, options: NetworkOptions, reachability: Reachability, lan: Lan | None = None) -> None:
        networks = [(plan.subnet.network_address.packed, plan.subnet.prefixlen)]
        if plan.prefix6 is not None:
            networks.append((plan.prefix6.network_address.packed, plan.prefix6.prefixlen))
        self.names = LocalNames(networks)
        self._plan = plan
        self._host_names = (*options.extra_host_names, *plan.host_names)
        self._reachability = reachability
        self._lan = lan
        self._has_ipv6: bool | None = None
        self.names.addresses_of = self._addresses_of
        self.refresh()
        for name in plan.vm_names:
            self.names.add_asker(name)

    def refresh(self) -> bool:
        """Look whether IPv6 came or went; whether it did."""
        has_ipv6 = self._reachability.offered
        if has_ipv6 is self._has_ipv6:
            return False
        self._has_ipv6 = has_ipv6
        plan = self._plan
        for names, four, six in (
            (plan.gateway_names, plan.gateway_ip, plan.gateway6),
            (self._host_names, plan.host_ip, plan.host6),
        ):
            addresses = [four.packed] if four else []
            if six is not None and has_ipv6:
                addresses.append(six.packed)
            for name in names:
                self.names.remove(name)
            for name in names:
                self.names.add(name, *addresses)
        return True

    def _addresses_of(self, client: bytes) -> list[bytes]:
        """All addresses of the guest that has this one, which comes first; none that is good on its link only."""
        holder = self._lan.holder(client) if self._lan is not None else None
        others = holder.station.addresses if holder is not None else ()
        return [ip for ip in dict.fromkeys((client, *others)) if ip[:2] != LINK_LOCAL or len(ip) == 4]


def resolver_for(
    plan: Plan,
    options: NetworkOptions,
    reachability: Reachability,
    lan: Lan | None = None,
    dhcp: DhcpServer | None = None,
) -> Resolver:
    """What the guests of one network share when they resolve names.  `dhcp` tells them what the file of --dns says
    they should search, unless the plan says it."""
    naming = Naming(plan, options, reachability, lan)
    sources = Sources(options.dns, options.dns_zones, resolv_conf=options.resolv_conf)
    searched: list[str] = []

    def refresh() -> bool:
        nonlocal searched
        search = sources.search()
        if dhcp is not None and not plan.search and search != searched:
            searched = search
            try:
                dhcp.rename(plan.domain, tuple(search))
            except ConfigError as error:
                log.warning("the search list of --dns: %s", error)
        return naming.refresh()

    refresh()
    return Resolver(
        naming.names,
        sources.routes,
        options.rng,
        refresh=refresh,
        hosts=Hosts(options.hosts),
        fallback=sources.resolv_conf.servers,
        nat64=dns64.PREFIX if options.nat64 else None,
        log_queries=options.dns_log,
    )

"""What the operator may do with a running network, beside what it says about itself."""

from __future__ import annotations

import logging
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING

import trio

from vpnkit.net.report import NameReport
from vpnkit.net.reporting import NetworkReporter, forward_reports

if TYPE_CHECKING:
    from vpnkit.net.events import EventHub
    from vpnkit.net.network import Network
    from vpnkit.net.report import ForwardReport
    from vpnkit.proto.dns_zones import Zone

log = logging.getLogger(__name__)


class NetworkOperator(NetworkReporter):
    """The Operator of a running network."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._network = network

    @property
    def events(self) -> EventHub:
        return self._network.events

    async def expose(self, text: str) -> list[ForwardReport]:
        return [report for forward in await self._network.expose(text) for report in forward_reports(forward)]

    async def unexpose(self, text: str, *, connections: bool = False) -> list[ForwardReport]:
        gone = await self._network.unexpose(text, connections=connections)
        return [report for forward in gone for report in forward_reports(forward)]

    def names(self) -> list[NameReport]:
        plan = self._network.plan
        six = self._network.ipv6.offered
        gateway = [str(ip) for ip in (plan.gateway_ip, plan.gateway6 if six else None) if ip is not None]
        host = [str(ip) for ip in (plan.host_ip, plan.host6 if six else None) if ip is not None]
        host_names = (*plan.host_names, *self._network.options.extra_host_names)
        return [
            *(NameReport(name=name, of="gateway", addresses=gateway) for name in plan.gateway_names),
            *(NameReport(name=name, of="host", addresses=host) for name in host_names),
            *(NameReport(name=name, of="asker", addresses=[]) for name in plan.vm_names),
        ]

    def zones(self) -> list[Zone]:
        return self._network.zones.list()

    def add_zone(self, zone: Zone) -> None:
        self._network.zones.add(zone)

    def remove_zone(self, name: str) -> bool:
        return self._network.zones.remove(name)

    def addresses(self) -> dict[str, str]:
        network = self._network
        plan = network.plan
        found = {str(plan.gateway_ip): plan.server_mac.hex(":")}
        for guest in network.guests:
            found.update(
                {str(IPv4Address(ip)): mac.hex(":") for ip, mac in guest.station.addresses.items() if len(ip) == 4}
            )
        now = trio.current_time()
        bound = (lease for lease in network.dhcp.leases(now) if lease.mac and lease.state in ("bound", "static"))
        found.update({str(IPv4Address(lease.ip)): lease.mac.hex(":") for lease in bound})
        return found

    def stations(self) -> dict[str, int]:
        return {guest.station.mac.hex(":"): guest.number for guest in self._network.guests if guest.station.mac}

    async def tunnel(self, stream: trio.SocketStream, received: bytes, address: str, port: int) -> None:
        try:
            await self._network.ways_in.tunnel(stream, received, ip_address(address).packed, port)
        except OSError as error:
            log.info("tunnel to %s port %d: %s", address, port, error)

    async def connect(self, stream: trio.SocketStream, received: bytes) -> None:
        await self._network.connect(stream, received)

"""What a network says about itself, as the records of `report`."""

from __future__ import annotations

import os
from collections import Counter
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING, Final

import trio

import vpnkit
from vpnkit.flow import host as host_sockets
from vpnkit.net.report import FlowReport, ForwardReport, GuestReport, LeaseReport, StatusReport
from vpnkit.net.tcp import parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from portfwd.table import Forward
    from tapdev.link import Link
    from vpnkit.flow.tcp_flow import TcpFlow
    from vpnkit.net.guest import Guest
    from vpnkit.net.network import Network
    from vpnkit.net.ping import PingSession
    from vpnkit.net.udp_mapping import UdpMapping

TRAFFIC: Final = ("frames_to_host", "frames_to_guest", "bytes_to_host", "bytes_to_guest")


def traffic(link: Link) -> dict[str, int]:
    """Frames and octets of `link` so far, by the names of StatusReport."""
    statistics = link.statistics
    return {
        "frames_to_host": statistics.received_frames,
        "frames_to_guest": statistics.sent_frames,
        "bytes_to_host": statistics.received_bytes,
        "bytes_to_guest": statistics.sent_bytes,
    }


class NetworkReporter:
    """The Reporter of a running network.  Nothing here waits."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def status(self) -> StatusReport:
        network = self._network
        plan = network.plan
        counters = network.gone + network.http_proxy.service.counters
        totals = Counter({key: counters.pop(key, 0) for key in TRAFFIC})
        flows = {"tcp": 0, "udp": 0, "icmp": 0}
        for guest in network.guests:
            counters.update(guest.counters)
            counters.update(guest.station.lost())
            totals.update(traffic(guest.link))
            flows["tcp"] += len(guest.tcp.flows)
            flows["udp"] += len(guest.udp.mappings) + len(guest.udp.inbound)
            flows["icmp"] += len(guest.icmp.sessions)
        return StatusReport(
            name=network.options.name,
            version=vpnkit.__version__,
            pid=os.getpid(),
            uptime_seconds=trio.current_time() - network.started,
            subnet=str(plan.subnet),
            gateway=str(plan.gateway_ip),
            host=str(plan.host_ip) if plan.host_ip else None,
            prefix6=str(plan.prefix6) if plan.prefix6 and network.ipv6.offered else None,
            gateway6=str(plan.gateway6) if plan.gateway6 and network.ipv6.offered else None,
            host6=str(plan.host6) if plan.host6 and network.ipv6.offered else None,
            mtu=plan.mtu,
            dns=[str(server) for server in network.dns_servers()],
            guests=len(network.guests),
            flows=flows,
            frames_to_host=totals["frames_to_host"],
            frames_to_guest=totals["frames_to_guest"],
            bytes_to_host=totals["bytes_to_host"],
            bytes_to_guest=totals["bytes_to_guest"],
            counters=dict(sorted(counters.items())),
            warnings=list(network.warnings),
        )

    def guests(self) -> list[GuestReport]:
        return [guest_report(guest) for guest in self._network.guests]

    def flows(self) -> list[FlowReport]:
        return list(self.each_flow())

    def each_flow(self) -> Iterator[FlowReport]:
        """The same, one by one, whatever happens to the tables in between: 16,384 of them take 0.3 s."""
        now = trio.current_time()
        for guest in list(self._network.guests):
            for flow in list(guest.tcp.flows.values()):
                yield _tcp(flow, now)
            for mapping in list(guest.udp.mappings.values()):
                yield _udp(mapping, now)
            for client in list(guest.udp.inbound.values()):
                yield _udp(client, now, inbound=True)
            for session in list(guest.icmp.sessions.values()):
                yield _icmp(session, now)

    def leases(self) -> list[LeaseReport]:
        now = trio.current_time()
        network = self._network
        leases = network.dhcp.leases(now) + (network.dhcpv6.leases(now) if network.dhcpv6 else [])
        return [
            LeaseReport(
                ip=str(ip_address(lease.ip)),
                mac=lease.mac.hex(":"),
                hostname=lease.hostname,
                client_id=lease.client_id.hex(),
                expires_in_seconds=None if lease.expires_at == float("inf") else max(lease.expires_at - now, 0.0),
                state=lease.state,
            )
            for lease in leases
        ]

    def forwards(self) -> list[ForwardReport]:
        return [report for forward in self._network.forwards.list() for report in forward_reports(forward)]


def forward_reports(forward: Forward) -> list[ForwardReport]:
    """What is said of `forward`, one record for each address that it listens on."""
    spec = forward.spec
    return [
        ForwardReport(
            protocol=spec.protocol if spec.host_path is None else "unix",
            host_address=address,
            host_port=port,
            guest_address=spec.guest_address,
            guest_port=spec.guest_port,
            connections=forward.connections,
            spec=str(spec),
            host_path=spec.host_path,
            guest_path=spec.guest_path,
            guest_cid=spec.guest_cid,
            accepted=forward.accepted,
            failures=forward.failures,
            refused=forward.refused,
        )
        for address, port in forward.addresses or [("", 0)]
    ]


def guest_report(guest: Guest) -> GuestReport:
    """What is said of `guest`."""
    capabilities = guest.link.capabilities
    return GuestReport(
        id=guest.number,
        link=guest.name,
        mac=guest.station.mac.hex(":") if guest.station.mac else None,
        ip=str(IPv4Address(guest.ip)) if guest.ip else None,
        addresses=[str(ip_address(each)) for each in guest.station.addresses],
        mtu=capabilities.mtu,
        offloads=[name for name in ("checksum", "tso4", "tso6", "uso") if getattr(capabilities, name)],
        **traffic(guest.link),
    )


def _tcp(flow: TcpFlow, now: float) -> FlowReport:
    source, destination, ports = parts(flow.key)
    connection = flow.connection
    sender = connection.sender if connection.is_open else None
    return FlowReport(
        id=flow.number,
        protocol="tcp",
        direction="in" if flow.inbound else "out",
        guest=_place(source, int.from_bytes(ports[:2], "big")),
        remote=_place(destination, int.from_bytes(ports[2:], "big")),
        host=flow.remote,
        state=connection.state.value,
        bytes_to_host=flow.bytes_to_host,
        bytes_to_guest=flow.bytes_to_guest,
        age_seconds=now - flow.opened_at,
        idle_seconds=now - flow.active_at,
        rtt_us=round(sender.rtt.srtt * 1e6) if sender is not None and sender.rtt.srtt else None,
        retransmissions=sender.retransmitted if sender is not None else 0,
    )


def _udp(mapping: UdpMapping, now: float, *, inbound: bool = False) -> FlowReport:
    return FlowReport(
        id=mapping.number,
        protocol="udp",
        direction="in" if inbound else "out",
        guest=_place(mapping.address, mapping.port),
        remote=mapping.addressed,
        host=mapping.remote,
        state="open",
        bytes_to_host=mapping.bytes_to_host,
        bytes_to_guest=mapping.bytes_to_guest,
        age_seconds=now - mapping.opened_at,
        idle_seconds=now - mapping.active_at,
        rtt_us=None,
        retransmissions=0,
    )


def _icmp(session: PingSession, now: float) -> FlowReport:
    return FlowReport(
        id=session.number,
        protocol="icmp",
        direction="out",
        guest=_place(session.source, session.identifier),
        remote=_place(session.destination, session.identifier),
        host=session.remote,
        state="open",
        bytes_to_host=session.bytes_to_host,
        bytes_to_guest=session.bytes_to_guest,
        age_seconds=now - session.opened_at,
        idle_seconds=now - session.active_at,
        rtt_us=None,
        retransmissions=0,
    )


def _place(address: bytes, port: int) -> str:
    """ADDRESS:PORT, IPv6 in brackets."""
    return host_sockets.text((str(ip_address(address)), port))

"""What the gateway itself answers to one guest: DHCP for both IPs, DNS over UDP and TCP, and the time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeAlias

import trio

from vpnkit.net.offers import Offers
from vpnkit.net.policy import Service
from vpnkit.services.ntp import NtpService
from vpnkit.wire import dhcpv6, ipv6, ntp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from vpnkit.flow.stream import GuestStream
    from vpnkit.net.guest import Guest
    from vpnkit.net.http_proxying import HttpProxying
    from vpnkit.net.policy import Host
    from vpnkit.services.dhcp import DhcpAnswer, DhcpService
    from vpnkit.services.dhcpv6 import Dhcpv6Service
    from vpnkit.services.dns import DnsService
    from vpnkit.wire.dhcp import Buffer
    from vpnkit.wire.ipv6 import Ipv6Packet

    StreamService: TypeAlias = Callable[[GuestStream, bytes], Awaitable[None]]  # the stream, and the guest's address

log = logging.getLogger(__name__)


class Gateway:
    """The services, and their way back to the guest that asked."""

    def __init__(self, guest: Guest, dhcp: DhcpService, nursery: trio.Nursery) -> None:
        self.dns: DnsService | None = None  # set by whoever made the guest: it needs his poller
        self.dhcpv6_service: Dhcpv6Service | None = None  # likewise; None where the plan has no IPv6
        self.on_lease: Callable[[Guest, bytes, bytes], None] = lambda guest, ip, mac: None  # likewise
        self.ntp = NtpService()
        self.more: Mapping[Service, StreamService] = {}  # likewise
        self.http_proxy: HttpProxying | None = None  # likewise; None: there is none
        self._guest = guest
        self._dhcp = dhcp
        self._offers = Offers(guest, dhcp, nursery)
        self._nursery = nursery

    def dhcp(self, source: bytes, source_mac: bytes, payload: memoryview) -> None:
        """A datagram to port 67."""
        answer = self._dhcp_answer(source, source_mac, payload)
        if answer is None:
            return
        if self._offers.should_wait(answer):
            question = bytes(payload)
            self._offers.wait(answer, lambda: self._dhcp_answer(source, source_mac, question), self._send_dhcp)
            return
        if answer.assigned is not None:
            self._guest.station.given(answer.assigned, answer.client_mac)
            self.on_lease(self._guest, answer.assigned, answer.client_mac)
        self._send_dhcp(answer)

    def _dhcp_answer(self, source: bytes, source_mac: bytes, payload: Buffer) -> DhcpAnswer | None:
        guest = self._guest
        return self._dhcp.datagram(
            payload,
            source_mac,
            source,
            guest.now(),
            mtu=guest.link.capabilities.mtu,
            may_speak_for=guest.station.is_source,
        )

    def _send_dhcp(self, answer: DhcpAnswer) -> None:
        gateway = self._guest.plan.gateway_ip.packed
        self._guest.udp.send(gateway, 67, answer.destination_ip, 68, answer.destination_mac, (answer.payload,))

    def dhcpv6(self, packet: Ipv6Packet, source_port: int, source_mac: bytes, payload: memoryview) -> None:
        """A datagram to port 547 of all servers' address or of ours.  The answer goes to the client's port, whichever
        it came from (RFC 8415 section 7.2)."""
        guest = self._guest
        if self.dhcpv6_service is None or packet.source == ipv6.UNSPECIFIED:
            guest.count("dhcpv6_ignored")
            return
        multicast = packet.destination == ipv6.ALL_DHCP_RELAYS_AND_SERVERS
        answer = self.dhcpv6_service.datagram(payload, source_mac, guest.now(), multicast=multicast)
        if answer is None:
            guest.count("dhcpv6_ignored")
            return
        for address in answer.assigned:
            guest.station.owns(address, source_mac)
            self.on_lease(guest, address, source_mac)
        guest.udp.send(
            guest.plan.link_local,
            dhcpv6.SERVER_PORT,
            packet.source,
            dhcpv6.CLIENT_PORT,
            source_mac,
            (answer.payload,),
        )

    def dns_query(self, source: bytes, port: int, mac: bytes, query: memoryview, asked: bytes) -> None:
        """A datagram to port 53 of our address `asked`, which answers."""
        guest = self._guest

        def reply(message: bytes) -> None:
            guest.udp.send(asked, 53, source, port, mac, (message,))

        if self.dns is not None:
            self.dns.query(bytes(query), source, reply)

    def ntp_query(self, source: bytes, port: int, mac: bytes, query: memoryview, asked: bytes) -> None:
        """A datagram to port 123 of our address `asked`, which answers."""
        answer = self.ntp.datagram(query, self._guest.now())
        if answer is None:
            self._guest.count("ntp_ignored")
            return
        self._guest.udp.send(asked, ntp.PORT, source, port, mac, (answer,))

    def serves(self, service: Service) -> bool:
        """Whether there is somebody to have a connection to `service`."""
        if service is Service.HTTP_PROXY:
            return self.http_proxy is not None and self.http_proxy.is_configured()
        return service is Service.DNS or service in self.more

    def intercepts(self, aim: Host) -> bool:
        """Whether a connection to `aim` is for the HTTP proxy."""
        return self.http_proxy is not None and self.http_proxy.intercepts(aim)

    def serve(self, service: Service, stream: GuestStream, source: bytes) -> None:
        """Let a service of the gateway have a connection of the guest."""
        self._nursery.start_soon(self._serve_stream, service, stream, source)

    async def _serve_stream(self, service: Service, stream: GuestStream, source: bytes) -> None:
        try:
            await stream.wait_open()
            if service is Service.HTTP_PROXY and self.http_proxy is not None:
                await self.http_proxy.serve(stream, source)
            else:
                await (self.more.get(service) or self._serve_dns)(stream, source)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except Exception:  # the containment boundary of one connection
            self._guest.count("internal_error")
            log.exception("guest %d: internal error in a service", self._guest.number)
        finally:
            stream.abort()

    async def _serve_dns(self, stream: GuestStream, source: bytes) -> None:
        if self.dns is not None:
            await self.dns.serve_stream(stream, source)

    def close(self) -> None:
        if self.dns is not None:
            self.dns.close()

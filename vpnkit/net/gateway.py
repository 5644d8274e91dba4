"""What the gateway itself answers to one guest: DHCP, and DNS over UDP and TCP."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from vpnkit.flow.stream import GuestStream
    from vpnkit.net.guest import Guest
    from vpnkit.net.policy import Service
    from vpnkit.services.dhcp import DhcpService
    from vpnkit.services.dns import DnsService

log = logging.getLogger(__name__)


class Gateway:
    """The services, and their way back to the guest that asked."""

    def __init__(self, guest: Guest, dhcp: DhcpService, nursery: trio.Nursery) -> None:
        self.dns: DnsService | None = None  # set by whoever made the guest: it needs his poller
        self._guest = guest
        self._dhcp = dhcp
        self._nursery = nursery

    def dhcp(self, source: bytes, source_mac: bytes, payload: memoryview) -> None:
        """A datagram to port 67."""
        guest = self._guest
        station = guest.station
        answer = self._dhcp.datagram(
            payload,
            source_mac,
            source,
            guest.now(),
            mtu=guest.link.capabilities.mtu,
            may_speak_for=station.is_source,
        )
        if answer is None:
            return
        if answer.assigned is not None:
            station.given(answer.assigned, answer.client_mac)
        guest.udp.send(
            guest.plan.gateway_ip.packed, 67, answer.destination_ip, 68, answer.destination_mac, (answer.payload,)
        )

    def dns_query(self, source: bytes, port: int, mac: bytes, query: memoryview) -> None:
        """A datagram to port 53."""
        guest = self._guest
        gateway = guest.plan.gateway_ip.packed

        def reply(message: bytes) -> None:
            guest.udp.send(gateway, 53, source, port, mac, (message,))

        if self.dns is not None:
            self.dns.query(bytes(query), source, reply)

    def serve(self, service: Service, stream: GuestStream, source: bytes) -> None:
        """Let a service of the gateway have a connection of the guest."""
        self._nursery.start_soon(self._serve_stream, stream, source)

    async def _serve_stream(self, stream: GuestStream, source: bytes) -> None:
        try:
            await stream.wait_open()
            if self.dns is not None:
                await self.dns.serve_stream(stream, source)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except Exception:  # the containment boundary of one connection
            self._guest.count("internal_error")
            log.exception("guest %d: internal error in a service", self._guest.number)
        finally:
            stream.abort()

    def close(self) -> None:
        if self.dns is not None:
            self.dns.close()

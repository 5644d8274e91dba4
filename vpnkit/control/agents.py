"""Agents in guests: what they say listens there is forwarded to the address that they say it from.

Who may speak for an address is the LAN's to know, which lets nobody have another guest's.
"""

from __future__ import annotations

import logging
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

import trio

from portfwd.auto.follow import Follower
from portfwd.auto.host import serve_agent
from portfwd.auto.report import ReportError
from portfwd.complaints import Complaints
from vpnkit.net.policy import Service

if TYPE_CHECKING:
    from collections.abc import Sequence

    from portfwd.auto.rules import Rule
    from portfwd.forward import Forward
    from vpnkit.flow.stream import GuestStream
    from vpnkit.net.network import Network

log = logging.getLogger(__name__)

MAX_AGENTS: Final = 128  # of all guests; one more is reset
LEAST_PORT: Final = 1024  # of the host, unless the rule names it


class NetworkExposer:
    """The forward table of a network, for a Follower."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def expose(self, text: str) -> Sequence[Forward]:
        return await self._network.expose(text)

    async def unexpose(self, text: str, *, connections: bool = False) -> Sequence[Forward]:
        return await self._network.unexpose(text, connections=connections)

    def list(self) -> Sequence[Forward]:
        return self._network.forwards.list()


class Agents:
    """The host's side, for all guests of one network."""

    def __init__(self, network: Network, rule: Rule) -> None:
        self._network = network
        self._rule = rule
        self._scopes: dict[bytes, trio.CancelScope] = {}  # by the guest's address; a new agent takes the place
        self._complaints = Complaints(log)
        self.refused = 0  # connections
        network.services[Service.AGENT] = self.serve

    async def serve(self, stream: GuestStream, source: bytes) -> None:
        """One connection of the guest at `source`."""
        name = str(ip_address(source))
        if (old := self._scopes.pop(source, None)) is not None:
            old.cancel()
        if len(self._scopes) >= MAX_AGENTS:
            self.refused += 1
            stream.abort()
            return
        scope = self._scopes[source] = trio.CancelScope()
        follower = Follower(f"agent of {name}", self._rule, NetworkExposer(self._network), least_port=LEAST_PORT)
        try:
            with scope:
                await serve_agent(stream, follower, lambda: self._addresses(source))
                await stream.aclose()
        except ReportError as error:
            self._complaints.warning("agent of %s: %s", name, error)
        finally:
            if self._scopes.get(source) is scope:
                del self._scopes[source]
            stream.abort()

    def _addresses(self, source: bytes) -> list[str]:
        """Those of the guest at `source`, IPv4 first; link-local ones only if he speaks from one."""
        guest = next((guest for guest in self._network.guests if source in guest.station.addresses), None)
        owned = {source, *(guest.station.addresses if guest is not None else ())}
        return [
            str(ip_address(ip))
            for ip in sorted(owned, key=lambda ip: (len(ip), ip != source, ip))
            if ip == source or len(ip) == 4 or not IPv6Address(ip).is_link_local
        ]

"""gvproxy's API for guests: at port 80 of the gateway, where the operator allows it.

This is how programs in a guest publish ports (Podman does).  A guest forwards ports of the host to himself only, and
what he forwarded goes when he goes.
"""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from vpnkit.control.connection import Connection
from vpnkit.control.guard import GuestGuard
from vpnkit.control.gvproxy import guest_routes
from vpnkit.control.routes import Router
from vpnkit.net.events import EventsLost, GuestLeft
from vpnkit.net.policy import Service

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vpnkit.control.api import Operator
    from vpnkit.control.gvproxy_forwards import GvproxyForwards
    from vpnkit.flow.stream import GuestStream
    from vpnkit.net.network import Network

MAX_CONNECTIONS: Final = 8  # of one guest's address; one more is reset
MAX_OF_ALL: Final = 128  # and of all guests


class GuestApi:
    """The server, for all guests of one network."""

    def __init__(self, operator: Operator, forwards: GvproxyForwards, names: Iterable[str]) -> None:
        """`names` are those of the gateway."""
        self._operator = operator
        self._forwards = forwards
        self._router = Router(guest_routes(operator, forwards))
        self._guard = GuestGuard(names)
        self._open: Counter[str] = Counter()
        self.refused = 0  # connections

    async def run(self, network: Network) -> None:
        """Answer until cancelled."""
        network.services[Service.API] = self.serve
        with self._operator.events.listening() as listener:
            while True:
                happened = await listener.take()
                if any(isinstance(event, GuestLeft | EventsLost) for event in happened):
                    there = {address for guest in self._operator.guests() for address in guest.addresses}
                    await self._forwards.guests_are(there)

    async def serve(self, stream: GuestStream, source: bytes) -> None:
        """One connection of the guest at `source`."""
        peer = str(ip_address(source))
        if self._open[peer] >= MAX_CONNECTIONS or self._open.total() >= MAX_OF_ALL:
            self.refused += 1
            stream.abort()
            return
        self._open[peer] += 1
        try:
            await Connection(stream, self._router, self._guard, peer=peer).serve()
            await stream.aclose()
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]

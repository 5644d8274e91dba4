"""What the operator may do with a running network, beside what it says about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vpnkit.net.reporting import NetworkReporter, forward_reports

if TYPE_CHECKING:
    import trio

    from vpnkit.net.events import EventHub
    from vpnkit.net.network import Network
    from vpnkit.net.report import ForwardReport


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

    async def unexpose(self, text: str) -> list[ForwardReport]:
        return [report for forward in await self._network.unexpose(text) for report in forward_reports(forward)]

    async def connect(self, stream: trio.SocketStream, received: bytes) -> None:
        await self._network.connect(stream, received)

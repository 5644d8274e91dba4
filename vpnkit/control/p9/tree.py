"""The tree of an instance: VPNkit's port control tree, and beside it the state as JSON."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Final

import msgspec

from portfwd.errors import ForwardError
from portfwd.spec import SpecError, parse
from vpnkit.control.p9.captures import CaptureDirectory
from vpnkit.control.p9.nodes import Text
from vpnkit.control.p9.ports import PortDirectory
from vpnkit.net.reporting import NetworkReporter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from portfwd.table import Forward
    from vpnkit.control.p9.ports import Exposed
    from vpnkit.net.network import Network

log = logging.getLogger(__name__)

STATE: Final = """\
The other files say what is going on, as JSON: `status.json`, `guests.json`, `flows.json`, `leases.json`,
`forwards.json`.
"""
CAPTURES: Final = "`capture` has the last packets of the guests, by rule: pcap files, made when they are opened.\n"


class _Exposed:
    def __init__(self, forward: Forward) -> None:
        self.forward = forward

    @property
    def host_port(self) -> int:
        return self.forward.spec.host_port


class NetworkForwards:
    """The forward table of a network; a `ports.Forwards`."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def expose(self, text: str) -> Sequence[Exposed]:
        try:
            return [_Exposed(forward) for forward in await self._network.expose(text)]
        except ForwardError as error:
            if error.__cause__ is None and self._has(text):  # the table said so, not the system
                raise OSError(errno.EADDRINUSE, str(error)) from error
            raise

    def _has(self, text: str) -> bool:
        """Whether the port on the host that `text` asks for is one of ours already."""
        wanted = [(spec.protocol, spec.host_port) for spec in parse(text)]
        return any(
            (forward.spec.protocol, forward.spec.host_port) in wanted for forward in self._network.forwards.list()
        )

    async def unexpose(self, forward: Exposed) -> None:
        assert isinstance(forward, _Exposed)
        if any(known is forward.forward for known in self._network.forwards.list()):  # not one that was made since
            try:
                await self._network.unexpose(str(forward.forward.spec))
            except ForwardError as error:
                log.debug("9P: somebody was quicker: %s", error)


def port_tree(network: Network) -> PortDirectory:
    """What the original's `--port` serves."""
    return PortDirectory(NetworkForwards(network), (ForwardError, SpecError))


def instance_tree(network: Network) -> PortDirectory:
    """What `--9p` serves."""
    reporter = NetworkReporter(network)
    root = port_tree(network)
    reports: dict[str, Callable[[], object]] = {
        "status": reporter.status,
        "guests": reporter.guests,
        "flows": reporter.flows,
        "leases": reporter.leases,
        "forwards": reporter.forwards,
    }
    for name, report in reports.items():
        root.add(Text(f"{name}.json", root, _json(report)))
    root.about.append(STATE)
    if network.options.captures is not None:
        root.add(CaptureDirectory(root, network.options.captures))
        root.about.append(CAPTURES)
    return root


def _json(report: Callable[[], object]) -> Callable[[], bytes]:
    return lambda: msgspec.json.format(msgspec.json.encode(report()), indent=2) + b"\n"

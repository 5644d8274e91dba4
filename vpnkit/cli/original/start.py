"""`vpnkit --ethernet ...`: what the flags mean, started as `vpnkit serve` starts things."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import click

from vpnkit.cli.logs import configure
from vpnkit.cli.original.flags import FLAGS, read

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    import trio

    from vpnkit.cli.original.meaning import Original
    from vpnkit.control.p9.ports import Exposed, Forwards
    from vpnkit.net.network import Network
    from vpnkit.net.plan import GatewayForwards

    Also = Callable[[Network, trio.Nursery, ExitStack], Awaitable[None]]

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0  # between two looks at --gateway-forwards


def start(argv: Sequence[str]) -> int:
    """Serve until a signal; returns the exit status.  Raises click.UsageError, and what serving raises."""
    if "--help" in argv:
        click.echo(_help())
        return 0
    given = read(argv)

    from dataclasses import replace

    from vpnkit.cli.original.meaning import understand

    wanted = understand(given)
    configure("debug" if wanted.debug else "info", False)
    for name in given.without_effect():
        log.info("--%s has no effect here", name)

    from vpnkit.cli.original.endpoints import inherited
    from vpnkit.cli.serve import serve

    if wanted.link.fd is not None:
        inherited("ethernet", wanted.link.fd).detach()  # it listens now, for the link to adopt
    return serve(
        [wanted.link],
        wanted.plan,
        replace(wanted.settings, snaplen=wanted.snaplen),
        (),
        mtu=wanted.mtu,
        forwarder=wanted.forwarder,
        also=_also(wanted),
        quiet=True,
    )


def _help() -> str:
    lines = ["Usage: vpnkit --ethernet ADDRESS [FLAG]...", "", "The original VPNKit's flags:", ""]
    for flag in FLAGS:
        words = f"--{flag.name} {flag.value}".rstrip()
        lines.append(f"  {words:32}  {flag.about}{'' if flag.used else ' (no effect)'}")
    return "\n".join([*lines, "", "`vpnkit serve --help` has ours."])


def _also(wanted: Original) -> Also:
    """What there is beside the link: sockets, and a file to follow."""

    async def begin(network: Network, nursery: trio.Nursery, closing: ExitStack) -> None:
        from vpnkit.cli.original.endpoints import diagnostics, endpoint, pcap, serve_each
        from vpnkit.cli.original.state import State
        from vpnkit.control.http import serve_http
        from vpnkit.control.http_proxy import http_proxy_routes
        from vpnkit.control.p9.server import serve_p9
        from vpnkit.control.p9.tree import port_tree
        from vpnkit.control.routes import Router

        state = State(network)
        tree = port_tree(network)
        if wanted.backlog is not None:
            tree.forwards = Backlogged(tree.forwards, wanted.backlog)
        for spec in wanted.ports:
            nursery.start_soon(serve_p9, closing.enter_context(endpoint("port", spec)), tree)
        for spec in wanted.introspection:
            nursery.start_soon(serve_p9, closing.enter_context(endpoint("introspection", spec)), state.tree())
        for spec in wanted.diagnostics:
            listener = closing.enter_context(endpoint("diagnostics", spec))
            nursery.start_soon(serve_each, "diagnostics", listener, diagnostics(state))
        for spec in wanted.pcaps:
            nursery.start_soon(serve_each, "pcap", closing.enter_context(endpoint("pcap", spec)), pcap(network))
        if wanted.http_api is not None:
            router = Router(http_proxy_routes(network.http_proxy.service))
            nursery.start_soon(serve_http, closing.enter_context(endpoint("http-api-path", wanted.http_api)), router)
        if wanted.forwards_file is not None:
            nursery.start_soon(follow, wanted.forwards_file, wanted.forwards, network.plan.gateway_forwards)

    return begin


async def follow(path: Path, stronger: GatewayForwards, forwards: GatewayForwards) -> None:
    """Keep `forwards` as the file at `path` says, and `stronger`; one that is gone or broken changes nothing."""
    import trio

    from vpnkit.cli.original.meaning import gateway_forwards
    from vpnkit.errors import ConfigError
    from vpnkit.services.followed import Followed

    file = Followed(str(path))
    while True:
        text = file.changed()
        if text is not None:
            try:
                found = gateway_forwards(text)
            except ConfigError as error:
                log.warning("--gateway-forwards %s: %s; what it said before still holds", path, error)
            else:
                forwards.clear()
                forwards.update({**found, **stronger})
                log.info("--gateway-forwards %s: %d ports of the gateway lead elsewhere", path, len(forwards))
        await trio.sleep(LOOK_SECONDS)


class Backlogged:
    """A forward table for 9P, whose listeners let so many connections wait."""

    def __init__(self, forwards: Forwards, backlog: int) -> None:
        self._forwards = forwards
        self._backlog = backlog

    async def expose(self, text: str) -> Sequence[Exposed]:
        """As the table behind it does."""
        more = "" if text.startswith("udp:") else f",backlog={self._backlog}"
        return await self._forwards.expose(text + more)

    async def unexpose(self, forward: Exposed) -> None:
        """As the table behind it does."""
        await self._forwards.unexpose(forward)

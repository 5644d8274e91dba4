"""The control API of a running network, everywhere but on its unix socket: over TCP, and for guests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vpnkit.control.captures import capture_routes
from vpnkit.control.guest_api import GuestApi
from vpnkit.control.gvproxy_forwards import GvproxyForwards
from vpnkit.control.http_proxy import http_proxy_routes
from vpnkit.control.instance import instance_router
from vpnkit.control.tcp import listening_tcp, place_of, serve_tcp
from vpnkit.net.operator import NetworkOperator

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import ExitStack

    import trio

    from vpnkit.control.routes import Route, Router
    from vpnkit.control.token import TcpControl
    from vpnkit.net.network import Network


def start_control(
    network: Network,
    nursery: trio.Nursery,
    closing: ExitStack,
    tcp: TcpControl | None = None,
    *tables: Iterable[Route],
) -> tuple[Router, str]:
    """The router of `network`, and ADDR:PORT where it is served over TCP, or an empty text.

    `tables` are routes beside those of `instance_router`.  Guests are served where the plan allows it.  `closing` is
    for what is to be closed after the tasks in `nursery`.  Raises ControlError when `tcp` cannot be had.
    """
    operator = NetworkOperator(network)
    forwards = GvproxyForwards(operator)
    own = (capture_routes(network.options.captures), http_proxy_routes(network.http_proxy.service))
    router = instance_router(operator, *own, *tables, forwards=forwards)
    if network.plan.gateway_api:
        nursery.start_soon(GuestApi(operator, forwards, network.plan.gateway_names).run, network)
    if tcp is None:
        return router, ""
    listener = closing.enter_context(listening_tcp(tcp))
    nursery.start_soon(serve_tcp, listener, router, tcp)
    return router, place_of(listener)

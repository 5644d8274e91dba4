"""The control API over TCP, for who knows the token."""

from __future__ import annotations

import logging
import socket
import sys
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import trio

from vpnkit.control.guard import TokenGuard
from vpnkit.control.http import serve_http
from vpnkit.control.paths import ControlError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vpnkit.control.routes import Router
    from vpnkit.control.token import TcpControl

log = logging.getLogger(__name__)

BACKLOG: Final = 32


@contextmanager
def listening_tcp(where: TcpControl) -> Iterator[trio.SocketListener]:
    """A listener at `where`.  Raises ControlError when it cannot be had."""
    address = ip_address(where.host)
    if not address.is_loopback:
        log.warning("control over TCP at %s: the token and all answers cross the network unencrypted", where.host)
    server = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    with server:
        try:
            if sys.platform != "win32":  # there it means to take a port away from its owner
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if address.version == 6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            server.bind((where.host, where.port))
            server.listen(BACKLOG)
        except OSError as error:
            place = f"{where.host}:{where.port}"
            raise ControlError(f"cannot listen for control on {place}: {error.strerror}; see --control-tcp") from error
        yield trio.SocketListener(trio.socket.from_stdlib_socket(server))


def place_of(listener: trio.SocketListener) -> str:
    """ADDR:PORT of `listener`."""
    host, port = listener.socket.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def serve_tcp(listener: trio.SocketListener, router: Router, where: TcpControl) -> None:
    """Serve `router` until cancelled."""
    await serve_http(listener, router, TokenGuard(where.token))

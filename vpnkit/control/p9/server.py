"""Serving one tree to all who may connect to a socket."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from portfwd.accept import Acceptor
from vpnkit.control.listen import permitted
from vpnkit.control.p9.connection import Connection

if TYPE_CHECKING:
    from vpnkit.control.p9.nodes import Node

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 16


async def serve_p9(listener: trio.SocketListener, root: Node) -> None:
    """Serve the tree below `root` until cancelled, or until the listener is closed.

    A process of another user is refused, and so is the connection after the MAX_CONNECTIONSth.
    """
    acceptor = Acceptor(listener, "9P socket")
    serving = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal serving
        try:
            await serve_stream(stream, root)
        finally:
            serving -= 1

    async with trio.open_nursery() as nursery:
        while True:
            try:
                stream = await acceptor.accept()
            except trio.ClosedResourceError:
                return
            if not permitted(stream):
                log.warning("9P socket: refused a process of another user")
                await trio.aclose_forcefully(stream)
            elif serving >= MAX_CONNECTIONS:
                log.warning("9P socket: refused a client: there are %d already", serving)
                await trio.aclose_forcefully(stream)
            else:
                serving += 1
                nursery.start_soon(serve, stream)


async def serve_stream(stream: trio.abc.Stream, root: Node) -> None:
    """Serve one client until it goes, and close the stream.  What fails with it ends with it."""
    try:
        await Connection(stream, root).serve()
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        log.debug("9P: a client went away")
    except* Exception:
        log.exception("9P: a connection failed")
    finally:
        await trio.aclose_forcefully(stream)

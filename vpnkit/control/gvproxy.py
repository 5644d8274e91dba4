"""gvproxy's HTTP API, for programs that were written for it: the same paths, status codes and texts.

Methods and content types are looked at where gvproxy looks, which is hardly anywhere.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from vpnkit.control.go import GoError, decoded, done, encoded, split_host_port, text_of
from vpnkit.control.gradually import gradually
from vpnkit.control.gvproxy_stats import stats
from vpnkit.control.message import Takeover
from vpnkit.control.routes import ANY, Route

if TYPE_CHECKING:
    import trio

    from vpnkit.control.api import Operator
    from vpnkit.control.gvproxy_forwards import GvproxyForwards
    from vpnkit.control.message import Handler, Request, Response

OK: Final = b"OK"  # what a tunnel begins with, before the guest is called
NO_PEER: Final = "@"  # what Go calls the other end of a unix socket

_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,18}")


def gvproxy_routes(operator: Operator, forwards: GvproxyForwards) -> list[Route]:
    """What gvproxy answers at `-listen`."""
    handlers = Handlers(operator, forwards)
    table: dict[str, Handler] = {
        **_forwarder(handlers),
        "/services/dhcp/leases": handlers.leases,
        "/leases": handlers.leases,
        "/cam": handlers.cam,
        "/stats": handlers.stats,
        "/connect": handlers.connect,
        "/tunnel": handlers.tunnel,
        "/services/*": handlers.nothing,
    }
    return [Route(ANY, path, handler) for path, handler in table.items()]


def guest_routes(operator: Operator, forwards: GvproxyForwards) -> list[Route]:
    """What it answers to guests, at the gateway."""
    handlers = Handlers(operator, forwards)
    table = {**_forwarder(handlers), "/*": handlers.nothing}
    return [Route(ANY, path, handler) for path, handler in table.items()]


def _forwarder(handlers: Handlers) -> dict[str, Handler]:
    return {
        "/services/forwarder/all": handlers.all_forwards,
        "/services/forwarder/expose": handlers.expose,
        "/services/forwarder/unexpose": handlers.unexpose,
    }


class Handlers:
    """One handler for each path."""

    def __init__(self, operator: Operator, forwards: GvproxyForwards) -> None:
        self._operator = operator
        self._forwards = forwards

    async def nothing(self, _request: Request) -> Response:
        raise GoError(404, "404 page not found")

    async def all_forwards(self, request: Request) -> Response:
        return encoded(
            [
                {"local": entry.local, "remote": entry.remote, "protocol": entry.protocol}
                for entry in self._forwards.list(request.peer)
            ]
        )

    async def expose(self, request: Request) -> Response:
        fields = _posted(request)
        local, remote, protocol = (text_of(fields, name) for name in ("local", "remote", "protocol"))
        protocol = protocol or "tcp"
        if protocol not in ("unix", "npipe"):
            remote = _completed(remote, request.peer)
        await self._forwards.expose(protocol, local, remote, request.peer)
        return done()

    async def unexpose(self, request: Request) -> Response:
        fields = _posted(request)
        await self._forwards.unexpose(text_of(fields, "protocol") or "tcp", text_of(fields, "local"), request.peer)
        return done()

    async def leases(self, _request: Request) -> Response:
        return encoded(dict(sorted(self._operator.addresses().items())))

    async def cam(self, _request: Request) -> Response:
        return encoded(dict(sorted(self._operator.stations().items())))

    async def stats(self, _request: Request) -> Response:
        return encoded(stats(self._operator.status(), await gradually(self._operator.each_flow())))

    async def connect(self, _request: Request) -> Takeover:
        """A guest at the other end of the stream, whose first octets may be there already."""
        return Takeover(self._operator.connect)

    async def tunnel(self, request: Request) -> Takeover:
        arguments = request.arguments()
        ip, port = arguments.get("ip", ""), arguments.get("port", "")
        if not ip:
            raise GoError(500, "ip is mandatory")
        if not _NUMBER.fullmatch(port):
            raise GoError(500, f'strconv.Atoi: parsing "{port}": invalid syntax')

        async def take(stream: trio.SocketStream, received: bytes) -> None:
            await stream.send_all(OK)
            try:
                address = ip_address(ip)
            except ValueError:
                return  # the end of the stream says so, as it does when the guest does not answer
            if 0 < int(port) <= 65535:
                await self._operator.tunnel(stream, received, str(address), int(port))

        return Takeover(take)


def _posted(request: Request) -> dict[str, object]:
    if request.method != "POST":
        raise GoError(400, "post only")
    return decoded(request)


def _completed(remote: str, peer: str) -> str:
    """`remote`, with the address of who asks where it has none.  Raises GoError."""
    try:
        host, _ = split_host_port(remote)
        if host:
            return remote
        if not peer:
            split_host_port(NO_PEER)
    except ValueError as error:
        raise GoError(400, str(error)) from None
    return (f"[{peer}]" if ":" in peer else peer) + remote

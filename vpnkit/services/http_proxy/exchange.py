"""One connection of a guest to the proxy, or to a web server when it was intercepted: requests in order.

A request's body goes up while the response comes down.  The connection to the other end is kept for the next request
that has the same way, and for nobody else.
"""

from __future__ import annotations

import html
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

import h11
import trio

from portfwd.connect import abort, relay
from vpnkit.errors import WireError
from vpnkit.proto.http_headers import (
    absolute,
    host_field,
    parse_target,
    request_fields,
    response_fields,
    tokens,
    trailer_fields,
    upgrade_of,
)
from vpnkit.services.http_proxy.opening import Refusal
from vpnkit.services.http_proxy.peer import Client, Server, Stalled

if TYPE_CHECKING:
    from collections.abc import Callable

    from vpnkit.flow.host import Address
    from vpnkit.proto.http_headers import Field
    from vpnkit.proto.http_proxy import Destination, ProxyConfig, Upstream
    from vpnkit.services.http_proxy.opening import Opener

log = logging.getLogger(__name__)

TUNNEL_IDLE_SECONDS: Final = 3600.0  # without an octet either way
LINGER_SECONDS: Final = 1.0  # for the guest to take an error, and
LINGER_OCTETS: Final = 1 << 20  # what it may still say
REPEATABLE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})
UPGRADED: Final = 101


class Entrance(NamedTuple):
    """How a connection came: `to` is whom the guest called, by name or address, and `aim` where that really is; None
    for connections to the proxy itself.  `secure`: by the proxy for https."""

    secure: bool
    to: Destination | None = None
    aim: Address | None = None


class Way(NamedTuple):
    """Where a request goes: to a proxy that is told its whole URI, or to an origin server, maybe through SOCKS5."""

    proxy: Upstream | None
    destination: Destination | None  # None where the proxy sees to that

    @property
    def by_http(self) -> Upstream | None:
        """The proxy that reads the request."""
        return self.proxy if self.proxy is not None and self.proxy.scheme != "socks5" else None


class Exchange:
    """One connection of one guest.  `config` is asked anew for each request; None ends it."""

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        entrance: Entrance,
        config: Callable[[], ProxyConfig | None],
        opener: Opener,
        name: str,
    ) -> None:
        """`name` is what we are called in Via; nobody else has it."""
        self._client = Client(stream)
        self._entrance = entrance
        self._config = config
        self._opener = opener
        self._name = name.encode()
        self._server: Server | None = None
        self._way: Way | None = None

    async def serve(self) -> None:
        """Answer until one of the two wants the connection closed.  The stream is closed then."""
        try:
            while await self._serve_one():
                pass
            await self._finish()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            abort(self._client.stream)
        finally:
            with trio.CancelScope(shield=True):
                await self._drop_server()

    async def _serve_one(self) -> bool:
        client = self._client
        try:
            request = await client.next_request()
            if request is None:
                return False
            return await self._answer(request)
        except (WireError, h11.ProtocolError) as error:
            refusal = Refusal(400, str(error))
        except Stalled as error:
            refusal = Refusal(408 if self._server is None else 504, str(error))
        except Refusal as error:
            refusal = error
        if client.responded:
            abort(client.stream)  # half a response may have left
            return False
        return await self._refuse(refusal)

    async def _answer(self, request: h11.Request) -> bool:
        config = self._config()
        if config is None:
            return False
        fields: list[Field] = list(request.headers.raw_items())
        host = next((value for name, value in fields if name.lower() == b"host"), None)
        target = parse_target(request.method, request.target, host, to=self._entrance.to)
        if self._name.lower() in b" ".join(tokens(fields, b"via")).split():
            raise Refusal(508, "this request was here already: a proxy sends it back")
        name = target.destination.host
        if not config.allows(name):
            raise Refusal(403, config.refusal(name))
        known_as = {name} if self._entrance.to is None else {name, self._entrance.to.host}
        proxy = config.upstream(self._entrance.secure, *known_as)
        if request.method == b"CONNECT":
            return await self._connect(target.destination, proxy)
        way = Way(proxy, target.destination)
        if way.by_http is not None:
            way = Way(proxy, None)
        upgrade = upgrade_of(fields, request.http_version)
        via = request.http_version + b" " + self._name
        authorization = None if way.by_http is None else way.by_http.authorization
        sent = request_fields(fields, target.destination, via, authorization, upgrade)
        path = target.path if way.by_http is None else absolute(target)
        # Where names are checked it is the name that counts, not whom the guest called
        aim = None if config.file.allow_enabled else self._entrance.aim
        return await self._forward(request, way, aim, path, sent)

    # Requests

    async def _forward(
        self, request: h11.Request, way: Way, aim: Address | None, path: bytes, fields: list[Field]
    ) -> bool:
        has_body = any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in fields)
        for _ in range(2):
            server = await self._server_for(way, aim)
            reused = server.used > 0
            try:
                await server.begin(request.method, path, fields)
                went_on = await self._both_ways(request, server)
            except (trio.BrokenResourceError, h11.RemoteProtocolError, Stalled) as error:
                await self._drop_server()
                if self._client.responded:
                    raise trio.BrokenResourceError from error
                if reused and not has_body and request.method in REPEATABLE and not isinstance(error, Stalled):
                    continue  # it was closed while nobody looked: RFC 9110 section 9.2.2
                why = str(error) or "it broke off"
                raise Refusal(504 if isinstance(error, Stalled) else 502, f"the server failed: {why}") from error
            if not went_on:
                return False
            if not server.end_exchange():
                await self._drop_server()
            return self._client.may_go_on
        raise Refusal(502, "the server closed the connection twice")

    async def _both_ways(self, request: h11.Request, server: Server) -> bool:
        """False when the connection is no longer HTTP, and over."""
        failed: list[Exception] = []
        went_on = True
        body_sent = False

        async def up() -> None:
            nonlocal body_sent
            try:
                body_sent = await self._send_body(server)
            except (h11.RemoteProtocolError, Stalled) as error:
                failed.append(Refusal(400, str(error)))
                nursery.cancel_scope.cancel()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                failed.append(trio.ClosedResourceError("the guest broke off"))
                nursery.cancel_scope.cancel()

        async def down() -> None:
            nonlocal went_on
            try:
                went_on = await self._send_response(request, server, lambda: body_sent)
            except (trio.BrokenResourceError, h11.RemoteProtocolError, h11.LocalProtocolError, Stalled) as error:
                failed.append(error)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(up)
            nursery.start_soon(down)
        if failed:
            if isinstance(failed[0], h11.LocalProtocolError):
                raise h11.RemoteProtocolError(str(failed[0]))
            raise failed[0]
        return went_on

    async def _send_body(self, server: Server) -> bool:
        """False when the server does not want all of it; it may have said why."""
        while True:
            event = await self._client.next_event()
            try:
                if isinstance(event, h11.EndOfMessage):
                    await server.send(h11.EndOfMessage(headers=trailer_fields(event.headers.raw_items())))
                    return True
                await server.send(h11.Data(data=bytes(event.data)))
            except (trio.BrokenResourceError, h11.LocalProtocolError, Stalled):
                return False

    async def _send_response(self, request: h11.Request, server: Server, body_sent: Callable[[], bool]) -> bool:
        client = self._client
        chunked = False
        while True:
            event = await server.next_event()
            if isinstance(event, h11.InformationalResponse):
                fields: list[Field] = list(event.headers.raw_items())
                via = event.http_version + b" " + self._name
                if event.status_code == UPGRADED:
                    if not body_sent():
                        raise h11.RemoteProtocolError("the server changed the protocol too early")
                    wanted = next((value for name, value in fields if name.lower() == b"upgrade"), b"")
                    fields = response_fields(fields, via, wanted)
                    await client.send(h11.InformationalResponse(status_code=UPGRADED, headers=fields))
                    await self._relay(server)
                    return False
                if request.http_version >= b"1.1":
                    fields = response_fields(fields, via)
                    await client.send(h11.InformationalResponse(status_code=event.status_code, headers=fields))
            elif isinstance(event, h11.Response):
                fields = response_fields(list(event.headers.raw_items()), event.http_version + b" " + self._name)
                chunked = b"chunked" in tokens(fields, b"transfer-encoding") and request.http_version >= b"1.1"
                await client.send(h11.Response(status_code=event.status_code, reason=event.reason, headers=fields))
            elif isinstance(event, h11.Data):
                await client.send(h11.Data(data=bytes(event.data)))
            elif isinstance(event, h11.EndOfMessage):
                trailers = trailer_fields(event.headers.raw_items()) if chunked and request.method != b"HEAD" else []
                await client.send(h11.EndOfMessage(headers=trailers))
                return True
            else:
                raise h11.RemoteProtocolError("it closed the connection")

    async def _server_for(self, way: Way, aim: Address | None) -> Server:
        if self._server is not None and self._way == way:
            return self._server
        await self._drop_server()
        if way.proxy is not None:
            stream = await self._opener.upstream(way.proxy, way.destination)
        else:
            assert way.destination is not None
            stream = await self._opener.origin(way.destination, aim)
        self._server, self._way = Server(stream), way
        return self._server

    async def _drop_server(self) -> None:
        server, self._server, self._way = self._server, None, None
        if server is not None:
            await server.close()

    # Tunnels

    async def _connect(self, destination: Destination, proxy: Upstream | None) -> bool:
        client = self._client
        await self._drop_server()
        await client.next_event()  # the end of a request that has no body
        if proxy is None:
            stream = await self._opener.origin(destination)
            self._server = server = Server(stream)
        else:
            stream = await self._opener.upstream(proxy, destination)
            self._server = server = Server(stream)
            if proxy.scheme != "socks5":
                refused = await ask_for_tunnel(server, proxy, destination, self._name)
                if refused is not None:
                    return await self._pass_refusal(server, refused)
        await client.send(h11.Response(status_code=200, reason=b"Connection established", headers=[]))
        await self._relay(server)
        return False

    async def _pass_refusal(self, server: Server, response: h11.Response) -> bool:
        """What the proxy said instead of 2xx is for the guest."""
        fields = response_fields(list(response.headers.raw_items()), response.http_version + b" " + self._name)
        client = self._client
        await client.send(h11.Response(status_code=response.status_code, reason=response.reason, headers=fields))
        try:
            while isinstance(event := await server.next_event(), h11.Data):
                await client.send(h11.Data(data=bytes(event.data)))
        except h11.ProtocolError as error:
            raise trio.BrokenResourceError from error
        await client.send(h11.EndOfMessage())
        await self._drop_server()
        return client.may_go_on

    async def _relay(self, server: Server) -> None:
        """Octets both ways until both have finished; both streams are closed then."""
        behind = server.h11.trailing_data[0]
        if behind:
            await self._client.stream.send_all(behind)
        await relay(self._client.stream, server.stream, first=self._client.unread(), idle=TUNNEL_IDLE_SECONDS)

    # Ends

    async def _refuse(self, refusal: Refusal) -> bool:
        """Answer with an error page.  The connection ends with it: what follows may not be a request."""
        phrase = HTTPStatus(refusal.status).phrase
        text = html.escape(str(refusal))
        page = f"<!DOCTYPE html><html><head><title>{phrase}</title></head><body><h1>{phrase}</h1><p>{text}</p>"
        body = f"{page}<p>vpnkit's HTTP proxy</p></body></html>\n".encode()
        head = (
            f"HTTP/1.1 {refusal.status} {phrase}\r\nContent-Type: text/html; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        request = self._client.request
        without = request is not None and request.method == b"HEAD"
        await self._client.stream.send_all(head.encode() + (b"" if without else body))
        return False

    async def _finish(self) -> None:
        """Close the guest's stream so that it still gets what was said."""
        stream = self._client.stream
        await stream.send_eof()
        left = LINGER_OCTETS
        with trio.move_on_after(LINGER_SECONDS):
            while left > 0 and (data := await stream.receive_some(65536)):
                left -= len(data)
        await stream.aclose()


async def ask_for_tunnel(server: Server, proxy: Upstream, destination: Destination, name: bytes) -> h11.Response | None:
    """Say CONNECT to a proxy; None when it agreed, else what it said.  Raises Refusal when it said nothing that can be
    understood."""
    authority = destination.authority.encode()
    fields: list[Field] = [(b"Host", authority if destination.port != 80 else host_field(destination)[1])]
    if proxy.authorization is not None:
        fields.append((b"Proxy-Authorization", proxy.authorization))
    fields.append((b"Via", b"1.1 " + name))
    try:
        await server.begin(b"CONNECT", authority, fields)
        await server.send(h11.EndOfMessage())
        while isinstance(event := await server.next_event(), h11.InformationalResponse):
            pass
    except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
        raise Refusal(502, f"proxy {proxy.host}:{proxy.port} failed: {error or 'it broke off'}") from error
    if not isinstance(event, h11.Response):
        raise Refusal(502, f"proxy {proxy.host}:{proxy.port} closed the connection")
    return None if 200 <= event.status_code < 300 else event

"""A small HTTP/1.1 server for the operator, on h11: what it reads is bounded in size, in number and in time.

A handler is an async function from Request to Response, and routes are a table: path -> method -> handler.  HEAD is
answered by the handler of GET.  Whatever is wrong is said as `{"error": {"code": ..., "message": ...}}`; the codes
are part of the interface.  There is no TLS, no compression, no range, no multipart.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeAlias

import h11
import msgspec
import trio

from portfwd.accept import Acceptor
from vpnkit import __version__
from vpnkit.control.listen import permitted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

log = logging.getLogger(__name__)

MAX_HEADER: Final = 8 * 1024  # octets of request line and header fields
MAX_HEADER_FIELDS: Final = 64
MAX_BODY: Final = 64 * 1024
MAX_CONNECTIONS: Final = 16
MAX_REFUSALS: Final = 16  # connections that are being told that there are too many
REQUEST_SECONDS: Final = 10.0  # for a request to arrive whole, and for an answer to be taken
IDLE_SECONDS: Final = 60.0  # between two requests of one connection
LINGER_SECONDS: Final = 1.0
CHUNK: Final = 4096

JSON: Final = "application/json"
SERVER: Final = f"vpnkit/{__version__}"


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body complete."""

    method: str
    path: str  # as it was sent, not percent-decoded
    query: str
    headers: tuple[tuple[str, str], ...]  # names in lower case
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The first field of that (lower case) name."""
        return next((value for field, value in self.headers if field == name), None)


@dataclass(frozen=True, slots=True)
class Response:
    """One answer, its body complete."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Takeover:
    """The end of HTTP on a connection: nothing is answered, and `take` has the stream from then on, with the octets
    that came right behind the request."""

    take: Callable[[trio.SocketStream, bytes], Awaitable[None]]


Handler: TypeAlias = "Callable[[Request], Awaitable[Response | Takeover]]"
Routes: TypeAlias = "Mapping[str, Mapping[str, Handler]]"


class HttpError(Exception):
    """The request is answered with an error.  `close`: what follows it on the connection cannot be understood."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: tuple[tuple[str, str], ...] = (),
        *,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers
        self.close = close

    def response(self) -> Response:
        """The error as the answer that reports it."""
        return json_response({"error": {"code": self.code, "message": str(self)}}, self.status, self.headers)


def json_response(value: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """`value` as JSON on one line."""
    return Response(status, msgspec.json.encode(value) + b"\n", headers=headers)


async def serve_http(listener: trio.SocketListener, routes: Routes) -> None:
    """Answer requests until cancelled, or until the listener is closed."""
    acceptor = Acceptor(listener, "control socket")
    serving = refusing = 0

    async def serve(stream: trio.SocketStream) -> None:
        async def converse() -> None:
            nonlocal serving
            connection = Connection(stream, routes)
            try:
                takeover = await connection.serve()
            finally:
                serving -= 1
            if takeover is not None:
                await takeover.take(stream, connection.unread)

        await _contained(stream, converse())

    async def refuse(stream: trio.SocketStream) -> None:
        nonlocal refusing
        busy = HttpError(503, "too_many_connections", f"at most {MAX_CONNECTIONS} connections at once", close=True)
        try:
            await _contained(stream, Connection(stream, routes).reject(busy))
        finally:
            refusing -= 1

    async with trio.open_nursery() as nursery:
        while True:
            try:
                stream = await acceptor.accept()
            except trio.ClosedResourceError:
                return
            if not permitted(stream):
                log.warning("control socket: refused a process of another user")
                await trio.aclose_forcefully(stream)
            elif serving < MAX_CONNECTIONS:
                serving += 1
                nursery.start_soon(serve, stream)
            elif refusing < MAX_REFUSALS:
                refusing += 1
                nursery.start_soon(refuse, stream)
            else:
                await trio.aclose_forcefully(stream)


async def _contained(stream: trio.SocketStream, serving: Awaitable[None]) -> None:
    """A connection that fails ends alone."""
    try:
        await serving
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        log.debug("control socket: a client went away")
    except Exception:
        log.exception("control socket: a connection failed")
    finally:
        await trio.aclose_forcefully(stream)


class Connection:
    """One client: requests in order, one answer each."""

    def __init__(self, stream: trio.SocketStream, routes: Routes) -> None:
        self._stream = stream
        self._routes = routes
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER)
        self._method = b""  # of the request that is being answered, once it is known

    @property
    def unread(self) -> bytes:
        """What came behind the last request."""
        return bytes(self._h11.trailing_data[0])

    async def serve(self) -> Takeover | None:
        """Answer until one of the two wants the connection closed, or a handler takes it over."""
        patience = REQUEST_SECONDS  # a client that connected has something to ask
        while await self._wait_for_request(patience):
            try:
                with trio.move_on_after(REQUEST_SECONDS) as in_time:
                    request = await self._read_request()
                if in_time.cancelled_caught:
                    raise HttpError(408, "timeout", f"no complete request in {REQUEST_SECONDS:g} s", close=True)
                if request is None:
                    return None
                response = await answer(self._routes, request)
                if isinstance(response, Takeover):
                    return response
            except HttpError as error:
                if error.close:
                    await self.reject(error)
                    return None
                response = error.response()
            await self._send(response)
            if self._h11.our_state is h11.MUST_CLOSE or self._h11.their_state is not h11.DONE:
                await self._linger()
                return None
            self._h11.start_next_cycle()
            self._method = b""
            patience = IDLE_SECONDS
        return None

    async def reject(self, error: HttpError) -> None:
        """Answer with `error`, and close the connection so that the client still sees the answer."""
        await self._send(error.response(), close=True)
        await self._linger()

    async def _wait_for_request(self, seconds: float) -> bool:
        """Whether there are bytes of another request.  False: the client is gone, or said nothing for too long."""
        if self._h11.trailing_data[0]:
            return True
        with trio.move_on_after(seconds):
            data = await self._stream.receive_some(CHUNK)
            if data:
                self._h11.receive_data(data)
            return bool(data)
        return False

    async def _read_request(self) -> Request | None:
        """The next request, or None when the client finished instead."""
        head: h11.Request | None = None
        body = bytearray()
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                if error.error_status_hint == 431:
                    raise _too_large_header() from None
                if error.error_status_hint == 501:
                    raise HttpError(501, "not_implemented", f"cannot read this request: {error}", close=True) from None
                raise HttpError(400, "bad_request", f"not an HTTP request: {error}", close=True) from None
            if event is h11.NEED_DATA:
                await self._receive(head is None)
            elif isinstance(event, h11.Request):
                head = event
                self._method = head.method
                _check_head(head)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_BODY:
                    raise _too_large_body()
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return _request(head, bytes(body))
            else:  # ConnectionClosed, or PAUSED after a request whose protocol we do not switch
                return None

    async def _receive(self, in_header: bool) -> None:
        room = CHUNK
        if in_header:  # never take more than may be a header, so that the limit is exact
            room = MAX_HEADER - len(self._h11.trailing_data[0])
            if room <= 0:
                raise _too_large_header()
        elif self._h11.they_are_waiting_for_100_continue:
            data = self._h11.send(h11.InformationalResponse(status_code=100, headers=[]))
            await self._stream.send_all(data or b"")
        self._h11.receive_data(await self._stream.receive_some(room))

    async def _send(self, response: Response, *, close: bool = False) -> None:
        """Send one answer.  A client that does not take it in time loses the connection."""
        headers = [
            ("Server", SERVER),
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *response.headers,
        ]
        if close:
            headers.append(("Connection", "close"))
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        reason = HTTPStatus(response.status).phrase
        wire = self._h11.send(h11.Response(status_code=response.status, headers=headers, reason=reason)) or b""
        if self._method != b"HEAD":
            wire += self._h11.send(h11.Data(data=response.body)) or b""
        wire += self._h11.send(h11.EndOfMessage()) or b""
        with trio.move_on_after(REQUEST_SECONDS) as in_time:
            await self._stream.send_all(wire)
        if in_time.cancelled_caught:
            raise trio.BrokenResourceError("the client does not read")

    async def _linger(self) -> None:
        """Finish our side and drop what the client still sends: a close with bytes unread would reset the answer."""
        await self._stream.send_eof()
        left = MAX_BODY
        with trio.move_on_after(LINGER_SECONDS):
            while left > 0:
                data = await self._stream.receive_some(CHUNK)
                if not data:
                    return
                left -= len(data)


def _check_head(head: h11.Request) -> None:
    """Raises HttpError for what can be refused before the body is read."""
    if not head.http_version.startswith(b"1."):
        raise HttpError(505, "version_not_supported", "HTTP/1.0 and HTTP/1.1 are spoken here", close=True)
    if len(head.headers) > MAX_HEADER_FIELDS:
        raise _too_large_header()
    for name, value in head.headers:
        if name == b"origin":  # a browser speaks for some page; our own clients never send this
            raise HttpError(403, "foreign_origin", "requests from web pages are refused", close=True)
        if name == b"content-length" and int(value) > MAX_BODY:
            raise _too_large_body()


def _too_large_header() -> HttpError:
    limits = f"at most {MAX_HEADER} octets and {MAX_HEADER_FIELDS} fields of header"
    return HttpError(431, "header_too_large", limits, close=True)


def _too_large_body() -> HttpError:
    return HttpError(413, "body_too_large", f"at most {MAX_BODY} octets of body", close=True)


def _request(head: h11.Request, body: bytes) -> Request:
    target = head.target.decode("latin-1")
    if not target.startswith("/"):  # the absolute form, as to a proxy: http://HOST/PATH
        _scheme, separator, rest = target.partition("://")
        target = "/" + rest.partition("/")[2] if separator else target
    path, _, query = target.partition("?")
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers)
    return Request(head.method.decode("latin-1"), path, query, headers, body)


async def answer(routes: Routes, request: Request) -> Response | Takeover:
    """What `routes` say to `request`.  Raises HttpError; a handler that fails is a 500 and a log entry."""
    methods = routes.get(request.path)
    if methods is None:
        raise HttpError(404, "not_found", f"there is nothing at {request.path}")
    handler = methods.get("GET" if request.method == "HEAD" else request.method)
    if handler is None:
        allowed = ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
        message = f"{request.path} does not take {request.method}: {allowed}"
        raise HttpError(405, "method_not_allowed", message, (("Allow", allowed),))
    try:
        return await handler(request)
    except HttpError:
        raise
    except Exception:
        log.exception("control: %s %s failed", request.method, request.path)
        raise HttpError(500, "internal", "the request failed inside vpnkit; its log says how") from None

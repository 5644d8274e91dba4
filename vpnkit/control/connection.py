"""One HTTP/1.1 connection, on h11: what it reads is bounded in size and in time.

Whatever is wrong is said as `{"error": {"code": ..., "message": ...}}`; the codes are part of the interface.  There is
no TLS, no compression, no range, no multipart.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import h11
import trio

from vpnkit import __version__
from vpnkit.control.guard import OwnerGuard
from vpnkit.control.message import HttpError, Request, Response, Stream, Takeover

if TYPE_CHECKING:
    from vpnkit.control.guard import Guard
    from vpnkit.control.routes import Router

log = logging.getLogger(__name__)

MAX_HEADER: Final = 8 * 1024  # octets of request line and header fields
MAX_HEADER_FIELDS: Final = 64
MAX_BODY: Final = 64 * 1024
REQUEST_SECONDS: Final = 10.0  # for a request to arrive whole, and for an answer to be taken
IDLE_SECONDS: Final = 60.0  # between two requests of one connection
STALL_SECONDS: Final = 60.0  # that the client of a stream may take nothing
LINGER_SECONDS: Final = 1.0
CHUNK: Final = 4096

SERVER: Final = f"vpnkit/{__version__}"
OWNER: Final = OwnerGuard()


class Connection:
    """One client: requests in order, one answer each."""

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        router: Router,
        guard: Guard = OWNER,
        *,
        peer: str = "",
        process: tuple[int, int] | None = None,
    ) -> None:
        """`peer` is the address of the guest that asks; empty for the operator.  `process` is (pid, uid), if known."""
        self._stream = stream
        self._router = router
        self._guard = guard
        self._peer = peer
        self._process = process
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER)
        self._method = b""  # of the request that is being answered, once it is known

    @property
    def unread(self) -> bytes:
        """What came behind the last request."""
        return bytes(self._h11.trailing_data[0])

    async def serve(self) -> Stream | Takeover | None:
        """Answer until one of the two wants the connection closed, or an answer has to go on: that one is returned."""
        patience = REQUEST_SECONDS  # a client that connected has something to ask
        while await self._wait_for_request(patience):
            try:
                with trio.move_on_after(REQUEST_SECONDS) as in_time:
                    request = await self._read_request()
                if in_time.cancelled_caught:
                    raise HttpError(408, "timeout", f"no complete request in {REQUEST_SECONDS:g} s", close=True)
                if request is None:
                    return None
                response = await self._router.answer(request)
            except HttpError as error:
                if error.close:
                    await self.reject(error)
                    return None
                response = error.response()
            if not isinstance(response, Response):
                return response
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

    async def stream(self, answer: Stream) -> None:
        """Send an answer that goes on, until it is over or the client is gone."""
        headers = [
            ("Server", SERVER),
            ("Content-Type", answer.content_type),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Connection", "close"),
        ]
        head = self._h11.send(h11.Response(status_code=200, headers=headers, reason="OK")) or b""
        if self._method == b"HEAD":
            await self._write(head, REQUEST_SECONDS)
            await self._linger()
            return

        async def send(data: bytes) -> None:
            nonlocal head
            wire = head + (self._h11.send(h11.Data(data=data)) or b"") if data else head
            head = b""
            if wire:
                await self._write(wire, STALL_SECONDS)

        whole = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            try:
                await answer.produce(send)
                whole = True
            except trio.BrokenResourceError as error:
                log.debug("control: a stream ended: %s", error)
            except Exception:  # the containment boundary of one stream: its client sees that the end is missing
                log.exception("control: a stream failed")
            nursery.cancel_scope.cancel()
        if whole:
            await self._write(head + (self._h11.send(h11.EndOfMessage()) or b""), REQUEST_SECONDS)
            await self._linger()

    async def _watch(self, scope: trio.CancelScope) -> None:
        """Cancel `scope` when the client finishes, or says more than anybody would."""
        left = MAX_BODY
        try:
            while left > 0 and (data := await self._stream.receive_some(CHUNK)):
                left -= len(data)
        except trio.BrokenResourceError:
            pass
        scope.cancel()

    async def _wait_for_request(self, seconds: float) -> bool:
        """Whether there are bytes of another request.  False: the client is gone, or said nothing for too long."""
        if self._h11.trailing_data[0]:
            return True
        with trio.move_on_after(seconds):
            data = await self._stream.receive_some(CHUNK)
            if data:
                self._h11.receive_data(bytes(data))
            return bool(data)
        return False

    async def _read_request(self) -> Request | None:
        """The next request, or None when the client finished instead."""
        head: Request | None = None
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
                self._method = event.method
                head = self._checked(event)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_BODY:
                    raise _too_large_body()
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return replace(head, body=bytes(body))
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
        self._h11.receive_data(bytes(await self._stream.receive_some(room)))

    def _checked(self, head: h11.Request) -> Request:
        """Raises HttpError for what can be refused before the body is read."""
        if not head.http_version.startswith(b"1."):
            raise HttpError(505, "version_not_supported", "HTTP/1.0 and HTTP/1.1 are spoken here", close=True)
        if len(head.headers) > MAX_HEADER_FIELDS:
            raise _too_large_header()
        target = head.target.decode("latin-1")
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers)
        authority = next((value for name, value in headers if name == "host"), None)
        if not target.startswith("/"):  # the absolute form, as to a proxy: http://HOST/PATH (RFC 9112 section 3.2.2)
            _scheme, separator, rest = target.partition("://")
            if separator:
                authority, _, path = rest.partition("/")
                target = "/" + path
        path, _, query = target.partition("?")
        request = Request(head.method.decode("latin-1"), path, query, headers, peer=self._peer, process=self._process)
        self._guard.check(request, authority)
        length = request.header("content-length")
        if length is not None and int(length) > MAX_BODY:
            raise _too_large_body()
        return request

    async def _send(self, response: Response, *, close: bool = False) -> None:
        """Send one answer.  A client that does not take it in time loses the connection."""
        headers = [
            ("Server", SERVER),
            *([("Content-Type", response.content_type)] if response.content_type else []),
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
        await self._write(wire, REQUEST_SECONDS)

    async def _write(self, wire: bytes, seconds: float) -> None:
        with trio.move_on_after(seconds) as in_time:
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


def _too_large_header() -> HttpError:
    limits = f"at most {MAX_HEADER} octets and {MAX_HEADER_FIELDS} fields of header"
    return HttpError(431, "header_too_large", limits, close=True)


def _too_large_body() -> HttpError:
    return HttpError(413, "body_too_large", f"at most {MAX_BODY} octets of body", close=True)

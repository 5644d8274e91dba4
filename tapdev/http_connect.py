"""The HTTP way into a network: gvproxy's `/connect`, which turns an HTTP connection into frames.

gvforwarder sends `POST /connect` with an empty Host and speaks 16-bit little-endian frames at once: on success there is
no HTTP answer at all (gvproxy.md 1.4 and 1.6).
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import h11
import trio

from tapdev.vmnet import (
    HANDSHAKE_SECONDS,
    MAGIC,
    MAGIC_OF_VERSION_0,
    HandshakeError,
    conversation,
    serve_handshake,
)

if TYPE_CHECKING:
    from tapdev.vmnet import Register, Registration

PATH_END: Final = b"/connect"
MAX_REQUEST: Final = 16384  # octets of request line and headers
READ_SIZE: Final = 4096
MAX_METHOD: Final = 16  # letters; CONNECT, with 7, is the longest in use
METHOD: Final = re.compile(rb"[A-Z]*")
MAX_MESSAGE: Final = 200  # characters of an error that may quote the client


def looks_like_http(first: bytes) -> bool | None:
    """Whether a client that starts with `first` speaks HTTP, not VMN3T.  None: more octets will tell."""
    if first.startswith((MAGIC, MAGIC_OF_VERSION_0)):
        return False
    method, space, _ = first.partition(b" ")
    if len(method) > MAX_METHOD or not METHOD.fullmatch(method):
        return False
    if space:
        return method != b""
    return None


async def serve_upgrade(stream: trio.abc.Stream, received: bytes, *, deadline: float | None = None) -> bytes:
    """Read the rest of a request for `/connect`, of which `received` came already; returns the octets behind it.

    Any method and any path that ends in /connect will do.  Nothing is answered.  Another path gets a 404 and what is no
    proper request a 4xx or 501; then HandshakeError is raised.  `deadline` is on trio's clock, HANDSHAKE_SECONDS from
    now when None.  The stream is the caller's to close.
    """
    if deadline is None:
        deadline = trio.current_time() + HANDSHAKE_SECONDS
    with conversation(deadline):
        try:
            return await _read_request(stream, received)
        except h11.RemoteProtocolError as error:
            status, message = HTTPStatus(error.error_status_hint), str(error)[:MAX_MESSAGE]
        await stream.send_all(_answer(status, message))
    raise HandshakeError(f"a bad request for {PATH_END.decode()} ({status.value}): {message}")


async def serve_either(stream: trio.abc.Stream, register: Register, *, mtu: int) -> tuple[Registration | None, bytes]:
    """A VMN3T handshake or an HTTP upgrade, as the client likes; no Registration after the latter.

    Returns also the octets that came behind it.  Raises HandshakeError and Refused.
    """
    deadline = trio.current_time() + HANDSHAKE_SECONDS
    first = b""
    with conversation(deadline):
        while (http := looks_like_http(first)) is None:
            chunk = await stream.receive_some(READ_SIZE)
            if not chunk:
                raise HandshakeError(f"the client closed the connection after {first!r}")
            first += chunk
    if http:
        return None, await serve_upgrade(stream, first, deadline=deadline)
    return await serve_handshake(stream, register, mtu=mtu, received=first, deadline=deadline)


async def _read_request(stream: trio.abc.Stream, received: bytes) -> bytes:
    """The octets behind one request without a body.  Raises RemoteProtocolError with the status to answer."""
    request = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)
    if received:
        request.receive_data(received)
    while True:
        event = request.next_event()
        if event is h11.NEED_DATA:
            chunk = await stream.receive_some(READ_SIZE)
            if not chunk:
                raise HandshakeError("the client closed the connection within its HTTP request")
            request.receive_data(bytes(chunk))
        elif isinstance(event, h11.Request):
            path = event.target.partition(b"?")[0]
            if not path.endswith(PATH_END):
                message = f"{path[:MAX_MESSAGE].decode('ascii', 'replace')} is not here, only {PATH_END.decode()} is"
                raise h11.RemoteProtocolError(message, HTTPStatus.NOT_FOUND)
        elif isinstance(event, h11.EndOfMessage):
            return request.trailing_data[0]
        else:
            raise h11.RemoteProtocolError("a request for /connect has no body", HTTPStatus.BAD_REQUEST)


def _answer(status: HTTPStatus, message: str) -> bytes:
    body = f"{message}\n".encode("ascii", "replace")
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        "Content-Type: text/plain\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body

"""Asking a running instance: one request per connection, without an event loop."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import h11
import msgspec

from vpnkit.control.paths import ControlError, connected

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT: Final = 15.0  # for each step: longer than the server gives itself
MAX_ANSWER: Final = 64 * 1024 * 1024
MAX_REFUSAL: Final = 64 * 1024


class NotRunning(ControlError):
    """Nobody listens on the control socket."""


class _Failure(msgspec.Struct):
    code: str
    message: str


class _FailureBody(msgspec.Struct):
    error: _Failure


def get(path: Path, target: str) -> bytes:
    """The body at `target`, as it was sent.  Raises NotRunning, or ControlError with what the instance said."""
    return request(path, "GET", target)


def request(path: Path, method: str, target: str, value: object = None) -> bytes:
    """The body that answers `method` of `target`, which is sent `value` as JSON unless that is None.  Raises as `get`
    does."""
    connection = _connected(path)
    with connection:
        try:
            status, body = _exchange(connection, method, target, value)
        except TimeoutError as error:
            raise ControlError(f"the instance at {path} does not answer") from error
        except (OSError, h11.RemoteProtocolError) as error:
            raise ControlError(f"the instance at {path} broke off: {error}") from error
    if status not in (200, 201):
        raise ControlError(f"the instance at {path} says: {_message(status, body)}")
    return body


def stream(path: Path, target: str) -> Iterator[bytes]:
    """The body at `target`, as it comes, for as long as it goes on.  Raises as `get` does."""
    connection = _connected(path)
    with connection:
        client = h11.Connection(h11.CLIENT)
        request = h11.Request(method="GET", target=target, headers=[("Host", "vpnkit"), ("Connection", "close")])
        try:
            connection.sendall((client.send(request) or b"") + (client.send(h11.EndOfMessage()) or b""))
            status, refusal = 0, bytearray()
            while True:
                event = client.next_event()
                if event is h11.NEED_DATA:
                    client.receive_data(connection.recv(65536))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                    connection.settimeout(None)  # the next packet may come tomorrow
                elif isinstance(event, h11.Data) and status == 200:
                    yield bytes(event.data)
                elif isinstance(event, h11.Data) and len(refusal) < MAX_REFUSAL:
                    refusal += event.data
                elif isinstance(event, h11.EndOfMessage):
                    break
                elif isinstance(event, h11.ConnectionClosed):
                    raise h11.RemoteProtocolError("no answer")
        except TimeoutError as error:
            raise ControlError(f"the instance at {path} does not answer") from error
        except (OSError, h11.RemoteProtocolError) as error:
            raise ControlError(f"the instance at {path} broke off: {error}") from error
    if status != 200:
        raise ControlError(f"the instance at {path} says: {_message(status, bytes(refusal))}")


def _connected(path: Path) -> socket.socket:
    try:
        return connected(path, TIMEOUT)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
            raise NotRunning(f"no instance listens on {path}") from error
        raise ControlError(f"cannot connect to control socket {path}: {error.strerror or error}") from error


def _exchange(connection: socket.socket, method: str, target: str, value: object) -> tuple[int, bytes]:
    client = h11.Connection(h11.CLIENT)
    headers = [("Host", "vpnkit"), ("Accept", "application/json"), ("Connection", "close")]
    sent = b""
    if value is not None:
        sent = msgspec.json.encode(value)
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(sent)))]
    wire = client.send(h11.Request(method=method, target=target, headers=headers)) or b""
    wire += client.send(h11.Data(sent)) or b"" if sent else b""
    wire += client.send(h11.EndOfMessage()) or b""
    try:
        connection.sendall(wire)
    except BrokenPipeError:
        pass  # refused before it was read: the answer says why
    status = 0
    body = bytearray()
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(connection.recv(65536))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_ANSWER:
                raise h11.RemoteProtocolError("the answer has no end")
        elif isinstance(event, h11.EndOfMessage):
            return status, bytes(body)
        elif isinstance(event, h11.ConnectionClosed):
            raise h11.RemoteProtocolError("no answer")


def _message(status: int, body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_FailureBody).error.message
    except (msgspec.DecodeError, UnicodeDecodeError):
        return f"HTTP status {status}"

"""The two ends of an exchange, as h11 sees them: the guest's side reads requests, the other one responses.

Heads of requests are checked before h11 sees them, and octets behind a request never reach its h11: each request has a
new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h11
import trio

from vpnkit.wire import http_head

if TYPE_CHECKING:
    from vpnkit.proto.http_headers import Field

CHUNK: Final = 64 * 1024
HEAD_SECONDS: Final = 30.0  # for a request's head to arrive whole
IDLE_SECONDS: Final = 60.0  # between two requests of one connection
STALL_SECONDS: Final = 600.0  # in which nothing moves, of a message that is under way


class Stalled(Exception):
    """Nothing moved for too long."""


class Client:
    """The guest's side of a connection."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self.h11 = h11.Connection(h11.SERVER)
        self.request: h11.Request | None = None
        self.responded = False  # a final response was begun
        self._end: h11.EndOfMessage | None = None  # of the request
        self._received = bytearray()

    async def next_request(self) -> h11.Request | None:
        """The head of the next request, or None when there is none.  Raises WireError, h11.RemoteProtocolError and
        Stalled, the last one only when a request was begun."""
        self.h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=http_head.MAX_HEAD)
        self.request = None
        self._end = None
        self.responded = False
        with trio.move_on_after(IDLE_SECONDS):
            if not await self._skip_empty_lines():
                return None
            with trio.move_on_after(HEAD_SECONDS) as in_time:
                head = await self._head()
            if in_time.cancelled_caught:
                raise Stalled("the request's head did not come")
            if not head:
                return None
            http_head.check(head)
            self.h11.receive_data(head)
            event = self.h11.next_event()
            assert isinstance(event, h11.Request), event
            self.request = event
            return event
        return None

    async def _skip_empty_lines(self) -> bool:
        """RFC 9112 section 2.2.  False at the end."""
        while True:
            while self._received[:2] == b"\r\n":
                del self._received[:2]
            if self._received and self._received != b"\r":
                return True
            data = await self.stream.receive_some(CHUNK)
            if not data:
                return False
            self._received += data

    async def _head(self) -> bytes:
        seen = 0
        while not (end := http_head.find_end(self._received, seen)):
            seen = len(self._received)
            data = await self.stream.receive_some(CHUNK)
            if not data:
                return b""
            self._received += data
        head = bytes(self._received[:end])
        del self._received[:end]
        return head

    async def next_event(self) -> h11.Data | h11.EndOfMessage:
        """What comes of the body, and its end as often as it is asked for.

        Raises h11.RemoteProtocolError and Stalled.
        """
        while self._end is None:
            event = self.h11.next_event()
            if event is not h11.NEED_DATA:
                assert isinstance(event, h11.Data | h11.EndOfMessage), event
                if isinstance(event, h11.Data):
                    return event
                self._received[:0] = self.h11.trailing_data[0]
                self._end = event
                return event
            if self._received:
                self.h11.receive_data(bytes(self._received))
                self._received.clear()
            else:
                self.h11.receive_data(await received(self.stream))
        return self._end

    async def send(self, event: h11.Event) -> None:
        data = self.h11.send(event)
        if isinstance(event, h11.Response):
            self.responded = True
        if data:
            await sent(self.stream, data)

    @property
    def may_go_on(self) -> bool:
        """Whether another request may follow the response."""
        return self.h11.our_state is h11.DONE and self.h11.their_state is h11.DONE

    def unread(self) -> bytes:
        """What came behind the request."""
        return bytes(self._received)


class Server:
    """The other side: an origin server, or a proxy."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self.used = 0  # exchanges that are over
        self.h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=http_head.MAX_HEAD)

    async def begin(self, method: bytes, target: bytes, fields: list[Field]) -> None:
        await self.send(h11.Request(method=method, target=target, headers=fields))

    async def send(self, event: h11.Event) -> None:
        data = self.h11.send(event)
        if data:
            await sent(self.stream, data)

    async def next_event(self) -> h11.Event:
        """Raises h11.RemoteProtocolError and Stalled."""
        while True:
            event = self.h11.next_event()
            if event is not h11.NEED_DATA:
                assert isinstance(event, h11.Event), event
                return event
            self.h11.receive_data(await received(self.stream))

    def end_exchange(self) -> bool:
        """Whether another request may be sent."""
        if self.h11.our_state is not h11.DONE or self.h11.their_state is not h11.DONE:
            return False
        if self.h11.trailing_data[0]:
            return False  # nobody asked for that
        self.used += 1
        self.h11.start_next_cycle()
        return True

    async def close(self) -> None:
        await trio.aclose_forcefully(self.stream)


async def received(stream: trio.abc.HalfCloseableStream) -> bytes:
    with trio.move_on_after(STALL_SECONDS):
        return bytes(await stream.receive_some(CHUNK))
    raise Stalled("nothing came")


async def sent(stream: trio.abc.HalfCloseableStream, data: bytes) -> None:
    with trio.move_on_after(STALL_SECONDS) as in_time:
        await stream.send_all(data)
    if in_time.cancelled_caught:
        raise Stalled("nothing was taken")

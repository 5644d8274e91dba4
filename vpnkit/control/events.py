"""`/v1/events`: what happens in the network, as it happens.

One JSON object on each line, or, for who asks for `text/event-stream`, server-sent events as browsers and curl know
them.  A client that reads slowly misses events and is told how many; nobody waits for him.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import trio

from vpnkit.control.message import Stream

if TYPE_CHECKING:
    from vpnkit.control.message import Request, Send
    from vpnkit.net.events import Event, EventHub

JSON_LINES: Final = "application/x-ndjson"
EVENT_STREAM: Final = "text/event-stream"
QUIET_SECONDS: Final = 15.0  # then a server-sent comment shows that the connection is alive


class EventStreams:
    """The handler."""

    def __init__(self, hub: EventHub) -> None:
        self._hub = hub

    async def open(self, request: Request) -> Stream:
        """The stream that the client wants."""
        if _wants_event_stream(request.header("accept") or ""):
            return Stream(EVENT_STREAM, self._send_event_stream)
        return Stream(JSON_LINES, self._send_lines)

    async def _send_lines(self, send: Send) -> None:
        with self._hub.listening() as listener:
            await send(b"")
            while True:
                await send(b"".join([msgspec.json.encode(event) + b"\n" for event in await listener.take()]))

    async def _send_event_stream(self, send: Send) -> None:
        with self._hub.listening() as listener:
            await send(b": listening\n\n")
            while True:
                taken: list[Event] = []
                with trio.move_on_after(QUIET_SECONDS):
                    taken = await listener.take()
                await send(b"".join(map(_server_sent, taken)) or b": nothing\n\n")


def _wants_event_stream(accept: str) -> bool:
    return any(part.partition(";")[0].strip().lower() == EVENT_STREAM for part in accept.split(","))


def _server_sent(event: Event) -> bytes:
    name = event.__struct_config__.tag
    return b"event: " + str(name).encode() + b"\ndata: " + msgspec.json.encode(event) + b"\n\n"

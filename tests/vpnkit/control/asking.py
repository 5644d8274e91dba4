"""Asking a router over HTTP, without a socket: the same connection as behind every listener."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11
import trio
from trio.testing import memory_stream_pair

from vpnkit.control.connection import OWNER, Connection
from vpnkit.control.message import Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from vpnkit.control.guard import Guard
    from vpnkit.control.routes import Router


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def header(self, name: str) -> str | None:
        return self.headers.get(name)

    def error(self) -> str:
        """The code of an error of ours."""
        return str(json.loads(self.body)["error"]["code"])


@asynccontextmanager
async def asker(
    router: Router, guard: Guard = OWNER, *, peer: str = "", authority: str = "unix"
) -> AsyncIterator[Callable[..., Awaitable[Answer]]]:
    """A function that asks: (method, target, body as JSON or octets, content type and more headers) -> Answer."""

    async def ask(
        method: str, target: str, body: object = None, *, content_type: str = "application/json", **more: str
    ) -> Answer:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        headers = {"Host": authority, "Content-Length": str(len(data))}
        if body is not None and content_type:
            headers["Content-Type"] = content_type
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        fields = [(name, value.encode("latin-1")) for name, value in headers.items()]
        client = h11.Connection(h11.CLIENT)
        wire = client.send(h11.Request(method=method, target=target, headers=fields)) or b""
        wire += client.send(h11.Data(data=data)) or b""
        wire += client.send(h11.EndOfMessage()) or b""
        ours, theirs = memory_stream_pair()
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_serve, Connection(theirs, router, guard, peer=peer), theirs)
                await ours.send_all(wire)
                answer = await _read(ours, client)
                await ours.aclose()
        return answer

    yield ask


async def _serve(connection: Connection, stream: trio.abc.HalfCloseableStream) -> None:
    try:
        going_on = await connection.serve()
        if isinstance(going_on, Stream):
            await connection.stream(going_on)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    await stream.aclose()


async def _read(stream: trio.abc.Stream, client: h11.Connection) -> Answer:
    answer = Answer(0, {}, b"")
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Response):
            answer.status = event.status_code
            answer.headers = {name.decode(): value.decode() for name, value in event.headers}
        elif isinstance(event, h11.Data):
            answer.body += bytes(event.data)
        else:
            assert isinstance(event, h11.EndOfMessage), event
            return answer

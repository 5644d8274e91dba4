"""A proxy, a guest's stream to it, and servers on the host's loopback that do what a test says."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from trio.testing import memory_stream_pair

from vpnkit.flow import host
from vpnkit.proto.http_proxy import parse_config
from vpnkit.services.http_proxy.service import HttpProxyService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio.testing import MemoryReceiveStream, MemorySendStream

GATEWAY = bytes((192, 168, 65, 1))
WORLD = bytes((203, 0, 113, 7))  # what guests call when they are intercepted
GUEST = bytes((192, 168, 65, 3))
PATIENCE = 5


class Environment:
    """Names are the loopback, and so is every address but those of `forbidden`."""

    def __init__(self) -> None:
        self.host = host
        self.names: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.forbidden = {"127.9.9.9", "192.168.65.1"}
        self.full = False

    def aim(self, address: str, port: int) -> tuple[str, int] | None:
        return None if address in self.forbidden else ("127.0.0.1", port)

    def admit(self) -> bool:
        return not self.full

    async def resolve(self, name: str) -> list[str]:
        self.asked.append(name)
        return self.names.get(name, ["127.0.0.1"] if name.endswith(".example") else [])

    async def resolve_upstream(self, name: str) -> list[str]:
        return [] if name.startswith("missing") else ["127.0.0.1"]


class Abortable(trio.abc.HalfCloseableStream):
    """A memory stream that can end at once, as the guest's does."""

    def __init__(self, stream: trio.StapledStream[MemorySendStream, MemoryReceiveStream]) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def abort(self) -> None:
        self._stream.send_stream.close()
        self._stream.receive_stream.close()


class Words:
    """One end of a stream, for people."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self.got = b""

    async def say(self, *lines: str, body: bytes = b"") -> None:
        await self.stream.send_all("".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1") + body)

    async def until(self, end: bytes) -> bytes:
        """Everything up to `end`, which has to come."""
        with trio.fail_after(PATIENCE):
            while end not in self.got:
                data = await self.stream.receive_some()
                assert data, f"the end after {self.got!r}"
                self.got += data
        at = self.got.index(end) + len(end)
        taken, self.got = self.got[:at], self.got[at:]
        return taken

    async def head(self) -> str:
        return (await self.until(b"\r\n\r\n")).decode("latin-1")

    async def rest(self) -> bytes:
        with trio.fail_after(PATIENCE):
            try:
                while data := await self.stream.receive_some():
                    self.got += data
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        taken, self.got = self.got, b""
        return taken

    async def exactly(self, count: int) -> bytes:
        with trio.fail_after(PATIENCE):
            while len(self.got) < count:
                data = await self.stream.receive_some()
                assert data, self.got
                self.got += data
        taken, self.got = self.got[:count], self.got[count:]
        return taken


class HttpLab:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.environment = Environment()
        self.service = HttpProxyService()
        self.failures: list[BaseException] = []

    def configure(self, text: str) -> None:
        self.service.replace(parse_config(text.encode()))

    def client(self, port: int = 3128, *, called: bytes = GATEWAY, aim: tuple[str, int] | None = None) -> Words:
        """A connection of the guest."""
        ours, theirs = memory_stream_pair()
        self._nursery.start_soon(self.service.serve, Abortable(theirs), GUEST, (called, port), aim, self.environment)
        return Words(ours)

    async def server(self, serve: Callable[[Words], Awaitable[None]]) -> int:
        """A server with `serve` for each connection; its port."""
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def one(stream: trio.SocketStream) -> None:
            try:
                with trio.fail_after(PATIENCE):
                    await serve(Words(stream))
            except trio.Cancelled:
                raise
            except trio.BrokenResourceError:
                pass  # the proxy has heard enough
            except BaseException as error:
                self.failures.append(error)
            finally:
                await trio.aclose_forcefully(stream)

        self._nursery.start_soon(trio.serve_listeners, one, [listener])
        return int(listener.socket.getsockname()[1])

    async def answering(self, *answers: bytes) -> tuple[int, list[str], list[int]]:
        """A server that answers each request that has no body with the next of `answers`; its port, the heads that it
        heard, and on which of its connections, numbered from 0, each of them."""
        left = list(answers)
        heads: list[str] = []
        connections: list[int] = []
        count = -1

        async def serve(words: Words) -> None:
            nonlocal count
            count += 1
            mine = count
            while left:
                try:
                    head = await words.head()
                except AssertionError:
                    return
                heads.append(head)
                connections.append(mine)
                answer = left.pop(0)
                await words.stream.send_all(answer)
                if b"Connection: close" in answer or b"HTTP/1.0" in answer:
                    return

        return await self.server(serve), heads, connections


@asynccontextmanager
async def http_lab() -> AsyncIterator[HttpLab]:
    async with trio.open_nursery() as nursery:
        lab = HttpLab(nursery)
        yield lab
        nursery.cancel_scope.cancel()
    assert not lab.failures, lab.failures
    assert not lab.service.streams

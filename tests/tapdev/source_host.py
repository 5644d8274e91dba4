"""What the tests of sources share: a host that echoes, clients that frame, and a directory for short paths."""

from __future__ import annotations

import tempfile
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tapdev.link import LinkClosed
from tapdev.sources import open_source
from tapdev.spec import parse
from tapdev.vmnet import Refused, Registration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from uuid import UUID

    from tapdev.link import Link
    from tapdev.sources import Source

PATIENCE = 10  # seconds
FRAME = b"\xff" * 6 + b"\x02\x50\x00\x00\x00\x01" + b"\x88\xb5" + b"hello" * 10


class EchoHost:
    """Sends every frame back, and remembers who came."""

    def __init__(self) -> None:
        self.joined: list[str] = []
        self.left: list[str] = []
        self.links: list[Link] = []
        self.registrations: list[Registration | None] = []
        self.asked: list[tuple[UUID | None, bytes | None]] = []
        self.refusal: str | None = None
        self.failure: Exception | None = None  # raised by the next `join`
        self._changed = trio.Event()

    def register(self, uuid: UUID | None, wanted: bytes | None) -> Registration:
        self.asked.append((uuid, wanted))
        if self.refusal is not None:
            raise Refused(self.refusal)
        return Registration(bytes([2, 0x50, 0, 0, 0, len(self.asked)]), wanted or bytes([192, 168, 65, 3]))

    async def join(self, link: Link, name: str, registration: Registration | None = None) -> None:
        self.joined.append(name)
        self.links.append(link)
        self.registrations.append(registration)
        self._change()
        try:
            if self.failure is not None:
                failure, self.failure = self.failure, None
                raise failure
            while True:
                while (frame := link.receive()) is not None:
                    while not link.send([bytes(frame)]):
                        await link.wait_writable()
                link.release()
                await link.wait_readable()
        except LinkClosed:
            pass
        finally:
            link.close()
            self.left.append(name)
            self._change()

    async def until(self, joined: int = 0, left: int = 0) -> None:
        """Wait until so many have joined and left."""
        with trio.fail_after(PATIENCE):
            while len(self.joined) < joined or len(self.left) < left:
                await self._changed.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@contextmanager
def short_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vk-") as path:
        yield Path(path)


@asynccontextmanager
async def running(source: Source | str, host: EchoHost) -> AsyncIterator[trio.Event]:
    """`source` runs meanwhile, and is closed afterwards; the event is set when its `run` returns."""
    if isinstance(source, str):
        source = open_source(parse(source))
    ended = trio.Event()

    async def run() -> None:
        await source.run(host)
        ended.set()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield ended
            nursery.cancel_scope.cancel()
    finally:
        source.close()
        source.close()


class Framed:
    """A client with a length of `size` octets before each frame."""

    def __init__(self, stream: trio.abc.Stream, size: int = 4, byteorder: str = "big") -> None:
        self.stream = stream
        self._size = size
        self._byteorder = byteorder
        self._buffer = b""

    async def send(self, frame: bytes) -> None:
        await self.stream.send_all(len(frame).to_bytes(self._size, self._byteorder) + frame)

    async def receive(self) -> bytes:
        length = int.from_bytes(await self.exactly(self._size), self._byteorder)
        return await self.exactly(length)

    async def exactly(self, count: int) -> bytes:
        with trio.fail_after(PATIENCE):
            while len(self._buffer) < count:
                chunk = await self.stream.receive_some(65536)
                assert chunk, "the other end closed"
                self._buffer += chunk
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    async def ended(self) -> bool:
        """Whether the other end closes now, without another octet."""
        with trio.fail_after(PATIENCE):
            try:
                return await self.stream.receive_some(1) == b""
            except trio.BrokenResourceError:
                return True

    async def echo(self, frame: bytes = FRAME) -> None:
        await self.send(frame)
        assert await self.receive() == frame

    async def aclose(self) -> None:
        await self.stream.aclose()


async def little(path: Path | str) -> Framed:
    return Framed(await trio.open_unix_socket(path), 2, "little")


async def big(path: Path | str) -> Framed:
    return Framed(await trio.open_unix_socket(path))

"""The host's resolvers: over UDP by simulated sockets, over TCP by trio's socket factory."""

from __future__ import annotations

import errno
import socket
import struct
import zlib
from collections import deque
from typing import TYPE_CHECKING

import trio

from tests.sim.host import SimSocket, error
from vpnkit.flow.poller import HANGUP, READABLE, WRITABLE

if TYPE_CHECKING:
    from tests.sim.host import SimHost
    from tests.sim.world import World


def encode_name(name: str) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode() for label in name.split(".")) + b"\0"


def question(ident: int, name: str) -> bytes:
    return struct.pack("!HHHHHH", ident, 0x0100, 1, 0, 0, 0) + encode_name(name) + b"\0\1\0\1"


def question_of(message: bytes) -> tuple[str, bytes]:
    """The name asked for, and the whole question section."""
    labels = []
    i = 12
    while message[i]:
        labels.append(message[i + 1 : i + 1 + message[i]].decode("latin-1").lower())
        i += 1 + message[i]
    return ".".join(labels), message[12 : i + 5]


def true_address(name: str) -> bytes:
    """What the whole internet agrees on."""
    return b"\x0a" + (zlib.crc32(name.encode()) & 0xFFFFFF).to_bytes(3, "big")


def answer(message: bytes, behaviour: str) -> list[bytes]:
    """What a server of this behaviour says to a query."""
    name, asked = question_of(message)
    ident = struct.unpack_from("!H", message)[0]
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4"
    good = struct.pack("!HHHHHH", ident, 0x8180, 1, 1, 0, 0) + asked + record + true_address(name)
    if behaviour == "lying":
        other_id = struct.pack("!H", ident ^ 0x5555) + good[2:-4] + b"\x06\x06\x06\x06"
        other_name = good[:12] + encode_name("liar." + name) + b"\0\1\0\1" + record + b"\x06\x06\x06\x06"
        return [other_id, other_name, b"\0", good[:9]]
    if behaviour == "servfail":
        return [struct.pack("!HHHHHH", ident, 0x8182, 1, 0, 0, 0) + asked]
    return [good]


class ResolverSocket(SimSocket):
    """A connected UDP socket towards one resolver."""

    def __init__(self, host: SimHost, family: int) -> None:
        super().__init__(host, family)
        self.incoming: deque[bytes] = deque()
        self.behaviour = "dead"

    def state(self) -> int:
        return WRITABLE | (READABLE if self.incoming else 0) | (READABLE | HANGUP if self.error else 0)

    def connect(self, address: tuple[str, int]) -> None:
        self.need_way(address[0])
        self.behaviour = self.world.resolver(address)

    def send(self, data: bytes) -> int:
        self.check()
        world = self.world
        if world.faults.happens("eagain"):
            raise BlockingIOError(errno.EAGAIN, "full")
        world.faults.counts[f"dns_{self.behaviour}"] += 1
        if self.behaviour == "refused":
            world.agenda.after(self.host.latency(), self._refused)
        elif self.behaviour != "dead":
            for message in answer(bytes(data), self.behaviour):
                world.agenda.after(self.host.latency(), self._arrives, message)
        return len(data)

    def _refused(self) -> None:
        if not self.closed:
            self.error = errno.ECONNREFUSED
            self.wake()

    def _arrives(self, message: bytes) -> None:
        if not self.closed:
            self.incoming.append(message)
            self.wake()

    def recv(self, _limit: int) -> bytes:
        self.check()
        if not self.incoming:
            raise BlockingIOError(errno.EAGAIN, "nothing")
        return self.incoming.popleft()


class StreamSocket(trio.socket.SocketType):
    """A TCP connection to a resolver, as trio gives it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._behaviour = "dead"
        self._received = bytearray()
        self._answers = bytearray()
        self._answered = trio.Event()
        self._closed = False
        world.open_streams += 1

    @property
    def type(self) -> socket.SocketKind:
        return socket.SOCK_STREAM

    async def connect(self, address: tuple[str, int]) -> None:  # type: ignore[override]
        if ":" in address[0] and not self._world.host.routes.has:
            raise error(errno.ENETUNREACH)
        self._behaviour = self._world.resolver(address)
        self._world.faults.counts["tcp_dns"] += 1
        if self._behaviour == "dead":
            await trio.sleep_forever()
        await trio.sleep(self._world.faults.rng.uniform(0.001, 0.02))
        if self._behaviour == "refused":
            raise error(errno.ECONNREFUSED)

    @property
    def did_shutdown_SHUT_WR(self) -> bool:
        return False

    def getpeername(self) -> tuple[str, int]:
        return ("10.99.0.1", 53)

    def setsockopt(self, *_arguments: object) -> None:  # type: ignore[override]
        pass

    def getsockopt(self, *_arguments: object) -> int:  # type: ignore[override]
        return 0

    def fileno(self) -> int:
        return -1 if self._closed else 0

    async def send(self, data: bytes | memoryview, _flags: int = 0) -> int:  # type: ignore[override]
        await trio.lowlevel.checkpoint()
        count = self._world.faults.rng.randrange(1, len(data) + 1)
        self._received += data[:count]
        while len(self._received) >= 2 and len(self._received) >= 2 + int.from_bytes(self._received[:2], "big"):
            end = 2 + int.from_bytes(self._received[:2], "big")
            for message in answer(bytes(self._received[2:end]), self._behaviour):
                self._answers += len(message).to_bytes(2, "big") + message
                self._answered.set()
            del self._received[:end]
        return count

    async def recv(self, limit: int, _flags: int = 0) -> bytes:  # type: ignore[override]
        await trio.sleep(self._world.faults.rng.uniform(0.001, 0.02))
        while not self._answers:  # the connection stays open until the resolver is not asked any more
            self._answered = trio.Event()
            await self._answered.wait()
        count = min(limit, self._world.faults.rng.randrange(1, 200))
        data = bytes(self._answers[:count])
        del self._answers[:count]
        return data

    def shutdown(self, _how: int) -> None:
        pass

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._world.open_streams -= 1

    def __enter__(self) -> StreamSocket:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class Factory(trio.abc.SocketFactory):
    def __init__(self, world: World) -> None:
        self._world = world

    def socket(self, _family: int = 0, kind: int = 0, _proto: int = 0) -> trio.socket.SocketType:  # type: ignore[override]
        assert kind == socket.SOCK_STREAM
        self._world.host.exhausted()
        return StreamSocket(self._world)

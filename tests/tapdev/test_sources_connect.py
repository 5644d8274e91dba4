"""Sources that connect themselves, and those of datagrams."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tapdev.sources import open_source
from tapdev.sources.connecting import FIRST_DELAY, LONGEST_DELAY, ConnectingSource
from tapdev.spec import parse
from tests.tapdev.source_host import FRAME, PATIENCE, EchoHost, Framed, running, short_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


async def server(path: Path) -> trio.SocketListener:
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await sock.bind(str(path))
    sock.listen()
    return trio.SocketListener(sock)


async def accepted(listener: trio.SocketListener) -> Framed:
    with trio.fail_after(PATIENCE):
        return Framed(await listener.accept())


async def test_qemu_is_waited_for_and_reconnected_to(directory: Path) -> None:
    path = directory / "q"
    host = EchoHost()
    async with running(f"qemu-connect:{path}", host):
        await trio.testing.wait_all_tasks_blocked()
        listener = await server(path)
        for number in range(3):
            guest = await accepted(listener)
            await guest.echo(FRAME + bytes([number]))
            await guest.aclose()
            await host.until(left=number + 1)
        await listener.aclose()
        path.unlink()  # QEMU starts again
        listener = await server(path)
        guest = await accepted(listener)
        await guest.echo()
        await guest.aclose()
        await listener.aclose()
    assert host.joined[0] == f"qemu-connect:{path}"
    assert host.links[0].capabilities.mtu == 65520


async def test_qemu_over_tcp() -> None:
    host = EchoHost()
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    async with running(f"qemu-connect:tcp:127.0.0.1:{port}", host):
        for _ in range(2):
            guest = await accepted(listener)
            await guest.echo(FRAME * 100)
            await guest.aclose()
    await listener.aclose()


class Attempts(ConnectingSource):
    """Nobody is ever there, or only for `lives` seconds each."""

    def __init__(self, lives: list[float]) -> None:
        super().__init__(parse("qemu-connect:/nowhere"), self._live)
        self.times: list[float] = []
        self.lives = lives

    async def _connect(self) -> socket.socket:
        await trio.lowlevel.checkpoint()
        self.times.append(trio.current_time())
        if not self.lives:
            raise ConnectionRefusedError(111, "Connection refused")
        return socket.socket(socket.AF_UNIX)

    async def _live(self, *_: object) -> None:
        await trio.sleep(self.lives.pop(0))


async def pauses(lives: list[float], seconds: float) -> list[float]:
    source = Attempts(lives)
    with trio.move_on_after(seconds):
        await source.run(EchoHost())
    return [round(b - a, 3) for a, b in zip(source.times, source.times[1:], strict=False)]


async def test_attempts_are_slower_and_slower_and_said_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert await pauses([], 6) == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0]
    assert caplog.text.count("cannot connect") == 1


async def test_a_guest_that_was_there_is_reconnected_to_at_once(autojump_clock: trio.testing.MockClock) -> None:
    assert await pauses([5.0, 5.0], 11) == [5.0, 5.0, 0.1, 0.2, 0.4]


async def test_a_server_that_drops_us_at_once_does_not_make_us_spin(autojump_clock: trio.testing.MockClock) -> None:
    assert await pauses([0.0] * 100, 5) == [FIRST_DELAY, 0.2, 0.4, 0.8, LONGEST_DELAY, LONGEST_DELAY, LONGEST_DELAY]


async def test_a_closed_source_ends(directory: Path) -> None:
    source = open_source(parse(f"qemu-connect:{directory}/q"))
    async with running(source, EchoHost()) as ended:
        await trio.testing.wait_all_tasks_blocked()
        source.close()
        with trio.fail_after(PATIENCE):
            await ended.wait()


def test_a_source_that_never_ran_is_closed_outside_of_trio(directory: Path) -> None:
    for text in ("qemu-connect:{}/q", "qemu:{}/q", "dgram:{}/q", "vmnet:{}/q", "qemu:tcp:127.0.0.1:0"):
        source = open_source(parse(text.format(directory)))
        source.close()
        source.close()


# Datagrams


class Peer:
    """A VM's end of a datagram link."""

    def __init__(self, path: Path) -> None:
        self.sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.path = path

    async def bind(self) -> Peer:
        await self.sock.bind(str(self.path))
        return self

    async def echo(self, server: Path, hello: bytes = b"") -> None:
        with trio.fail_after(PATIENCE):
            if hello:
                await self.sock.sendto(hello, str(server))
            await self.sock.sendto(FRAME, str(server))
            assert await self.sock.recv(65536) == FRAME

    def close(self) -> None:
        self.path.unlink()
        self.sock.close()


@pytest.mark.parametrize(
    ("kind", "hello", "mtu"), [("vfkit", b"VFKT", 1500), ("vfkit", b"", 1500), ("dgram", b"", 65520)]
)
async def test_a_datagram_guest_and_its_successor(directory: Path, kind: str, hello: bytes, mtu: int) -> None:
    path = directory / "s"
    host = EchoHost()
    async with running(f"{kind}:{path}", host):
        for number in range(2):
            peer = await Peer(directory / f"vm{number}").bind()
            await peer.echo(path, hello)
            peer.close()
        await host.until(joined=2)
    assert host.links[0].capabilities.mtu == mtu
    assert [link.statistics.errors for link in host.links] == [0, 0]
    assert os.listdir(directory) == []


async def test_a_datagram_guest_with_a_known_path_is_there_at_once(directory: Path) -> None:
    path = directory / "s"
    host = EchoHost()
    peer = await Peer(directory / "vm").bind()
    async with running(f"dgram:{path},{peer.path}", host):
        await host.until(joined=1)
        assert host.links[0].send([FRAME])
        with trio.fail_after(PATIENCE):
            assert await peer.sock.recv(65536) == FRAME
        await peer.echo(path)
    peer.close()
    assert os.listdir(directory) == []

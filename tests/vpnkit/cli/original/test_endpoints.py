"""The sockets beside --ethernet, the state that they show, and the file that is followed."""

from __future__ import annotations

import io
import logging
import socket
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from tapdev.spec import parse
from vpnkit.cli.original import endpoints
from vpnkit.cli.original.endpoints import diagnostics, endpoint, inherited, pcap, serve_each
from vpnkit.cli.original.start import Backlogged, follow
from vpnkit.cli.original.state import State, _duration
from vpnkit.errors import ConfigError
from vpnkit.net.captures import Captures
from vpnkit.net.network import Network, NetworkOptions
from vpnkit.net.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vpnkit.net.plan import GatewayForwards


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vk-") as name:
        yield Path(name, "s")


def write(path: Path, text: str | None) -> None:
    """Or, without text, away with it."""
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


def mode_of(path: Path) -> int | None:
    return path.stat().st_mode & 0o777 if path.exists() else None


async def becomes(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - a file is looked at, there is no event
            await trio.sleep(0.01)


def network(captures: Captures | None = None) -> Network:
    return Network(Plan(), NetworkOptions(captures=captures))


async def everything(path: Path) -> bytes:
    async with await trio.open_unix_socket(path) as stream:
        return b"".join([data async for data in stream])


async def test_a_tar_for_each_who_connects(path: Path, nursery: trio.Nursery) -> None:
    with endpoint("diagnostics", parse(f"vmnet:{path}")) as listener:
        assert mode_of(path) == 0o600
        state = State(network(Captures()))
        nursery.start_soon(serve_each, "diagnostics", listener, diagnostics(state))
        for _ in range(2):
            with tarfile.open(fileobj=io.BytesIO(await everything(path))) as archive:
                assert set(archive.getnames()) == set(state.files)
                assert "capture/bad.pcap" in state.files
        nursery.cancel_scope.cancel()
    assert mode_of(path) is None


def test_without_captures_there_are_none() -> None:
    assert not [name for name in State(network()).files if name.startswith("capture/")]


async def test_a_pcap_stream_goes_on(path: Path, nursery: trio.Nursery) -> None:
    captures = Captures()
    show = captures.capture.tap("vm")
    frame = bytes(
        Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(dst="192.0.2.1") / UDP(dport=9) / b"hello"
    )
    with endpoint("pcap", parse(f"vmnet:{path}")) as listener:
        nursery.start_soon(serve_each, "pcap", listener, pcap(network(captures)))
        async with await trio.open_unix_socket(path) as stream:
            data = await stream.receive_some()
            assert len(data) == 24
            show([frame], 0, 0, 0, False)
            with trio.fail_after(10):
                assert (await stream.receive_some())[16:] == frame
        nursery.cancel_scope.cancel()


async def test_there_is_an_end_of_clients(
    path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(endpoints, "MAX_CONNECTIONS", 2)
    asked = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal asked
        asked += 1
        await stream.receive_some()
        raise RuntimeError("a defect")

    with endpoint("pcap", parse(f"vmnet:{path}")) as listener:
        nursery.start_soon(serve_each, "pcap", listener, serve)
        first, second = [await trio.open_unix_socket(path) for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked()
        assert await everything(path) == b""
        assert asked == 2
        await first.send_all(b"x")
        assert await first.receive_some() == b""  # the defect is his alone
        third = await trio.open_unix_socket(path)
        await trio.testing.wait_all_tasks_blocked()
        assert asked == 3
        for stream in (first, second, third):
            await stream.aclose()
        nursery.cancel_scope.cancel()
    assert "refused a client" in caplog.text


def test_what_cannot_be_inherited() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(ConfigError, match="no bound stream socket"):
            inherited("port", datagrams.fileno())
        assert datagrams.getsockname()  # it is still the caller's
    with pytest.raises(ConfigError, match="Bad file descriptor"):
        inherited("port", 1 << 20)


async def test_a_file_is_followed(
    path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vpnkit.services.followed.CHECK_SECONDS", 0)
    monkeypatch.setattr("vpnkit.cli.original.start.LOOK_SECONDS", 0.01)
    forwards: GatewayForwards = {}
    stronger: GatewayForwards = {("tcp", 9): ("127.0.0.1", 9)}
    line = '[{"protocol": "tcp", "external_port": %d, "internal_ip": "10.0.0.1", "internal_port": 5}]'

    def ports() -> set[int]:
        return {port for _, port in forwards}

    write(path, line % 9)
    nursery.start_soon(follow, path, stronger, forwards)
    await becomes(lambda: ports() == {9})
    assert forwards == stronger
    write(path, line % 80)
    await becomes(lambda: ports() == {9, 80})
    with caplog.at_level(logging.WARNING):
        write(path, "broken")
        await becomes(lambda: "still holds" in caplog.text)
    assert ("tcp", 80) in forwards
    write(path, None)
    await trio.sleep(0.05)
    assert ("tcp", 80) in forwards
    write(path, "[]")
    await becomes(lambda: ports() == {9})
    nursery.cancel_scope.cancel()


async def test_the_backlog_is_for_streams() -> None:
    asked = []

    class Table:
        async def expose(self, text: str) -> Sequence[object]:
            asked.append(text)
            return ()

    table = Backlogged(Table(), 7)  # type: ignore[arg-type]
    await table.expose("tcp:127.0.0.1:1:tcp:10.0.0.1:1")
    await table.expose("udp:127.0.0.1:1:udp:10.0.0.1:1")
    assert asked == ["tcp:127.0.0.1:1:tcp:10.0.0.1:1,backlog=7", "udp:127.0.0.1:1:udp:10.0.0.1:1"]


@pytest.mark.parametrize(("seconds", "text"), [(0.05, "0.05s"), (1.05, "1.05s"), (200, "3m20s"), (7260, "2h1m")])
def test_durations(seconds: float, text: str) -> None:
    assert _duration(seconds) == text

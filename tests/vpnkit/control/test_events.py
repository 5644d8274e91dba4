"""`/v1/events`: what happens is told in order, to everybody, and a slow one misses it alone."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.vpnkit.control.reporter import FixedOperator
from vpnkit.control import http
from vpnkit.control.events import QUIET_SECONDS
from vpnkit.control.http import serve_http
from vpnkit.control.instance import instance_router
from vpnkit.control.listen import listening
from vpnkit.net import events
from vpnkit.net.events import EventHub, EventsLost, Warned

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def warning(number: int) -> Warned:
    return Warned(time=float(number), message=f"warning {number}")


# The hub


async def test_a_listener_hears_what_happens_from_then_on() -> None:
    hub = EventHub()
    hub.publish(warning(0))
    assert not hub.is_heard
    with hub.listening() as one, hub.listening() as other:
        assert hub.is_heard
        hub.publish(warning(1))
        hub.publish(warning(2))
        assert await one.take() == [warning(1), warning(2)]
        hub.publish(warning(3))
        assert await one.take() == [warning(3)]
        assert await other.take() == [warning(1), warning(2), warning(3)]
    assert not hub.is_heard
    assert (hub.published, hub.lost) == (4, 0)


async def test_to_wait_for_something_to_happen(nursery: trio.Nursery) -> None:
    hub = EventHub()
    with hub.listening() as listener:
        taken: list[object] = []

        async def take() -> None:
            taken.extend(await listener.take())

        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        assert taken == []
        hub.publish(warning(1))
        await trio.testing.wait_all_tasks_blocked()
        assert taken == [warning(1)]


async def test_a_slow_listener_misses_events_alone_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "QUEUE_EVENTS", 3)
    hub = EventHub(lambda: 99.0)
    with hub.listening() as slow, hub.listening() as quick:
        heard = []
        for number in range(5):
            hub.publish(warning(number))
            heard += await quick.take()
        assert heard == [warning(number) for number in range(5)]
        assert await slow.take() == [warning(0), warning(1), warning(2), EventsLost(time=99.0, count=2)]
        hub.publish(warning(5))
        assert await slow.take() == [warning(5)]
    assert hub.lost == 2


# The stream


@pytest.fixture
def operator() -> FixedOperator:
    return FixedOperator()


@pytest.fixture
async def path(tmp_path: Path, operator: FixedOperator, nursery: trio.Nursery) -> AsyncIterator[Path]:
    path = tmp_path / "x.sock"
    with listening(path) as listener:
        nursery.start_soon(serve_http, listener, instance_router(operator))
        yield path
        nursery.cancel_scope.cancel()


class Client:
    """Reads chunks of an answer that goes on."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._data = b""

    async def until(self, end: bytes) -> bytes:
        while end not in self._data:
            more = await self.stream.receive_some()
            assert more, f"the stream ended behind {self._data!r}"
            self._data += more
        found, _, self._data = self._data.partition(end)
        return found

    async def chunk(self) -> bytes:
        size = int(await self.until(b"\r\n"), 16)
        while len(self._data) < size + 2:
            self._data += await self.stream.receive_some()
        chunk, self._data = self._data[:size], self._data[size + 2 :]
        return chunk


@asynccontextmanager
async def listener(path: Path, *headers: str, version: str = "1.1") -> AsyncIterator[tuple[Client, bytes]]:
    async with await trio.open_unix_socket(str(path)) as stream:
        lines = [f"GET /v1/events HTTP/{version}", "Host: x", *headers, "", ""]
        await stream.send_all("\r\n".join(lines).encode())
        client = Client(stream)
        yield client, (await client.until(b"\r\n\r\n")).lower()


async def test_json_lines(path: Path, operator: FixedOperator) -> None:
    with trio.fail_after(5):
        async with listener(path) as (client, head):
            assert head.startswith(b"http/1.1 200 ok\r\n")
            assert b"content-type: application/x-ndjson" in head
            await operator.expose("9090:90")
            operator.events.publish(warning(1))
            lines = (await client.chunk()).splitlines()
            first, second = map(json.loads, lines)
            assert (first["event"], first["time"]) == ("forward_added", 1_700_000_000.5)
            assert first["forwards"][0]["spec"] == "9090:90"
            assert second == {"event": "warning", "time": 1, "message": "warning 1"}


async def test_server_sent_events(path: Path, operator: FixedOperator) -> None:
    with trio.fail_after(5):
        async with listener(path, "Accept: text/html, text/event-stream;q=0.9") as (client, head):
            assert b"content-type: text/event-stream" in head
            assert await client.chunk() == b": listening\n\n"
            operator.events.publish(warning(1))
            assert await client.chunk() == (
                b'event: warning\ndata: {"event":"warning","time":1.0,"message":"warning 1"}\n\n'
            )


async def test_a_quiet_event_stream_shows_that_it_is_alive(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with listener(path, "Accept: text/event-stream") as (client, _):
        await client.chunk()
        assert await client.chunk() == b": nothing\n\n"
        assert trio.current_time() == pytest.approx(QUIET_SECONDS)


async def test_http_1_0_has_no_chunks(path: Path, operator: FixedOperator) -> None:
    with trio.fail_after(5):
        async with listener(path, version="1.0") as (client, head):
            assert b"transfer-encoding" not in head
            operator.events.publish(warning(1))
            assert json.loads(await client.until(b"\n"))["message"] == "warning 1"


async def test_a_client_that_goes_is_forgotten(path: Path, operator: FixedOperator) -> None:
    async with listener(path):
        await trio.testing.wait_all_tasks_blocked()
        assert operator.events.is_heard
    with trio.fail_after(5):
        while operator.events.is_heard:  # noqa: ASYNC110
            await trio.sleep(0.001)


async def test_a_client_that_reads_nothing_loses_events_and_then_the_connection(
    path: Path, operator: FixedOperator, autojump_clock: trio.testing.MockClock
) -> None:
    async with listener(path) as (client, _):
        began = trio.current_time()
        for number in range(100):
            for _ in range(100):
                operator.events.publish(Warned(time=number, message="x" * 1000))
            await trio.testing.wait_all_tasks_blocked()
            assert trio.current_time() == began, "nobody waited for him"
        assert operator.events.lost > 5000
        while operator.events.is_heard:  # noqa: ASYNC110
            await trio.sleep(1)
        assert trio.current_time() - began == pytest.approx(60, abs=2)
        assert client


async def test_streams_do_not_use_up_the_connections(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(http, "MAX_STREAMS", 3)
    async with listener(path), listener(path), listener(path):
        async with listener(path) as (client, head):
            assert head.startswith(b"http/1.1 503 ")
            assert b"too_many_streams" in await client.until(b"\n")
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")


async def test_head_of_a_stream_ends(path: Path, operator: FixedOperator) -> None:
    with trio.fail_after(5):
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(b"HEAD /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while data := await stream.receive_some():
                received += data
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(b"\r\n\r\n")
    assert not operator.events.is_heard


async def test_a_failing_stream_has_no_end_and_tells_the_log(
    path: Path, operator: FixedOperator, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.fail_after(5):
        async with listener(path) as (client, _):
            operator.events.publish(object())  # type: ignore[arg-type]
            received = b""
            while data := await client.stream.receive_some():
                received += data
    assert not received.endswith(b"0\r\n\r\n")
    assert "a stream failed" in caplog.text

"""gvproxy's `/connect`: the end of HTTP on a connection, and the beginning of frames."""

from __future__ import annotations

import pytest
import trio
from trio.testing import open_stream_to_socket_listener

from tests.vpnkit.control.reporter import FixedOperator
from vpnkit.control import http
from vpnkit.control.http import serve_http
from vpnkit.control.instance import instance_router
from vpnkit.control.listen import listening

# As gvforwarder asks: an empty Host, and frames right behind it.
REQUEST = b"POST /connect HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
async def server(tmp_path, nursery):
    taken: list[tuple[trio.SocketStream, bytes]] = []
    came, leave = trio.Event(), trio.Event()

    async def connect(stream: trio.SocketStream, received: bytes) -> None:
        taken.append((stream, received))
        came.set()
        await leave.wait()

    with listening(tmp_path / "c.sock") as listener:
        operator = FixedOperator()
        operator.connect = connect
        nursery.start_soon(serve_http, listener, instance_router(operator))
        yield listener, taken, came, leave


async def test_the_stream_and_what_came_behind_the_request_are_handed_over(server):
    listener, taken, came, leave = server
    client = await open_stream_to_socket_listener(listener)
    await client.send_all(REQUEST + b"\x0e\x00first frame...")
    await came.wait()
    [(stream, received)] = taken
    assert received == b"\x0e\x00first frame..."
    await stream.send_all(b"frames")
    assert await client.receive_some() == b"frames", "and no HTTP before them"
    leave.set()
    assert await client.receive_some() == b""
    await client.aclose()


async def test_guests_do_not_use_up_the_operators_connections(server, monkeypatch):
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 2)
    listener, taken, _, leave = server
    guests = []
    for number in range(4):
        guests.append(await open_stream_to_socket_listener(listener))
        await guests[-1].send_all(REQUEST)
        with trio.fail_after(5):
            while len(taken) <= number:  # noqa: ASYNC110
                await trio.sleep(0.001)
    async with await open_stream_to_socket_listener(listener) as operator:
        await operator.send_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await operator.receive_some()).startswith(b"HTTP/1.1 200")
    leave.set()
    for guest in guests:
        await guest.aclose()

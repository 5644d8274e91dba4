"""Whatever a client sends, it gets one well-formed answer or a closed connection, in bounded time and memory."""

from __future__ import annotations

import errno
import json
import logging
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import h11
import pytest
import trio
import trio.testing

from portfwd import accept
from vpnkit.control import connection, guard, http
from vpnkit.control.http import serve_http
from vpnkit.control.listen import listening
from vpnkit.control.message import HttpError, Request, Response, json_response
from vpnkit.control.routes import Route, Router

if TYPE_CHECKING:
    from pathlib import Path

Open = Callable[[], Awaitable[trio.SocketStream]]


async def hello(_request: Request) -> Response:
    return json_response({"hello": "world"})


async def echo(request: Request) -> Response:
    return Response(200, request.body, "text/plain")


async def show(request: Request) -> Response:
    return json_response({"path": request.path, "query": request.query, "agent": request.header("user-agent")})


async def broken(_request: Request) -> Response:
    raise RuntimeError("secret detail")


async def picky(_request: Request) -> Response:
    raise HttpError(409, "conflict", "not now")


ROUTES = Router(
    [
        Route("GET", "/hello", hello),
        Route("POST", "/echo", echo),
        Route("PUT", "/echo", echo),
        Route("GET", "/show", show),
        Route("GET", "/broken", broken),
        Route("GET", "/picky", picky),
    ]
)


@pytest.fixture
async def connect(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Open]:
    """Opens connections to a server that serves ROUTES."""
    path = tmp_path / "x.sock"
    with listening(path) as listener:
        nursery.start_soon(serve_http, listener, ROUTES)
        yield partial(trio.open_unix_socket, path)
        nursery.cancel_scope.cancel()


async def read_all(stream: trio.SocketStream) -> bytes:
    received = bytearray()
    try:
        async for data in stream:
            received += data
    except trio.BrokenResourceError:
        pass
    return bytes(received)


def responses(wire: bytes, methods: list[bytes]) -> list[tuple[int, dict[str, str], bytes]]:
    """The answers in `wire`, one per method, as h11 understands them; nothing may be left over."""
    result = []
    for method in methods:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(wire)
        client.receive_data(b"")
        response = client.next_event()
        assert isinstance(response, h11.Response)
        body = bytearray()
        while isinstance(event := client.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        headers = {name.decode(): value.decode() for name, value in response.headers}
        result.append((response.status_code, headers, bytes(body)))
        wire = client.trailing_data[0]
    assert wire == b""
    return result


async def exchange(connect: Open, wire: bytes, method: bytes = b"GET") -> tuple[int, dict[str, str], bytes]:
    """The only answer to `wire`, sent whole, up to the end of the connection."""
    stream = await connect()
    async with stream:
        await stream.send_all(wire)
        await stream.send_eof()
        return responses(await read_all(stream), [method])[0]


def code(body: bytes) -> str:
    error = json.loads(body)["error"]
    assert set(error) == {"code", "message"}
    assert error["message"]
    return str(error["code"])


def get(path: str = "/hello", *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: x", *headers, "", ""]
    return "\r\n".join(lines).encode()


async def test_an_answer(connect: Open) -> None:
    status, headers, body = await exchange(connect, get())
    assert status == 200
    assert body == b'{"hello":"world"}\n'
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(body))
    assert headers["x-content-type-options"] == "nosniff"


async def test_head_has_the_header_of_get_and_no_body(connect: Open) -> None:
    status, headers, body = await exchange(connect, get(method="HEAD"), b"HEAD")
    assert (status, body) == (200, b"")
    assert headers["content-length"] == "18"


@pytest.mark.parametrize(("path", "allow"), [("/hello", "GET, HEAD"), ("/echo", "POST, PUT")])
async def test_a_wrong_method_is_told_the_right_ones(connect: Open, path: str, allow: str) -> None:
    status, headers, body = await exchange(connect, get(path, "Content-Length: 0", method="DELETE"))
    assert (status, code(body)) == (405, "method_not_allowed")
    assert headers["allow"] == allow


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/hello/", "/../hello", "/%68ello", "*", "hello", "//hello", "/hello;x"]
)
async def test_an_unknown_path(connect: Open, path: str) -> None:
    status, _, body = await exchange(connect, get(path))
    assert (status, code(body)) == (404, "not_found")


async def test_an_error_does_not_end_the_connection(connect: Open) -> None:
    stream = await connect()
    async with stream:
        await stream.send_all(get("/nothing") + get("/picky") + get("/broken") + get("/hello", "Connection: close"))
        answers = responses(await read_all(stream), [b"GET"] * 4)
    assert [status for status, _, _ in answers] == [404, 409, 500, 200]
    assert code(answers[1][2]) == "conflict"


async def test_a_failing_handler_tells_the_log_and_not_the_client(
    connect: Open, caplog: pytest.LogCaptureFixture
) -> None:
    status, _, body = await exchange(connect, get("/broken"))
    assert (status, code(body)) == (500, "internal")
    assert b"secret" not in body
    assert "secret detail" in caplog.text


async def test_the_absolute_form_and_the_query(connect: Open) -> None:
    _, _, body = await exchange(connect, get("http://h:80/show?a=b&c", "User-Agent: me"))
    assert json.loads(body) == {"path": "/show", "query": "a=b&c", "agent": "me"}


async def test_pipelined_requests_are_answered_in_order(connect: Open) -> None:
    stream = await connect()
    async with stream:
        posts = [get("/echo", f"Content-Length: {n}", method="POST") + b"x" * n for n in (1, 0, 5000)]
        await stream.send_all(b"".join(posts) + get("/hello", "Connection: close"))
        answers = responses(await read_all(stream), [b"POST", b"POST", b"POST", b"GET"])
    assert [len(body) for _, _, body in answers] == [1, 0, 5000, 18]


async def test_http_1_0_clients(connect: Open) -> None:
    stream = await connect()
    async with stream:  # its own side stays open: the answer must end by itself
        await stream.send_all(b"GET /hello HTTP/1.0\r\n\r\n")
        ((status, headers, body),) = responses(await read_all(stream), [b"GET"])
    assert (status, body) == (200, b'{"hello":"world"}\n')
    assert headers["connection"] == "close"


async def test_expect_100_continue(connect: Open) -> None:
    stream = await connect()
    async with stream:
        await stream.send_all(get("/echo", "Content-Length: 2", "Expect: 100-continue", method="POST"))
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"ok")
        await stream.send_eof()
        ((_, _, body),) = responses(await read_all(stream), [b"POST"])
    assert body == b"ok"


async def test_a_request_split_at_every_octet(connect: Open) -> None:
    wire = get("/echo", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: v\r\n\r\n"
    stream = await connect()
    async with stream:
        for split in range(1, len(wire)):
            await stream.send_all(wire[:split])
            await trio.testing.wait_all_tasks_blocked()
            await stream.send_all(wire[split:])
            received = b""
            while not received.endswith(b"abcde"):
                received += await stream.receive_some()
            assert responses(received, [b"POST"])[0][0] == 200


async def test_a_request_octet_by_octet(connect: Open) -> None:
    stream = await connect()
    async with stream:
        for octet in get("/hello", "Connection: close"):
            await stream.send_all(bytes([octet]))
            await trio.testing.wait_all_tasks_blocked()
        assert responses(await read_all(stream), [b"GET"])[0][0] == 200


BAD = {
    "empty lines": (b"\r\n\r\n\r\n", 400),
    "no version": (b"GET /hello\r\n\r\n", 400),
    "wrong version": (b"GET /hello HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    "no host": (b"GET /hello HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /hello HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    "garbage": (bytes(range(256)) * 8, 400),
    "zeros": (b"\0" * 100, 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", 400),
    "space in target": (b"GET /hel lo HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "fold": (b"GET /hello HTTP/1.1\r\n Host: x\r\n\r\n", 400),
    "nul in a field": (b"GET /hello HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n", 400),
    "space before the colon": (b"GET /hello HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    "two lengths": (get("/echo", "Content-Length: 1", "Content-Length: 2", method="POST") + b"xx", 400),
    "negative length": (get("/echo", "Content-Length: -1", method="POST"), 400),
    "hexadecimal length": (get("/echo", "Content-Length: 0x1", method="POST") + b"x", 400),
    "unknown coding": (get("/echo", "Transfer-Encoding: gzip", method="POST"), 501),
    "bad chunk": (get("/echo", "Transfer-Encoding: chunked", method="POST") + b"zz\r\n\r\n", 400),
    "endless chunk size": (get("/echo", "Transfer-Encoding: chunked", method="POST") + b"1" * 9000, 431),
    "cut header": (get()[:-2], 400),
    "cut body": (get("/echo", "Content-Length: 5", method="POST") + b"abc", 400),
    "long target": (get("/" + "x" * 9000), 431),
    "long field": (get("/hello", "A: " + "x" * 9000), 431),
    "endless header": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20000, 431),
    "many fields": (get("/hello", *(f"A{n}: b" for n in range(64))), 431),
    "large body": (get("/echo", "Content-Length: 65537", method="POST"), 413),
    "huge length": (get("/echo", "Content-Length: " + "9" * 20, method="POST"), 413),
    "large chunks": (
        get("/echo", "Transfer-Encoding: chunked", method="POST") + (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 20,
        413,
    ),
    "from a web page": (get("/hello", "Origin: http://evil.example"), 403),
    "from a page without origin": (get("/hello", "Origin: null"), 403),
    "connect": (b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "upgrade": (get("/nothing", "Connection: upgrade", "Upgrade: websocket"), 404),
}
CODES = {
    400: "bad_request",
    403: "foreign_origin",
    404: "not_found",
    413: "body_too_large",
    431: "header_too_large",
    501: "not_implemented",
    505: "version_not_supported",
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_requests(connect: Open, name: str, caplog: pytest.LogCaptureFixture) -> None:
    wire, expected = BAD[name]
    stream = await connect()
    async with stream, trio.open_nursery() as nursery:

        async def send() -> None:
            try:
                await stream.send_all(wire)
                await stream.send_eof()
            except trio.BrokenResourceError:
                pass  # it would not hear the end of it

        nursery.start_soon(send)
        answer = await read_all(stream)
    ((status, headers, body),) = responses(answer, [b"GET"])
    assert (status, code(body)) == (expected, CODES[expected])
    assert (expected == 404) or headers["connection"] == "close"
    assert (await exchange(connect, get()))[0] == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_limits_are_exact(connect: Open) -> None:
    body = b"x" * connection.MAX_BODY
    wire = get("/echo", f"Content-Length: {len(body)}", method="POST") + body
    assert (await exchange(connect, wire))[2] == body
    padding = connection.MAX_HEADER - len(get("/hello", "A: "))
    assert (await exchange(connect, get("/hello", "A: " + "x" * padding)))[0] == 200
    assert (await exchange(connect, get("/hello", "A: " + "x" * (padding + 1))))[0] == 431
    assert (await exchange(connect, get("/hello", *(f"A{n}: b" for n in range(63)))))[0] == 200


async def test_a_slow_request_is_cut(connect: Open, autojump_clock: trio.testing.MockClock) -> None:
    stream = await connect()
    async with stream, trio.open_nursery() as nursery:

        async def drip() -> None:
            await stream.send_all(b"GET /hello HTTP/1.1\r\nHost: x\r\n")
            for octet in b"A: " + b"x" * 1000:
                await trio.sleep(1)
                await stream.send_all(bytes([octet]))

        nursery.start_soon(drip)
        ((status, _, body),) = responses(await read_all(stream), [b"GET"])
        nursery.cancel_scope.cancel()
    assert (status, code(body)) == (408, "timeout")
    assert 10 <= trio.current_time() <= 12


async def test_a_silent_client_is_cut(connect: Open, autojump_clock: trio.testing.MockClock) -> None:
    stream = await connect()
    async with stream:
        assert await read_all(stream) == b""
    assert trio.current_time() == pytest.approx(10)


async def test_an_idle_connection_is_kept_for_a_minute(connect: Open, autojump_clock: trio.testing.MockClock) -> None:
    stream = await connect()
    async with stream:
        await stream.send_all(get())
        assert await stream.receive_some()
        await trio.sleep(59)
        await stream.send_all(get())
        assert await stream.receive_some()
        assert await stream.receive_some() == b""
    assert trio.current_time() == pytest.approx(119)


async def test_a_client_that_does_not_read_is_cut(connect: Open, autojump_clock: trio.testing.MockClock) -> None:
    stream = await connect()
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    body = b"x" * connection.MAX_BODY
    wire = get("/echo", f"Content-Length: {len(body)}", method="POST") + body
    async with stream:
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(wire * 100)
    assert 10 <= trio.current_time() <= 12


async def test_the_seventeenth_connection_is_told(connect: Open) -> None:
    held = []
    for _ in range(http.MAX_CONNECTIONS):
        stream = await connect()
        await stream.send_all(get())
        assert await stream.receive_some()
        held.append(stream)
    status, _, body = await exchange(connect, get())
    assert (status, code(body)) == (503, "too_many_connections")
    for stream in held:
        await stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert (await exchange(connect, get()))[0] == 200


async def test_a_process_of_another_user_gets_nothing(
    connect: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guard, "permitted", lambda _stream: False)
    stream = await connect()
    async with stream:
        assert await read_all(stream) == b""
    assert "another user" in caplog.text


async def test_running_out_of_descriptors_neither_ends_nor_spins(
    connect: Open,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts = 0
    real = trio.SocketListener.accept

    async def failing(listener: trio.SocketListener) -> trio.SocketStream:
        nonlocal attempts
        attempts += 1
        if attempts < 50:
            await trio.lowlevel.checkpoint()
            raise OSError(errno.EMFILE, "Too many open files")
        return await real(listener)

    await trio.testing.wait_all_tasks_blocked()  # the server waits in the real accept
    monkeypatch.setattr(trio.SocketListener, "accept", failing)
    for _ in range(2):  # the first is for the accept that waits already
        assert (await exchange(connect, get()))[0] == 200
    assert trio.current_time() == pytest.approx(49 * accept.BACK_OFF)
    assert caplog.text.count("cannot accept: Too many open files") == 1


async def test_a_closed_listener_ends_the_server(tmp_path: Path) -> None:
    with listening(tmp_path / "x.sock") as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_http, listener, ROUTES)
            await trio.testing.wait_all_tasks_blocked()
            listener.socket.close()


VALID = (
    get("/hello"),
    get("/echo", "Content-Length: 4", method="POST") + b"abcd",
    get("/echo", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\n\r\n",
    get("/hello", "Connection: keep-alive", "Accept: */*", method="HEAD"),
)


@pytest.mark.parametrize("requests", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_fuzz(requests: int) -> None:
    """Mutations of valid requests: answers or an end in time, nothing uncaught, nothing left behind."""
    rng = random.Random(requests)
    statuses = {await _fuzz(rng) for _ in range(requests)}
    assert {b"200", b"400", b"404", b"405"} <= statuses


async def _fuzz(rng: random.Random) -> bytes:
    left, right = socket.socketpair()
    streams = [trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in (left, right)]
    wire = bytearray(b"".join(rng.choices(VALID, k=rng.randint(1, 3))))
    for _ in range(rng.randint(0, 8)):
        where = rng.randrange(len(wire))
        match rng.randrange(4):
            case 0:
                wire[where] = rng.randrange(256)
            case 1:
                del wire[where : where + rng.randint(1, 9)]
            case 2:
                wire[where:where] = rng.randbytes(rng.randint(1, 9))
            case _:
                wire[where:where] = wire[rng.randrange(len(wire)) :]
        wire = wire or bytearray(b"G")
    with trio.fail_after(5):
        async with streams[0], streams[1], trio.open_nursery() as nursery:

            async def serve() -> None:
                try:
                    await connection.Connection(streams[0], ROUTES).serve()
                except trio.BrokenResourceError:
                    pass
                await streams[0].aclose()

            async def send() -> None:
                try:
                    await streams[1].send_all(wire)
                    await streams[1].send_eof()
                except trio.BrokenResourceError:
                    pass

            nursery.start_soon(serve)
            nursery.start_soon(send)
            answer = await read_all(streams[1])
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    return answer[9:12]

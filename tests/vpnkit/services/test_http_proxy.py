"""Requests through the proxy: as the original's tests have them, and what that one had wrong."""

from __future__ import annotations

import base64

import pytest
import trio
import trio.lowlevel
import trio.testing

from tests.vpnkit.services.http_lab import WORLD, http_lab
from tests.vpnkit.wire.test_http_head import SMUGGLING

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end"


def fields(head: str) -> list[tuple[str, str]]:
    return [tuple(line.split(": ", 1)) for line in head.split("\r\n")[1:] if line]


def value(head: str, name: str) -> str | None:
    [found] = [text for field, text in fields(head) if field.lower() == name.lower()] or [None]
    return found


# Where a request goes


async def test_without_an_upstream_the_origin_is_asked():
    async with http_lab() as lab:
        port, heads, _ = await lab.answering(OK)
        lab.configure("{}")
        client = lab.client()
        await client.say(
            *(f"GET http://a.example:{port}/x?y=1 HTTP/1.1", "Host: other.example", "User-Agent: me", "X-A: b"),
            *("Authorization: mine", "Proxy-Authorization: not the origin's", "Connection: X-B", "X-B: c"),
        )
        assert (await client.head()).startswith("HTTP/1.1 200 OK")
        assert await client.exactly(5) == b"hello"
        [head] = heads
        assert head.startswith("GET /x?y=1 HTTP/1.1\r\n")
        assert fields(head)[:4] == [
            *(("Host", f"a.example:{port}"), ("User-Agent", "me"), ("X-A", "b"), ("Authorization", "mine")),
        ]
        assert value(head, "Proxy-Authorization") is value(head, "X-B") is None
        assert value(head, "Via") == f"1.1 {lab.service.name}"
        assert lab.environment.asked == ["a.example"]


@pytest.mark.parametrize("intercepted", [False, True])
async def test_a_proxy_is_told_the_whole_uri_and_the_port(intercepted):
    """The original's "interception", "authorization" and "proxy-authorization"."""
    async with http_lab() as lab:
        port, heads, _ = await lab.answering(OK)
        lab.configure(f'{{"http": "http://us%40er:pa%3Ass@localhost:{port}"}}')
        if intercepted:
            client = lab.client(80, called=WORLD, aim=("203.0.113.7", 80))
            await client.say("GET / HTTP/1.1", "Host: www.mobyproject.org", "Proxy-Authorization: mine", "X: y")
        else:
            client = lab.client()
            await client.say("GET http://www.mobyproject.org/ HTTP/1.1", "Host: x", "Proxy-Authorization: mine", "X: y")
        await client.until(b"hello")
        [head] = heads
        assert head.startswith("GET http://www.mobyproject.org:80/ HTTP/1.1\r\nHost: www.mobyproject.org\r\nX: y\r\n")
        assert value(head, "Proxy-Authorization") == "Basic " + base64.b64encode(b"us@er:pa:ss").decode()
        assert lab.environment.asked == []


@pytest.mark.parametrize("exclude", ["a.example", "b.example, *.example", "127.0.0.1"])
async def test_an_excluded_host_never_sees_the_credentials(exclude):
    async with http_lab() as lab:
        port, heads, _ = await lab.answering(OK)
        lab.configure(f'{{"http": "http://user:secret@localhost:1", "exclude": "{exclude}"}}')
        client = lab.client(port, called=WORLD, aim=("127.0.0.1", port))
        await client.say("GET / HTTP/1.1", "Host: a.example")
        await client.until(b"hello")
        assert heads[0].startswith("GET / HTTP/1.1")
        assert "secret" not in heads[0]
        assert value(heads[0], "Proxy-Authorization") is None


async def test_intercepted_without_host_it_is_who_was_called():
    async with http_lab() as lab:
        port, heads, _ = await lab.answering(OK)
        lab.configure(f'{{"http": "localhost:{port}"}}')
        client = lab.client(80, called=WORLD, aim=("203.0.113.7", 80))
        await client.say("GET /x HTTP/1.0")
        assert (await client.rest()).endswith(b"hello")
        assert heads[0].startswith("GET http://203.0.113.7:80/x HTTP/1.1\r\nHost: 203.0.113.7\r\n")


async def test_the_port_is_the_one_that_was_called():
    """The original always takes 80, whatever was intercepted; Host is the guest's word only for the name."""
    async with http_lab() as lab:
        port, heads, _ = await lab.answering(OK)
        lab.configure(f'{{"http": "localhost:{port}", "transparent_http_ports": [8080]}}')
        client = lab.client(8080, called=WORLD, aim=("203.0.113.7", 8080))
        await client.say("GET /x HTTP/1.1", "Host: a.example:22")
        await client.until(b"hello")
        assert heads[0].startswith("GET http://a.example:8080/x HTTP/1.1\r\nHost: a.example:8080\r\n")


async def test_explicit_without_a_host():
    async with http_lab() as lab:
        lab.configure("{}")
        client = lab.client()
        await client.say("GET /x HTTP/1.0")
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")


async def test_not_in_the_allow_list():
    async with http_lab() as lab:
        lab.configure('{"allow_enabled": true, "allow": ["localhost"], "allow_error_msg": "<no> to %s"}')
        for line in ("GET http://evil.example/ HTTP/1.1", "CONNECT evil.example:443 HTTP/1.1"):
            client = lab.client()
            await client.say(line, "Host: localhost")
            page = await client.rest()
            assert page.startswith(b"HTTP/1.1 403 ")
            assert b"&lt;no&gt; to evil.example" in page
        assert lab.environment.asked == []


async def test_where_names_are_checked_they_say_where_it_goes():
    """A guest that calls a bad address and says a good name is taken to the good name."""
    async with http_lab() as lab:
        port, heads, _ = await lab.answering(OK)
        lab.configure('{"allow_enabled": true, "allow": ["good.example"]}')
        client = lab.client(port, called=WORLD, aim=("127.0.0.9", port))
        await client.say("GET / HTTP/1.1", "Host: good.example")
        await client.until(b"hello")
        assert len(heads) == 1
        assert lab.environment.asked == ["good.example"]


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("http://missing.test/", 503),
        ("http://a.example:1/", 503),
        ("http://127.9.9.9/", 403),
        ("http://192.168.65.1:3128/", 403),
        ("http://2130706433/", 400),
        ("http://0x7f.1/", 400),
        ("http://user@a.example/", 400),
        ("https://a.example/", 400),
        ("@a.example/", 400),
        ("*", 400),
        ("http:///x", 400),
        ("http://a.example/#x", 400),
    ],
)
async def test_errors(url, status):
    async with http_lab() as lab:
        lab.configure("{}")
        client = lab.client()
        await client.say(f"GET {url} HTTP/1.1", "Host: a.example:1")
        assert (await client.rest()).startswith(f"HTTP/1.1 {status} ".encode())


async def test_a_loop():
    """RFC 9110 section 7.6.3."""
    async with http_lab() as lab:
        lab.configure("{}")
        client = lab.client()
        await client.say("GET http://a.example/ HTTP/1.1", "Host: a", f"Via: 1.0 x, 1.1 {lab.service.name}")
        assert (await client.rest()).startswith(b"HTTP/1.1 508 ")


@pytest.mark.parametrize("data", SMUGGLING.values(), ids=SMUGGLING)
async def test_smuggling(data):
    async with http_lab() as lab:
        port, heads, _ = await lab.answering(OK)
        lab.configure(f'{{"http": "localhost:{port}"}}')
        client = lab.client(80, called=WORLD, aim=("203.0.113.7", 80))
        await client.stream.send_all(data)
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
        assert heads == []


async def test_what_is_behind_a_request_is_checked_too():
    async with http_lab() as lab:
        port, heads, _ = await lab.answering(OK, OK)
        lab.configure("{}")
        client = lab.client()
        good = f"GET http://a.example:{port}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        await client.stream.send_all(good + good + SMUGGLING["LF alone"])
        answers = await client.rest()
        assert answers.count(b"hello") == len(heads) == 2
        assert b"HTTP/1.1 400 " in answers


async def test_a_giant_head():
    async with http_lab() as lab:
        lab.configure("{}")
        client = lab.client()
        await client.stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000)
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")


# Messages


async def test_connections_are_used_again():
    async with http_lab() as lab:
        port, heads, connections = await lab.answering(OK, OK, OK, OK)
        lab.configure("{}")
        client = lab.client()
        for path, host in (("1", "a"), ("2", "a"), ("3", "b"), ("4", "b")):
            await client.say(f"GET http://{host}.example:{port}/{path} HTTP/1.1", "Host: x")
            await client.until(b"hello")
        assert [head.split()[1] for head in heads] == ["/1", "/2", "/3", "/4"]
        assert connections == [0, 0, 1, 1]


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_connection_that_was_closed_meanwhile(at_once):
    """It is asked again, and nothing of what is behind the request gets lost."""
    async with http_lab() as lab:
        count = 0

        async def serve(words):
            nonlocal count
            count += 1
            await words.head()
            await words.stream.send_all(OK)  # and close, without a word

        port = await lab.server(serve)
        lab.configure("{}")
        client = lab.client()
        if at_once:
            await client.stream.send_all(f"GET http://a.example:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 3)
        for _ in range(3):
            if not at_once:
                await client.say(f"GET http://a.example:{port}/ HTTP/1.1", "Host: x")
            await client.until(b"hello")
        assert count == 3
        await client.stream.send_eof()
        assert await client.rest() == b""


async def test_until_the_end():
    """Of a server without lengths: to HTTP/1.1 in chunks, and the connection goes on; to HTTP/1.0 until the end."""
    async with http_lab() as lab:
        port, _, _ = await lab.answering(CLOSING, CLOSING)
        lab.configure("{}")
        client = lab.client()
        await client.say(f"GET http://a.example:{port}/ HTTP/1.1", "Host: x")
        assert "Transfer-Encoding: chunked" in await client.head()
        assert b"until the end" in await client.until(b"0\r\n\r\n")
        await client.say(f"GET http://a.example:{port}/ HTTP/1.0")
        assert (await client.rest()).endswith(b"\r\n\r\nuntil the end")


async def test_head_then_get():
    async with http_lab() as lab:
        port, _, _ = await lab.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", OK)
        lab.configure("{}")
        client = lab.client()
        await client.say(f"HEAD http://a.example:{port}/ HTTP/1.1", "Host: x")
        assert value(await client.head(), "Content-Length") == "5"
        await client.say(f"GET http://a.example:{port}/ HTTP/1.1", "Host: x")
        assert (await client.head()).startswith("HTTP/1.1 200")
        assert await client.exactly(5) == b"hello"


async def test_chunks_and_trailers_both_ways():
    async with http_lab() as lab:
        heard = []

        async def serve(words):
            heard.append(await words.head())
            heard.append(await words.until(b"\r\n0\r\nX-Sum: 1\r\n\r\n"))
            await words.say("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Trailer: X-Sum")
            await words.stream.send_all(b"3\r\nabc\r\n0\r\nX-Sum: 2\r\nContent-Length: 9\r\n\r\n")

        port = await lab.server(serve)
        lab.configure("{}")
        client = lab.client()
        await client.say(
            f"POST http://a.example:{port}/ HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", "TE: trailers"
        )
        await client.stream.send_all(b"5;ext=1\r\nhello\r\n0\r\nX-Sum: 1\r\nHost: evil\r\n\r\n")
        head = await client.head()
        assert value(head, "Transfer-Encoding") == "chunked"
        assert b"abc" in await client.until(b"0\r\nX-Sum: 2\r\n\r\n")
        assert value(heard[0], "Transfer-Encoding") == "chunked"
        assert (value(heard[0], "TE"), value(heard[0], "Connection")) == ("trailers", "TE")
        assert b"5\r\nhello" in heard[1]


async def test_informational_responses():
    async with http_lab() as lab:

        async def serve(words):
            assert value(await words.head(), "Expect") == "100-continue"
            await words.stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
            assert await words.exactly(5) == b"12345"
            await words.stream.send_all(OK)

        port = await lab.server(serve)
        lab.configure("{}")
        client = lab.client()
        request = f"PUT http://a.example:{port}/ HTTP/1.1"
        await client.say(request, "Host: x", "Expect: 100-continue", "Content-Length: 5")
        assert (await client.head()).startswith("HTTP/1.1 100 ")
        assert "Link: </x>" in await client.head()
        await client.stream.send_all(b"12345")
        await client.until(b"hello")


async def test_a_server_that_does_not_want_the_body():
    async with http_lab() as lab:

        async def serve(words):
            await words.head()
            await words.stream.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")

        port = await lab.server(serve)
        lab.configure("{}")
        client = lab.client()
        await client.say(f"PUT http://a.example:{port}/ HTTP/1.1", "Host: x", "Content-Length: 1000000000")
        await client.stream.send_all(b"x" * 1000)
        head = await client.head()
        assert head.startswith("HTTP/1.1 413 ")
        assert await client.exactly(2) == b"no"


@pytest.mark.parametrize(
    "answer", [b"", b"rubbish\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"]
)
async def test_servers_that_speak_no_http(answer):
    async with http_lab() as lab:
        port, _, _ = await lab.answering(answer + b"Connection: close" if answer else b"HTTP/1.0")
        lab.configure("{}")
        client = lab.client()
        await client.say(f"GET http://a.example:{port}/ HTTP/1.1", "Host: x")
        assert (await client.rest()).startswith(b"HTTP/1.1 502 ")


async def test_a_response_that_is_cut_is_not_complete():
    async with http_lab() as lab:
        port, _, _ = await lab.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nConnection: close")
        lab.configure("{}")
        client = lab.client()
        await client.say(f"GET http://a.example:{port}/ HTTP/1.1", "Host: x")
        assert len((await client.rest()).partition(b"\r\n\r\n")[2]) < 100


@pytest.mark.parametrize("wanted", ["websocket", "h2c"])
async def test_upgrades(wanted):
    """Over a WebSocket octets go both ways; h2c would be a tunnel past the rules."""
    async with http_lab() as lab:

        async def serve(words):
            head = await words.head()
            if wanted == "h2c":
                assert value(head, "Upgrade") is None
                await words.stream.send_all(OK)
                return
            assert (value(head, "Upgrade"), value(head, "Connection")) == ("websocket", "Upgrade")
            await words.say("HTTP/1.1 101 Switching", "Upgrade: websocket", "Connection: upgrade", body=b"first")
            while data := await words.stream.receive_some():
                await words.stream.send_all(data.upper())
            await words.stream.send_all(b"bye")

        port = await lab.server(serve)
        lab.configure("{}")
        client = lab.client()
        await client.say(
            f"GET http://a.example:{port}/ HTTP/1.1", "Host: x", "Connection: keep-alive, Upgrade", f"Upgrade: {wanted}"
        )
        if wanted == "h2c":
            await client.until(b"hello")
            return
        assert value(await client.head(), "Connection") == "Upgrade"
        assert await client.exactly(5) == b"first"
        await client.stream.send_all(b"abc")
        assert await client.exactly(3) == b"ABC"
        await client.stream.send_eof()
        assert await client.rest() == b"bye"


async def test_too_many_connections_of_one_guest(monkeypatch):
    monkeypatch.setattr("vpnkit.services.http_proxy.service.MAX_STREAMS", 2)
    async with http_lab() as lab:
        lab.configure("{}")
        lab.client(), lab.client()
        await trio.testing.wait_all_tasks_blocked()
        third = lab.client()
        assert await third.rest() == b""
        assert lab.service.counters["http_refused"] == 1


async def test_no_host_sockets_left():
    async with http_lab() as lab:
        lab.configure("{}")
        lab.environment.full = True
        client = lab.client()
        await client.say("GET http://a.example/ HTTP/1.1", "Host: x")
        assert (await client.rest()).startswith(b"HTTP/1.1 503 ")

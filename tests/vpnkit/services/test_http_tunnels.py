"""CONNECT and intercepted TLS: directly, through HTTP proxies, through SOCKS5, and through proxies by TLS."""

from __future__ import annotations

import ssl

import pytest
import trio
import trio.testing
import trustme

from tests.vpnkit.services.http_lab import WORLD, http_lab
from tests.vpnkit.wire.test_tls_hello import openssl_hello
from vpnkit.services.http_proxy import socks5, tunnel
from vpnkit.services.http_proxy.service import HttpProxyService

HELLO = openssl_hello("www.a.example")


async def upper(words):
    """What comes comes back in capitals; the end is answered by another word."""
    if words.got:
        await words.stream.send_all(words.got.upper())
    while data := await words.stream.receive_some():
        await words.stream.send_all(data.upper())
    await words.stream.send_all(b"end")
    await words.stream.send_eof()


def proxy(heads, answer="HTTP/1.1 200 Yes", more=b""):
    async def serve(words):
        heads.append(await words.head())
        await words.say(answer, body=more)
        if " 200 " in answer:
            await upper(words)

    return serve


async def both_ways(client):
    await client.stream.send_all(b"abc")
    assert await client.exactly(3) == b"ABC"
    await client.stream.send_eof()
    assert await client.rest() == b"end"


async def test_connect_to_an_origin():
    async with http_lab() as lab:
        port = await lab.server(upper)
        lab.configure('{"allow_enabled": true, "allow": ["localhost"]}')
        lab.environment.names["localhost"] = ["127.0.0.1"]
        client = lab.client()
        await client.say(f"CONNECT localhost:{port} HTTP/1.1", f"Host: localhost:{port}", body=b"early")
        assert (await client.head()).startswith("HTTP/1.1 200 ")
        assert await client.exactly(5) == b"EARLY"
        await both_ways(client)


async def test_connect_to_a_closed_port():
    async with http_lab() as lab:
        lab.configure("{}")
        client = lab.client()
        await client.say("CONNECT localhost:1 HTTP/1.1", "Host: x")
        assert (await client.rest()).startswith(b"HTTP/1.1 503 ")


async def test_connect_goes_on_to_the_https_proxy():
    """The original's "CONNECT forward"."""
    async with http_lab() as lab:
        heads = []
        port = await lab.server(proxy(heads, more=b"hi!"))
        lab.configure(f'{{"https": "http://u:p@localhost:{port}", "http": "localhost:1"}}')
        client = lab.client(3129)
        await client.say("CONNECT www.a.example:443 HTTP/1.1", "Host: x", "Proxy-Authorization: mine")
        await client.head()
        assert await client.exactly(3) == b"hi!"
        await both_ways(client)
        [head] = heads
        assert head.startswith("CONNECT www.a.example:443 HTTP/1.1\r\nHost: www.a.example:443\r\n")
        assert head.count("Proxy-Authorization: Basic dTpw\r\n") == head.count("Proxy-Authorization") == 1


async def test_what_the_proxy_says_to_connect_is_heard():
    async with http_lab() as lab:
        heads = []
        port = await lab.server(proxy(heads, "HTTP/1.1 407 Who\r\nContent-Length: 2", b"no"))
        lab.configure(f'{{"http": "localhost:{port}"}}')
        client = lab.client()
        for _ in range(2):
            await client.say("CONNECT www.a.example:443 HTTP/1.1", "Host: x")
            assert (await client.head()).startswith("HTTP/1.1 407 Who")
            assert await client.exactly(2) == b"no"


@pytest.mark.parametrize("name", ["www.a.example", None])
async def test_intercepted_tls_asks_by_name(name):
    """The original's "CONNECT tunnel", with the name and the port that it never had."""
    async with http_lab() as lab:
        heads = []
        port = await lab.server(proxy(heads))
        lab.configure(f'{{"https": "http://u:p@localhost:{port}", "transparent_https_ports": [8443]}}')
        client = lab.client(8443, called=WORLD, aim=("203.0.113.7", 8443))
        hello = openssl_hello(name)
        await client.stream.send_all(hello)
        assert await client.exactly(len(hello)) == hello.upper()
        await both_ways(client)
        wanted = f"{name or '203.0.113.7'}:8443"
        assert heads[0].startswith(
            f"CONNECT {wanted} HTTP/1.1\r\nHost: {wanted}\r\nProxy-Authorization: Basic dTpw\r\n"
        )


@pytest.mark.parametrize("said", [b"SSH-2.0-x\r\n", b""])
async def test_what_is_no_tls_goes_to_who_was_called(said, monkeypatch):
    monkeypatch.setattr(tunnel, "HELLO_SECONDS", 0.05)
    async with http_lab() as lab:
        heads = []
        port = await lab.server(proxy(heads))
        lab.configure(f'{{"https": "localhost:{port}"}}')
        client = lab.client(443, called=WORLD, aim=("203.0.113.7", 443))
        if said:
            await client.stream.send_all(said)
            assert await client.exactly(len(said)) == said.upper()
        await both_ways(client)
        assert heads[0].startswith("CONNECT 203.0.113.7:443 ")


@pytest.mark.parametrize("answer", ["HTTP/1.1 403 No\r\nContent-Length: 0", "HTTP/1.1 502 No", "rubbish", ""])
async def test_a_proxy_that_refuses_is_believed(answer):
    """The original takes anything for a yes."""
    async with http_lab() as lab:
        heads = []
        port = await lab.server(proxy(heads, answer))
        lab.configure(f'{{"https": "localhost:{port}"}}')
        client = lab.client(443, called=WORLD, aim=("203.0.113.7", 443))
        await client.stream.send_all(HELLO)
        assert await client.rest() == b""
        await trio.testing.wait_all_tasks_blocked()
        assert lab.service.counters["http_tunnel_failed"] == 1


async def test_excluded_names_of_tls_go_straight():
    async with http_lab() as lab:
        port = await lab.server(upper)
        lab.configure(f'{{"https": "localhost:1", "exclude": ".a.example", "transparent_https_ports": [{port}]}}')
        client = lab.client(port, called=WORLD, aim=("127.0.0.1", port))
        await client.stream.send_all(HELLO)
        assert await client.exactly(len(HELLO)) == HELLO.upper()
        assert lab.environment.asked == []  # who was called is who is meant


async def test_the_allow_list_and_tls():
    async with http_lab() as lab:
        port = await lab.server(upper)
        ports = f'"transparent_https_ports": [{port}]'
        lab.configure(f'{{"allow_enabled": true, "allow": ["b.example"], {ports}}}')
        client = lab.client(port, called=WORLD, aim=("127.0.0.1", port))
        await client.stream.send_all(HELLO)
        assert await client.rest() == b""
        await trio.testing.wait_all_tasks_blocked()
        assert lab.service.counters["http_tunnel_failed"] == 1
        lab.configure(f'{{"allow_enabled": true, "allow": ["a.example"], {ports}}}')
        client = lab.client(port, called=WORLD, aim=("127.0.0.9", port))
        await client.stream.send_all(HELLO)
        assert await client.exactly(len(HELLO)) == HELLO.upper()
        assert lab.environment.asked == ["www.a.example"]


# SOCKS5


def socks(heard, *, user=None, reply=0):
    """A server of RFC 1928 that connects to itself."""

    async def serve(words):
        methods = (await words.exactly(2))[1]
        offered = await words.exactly(methods)
        if user is not None:
            assert 2 in offered
            await words.stream.send_all(b"\5\2")
            assert await words.exactly(2 + len(user)) == b"\1" + bytes((len(user),)) + user
            password = await words.exactly((await words.exactly(1))[0])
            await words.stream.send_all(b"\1\0" if password == b"pa:ss" else b"\1\1")
        else:
            await words.stream.send_all(b"\5\0")
        version, command, _, kind = await words.exactly(4)
        assert (version, command) == (5, 1)
        host = await words.exactly((await words.exactly(1))[0] if kind == 3 else 4)
        heard.append((kind, host, int.from_bytes(await words.exactly(2), "big")))
        await words.stream.send_all(bytes((5, reply, 0, 3)) + b"\4name\0\1")
        await upper(words)

    return serve


@pytest.mark.parametrize("user", [None, b"us@er"])
async def test_socks5(user):
    async with http_lab() as lab:
        heard = []
        port = await lab.server(socks(heard, user=user))
        secret = "" if user is None else "us%40er:pa%3Ass@"
        lab.configure(f'{{"http": "socks5://{secret}localhost:{port}"}}')
        client = lab.client()
        await client.say("CONNECT www.a.example:443 HTTP/1.1", "Host: x")
        await client.head()
        await both_ways(client)
        client = lab.client()
        await client.say("CONNECT 203.0.113.7:22 HTTP/1.1", "Host: x")
        await client.head()
        await both_ways(client)
        assert heard == [(3, b"www.a.example", 443), (1, WORLD, 22)]


async def test_requests_through_socks5_are_those_of_an_origin():
    async with http_lab() as lab:
        heard = []
        port = await lab.server(socks(heard))
        lab.configure(f'{{"http": "socks5://localhost:{port}"}}')
        client = lab.client()
        await client.say("GET http://a.example/x HTTP/1.1", "Host: x")
        assert (await client.rest()).startswith(b"HTTP/1.1 502 ")  # it does not speak HTTP, in capitals
        assert heard == [(3, b"a.example", 80)]


@pytest.mark.parametrize("reply", [*socks5.REPLIES, 99])
async def test_socks5_that_will_not(reply):
    async with http_lab() as lab:
        port = await lab.server(socks([], reply=reply))
        lab.configure(f'{{"http": "socks5://localhost:{port}"}}')
        client = lab.client()
        await client.say("CONNECT www.a.example:443 HTTP/1.1", "Host: x")
        page = await client.rest()
        assert page.startswith(b"HTTP/1.1 502 ")
        assert socks5.REPLIES.get(reply, "failed").encode() in page


@pytest.mark.parametrize("answer", [b"", b"\4\0", b"\5\xff", b"\5\2", b"\5\0\5\0\0\7", b"HTTP/1.1 400 \r\n\r\n"])
async def test_what_is_no_socks5(answer):
    async with http_lab() as lab:

        async def serve(words):
            await words.exactly(3)
            await words.stream.send_all(answer)
            await words.stream.send_eof()
            await words.rest()

        port = await lab.server(serve)
        lab.configure(f'{{"http": "socks5://localhost:{port}"}}')
        client = lab.client()
        await client.say("CONNECT www.a.example:443 HTTP/1.1", "Host: x")
        assert (await client.rest()).startswith(b"HTTP/1.1 502 ")


# TLS to the proxy


@pytest.mark.parametrize("name", ["localhost", "other.example"])
async def test_a_proxy_by_tls(name):
    """Its certificate has to have its name."""
    authority = trustme.CA()
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(ours)
    theirs = ssl.create_default_context()
    authority.configure_trust(theirs)
    async with http_lab() as lab:
        lab.service = HttpProxyService(tls=lambda: theirs)
        heads = []

        async def serve(words):
            words.stream = trio.SSLStream(words.stream, ours, server_side=True, https_compatible=True)
            try:
                heads.append(await words.head())
            except (trio.BrokenResourceError, AssertionError):
                return  # our certificate was not liked
            await words.say("HTTP/1.1 200 Yes")
            await words.stream.send_all((await words.exactly(3)).upper())
            await words.stream.aclose()

        port = await lab.server(serve)
        lab.configure(f'{{"http": "https://u:p@{name}:{port}"}}')
        client = lab.client()
        await client.say("CONNECT www.a.example:443 HTTP/1.1", "Host: x")
        if name != "localhost":
            assert (await client.rest()).startswith(b"HTTP/1.1 502 ")
            assert heads == []
            return
        assert (await client.head()).startswith("HTTP/1.1 200 ")
        await client.stream.send_all(b"abc")
        assert await client.exactly(3) == b"ABC"
        assert await client.rest() == b""

"""DNS over TLS (RFC 7858), and the connections to servers (RFC 7766)."""

from __future__ import annotations

import random
import socket
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
import trustme

from tests.vpnkit.services.dns_lan import answer_bytes, honest, lan, query_bytes, silent, told
from vpnkit.proto.dns_upstreams import Routes, Server
from vpnkit.services import dns_connections
from vpnkit.services.dns_connections import ConnectionEnded, Connections, receive_message
from vpnkit.wire import dns as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

NAME = "resolver.example"


@pytest.fixture
def clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0.02)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class StreamServer:
    """A server over TCP or TLS on 127.0.0.1.  `behave` says what it answers; None ends the connection."""

    def __init__(self, behave: Callable[[bytes], list[bytes] | None], certificate: trustme.LeafCert | None) -> None:
        self.behave = behave
        self.queries: list[bytes] = []
        self.connections = 0
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            certificate.configure_cert(self._tls)
        self.listener = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    async def start(self, nursery: trio.Nursery) -> Server:
        await self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        nursery.start_soon(self._accept, nursery)
        kind = "dns" if self._tls is None else "tls"
        return Server("127.0.0.1", self.listener.getsockname()[1], kind, "")  # type: ignore[arg-type]

    async def _accept(self, nursery: trio.Nursery) -> None:
        with self.listener:
            while True:
                sock, _ = await self.listener.accept()
                self.connections += 1
                nursery.start_soon(self._serve, trio.SocketStream(sock))

    async def _serve(self, plain: trio.SocketStream) -> None:
        stream: trio.abc.Stream = plain
        if self._tls is not None:
            stream = trio.SSLStream(plain, self._tls, server_side=True, https_compatible=True)
        try:
            async with stream:
                received = bytearray()
                while (message := await receive_message(stream, received)) is not None:
                    self.queries.append(message)
                    answers = self.behave(message)
                    if answers is None:
                        await trio.aclose_forcefully(stream)
                        return
                    for answer in answers:
                        await stream.send_all(len(answer).to_bytes(2, "big") + answer)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


@asynccontextmanager
async def pool(server: StreamServer, authority: trustme.CA | None = None) -> AsyncIterator[tuple[Connections, Server]]:
    def tls() -> ssl.SSLContext:
        context = ssl.create_default_context()
        if authority is not None:
            authority.configure_trust(context)
        return context

    connections = Connections(random.Random(1), tls)
    async with trio.open_nursery() as nursery:
        where = await server.start(nursery)
        await nursery.start(connections.run)
        yield connections, where
        nursery.cancel_scope.cancel()


async def ask(connections: Connections, where: Server, name: str = "example.com") -> str:
    raw = query_bytes(name)
    answer = await connections.exchange(where, wire.decode_query(raw), raw)
    assert answer[:2] == raw[:2]
    return told(answer)


@pytest.mark.parametrize("identity", ["127.0.0.1", NAME])
async def test_over_tls(authority: trustme.CA, identity: str) -> None:
    """The name is checked, or the address when there is none."""
    server = StreamServer(honest("10.0.0.9"), authority.issue_cert(identity))
    async with pool(server, authority) as (connections, where):
        where = where._replace(tls_name=NAME if identity == NAME else "")
        assert await ask(connections, where) == "NOERROR 10.0.0.9"
        assert await ask(connections, where, "b.example") == "NOERROR 10.0.0.9"
        assert (server.connections, len(connections)) == (1, 1)


@pytest.mark.parametrize(
    ("identity", "name", "trusted", "why"),
    [
        (NAME, "other.example", True, "Hostname mismatch"),
        (NAME, "", True, "IP address mismatch"),
        (NAME, NAME, False, "unable to get local issuer|self-signed"),
    ],
)
async def test_whoever_is_not_who_he_says_gets_no_question(
    authority: trustme.CA, identity: str, name: str, trusted: bool, why: str
) -> None:
    server = StreamServer(honest(), authority.issue_cert(identity))
    async with pool(server, authority if trusted else None) as (connections, where):
        with pytest.raises(ConnectionEnded, match=why):
            await ask(connections, where._replace(tls_name=name))
        assert server.queries == []


async def test_no_tls_at_all() -> None:
    server = StreamServer(lambda query: None, None)
    async with pool(server) as (connections, where):
        with pytest.raises(ConnectionEnded):
            await ask(connections, where._replace(kind="tls"))


async def test_many_questions_on_one_connection_in_any_order() -> None:
    """RFC 7766 section 6.2.1.1; 9.2 TCP multiplexing: ids restored, no connection left."""
    waiting: list[bytes] = []

    def behave(query: bytes) -> list[bytes]:
        waiting.append(query)
        if len(waiting) < 50:
            return []
        random.Random(1).shuffle(waiting)
        return [answer_bytes(one, f"10.0.0.{one[13] - ord('a')}") for one in waiting]

    server = StreamServer(behave, None)
    async with pool(server) as (connections, where):
        found: dict[str, str] = {}

        async def one(name: str) -> None:
            found[name] = await ask(connections, where, name)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, f"{chr(ord('a') + number % 26)}{number}.example")
        assert found == {name: f"NOERROR 10.0.0.{ord(name[0]) - ord('a')}" for name in found}
        assert len(found) == 50
        assert server.connections == 1
        assert len({query[:2] for query in server.queries}) == 50  # the client's were all the same


async def test_a_connection_that_ends_is_made_again() -> None:
    """RFC 7766 section 6.2.4."""
    count = 0

    def behave(query: bytes) -> list[bytes] | None:
        nonlocal count
        count += 1
        return None if count == 2 else [answer_bytes(query)]

    server = StreamServer(behave, None)
    async with pool(server) as (connections, where):
        assert await ask(connections, where) == "NOERROR 10.0.0.1"
        assert await ask(connections, where, "b.example") == "NOERROR 10.0.0.1"
        assert server.connections == 2


async def test_a_server_that_always_hangs_up_is_not_asked_for_ever() -> None:
    server = StreamServer(lambda query: None, None)
    async with pool(server) as (connections, where):
        with pytest.raises(ConnectionEnded, match="closed by the server"):
            await ask(connections, where)
        assert server.connections == 1


async def test_lies_on_a_connection() -> None:
    def behave(query: bytes) -> list[bytes]:
        lie = answer_bytes(query, "10.6.6.6")
        other = answer_bytes(query_bytes("other.example", id=int.from_bytes(query[:2], "big")), "10.6.6.6")
        return [bytes((lie[0] ^ 1,)) + lie[1:], other, answer_bytes(query, "10.0.0.7")]

    server = StreamServer(behave, None)
    async with pool(server) as (connections, where):
        assert await ask(connections, where) == "NOERROR 10.0.0.7"
        assert connections.mismatched == 2


async def test_endless_lies_end_the_connection() -> None:
    server = StreamServer(lambda query: [answer_bytes(query_bytes("x.example", id=1))] * 100, None)
    async with pool(server) as (connections, where):
        with pytest.raises(ConnectionEnded):
            await ask(connections, where)
        assert connections.mismatched == dns_connections.MAX_WRONG


async def test_a_context_that_cannot_be_made_ends_one_question(caplog: pytest.LogCaptureFixture) -> None:
    def tls() -> ssl.SSLContext:
        raise RuntimeError("no TLS today")

    server = StreamServer(honest(), None)
    connections = Connections(random.Random(1), tls)
    async with trio.open_nursery() as nursery:
        where = await server.start(nursery)
        await nursery.start(connections.run)
        with pytest.raises(ConnectionEnded):
            await ask(connections, where._replace(kind="tls"))
        assert await ask(connections, where) == "NOERROR 10.0.0.1"
        nursery.cancel_scope.cancel()
    assert "no TLS today" in caplog.text


async def test_an_idle_connection_is_closed(clock: trio.testing.MockClock) -> None:
    server = StreamServer(honest(), None)
    async with pool(server) as (connections, where):
        await ask(connections, where)
        await trio.sleep(dns_connections.IDLE_SECONDS - 1)
        assert len(connections) == 1
        await ask(connections, where)
        await trio.sleep(dns_connections.IDLE_SECONDS + 1)
        assert len(connections) == 0
        assert server.connections == 1


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_connections, "MAX_CONNECTIONS", 1)
    server = StreamServer(honest(), None)
    async with pool(server) as (connections, where):
        await ask(connections, where)
        with pytest.raises(ConnectionEnded, match="too many"):
            await ask(connections, where._replace(order=1))


async def test_a_guests_datagram_is_answered_over_tls(clock: trio.testing.MockClock, authority: trustme.CA) -> None:
    """Big answers are cut for the datagram; a server that is not itself costs no time."""

    def tls() -> ssl.SSLContext:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        return context

    impostor = StreamServer(honest("10.6.6.6"), authority.issue_cert("evil.example"))
    good = StreamServer(honest("10.0.0.9", count=100), authority.issue_cert(NAME))
    async with trio.open_nursery() as nursery:
        servers = [(await one.start(nursery))._replace(tls_name=NAME) for one in (impostor, good)]
        async with lan(routing=lambda _: lambda: ROUTES, tls=tls) as net:
            ROUTES.default = tuple(servers)
            reply = await net.ask(query_bytes())
            assert told(reply).startswith("NOERROR 10.0.0.9")
            assert reply[2] & 2
            assert len(reply) <= 512
            assert len(await net.ask_stream(query_bytes())) > 1600
            assert impostor.queries == []
            assert trio.current_time() < 1
        nursery.cancel_scope.cancel()


ROUTES = Routes()


async def test_silence_over_tls_is_servfail(clock: trio.testing.MockClock, authority: trustme.CA) -> None:
    server = StreamServer(silent, authority.issue_cert("127.0.0.1"))

    def tls() -> ssl.SSLContext:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        return context

    async with trio.open_nursery() as nursery:
        routes = Routes([await server.start(nursery)])
        async with lan(routing=lambda _: lambda: routes, tls=tls) as net:
            assert told(await net.ask(query_bytes())) == "SERVFAIL"
            assert 3 < trio.current_time() < 5
        nursery.cancel_scope.cancel()

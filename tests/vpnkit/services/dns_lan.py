"""A DNS service with a guest's questions, and servers that are told how to behave."""

from __future__ import annotations

import random
import socket
from contextlib import asynccontextmanager, closing
from itertools import zip_longest
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import trio
import trio.testing
from scapy.layers.dns import DNS

from vpnkit.flow.clock import Deadlines
from vpnkit.flow.poller import Poller
from vpnkit.proto.dns_names import LocalNames
from vpnkit.proto.dns_upstreams import Routes, Server
from vpnkit.services.dns import DnsService
from vpnkit.services.dns_connections import receive_message
from vpnkit.services.dns_resolver import Resolver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

GUEST = bytes((192, 168, 65, 3))
Behaviour = "Callable[[bytes], list[bytes]]"


def query_bytes(name: str = "example.com", rdtype: str = "A", **options: object) -> bytes:
    return dns.message.make_query(name, rdtype, **({"id": 4660} | options)).to_wire()  # type: ignore[arg-type]


def answer_bytes(query: bytes, text: str = "10.0.0.1", *, rcode: int = 0, count: int = 1, tc: bool = False) -> bytes:
    theirs = dns.message.from_wire(query)
    response = dns.message.make_response(theirs, recursion_available=True)
    response.set_rcode(dns.rcode.Rcode(rcode))
    if tc:
        response.flags |= dns.flags.TC
    for number in range(count if rcode == 0 else 0):
        rdata = text if number == 0 else f"10.1.{number // 256}.{number % 256}"
        response.answer.append(dns.rrset.from_text(theirs.question[0].name, 60, "IN", "A", rdata))
    return response.to_wire(max_size=65535)


def told(data: bytes) -> str:
    """A response in a few words, read by dnspython (and by scapy, which must not choke; it takes 100 records)."""
    if len(data) < 1232:
        assert DNS(data).qr == 1
    message = dns.message.from_wire(data)
    assert message.flags & dns.flags.QR
    words = [str(item) for rrset in message.answer for item in rrset]
    return " ".join([dns.rcode.to_text(message.rcode()), *words])


class Upstream:
    """A fake server on 127.0.0.1, UDP and TCP on one port.  `behave` says what it answers."""

    def __init__(self, behave: Callable[[bytes], list[bytes]]) -> None:
        self.behave = behave
        self.udp: list[bytes] = []
        self.tcp: list[bytes] = []
        self.ports: list[int] = []
        self.sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.listener = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    async def start(self, nursery: trio.Nursery) -> tuple[str, int]:
        while True:
            await self.sock.bind(("127.0.0.1", 0))
            self.address = self.sock.getsockname()
            try:
                await self.listener.bind(self.address)
                break
            except OSError:  # somebody has that TCP port
                self.sock.close()
                self.sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.listener.listen()
        nursery.start_soon(self._serve_udp)
        nursery.start_soon(self._serve_tcp, nursery)
        return self.address

    async def _serve_udp(self) -> None:
        with self.sock:
            while True:
                data, sender = await self.sock.recvfrom(65535)
                self.udp.append(data)
                self.ports.append(sender[1])
                for answer in self.behave(data):
                    await self.sock.sendto(answer, sender)

    async def _serve_tcp(self, nursery: trio.Nursery) -> None:
        with self.listener:
            while True:
                sock, _ = await self.listener.accept()
                nursery.start_soon(self._serve_connection, trio.SocketStream(sock))

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        async with stream:
            received = bytearray()
            while (message := await receive_message(stream, received)) is not None:
                self.tcp.append(message)
                for answer in self.behave(message):
                    await stream.send_all(len(answer).to_bytes(2, "big") + answer)


def honest(text: str = "10.0.0.1", **options: int | bool) -> Callable[[bytes], list[bytes]]:
    return lambda query: [answer_bytes(query, text, **options)]  # type: ignore[arg-type]


def silent(_: bytes) -> list[bytes]:
    return []


def closed_port() -> tuple[str, int]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()  # type: ignore[no-any-return]


class Lan:
    """The service, a guest's questions, and the loops that a guest's nursery would have."""

    def __init__(self, service: DnsService, upstreams: list[Upstream], nursery: trio.Nursery) -> None:
        self.service = service
        self.upstreams = upstreams
        self.nursery = nursery
        self.replies: list[bytes] = []

    def send(self, raw: bytes) -> None:
        self.service.query(raw, GUEST, self.replies.append)

    async def ask(self, raw: bytes) -> bytes:
        got: list[bytes] = []
        done = trio.Event()

        def reply(data: bytes) -> None:
            got.append(data)
            done.set()

        self.service.query(raw, GUEST, reply)
        await done.wait()
        assert len(got) == 1
        assert dns.message.from_wire(raw).id == int.from_bytes(got[0][:2], "big")
        return got[0]

    def connect(self) -> trio.StapledStream[trio.abc.SendStream, trio.abc.ReceiveStream]:
        mine, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.service.serve_stream, theirs, GUEST)
        return mine

    async def ask_stream(self, raw: bytes) -> bytes:
        async with self.connect() as stream:
            await stream.send_all(len(raw).to_bytes(2, "big") + raw)
            answer = await receive_message(stream, bytearray())
        assert answer is not None
        return answer


@asynccontextmanager
async def lan(
    *behaviours: Callable[[bytes], list[bytes]] | tuple[str, int],
    racing: bool = False,
    orders: tuple[int, ...] = (),
    routing: Callable[[list[Server]], Callable[[], Routes]] | None = None,
    **options: object,
) -> AsyncIterator[Lan]:
    """A service whose servers behave so; `routing` makes of the servers who is asked about what."""
    poller = Poller()
    names = LocalNames([(bytes((192, 168, 65, 0)), 24)])
    names.add("gateway.internal", bytes((192, 168, 65, 1)))
    names.add_asker("vm.internal")
    names.add("big.internal", *(bytes((10, 0, 0, n)) for n in range(64)))

    async def loop() -> None:
        while True:
            await poller.wait()
            poller.poll()

    with closing(poller):
        async with trio.open_nursery() as nursery:
            servers: list[Server] = []
            upstreams = []
            for behaviour in behaviours:
                if isinstance(behaviour, tuple):
                    servers.append(Server(*behaviour))
                else:
                    upstreams.append(Upstream(behaviour))
                    servers.append(Server(*await upstreams[-1].start(nursery)))

            def failed(timed: object, error: BaseException) -> None:
                raise error

            deadlines = Deadlines(lambda: None, failed)
            servers = [server._replace(order=order) for server, order in zip_longest(servers, orders, fillvalue=0)]
            routes = Routes(servers, racing=racing)
            routed = routing(servers) if routing is not None else lambda: routes
            resolver = Resolver(names, routed, random.Random(2), **options)  # type: ignore[arg-type]
            await nursery.start(resolver.run)
            service = DnsService(resolver, poller, deadlines, trio.current_time, random.Random(1))
            nursery.start_soon(loop)
            nursery.start_soon(deadlines.run)
            await trio.testing.wait_all_tasks_blocked()
            yield Lan(service, upstreams, nursery)
            assert service.statistics().sockets == len(poller)
            service.close()
            assert len(poller) == service.statistics().sockets == 0
            nursery.cancel_scope.cancel()

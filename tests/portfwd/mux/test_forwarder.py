"""Host and guest of the forwarder protocol, with real sockets behind the guest."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest
import trio
import trio.testing

from portfwd.errors import ForwardError
from portfwd.mux import dialer as dialer_module
from portfwd.mux import udp
from portfwd.mux.address import ForwarderAddress, parse_forwarder
from portfwd.mux.dialer import Forwarder
from portfwd.mux.forwarder import serve_host
from portfwd.mux.reach import connect
from portfwd.mux.wire import Data, Destination, MuxError, Open, Protocol, Window, encode, greeting
from portfwd.options import SpecError
from portfwd.spec import Spec, parse
from portfwd.table import ForwardTable


async def quietly(stream, **options):
    try:
        await serve_host(stream, **options)
    except (MuxError, trio.BrokenResourceError):
        pass


@asynccontextmanager
async def forwarder(**options):
    """A Forwarder whose guest is here; every connection to him is another `serve_host`."""
    async with trio.open_nursery() as nursery:
        connections = []

        async def reach():
            ours, theirs = trio.testing.memory_stream_pair()
            connections.append(theirs)
            nursery.start_soon(lambda: quietly(theirs, **options))
            return ours

        made = Forwarder("test", reach, **options)
        made.connections = connections
        await nursery.start(made.run)
        yield made
        nursery.cancel_scope.cancel()


async def no_network(stream, spec):
    raise AssertionError("this does not go by the guest's network")


async def upper(stream):
    async for data in stream:
        await stream.send_all(data.upper())
    await stream.send_all(b".")
    await stream.send_eof()


@asynccontextmanager
async def listening(listener=None):
    async with trio.open_nursery() as nursery:
        listeners = listener or await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, upper, listeners)
        await trio.testing.wait_all_tasks_blocked()
        yield listeners[0].socket.getsockname()
        nursery.cancel_scope.cancel()


async def read_all(stream):
    return b"".join([data async for data in stream])


@pytest.mark.parametrize("handshake", [True, False])
async def test_tcp(handshake):
    async with forwarder(handshake=handshake) as made, listening() as (_, port):
        stream = await made.connect(Spec(1, port, guest_address="127.0.0.1"))
        await stream.send_all(b"abc" * 100_000)
        await stream.send_eof()
        assert await read_all(stream) == b"ABC" * 100_000 + b"."
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert made.channels == 0


async def test_a_unix_socket_in_the_guest_through_a_forward(tmp_path):
    path = str(tmp_path / "s")
    at = trio.socket.socket(socket.AF_UNIX)
    await at.bind(path)
    at.listen()
    async with forwarder() as made, listening([trio.SocketListener(at)]), trio.open_nursery() as nursery:
        table = ForwardTable(no_network)
        table.use_forwarder(made.connect, made)
        [spec] = parse(f"127.0.0.1:0:unix:{path}")
        forward = await table.expose(spec, nursery)
        async with await trio.open_tcp_stream(*forward.addresses[0]) as client:
            await client.send_all(b"abc")
            await client.send_eof()
            assert await read_all(client) == b"ABC."
        nursery.cancel_scope.cancel()


async def test_his_own_loopback_through_a_forward():
    async with forwarder() as made, listening() as (_, port), trio.open_nursery() as nursery:
        table = ForwardTable(no_network)
        [spec] = parse(f"tcp:127.0.0.1:0:tcp:127.0.0.1:{port}")
        with pytest.raises(ForwardError, match="the guest's own loopback needs the forwarder there"):
            await table.expose(spec, nursery)
        table.use_forwarder(made.connect, made)
        forward = await table.expose(spec, nursery)
        async with await trio.open_tcp_stream(*forward.addresses[0]) as client:
            await client.send_eof()
            assert await read_all(client) == b"."
        nursery.cancel_scope.cancel()


async def test_nobody_listens_in_the_guest(tmp_path):
    async with forwarder() as made, trio.open_nursery() as nursery:
        table = ForwardTable(no_network)
        table.use_forwarder(made.connect, made)
        [spec] = parse(f"127.0.0.1:0:unix:{tmp_path}/none")
        forward = await table.expose(spec, nursery)
        async with await trio.open_tcp_stream(*forward.addresses[0]) as client:
            with pytest.raises(trio.BrokenResourceError):  # a reset, which an end would hide
                await client.receive_some()
        nursery.cancel_scope.cancel()


class Echo:
    def __init__(self, family=socket.AF_INET, address="127.0.0.1"):
        self.socket = trio.socket.socket(family, socket.SOCK_DGRAM)
        self.address = address

    async def serve(self, task_status=trio.TASK_STATUS_IGNORED):
        await self.socket.bind((self.address, 0))
        task_status.started(self.socket.getsockname()[1])
        with self.socket:
            while True:
                data, source = await self.socket.recvfrom(65535)
                await self.socket.sendto(data.upper(), source)


async def test_udp_has_a_channel_for_each_client():
    async with forwarder() as made, trio.open_nursery() as nursery:
        port = await nursery.start(Echo().serve)
        table = ForwardTable(no_network)
        table.use_forwarder(made.connect, made)
        [spec] = parse(f"127.0.0.1::127.0.0.1:{port}/udp")
        forward = await table.expose(spec, nursery)
        clients = [trio.socket.socket(type=socket.SOCK_DGRAM) for _ in range(3)]
        for number, client in enumerate(clients):
            await client.connect(forward.addresses[0])
            await client.send(b"%d abc" % number)
            assert await client.recv(100) == b"%d ABC" % number
        await clients[0].send(bytes(65507))
        assert await clients[0].recv(65535) == bytes(65507)
        await clients[0].send(b"")
        assert await clients[0].recv(65535) == b""
        assert made.channels == forward.connections == 3
        forward.close()
        await trio.testing.wait_all_tasks_blocked()
        assert made.channels == 0
        for client in clients:
            client.close()
        nursery.cancel_scope.cancel()


async def test_a_connection_that_broke_is_made_again(autojump_clock):
    async with forwarder() as made, listening() as (_, port):
        first = await made.connect(Spec(1, port))
        await made.connections[0].aclose()
        with pytest.raises(trio.BrokenResourceError):
            await first.receive_some()
        second = await made.connect(Spec(1, port))
        await second.send_eof()
        assert await read_all(second) == b"."
        assert made.connected == 2


async def test_no_forwarder(autojump_clock, caplog):
    async def reach():
        raise OSError("nobody is there")

    async with trio.open_nursery() as nursery:
        made = Forwarder("unix:/x", reach)
        await nursery.start(made.run)
        with pytest.raises(OSError, match="forwarder unix:/x: nobody is there"):
            await made.connect(Spec(1, 1))
        with pytest.raises(OSError, match="nobody is there"):
            made.open(Spec(1, 1, "udp"), ("127.0.0.1", 1), lambda parts, segment: None)
        assert not await made.wait(Spec(1, 1, "udp"), ("127.0.0.1", 1))
        nursery.cancel_scope.cancel()
    assert "forwarder unix:/x: nobody is there" in caplog.text


async def test_a_forwarder_that_never_answers(autojump_clock):
    async def reach():
        return trio.testing.memory_stream_pair()[0]

    async with trio.open_nursery() as nursery:
        made = Forwarder("x", reach)
        await nursery.start(made.run)
        with pytest.raises(OSError, match="forwarder x"):
            await made.connect(Spec(1, 1))
        nursery.cancel_scope.cancel()


async def test_the_originals_host_has_one_channel_and_says_addresses():
    """The OCaml side: no handshake, and each client's address before his datagram; answers carry it."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        port = await nursery.start(Echo().serve)
        nursery.start_soon(lambda: quietly(theirs, handshake=False))
        asked = [udp.Datagram(b"one", ip_address("10.0.0.1"), 5), udp.Datagram(b"two", ip_address("::5"), 6)]
        data = b"".join(map(udp.encode, asked))
        where = Destination(Protocol.UDP, ip_address("127.0.0.1"), port)
        await ours.send_all(
            encode(Open(2**31 - 1, where))
            + encode(Window(2**31 - 1, 65536))
            + encode(Data(2**31 - 1, len(data)))
            + data
        )
        expected = {udp.encode(udp.Datagram(d.payload.upper(), d.address, d.port)) for d in asked}
        got = b""
        while not all(answer in got for answer in expected):
            got += await ours.receive_some()
        nursery.cancel_scope.cancel()


async def test_a_client_that_is_too_fast_loses_datagrams(monkeypatch):
    monkeypatch.setattr(dialer_module, "QUEUE_DATAGRAMS", 4)
    async with forwarder() as made:
        await made.connection()
        peer = made.open(Spec(1, 9, "udp"), ("127.0.0.1", 1), lambda parts, segment: None)
        peer.send_to_guest(bytes(100), 10)
        assert peer.lost == 6
        peer.close()
        assert not peer.is_open


GOOD = {
    "unix:/run/forwarder": ForwarderAddress("unix", "/run/forwarder"),
    "tcp:127.0.0.1:5000": ForwarderAddress("tcp", "127.0.0.1", 5000),
    "tcp:[::1]:5000": ForwarderAddress("tcp", "::1", 5000),
    "tcp:127.0.0.1:5,handshake=no": ForwarderAddress("tcp", "127.0.0.1", 5, handshake=False),
    "vsock:3": ForwarderAddress("vsock", "", 62373, 3),
    "vsock:7:4": ForwarderAddress("vsock", "", 4, 7),
    "hyperkit:/vms/0": ForwarderAddress("hyperkit", "/vms/0", 62373),
    "fc-vsock:/tmp/v:99": ForwarderAddress("fc-vsock", "/tmp/v", 99),
}


@pytest.mark.parametrize("text", GOOD)
def test_addresses(text):
    assert parse_forwarder(text) == GOOD[text]
    assert parse_forwarder(str(GOOD[text])) == GOOD[text]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix:",
        "tcp:x:1",
        "tcp:127.0.0.1",
        "tcp:127.0.0.1:0",
        "vsock:0",
        "vsock:x",
        "hyperkit:",
        "a:b",
        "unix:" + "x" * 200,
    ],
)
def test_no_addresses(text):
    with pytest.raises(SpecError):
        parse_forwarder(text)


@pytest.mark.parametrize(
    ("kind", "said", "answer"),
    [
        ("hyperkit", b"00000003.0000f3a5\n", b""),
        ("fc-vsock", b"CONNECT 62373\n", b"OK 1073741824\n"),
        ("unix", b"", b""),
    ],
)
async def test_ways_to_a_guests_vsock(tmp_path, kind, said, answer):
    path = tmp_path / ("connect" if kind == "hyperkit" else "v")
    at = trio.socket.socket(socket.AF_UNIX)
    with at:
        await at.bind(str(path))
        at.listen()
        heard = b""

        async def accept():
            nonlocal heard
            accepted, _ = await at.accept()
            with accepted:
                while len(heard) < len(said):
                    heard += await accepted.recv(100)
                await accepted.send(answer + greeting())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            stream = await connect(parse_forwarder(f"{kind}:{tmp_path if kind == 'hyperkit' else path}"))
            async with stream:
                assert await stream.receive_some(4096) == greeting()
        assert heard == said


async def test_nobody_behind_firecrackers_vsock(tmp_path):
    at = trio.socket.socket(socket.AF_UNIX)
    with at:
        await at.bind(str(tmp_path / "v"))
        at.listen()

        async def refuse():
            accepted, _ = await at.accept()
            await accepted.recv(100)
            accepted.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)
            with pytest.raises(OSError, match="nobody listens there"):
                await connect(parse_forwarder(f"fc-vsock:{tmp_path}/v"))

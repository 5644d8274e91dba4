"""UDP forwards, whose guest is a dictionary of functions."""

from __future__ import annotations

import errno
import socket
import sys
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from portfwd import datagrams
from portfwd.spec import parse
from portfwd.table import ForwardError, ForwardTable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from portfwd.datagrams import DatagramForward, Reply
    from portfwd.spec import Spec

PATIENCE = 5.0
LINUX = sys.platform == "linux"


class EchoPeer:
    """A guest that says everything in upper case."""

    def __init__(self, guest: Guest, client: tuple[str, int], reply: Reply) -> None:
        self.guest = guest
        self.client = client
        self.reply = reply
        self.is_open = True

    def send_to_guest(self, data: bytes, segment: int) -> None:
        self.guest.heard.append((self.client, data, segment))
        if self.guest.answers:
            self.reply([data.upper()], segment)

    def close(self) -> None:
        self.is_open = False
        self.guest.peers.remove(self)


class Guest:
    def __init__(self) -> None:
        self.heard: list[tuple[tuple[str, int], bytes, int]] = []
        self.peers: list[EchoPeer] = []
        self.answers = True
        self.is_there = True
        self.comes = False  # while he is waited for
        self.waits = 0

    def open(self, _spec: Spec, client: tuple[str, int], reply: Reply) -> EchoPeer:
        if not self.is_there:
            raise OSError(errno.EHOSTUNREACH, "no guest has 192.168.65.3")
        peer = EchoPeer(self, client, reply)
        self.peers.append(peer)
        return peer

    async def wait(self, _spec: Spec, _client: tuple[str, int]) -> bool:
        self.waits += 1
        await trio.lowlevel.checkpoint()
        self.is_there = self.comes
        return self.is_there


class World:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.guest = Guest()
        self.nursery = nursery
        self.table = ForwardTable(None, datagrams=self.guest)  # type: ignore[arg-type]

    async def expose(self, text: str) -> DatagramForward:
        [spec] = parse(text)
        forward = await self.table.expose(spec, self.nursery)
        assert isinstance(forward, datagrams.DatagramForward)
        return forward


@pytest.fixture
async def world(nursery: trio.Nursery) -> AsyncIterator[World]:
    made = World(nursery)
    yield made
    for forward in made.table.list():
        await made.table.unexpose(forward.spec)
    assert made.guest.peers == []
    nursery.cancel_scope.cancel()


async def client(forward: DatagramForward, index: int = 0) -> trio.socket.SocketType:
    address = forward.addresses[index]
    made = trio.socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_DGRAM)
    await made.connect(address)
    return made


async def hear(sock: trio.socket.SocketType) -> bytes:
    with trio.fail_after(PATIENCE):
        return await sock.recv(65535)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.001)


@pytest.mark.parametrize("size", [0, 1, 4, 511, 1023, 2034, 2035, 4095, 8191, 9215, 9216, 65507])
async def test_an_echo_of_any_size(world: World, size: int) -> None:
    forward = await world.expose("127.0.0.1:0:53/udp")
    with await client(forward) as sock:
        await sock.send(b"x" * size)
        assert await hear(sock) == b"X" * size
    assert [(data, segment) for _, data, segment in world.guest.heard] == [(b"x" * size, 0)]


async def test_both_loopbacks_at_one_port(world: World) -> None:
    forward = await world.expose("0:53/udp")
    assert {port for _, port in forward.addresses} == {forward.spec.host_port}
    for index in range(len(forward.addresses)):
        with await client(forward, index) as sock:
            await sock.send(b"a")
            assert await hear(sock) == b"A"


async def test_every_client_is_a_conversation_of_its_own(world: World) -> None:
    forward = await world.expose("127.0.0.1:0:53/udp")
    with await client(forward) as one, await client(forward) as two:
        for sock in (one, two, one):
            await sock.send(b"x")
            assert await hear(sock) == b"X"
        names = [one.getsockname(), two.getsockname()]
        assert [peer.client for peer in world.guest.peers] == names
        for peer in world.guest.peers:  # of himself, and to the right one
            peer.reply([str(peer.client[1]).encode()], 0)
        assert [await hear(sock) for sock in (one, two)] == [str(name[1]).encode() for name in names]
    assert (forward.accepted, forward.connections) == (2, 2)


async def test_silence_ends_a_conversation(
    world: World, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = await world.expose("127.0.0.1:0:53/udp,idle=30")
    clients = [("192.0.2.1", port) for port in (1, 2)]
    raw = forward._raw[0]
    for name in clients:
        assert await forward._deliver(raw, b"x", [], name)
    await trio.sleep(20)
    assert await forward._deliver(raw, b"x", [], clients[0])
    await trio.sleep(15)
    assert [peer.client for peer in world.guest.peers] == [clients[0]]
    world.guest.peers[0].reply([b"the guest's word counts, too"], 0)
    await trio.sleep(29)
    assert forward.connections == 1
    await trio.sleep(2)
    assert (forward.connections, world.guest.peers) == (0, [])


async def test_who_speaks_often_enough_is_not_silent(world: World, autojump_clock: trio.testing.MockClock) -> None:
    forward = await world.expose("127.0.0.1:0:53/udp,idle=1")
    for _ in range(20):
        assert await forward._deliver(forward._raw[0], b"x", [], ("192.0.2.1", 1))
        await trio.sleep(0.8)
    assert forward.accepted == 1
    await trio.sleep(0.5)
    assert forward.connections == 0


async def test_without_an_option_it_is_five_minutes(world: World, autojump_clock: trio.testing.MockClock) -> None:
    """RFC 4787 REQ-5: never under two, five by default."""
    forward = await world.expose("127.0.0.1:0:53/udp")
    assert await forward._deliver(forward._raw[0], b"x", [], ("192.0.2.1", 1))
    await trio.sleep(299)
    assert forward.connections == 1
    await trio.sleep(2)
    assert forward.connections == 0


async def test_the_longest_silent_makes_place(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "MAX_CLIENTS", 3)
    forward = await world.expose("127.0.0.1:0:53/udp")
    raw = forward._raw[0]
    for port in range(1, 6):
        assert await forward._deliver(raw, b"x", [], ("192.0.2.1", port))
    assert [peer.client[1] for peer in world.guest.peers] == [3, 4, 5]
    assert (forward.refused, forward.connections, forward.accepted) == (2, 3, 5)


async def test_without_a_guest_datagrams_are_lost_and_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.guest.is_there = False
    forward = await world.expose("127.0.0.1:0:53/udp")
    with await client(forward) as sock:
        for _ in range(20):
            await sock.send(b"x")
        await until(lambda: forward.failures == 20)
        assert world.guest.waits <= 20
        assert len([r for r in caplog.records if "a datagram was lost" in r.getMessage()]) == 1
        assert forward.connections == 0
        world.guest.is_there = True
        await sock.send(b"now")
        assert await hear(sock) == b"NOW"
    assert [data for _, data, _ in world.guest.heard] == [b"now"]


async def test_a_guest_that_comes_while_he_is_waited_for(world: World) -> None:
    world.guest.is_there = False
    world.guest.comes = True
    forward = await world.expose("127.0.0.1:0:53/udp")
    with await client(forward) as sock:
        await sock.send(b"first")
        assert await hear(sock) == b"FIRST"
    assert forward.failures == 0


async def test_a_guest_that_came_back_is_another(world: World) -> None:
    forward = await world.expose("127.0.0.1:0:53/udp")
    with await client(forward) as sock:
        await sock.send(b"a")
        assert await hear(sock) == b"A"
        [gone] = world.guest.peers
        gone.is_open = False
        await sock.send(b"b")
        assert await hear(sock) == b"B"
        assert gone not in world.guest.peers
    assert forward.connections == 1


async def test_unexpose_forgets_the_clients(world: World) -> None:
    forward = await world.expose("127.0.0.1:0:53/udp")
    with await client(forward) as sock:
        await sock.send(b"a")
        await hear(sock)
        [peer] = world.guest.peers
        await world.table.unexpose(forward.spec)
        assert world.guest.peers == []
        peer.reply([b"too late"], 0)
        await sock.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            await hear(sock)
    again = await world.expose(str(forward.spec))
    assert again.addresses == forward.addresses


async def test_a_busy_port_is_never_shared(world: World) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with pytest.raises(ForwardError, match=f"127.0.0.1:{port} is in use") as raised:
            await world.expose(f"127.0.0.1:{port}:53/udp")
    assert "/udp" in str(raised.value)
    assert not LINUX or "(pid " in str(raised.value)
    assert world.table.list() == []


@pytest.mark.skipif(not LINUX, reason="IP_PKTINFO, UDP_GRO and UDP_SEGMENT are Linux's")
@pytest.mark.parametrize("wildcard", ["0.0.0.0", "[::]"])
async def test_an_answer_comes_from_the_address_that_was_called(world: World, wildcard: str) -> None:
    forward = await world.expose(f"{wildcard}:0:53/udp")
    is_v4 = wildcard == "0.0.0.0"
    called = ("127.0.0.77" if is_v4 else "::1", forward.spec.host_port)
    with trio.socket.socket(socket.AF_INET if is_v4 else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        await sock.sendto(b"a", called)
        with trio.fail_after(PATIENCE):
            data, source = await sock.recvfrom(100)
    assert (data, source[:2]) == (b"A", called)


@pytest.mark.skipif(not LINUX, reason="UDP_GRO and UDP_SEGMENT are Linux's")
async def test_trains_stay_datagrams(world: World) -> None:
    forward = await world.expose("127.0.0.1:0:53/udp")
    with await client(forward) as sock:
        sock.setsockopt(socket.IPPROTO_UDP, datagrams.UDP_SEGMENT, 100)
        await sock.send(b"x" * 250)
        assert [await hear(sock) for _ in range(3)] == [b"X" * 100, b"X" * 100, b"X" * 50]
    assert sum(len(data) for _, data, _ in world.guest.heard) == 250


async def test_a_train_where_the_system_makes_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = await world.expose("127.0.0.1:0:53/udp")
    with await client(forward) as sock:
        await sock.send(b"a")
        await hear(sock)
        monkeypatch.setattr(datagrams, "LINUX", False)
        world.guest.peers[0].reply([memoryview(b"abc"), b"de"], 2)
        assert [await hear(sock) for _ in range(3)] == [b"ab", b"cd", b"e"]


async def test_an_answer_that_the_host_does_not_take_is_lost(world: World) -> None:
    forward = await world.expose("127.0.0.1:0:53/udp")
    with await client(forward) as sock:
        await sock.send(b"a")
        await hear(sock)
        world.guest.peers[0].reply([bytes(65536)], 0)  # EMSGSIZE
        assert forward.lost == 1
        await sock.send(b"b")
        assert await hear(sock) == b"B"


async def test_an_error_of_the_socket_neither_ends_nor_spins(
    world: World,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts = 0
    real = socket.socket.recvmsg

    def failing(self: socket.socket, *sizes: int) -> object:
        nonlocal attempts
        attempts += 1
        if attempts <= 100:
            raise OSError(errno.ENOBUFS, "No buffer space available")
        return real(self, *sizes)

    monkeypatch.setattr(socket.socket, "recvmsg", failing)
    world.guest.answers = False
    forward = await world.expose("127.0.0.1:0:53/udp")
    with await client(forward) as sock:
        await sock.send(b"x")
        await trio.sleep(9.5)
        assert attempts <= 96
        assert len(caplog.records) == 1
        await trio.sleep(1)
    assert [data for _, data, _ in world.guest.heard] == [b"x"]


async def test_two_thousand_clients_leave_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original's TestUDPLeak."""
    monkeypatch.setattr(datagrams, "MAX_CLIENTS", 64)
    forward = await world.expose("127.0.0.1:0:53/udp")
    await trio.testing.wait_all_tasks_blocked()
    tasks = trio.lowlevel.current_statistics().tasks_living
    for _ in range(2000):
        with await client(forward) as sock:
            await sock.send(b"x")
            assert await hear(sock) == b"X"
    assert forward.accepted >= 1900  # the system may give a port again
    assert len(world.guest.peers) == forward.connections == 64
    assert trio.lowlevel.current_statistics().tasks_living == tasks

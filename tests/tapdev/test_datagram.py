"""DatagramPort: peers of an unconnected datagram socket come and go."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections import deque
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tapdev import datagram
from tapdev.datagram import PROBE_INTERVAL, SILENCE, DatagramPort, is_dead
from tapdev.link import MAX_FRAME, Link, LinkClosed
from tapdev.packet import LONGEST_DELAY, SLOTS, STUCK
from tests.tapdev.link_conformance import LinkConformance, frame, next_frame
from tests.tapdev.test_packet import RefusingSocket, SocketAsFarEnd

HELLO = b"VFKT"
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


@pytest.fixture
def directory():
    path = Path(tempfile.mkdtemp(prefix="vk-"))  # a sun_path has 107 octets
    yield path
    shutil.rmtree(path)


class Peer:
    """A VM's end: bound to `name`, and connected to the port as vfkit is, or not, as QEMU is."""

    def __init__(self, name: Path | bytes | None, port: DatagramPort, *, connect: bool = False) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        if name is not None:
            self.sock.bind(name if isinstance(name, bytes) else str(name))
        self._port = port.sock.getsockname()
        if connect:
            self.sock.connect(self._port)

    def try_send(self, data: bytes) -> None:
        self.sock.sendto(data, self._port)

    async def send(self, data: bytes) -> None:
        while True:
            try:
                self.try_send(data)
                return
            except BlockingIOError:
                await trio.sleep(0.001)

    receive = SocketAsFarEnd.receive
    close = SocketAsFarEnd.close


@pytest.fixture
async def world(directory):
    """Makes ports and peers, and closes them."""
    made: deque = deque()

    class World:
        def port(self, name: str = "port", **options) -> DatagramPort:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            sock.bind(str(directory / name))
            made.appendleft(port := DatagramPort(sock, **{"mtu": 1500, **options}))
            return port

        def udp_port(self, **options) -> DatagramPort:
            made.appendleft(port := DatagramPort(udp_socket(), **{"mtu": 1500, **options}))
            return port

        def peer(self, name: str | bytes | None, port: DatagramPort, **options) -> Peer:
            made.appendleft(peer := Peer(directory / name if isinstance(name, str) else name, port, **options))
            return peer

        async def served(self, name: str, port: DatagramPort, **options) -> tuple[Link, Peer]:
            """A peer and its link; its first frame was received."""
            peer = self.peer(name, port, **options)
            await peer.send(frame(0))
            link = await accept(port)
            assert await next_frame(link) == frame(0)
            return link, peer

    yield World()
    for thing in made:
        thing.close()


def udp_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    return sock


async def accept(port: DatagramPort) -> Link:
    with trio.fail_after(5):
        return await port.accept()


async def nobody_comes(port: DatagramPort) -> None:
    """What arrived so far is looked at, and makes nobody a peer."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(port.accept)
        await wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()


class PatientFarEnd(SocketAsFarEnd):
    """Keeps what the port's queue has no place for: it has 11 (net.unix.max_dgram_qlen), and the suite sends 20.

    Its own queue has no such limit, as its socket is connected to the port.
    """

    def __init__(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        super().__init__(sock)
        self._keep, self._kept = trio.open_memory_channel[bytes](2000)
        nursery.start_soon(self._pump)

    async def _pump(self) -> None:
        async for data in self._kept:
            await super().send(data)

    async def send(self, data: bytes) -> None:
        self._keep.send_nowait(data)

    def close(self) -> None:
        self._keep.close()
        self._kept.close()
        trio.lowlevel.notify_closing(self.sock)
        super().close()


class PortConformance(LinkConformance):
    closes = False
    options: dict = {}  # noqa: RUF012
    first: bytes | None = None

    @pytest.fixture(params=[1500, 65520])
    def make_ends(self, request, world, nursery):
        async def make():
            port = world.port(mtu=request.param, **self.options)
            peer = world.peer("peer", port, connect=True)
            if self.first is not None:
                await peer.send(self.first)
            return await accept(port), PatientFarEnd(peer.sock, nursery)

        return make


class TestVfkit(PortConformance):
    options = {"hello": HELLO}  # noqa: RUF012
    first = HELLO


class TestVfkitWithoutHello(PortConformance):
    options = {"hello": HELLO}  # noqa: RUF012
    first = bytes(60)


class TestQemu(PortConformance):
    @pytest.fixture
    def make_ends(self, world, directory, nursery):
        async def make():
            port = world.port(mtu=65520, remote=str(directory / "qemu"))
            peer = world.peer("qemu", port, connect=True)
            return await accept(port), PatientFarEnd(peer.sock, nursery)

        return make


class TestUdp(LinkConformance):
    closes = False

    @pytest.fixture(params=["learned", "remote"])
    def make_ends(self, request, world):
        async def make():
            sock = udp_socket()
            port = world.udp_port(mtu=65520, remote=sock.getsockname() if request.param == "remote" else None)
            sock.connect(port.sock.getsockname())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            if request.param == "learned":
                sock.send(bytes(60))
            return await accept(port), SocketAsFarEnd(sock)

        return make


# Who becomes a peer


async def test_the_hello_is_eaten(world):
    port = world.port(hello=HELLO)
    peer = world.peer("vm", port)
    await peer.send(HELLO)
    await peer.send(frame(1))
    link = await accept(port)
    assert link.receive() == frame(1)
    assert (link.statistics.received_frames, link.statistics.errors, port.errors) == (1, 0, 0)


async def test_without_a_hello_the_first_datagram_is_a_frame(world):
    port = world.port(hello=HELLO)
    peer = world.peer("vm", port)
    await peer.send(frame(1))
    await peer.send(frame(2))
    link = await accept(port)
    with trio.fail_after(5):
        await link.wait_readable()
    assert link.receive() == frame(1)
    link.hold()
    assert link.receive() == frame(2)
    assert link.statistics.received_bytes == 128


async def test_the_first_frame_does_not_wait_for_a_second(world):
    port = world.port()
    await world.peer("vm", port).send(frame(1))
    link = await accept(port)
    with trio.fail_after(5):
        await link.wait_readable()
    assert link.receive() == frame(1)
    assert link.receive() is None


@pytest.mark.parametrize("first", [HELLO, frame(0)])
async def test_a_later_hello_is_a_frame_too_short(world, first):
    port = world.port(hello=HELLO)
    peer = world.peer("vm", port)
    for data in (first, HELLO, frame(1), HELLO, frame(2)):
        await peer.send(data)
    link = await accept(port)
    received = [bytes(view) for view in iter(link.receive, None)]
    assert received == [frame(0)] * (first != HELLO) + [frame(1), frame(2)]
    assert link.statistics.errors == 2


async def test_a_hello_is_not_expected_of_qemu(world):
    port = world.port()
    peer = world.peer("vm", port)
    await peer.send(HELLO)
    await nobody_comes(port)
    assert port.errors == 1


@pytest.mark.parametrize("data", [b"", b"V", b"VFKT!", bytes(13), bytes(MAX_FRAME + 1)])
async def test_what_is_neither_hello_nor_frame_makes_nobody_a_peer(world, data):
    port = world.port(hello=HELLO)
    peer = world.peer("vm", port)
    await peer.send(data)
    await nobody_comes(port)
    assert port.errors == 1
    await peer.send(frame(1))
    assert (await accept(port)).receive() == frame(1)


@pytest.mark.parametrize("data", [b"", bytes(13), bytes(MAX_FRAME + 1), bytes(100000)])
async def test_what_is_no_frame_is_counted_and_skipped(world, data):
    link, peer = await world.served("vm", world.port())
    await peer.send(data)
    await peer.send(frame(1))
    assert await next_frame(link) == frame(1)
    assert (link.statistics.errors, link.statistics.received_frames) == (1, 2)


async def test_a_sender_without_a_name_is_ignored_and_said_once(world, caplog):
    port = world.port(hello=HELLO)
    nameless = world.peer(None, port)
    for data in (HELLO, frame(1), frame(2)):
        await nameless.send(data)
    await nobody_comes(port)
    assert port.errors == 3
    link, _ = await world.served("vm", port)
    await nameless.send(frame(3))
    assert link.receive() is None
    assert link.statistics.errors == 1
    assert len(caplog.records) == 1
    assert "without a name" in caplog.text


async def test_a_path_that_is_not_utf8(world, directory):
    port = world.port()
    peer = world.peer(os.fsdecode(b"vm-\xff"), port)
    await peer.send(frame(1))
    link = await accept(port)
    assert link.send([frame(2)])
    assert await peer.receive() == frame(2)


@linux
@pytest.mark.parametrize("learned", [True, False])
async def test_abstract_names(world, learned):
    name = b"\0vk-test-%d" % os.getpid()
    port = world.port(remote=None if learned else name)
    peer = world.peer(name, port)
    await peer.send(frame(1))
    link = await accept(port)
    assert await next_frame(link) == frame(1)
    assert link.send([frame(2)])
    assert await peer.receive() == frame(2)
    peer.close()
    with pytest.raises(LinkClosed):
        link.send([frame(3)])


@linux
async def test_an_abstract_name_as_text(world):
    name = f"\0vk-test-{os.getpid()}"
    port = world.port(remote=name)
    peer = world.peer(name.encode(), port)
    link = await accept(port)
    await peer.send(frame(1))
    assert await next_frame(link) == frame(1)
    assert link.send([frame(2)])


# A remote that is known


async def test_a_remote_is_served_before_it_speaks(world, directory):
    port = world.port(remote=os.fsencode(directory / "qemu"))
    peer = world.peer("qemu", port)
    link = await accept(port)
    assert link.send([frame(1)])
    assert await peer.receive() == frame(1)


async def test_a_remote_that_is_not_there_yet_is_waited_for(world, directory):
    port = world.port(remote=str(directory / "qemu"))
    link = await accept(port)
    with pytest.raises(LinkClosed):
        link.send([frame(1)])
    await nobody_comes(port)
    peer = world.peer("qemu", port)
    await peer.send(frame(2))
    assert (await accept(port)).receive() == frame(2)


async def test_a_greeting_of_a_remote_is_eaten_once(world, directory):
    port = world.port(hello=HELLO, remote=str(directory / "vm"))
    link = await accept(port)
    peer = world.peer("vm", port)
    for data in (HELLO, frame(1), HELLO, frame(2)):
        await peer.send(data)
    assert [bytes(view) for view in iter(link.receive, None)] == [frame(1), frame(2)]
    assert link.statistics.errors == 1


async def test_only_the_remote_is_served(world, directory, caplog):
    port = world.port(remote=str(directory / "qemu"))
    stranger = world.peer("stranger", port)
    link = await accept(port)
    link.close()
    await stranger.send(frame(1))
    await stranger.send(frame(2))
    await nobody_comes(port)
    assert port.errors == 2
    qemu = world.peer("qemu", port)
    await qemu.send(frame(3))
    link = await accept(port)
    assert link.receive() == frame(3)
    qemu.close()
    await stranger.send(frame(4))
    assert link.receive() is None, "not even when the remote is gone"
    assert link.statistics.errors == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "stranger" in caplog.text


async def test_a_remote_may_spell_its_path_otherwise(world, directory, caplog):
    (directory / "real").mkdir()
    (directory / "link").symlink_to(directory / "real")
    port = world.port(remote=str(directory / "link" / "qemu"))
    qemu = world.peer("real/qemu", port)
    link = await accept(port)
    await qemu.send(frame(1))
    await qemu.send(frame(2))
    assert [bytes(view) for view in iter(link.receive, None)] == [frame(1), frame(2)]
    assert link.send([frame(3)])
    assert await qemu.receive() == frame(3)
    link.close()
    await qemu.send(frame(4))
    assert (await accept(port)).receive() == frame(4)
    assert not caplog.records


# Peers that go and come


async def test_a_peer_that_is_gone_closes_the_link_and_the_next_one_is_served(world):
    port = world.port(hello=HELLO)
    link, first = await world.served("first", port, connect=True)
    first.close()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read() -> None:
            await link.wait_readable()
            with pytest.raises(LinkClosed):
                link.receive()

        await wait_all_tasks_blocked()
        with pytest.raises(LinkClosed, match="refused"):
            link.send([frame(1)])
        second = world.peer("second", port, connect=True)
        await second.send(HELLO)
        await second.send(frame(2))
        link = await accept(port)
    assert link.receive() == frame(2)
    assert link.send([frame(3)])
    assert await second.receive() == frame(3)


async def test_a_peer_that_restarts_under_another_path_is_served_at_once(world):
    port = world.port(hello=HELLO)
    link, first = await world.served("first", port, connect=True)
    await first.send(frame(1))
    first.close()
    second = world.peer("second", port, connect=True)
    await second.send(HELLO)
    await second.send(frame(2))
    assert link.receive() == frame(1), "what was sent before still arrives"
    with pytest.raises(LinkClosed, match=r"first' is gone, .*second' came"):
        link.receive()
    with pytest.raises(LinkClosed):
        link.send([frame(9)])
    link = await accept(port)
    assert link.receive() == frame(2)
    assert (link.statistics.errors, port.errors) == (0, 0)
    assert link.send([frame(3)])
    assert await second.receive() == frame(3)


async def test_the_datagram_that_displaces_is_not_lost(world, directory):
    port = world.port(hello=HELLO)
    link, first = await world.served("first", port)
    first.close()
    (directory / "first").unlink()
    await world.peer("second", port).send(frame(1))
    with pytest.raises(LinkClosed):
        link.receive()
    assert (await accept(port)).receive() == frame(1)


async def test_a_peer_that_restarts_under_its_own_path_stays_the_peer(world, directory):
    port = world.port()
    link, first = await world.served("vm", port)
    first.close()
    (directory / "vm").unlink()
    second = world.peer("vm", port)
    await second.send(frame(1))
    assert await next_frame(link) == frame(1)
    assert link.send([frame(2)])
    assert await second.receive() == frame(2)


async def test_last_words_of_the_dead_make_no_peer(world):
    port = world.port()
    link, first = await world.served("first", port)
    for number in range(5):
        await first.send(frame(number))
    first.close()
    with pytest.raises(LinkClosed):
        link.send([frame(9)])
    await nobody_comes(port)
    assert port.errors == 5


async def test_a_stranger_does_not_displace_a_live_peer(world, autojump_clock):
    port = world.port(hello=HELLO)
    link, peer = await world.served("vm", port)
    stranger = world.peer("stranger", port)
    for number in range(5):
        await stranger.send(HELLO)
        await peer.send(frame(number))
        assert link.receive() == frame(number)
        await trio.sleep(2 * PROBE_INTERVAL)
    assert link.receive() is None
    assert link.statistics.errors == 5
    assert link.send([frame(7)])
    assert await peer.receive() == frame(7)


async def test_a_live_peer_that_is_connected_to_us_is_alive(world, directory):
    """A probe of it is refused, with EPERM."""
    port = world.port()
    link, peer = await world.served("vm", port, connect=True)
    assert not is_dead(str(directory / "vm"))
    await world.peer("stranger", port).send(frame(1))
    assert link.receive() is None
    await peer.send(frame(2))
    assert link.receive() == frame(2)


async def test_strangers_cannot_make_us_probe_often(world, autojump_clock, monkeypatch):
    probes = []

    def count(name):
        probes.append(name)
        return is_dead(name)

    port = world.port()
    link, _ = await world.served("vm", port)
    monkeypatch.setattr(datagram, "is_dead", count)
    stranger = world.peer("stranger", port)
    for _ in range(20):
        for number in range(10):
            stranger.try_send(frame(number))
        assert link.receive() is None
    assert len(probes) == 1
    await trio.sleep(PROBE_INTERVAL)
    stranger.try_send(frame(0))
    assert link.receive() is None
    assert len(probes) == 2
    assert link.statistics.errors == 201


async def test_a_flood_of_strangers_leaves_the_others_their_turn(world):
    port = world.port()
    link, _ = await world.served("vm", port)
    stranger = world.peer("stranger", port)
    sock = RefusingSocket(link._sock)
    calls = 0

    def recvfrom_into(buffer):
        nonlocal calls
        calls += 1
        return 60, str(stranger.sock.getsockname())

    sock.recvfrom_into = recvfrom_into
    link._sock = sock
    assert link.receive() is None
    assert calls == 64


@pytest.mark.parametrize("make", ["missing", "file", "stream"])
async def test_names_where_nobody_is_any_more(directory, make):
    path = directory / "name"
    if make == "file":
        path.touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        if make == "stream":
            listener.bind(str(path))
            listener.listen()
        assert is_dead(str(path))


# UDP


async def test_a_udp_peer_is_displaced_only_by_its_own_host_after_a_silence(world, autojump_clock):
    port = world.udp_port()
    address = port.sock.getsockname()
    with udp_socket() as first, udp_socket() as second:
        first.sendto(frame(0), address)
        link = await accept(port)
        assert await next_frame(link) == frame(0)
        second.sendto(frame(1), address)
        assert link.receive() is None
        await trio.sleep(SILENCE - 1)
        first.sendto(frame(2), address)
        assert link.receive() == frame(2)
        second.sendto(frame(3), address)
        assert link.receive() is None
        await trio.sleep(SILENCE - 1)
        second.sendto(frame(4), address)
        assert link.receive() is None
        assert link.statistics.errors == 3
        await trio.sleep(1)
        second.sendto(frame(5), address)
        with pytest.raises(LinkClosed):
            link.receive()
        link = await accept(port)
        assert link.receive() == frame(5)
        assert link.send([frame(6)])
        await trio.lowlevel.wait_readable(second)
        assert second.recv(2000) == frame(6)


@linux
async def test_a_udp_peer_is_never_displaced_by_another_host(world, autojump_clock):
    """Linux has all of 127.0.0.0/8."""
    port = world.udp_port()
    address = port.sock.getsockname()
    with udp_socket() as first, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.2", 0))
        first.sendto(frame(0), address)
        link = await accept(port)
        assert await next_frame(link) == frame(0)
        for _ in range(3):
            other.sendto(frame(1), address)
            assert link.receive() is None
            await trio.sleep(2 * SILENCE)
        assert link.statistics.errors == 3


async def test_over_udp_the_mtu_is_what_a_datagram_holds_and_more_is_lost(world):
    port = world.udp_port(mtu=65520)
    with udp_socket() as sock:
        sock.sendto(frame(0), port.sock.getsockname())
        link = await accept(port)
        assert link.capabilities.mtu == 65507 - 14
        assert link.send([frame(1, 65508)])
        assert link.statistics.dropped_frames == 1
        assert link.send([frame(2, 65507)])
        await trio.lowlevel.wait_readable(sock)
        assert sock.recv(70000) == frame(2, 65507)


# Frames of 64 KiB, and peers without room


@pytest.mark.parametrize("connect", [True, False])
async def test_the_longest_frames_cross_both_ways(world, connect):
    link, peer = await world.served("vm", world.port(), connect=connect)
    whole = frame(1, MAX_FRAME)
    for _ in range(20):
        assert link.send([whole[:54], whole[54:]])
        assert await peer.receive() == whole
        await peer.send(whole)
        assert await next_frame(link) == whole
    assert link.statistics.errors == 0


@pytest.mark.parametrize("tells", [pytest.param(True, marks=linux), False])
@pytest.mark.parametrize("connect", [True, False])
@pytest.mark.parametrize("length", [1514, MAX_FRAME])
async def test_a_full_queue_that_is_drained_loses_nothing(world, monkeypatch, tells, connect, length):
    monkeypatch.setattr(datagram, "TELLS_ROOM", tells)
    link, peer = await world.served("vm", world.port(), connect=connect)
    refusals = 0
    full = trio.Event()
    total = 1000 if length < 2000 else 100

    async def fill() -> None:
        nonlocal refusals
        for number in range(total):
            while not link.send([frame(number, length)]):
                refusals += 1
                full.set()
                await link.wait_writable()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill)
        await full.wait()
        with trio.fail_after(20):
            for number in range(total):
                assert await peer.receive() == frame(number, length)
    assert refusals
    assert link.statistics.dropped_frames == 0
    assert link.statistics.sent_frames == total


@linux
@pytest.mark.parametrize("connect", [True, False])
async def test_room_at_the_peer_is_told_on_linux(world, mock_clock, connect):
    """No clock runs here: only the kernel can end the wait."""
    link, peer = await world.served("vm", world.port(), connect=connect)
    count = 0
    while link.send([frame(count, 1514)]):
        count += 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.wait_writable)
        await wait_all_tasks_blocked()
        for number in range(count):
            assert await peer.receive() == frame(number, 1514)
    assert link.send([frame(0)])


async def test_a_peer_that_takes_nothing_loses_frames_and_holds_nothing(world, autojump_clock):
    link, peer = await world.served("vm", world.port())
    count = 0
    while link.send([frame(count)]):
        count += 1
    start = trio.current_time()
    attempts = 0
    while not link.send([frame(count)]):
        attempts += 1
        await link.wait_writable()
    assert STUCK <= trio.current_time() - start < STUCK + 2 * LONGEST_DELAY
    assert attempts < 1.1 * STUCK / LONGEST_DELAY
    assert link.statistics.dropped_frames == 1
    assert link.send([frame(count)]), "it is stuck, and nobody waits for it again"
    assert link.statistics.dropped_frames == 2
    for number in range(count):
        assert await peer.receive() == frame(number)
    assert link.send([frame(count)])
    assert await peer.receive() == frame(count)
    assert link.statistics.sent_frames == count + 1


async def test_without_buffers_attempts_are_bounded_and_then_the_frame_is_lost(world, autojump_clock):
    """As on macOS: ENOBUFS from a socket that is always writable."""
    link, peer = await world.served("vm", world.port())
    link._sock = sock = RefusingSocket(link._sock)
    start = trio.current_time()
    while not link.send([frame(1)]):
        await link.wait_writable()
    assert STUCK <= trio.current_time() - start < STUCK + 2 * LONGEST_DELAY
    assert sock.attempts < 1.1 * STUCK / LONGEST_DELAY
    assert link.statistics.dropped_frames == 1
    sock.error = None
    assert link.send([frame(2)])
    assert await peer.receive() == frame(2)


@pytest.mark.parametrize("error", [errno.ECONNREFUSED, errno.ENOENT, errno.ENOTCONN, errno.ECONNRESET, errno.EPERM])
async def test_errors_that_say_that_the_peer_is_gone(world, error):
    port = world.port()
    link, _ = await world.served("vm", port)
    link._sock = RefusingSocket(link._sock)
    link._sock.error = error
    with pytest.raises(LinkClosed):
        link.send([frame(1)])
    await world.served("other", port)


# Waits and ends


async def test_closing_a_link_ends_its_waits_and_not_the_port(world):
    port = world.port()
    link, peer = await world.served("vm", port)
    while link.send([frame(1)]):
        pass
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.wait_readable)
        nursery.start_soon(link.wait_writable)
        await wait_all_tasks_blocked()
        link.close()
    await link.wait_readable()
    await link.wait_writable()
    await peer.send(frame(2))
    assert (await accept(port)).receive() == frame(2)


async def test_closing_a_link_ends_a_delay(world, mock_clock):
    link, _ = await world.served("vm", world.port())
    link._sock = RefusingSocket(link._sock)
    assert not link.send([frame(1)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.wait_writable)
        await wait_all_tasks_blocked()
        link.close()


async def test_accept_waits_for_the_end_of_the_link(world):
    port = world.port()
    link, peer = await world.served("vm", port)
    accepted = []

    async def serve() -> None:
        accepted.append(await port.accept())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await wait_all_tasks_blocked()
        await peer.send(frame(1))
        await wait_all_tasks_blocked(0.01)
        assert not accepted
        assert link.receive() == frame(1)
        link.close()
        await peer.send(frame(2))
    assert accepted[0].receive() == frame(2)
    with pytest.raises(LinkClosed):
        link.receive()
    link.close()
    assert accepted[0].send([frame(3)]), "an old link's end is not the new one's"


@pytest.mark.parametrize("serving", [True, False])
async def test_closing_a_port_ends_everything(world, serving):
    port = world.port()
    link = (await world.served("vm", port))[0] if serving else None
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def acceptor() -> None:
            with pytest.raises(LinkClosed):
                await port.accept()

        if link is not None:
            nursery.start_soon(link.wait_readable)
        await wait_all_tasks_blocked()
        port.close()
        port.close()
    if link is not None:
        with pytest.raises(LinkClosed):
            link.send([frame(1)])
        link.close()
    with pytest.raises(LinkClosed):
        await port.accept()


async def test_slots_are_bounded(world):
    link, peer = await world.served("vm", world.port())
    held = []
    for number in range(SLOTS):
        await peer.send(frame(number))
        view = link.receive()
        assert view is not None
        held.append(view)
        link.hold()
    await peer.send(frame(SLOTS))
    assert link.receive() is None
    assert [bytes(view) for view in held] == [frame(number) for number in range(SLOTS)]
    link.release()
    assert link.receive() == frame(SLOTS)


async def test_other_sockets_and_remotes_are_refused():
    with socket.socket(socket.AF_UNIX) as stream, pytest.raises(ValueError, match="datagram socket"):
        DatagramPort(stream, mtu=1500)
    with udp_socket() as udp:
        with pytest.raises(ValueError, match="cannot be '/path'"):
            DatagramPort(udp, mtu=1500, remote="/path")
        with pytest.raises(ValueError, match="localhost"):
            DatagramPort(udp, mtu=1500, remote=("localhost", 1))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix, pytest.raises(ValueError, match="cannot be"):
        DatagramPort(unix, mtu=1500, remote=("127.0.0.1", 1))

"""PacketLink: one packet of a connected socket is one frame."""

from __future__ import annotations

import errno
import socket
from types import SimpleNamespace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tapdev.link import MAX_FRAME, Link, LinkClosed
from tapdev.packet import LONGEST_DELAY, SLOTS, STUCK, PacketLink
from tests.tapdev.link_conformance import LinkConformance, frame, next_frame

KINDS = {"seqpacket": socket.SOCK_SEQPACKET, "dgram": socket.SOCK_DGRAM}


class SocketAsFarEnd:
    """A connected packet socket as the far end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    async def send(self, data: bytes) -> None:
        while True:
            try:
                self.sock.send(data)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.sock)

    async def receive(self) -> bytes:
        while True:
            try:
                return self.sock.recv(1 << 17)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)

    def close(self) -> None:
        self.sock.close()


def is_a_link(link: Link) -> Link:
    return link


def pair(kind: str) -> tuple[PacketLink, SocketAsFarEnd]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, KINDS[kind])
    return PacketLink(ours, mtu=1500), SocketAsFarEnd(theirs)


@pytest.fixture(params=KINDS)
async def ends(request):
    link, far = pair(request.param)
    yield link, far
    far.close()
    link.close()


class TestSeqpacket(LinkConformance):
    @pytest.fixture(params=[1500, 65520])
    def make_ends(self, request):
        async def make():
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            return is_a_link(PacketLink(ours, mtu=request.param)), SocketAsFarEnd(theirs)

        return make


class TestDatagramPair(LinkConformance):
    closes = False

    @pytest.fixture(params=[1500, 65520])
    def make_ends(self, request):
        async def make():
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            return PacketLink(ours, mtu=request.param), SocketAsFarEnd(theirs)

        return make


async def test_the_longest_frames_cross_both_ways(ends):
    link, far = ends
    whole = frame(1, MAX_FRAME)
    assert link.send([whole[:54], whole[54:]])
    assert await far.receive() == whole
    await far.send(whole)
    assert await next_frame(link) == whole
    assert link.statistics.errors == 0


@pytest.mark.parametrize("length", [1, 4, 13, MAX_FRAME + 1, 70000, 100000])
async def test_what_is_no_frame_is_counted_and_skipped(ends, length):
    link, far = ends
    await far.send(bytes(length))
    await far.send(frame(1))
    assert await next_frame(link) == frame(1)
    assert (link.statistics.errors, link.statistics.received_frames) == (1, 1)


async def test_an_empty_datagram_is_no_end():
    link, far = pair("dgram")
    await far.send(b"")
    await far.send(frame(1))
    assert await next_frame(link) == frame(1)
    assert link.statistics.errors == 1
    far.close()
    link.close()


async def test_an_empty_packet_is_the_end_for_good():
    link, far = pair("seqpacket")
    await far.send(b"")
    await far.send(frame(1))
    for _ in range(2):
        with pytest.raises(LinkClosed, match="other end"):
            link.receive()
    with pytest.raises(LinkClosed):
        link.send([frame(1)])
    far.close()


async def test_rubbish_does_not_keep_the_others_from_their_turn():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    link, far = PacketLink(ours, mtu=1500), SocketAsFarEnd(theirs)
    for _ in range(100):
        await far.send(b"x")
    await far.send(frame(1))
    assert link.receive() is None
    assert link.statistics.errors == 64
    assert await next_frame(link) == frame(1)
    assert link.statistics.errors == 100
    far.close()
    link.close()


async def test_slots_are_bounded(ends):
    link, far = ends
    for number in range(SLOTS + 1):
        await far.send(frame(number))
    for _ in range(SLOTS):
        assert link.receive() is not None
        link.hold()
    assert link.receive() is None
    link.release()
    assert link.receive() == frame(SLOTS)


async def test_a_full_link_refuses_and_what_it_took_arrives_in_order(ends):
    link, far = ends
    taken = 0
    while link.send([frame(taken, 1514)]):
        taken += 1
    woken = trio.Event()

    async def wait() -> None:
        await link.wait_writable()
        woken.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not woken.is_set()
        for number in range(taken):
            assert await far.receive() == frame(number, 1514)
        with trio.fail_after(5):
            await woken.wait()
    assert link.send([frame(taken)])
    assert await far.receive() == frame(taken)
    assert link.statistics.dropped_frames == 0


async def test_closing_ends_every_wait(ends):
    link, _ = ends
    while link.send([frame(1, 1514)]):
        pass
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.wait_readable)
        nursery.start_soon(link.wait_writable)
        await wait_all_tasks_blocked()
        link.close()
    await link.wait_readable()
    await link.wait_writable()
    with pytest.raises(LinkClosed, match="this end"):
        link.receive()


async def test_a_reader_learns_from_the_sender_that_the_far_end_is_gone(ends):
    """No packet tells a reader that the other end of a datagram pair is gone."""
    link, far = ends
    far.close()
    with pytest.raises(LinkClosed):
        link.send([frame(1)])
    with trio.fail_after(5):
        await link.wait_readable()
    with pytest.raises(LinkClosed):
        link.receive()


async def test_a_stream_is_refused():
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ValueError, match="SOCK_STREAM"):
        PacketLink(ours, mtu=1500)


async def test_descriptors_are_adopted():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = PacketLink(socket.socket(fileno=ours.detach()), mtu=1500)
    theirs.close()
    with pytest.raises(LinkClosed, match="other end"):
        link.receive()


class RefusingSocket:
    """As a socket of macOS whose peer's queue is full: writable, and refuses."""

    type = socket.SOCK_DGRAM
    family = socket.AF_UNIX

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.error: int | None = errno.ENOBUFS
        self.attempts = 0

    def sendmsg(self, parts, ancillary, flags, address):
        self.attempts += 1
        if self.error is not None:
            raise OSError(self.error, "refused by the test")
        return self._sock.sendmsg(parts, ancillary, flags, address)

    def __getattr__(self, name):
        return getattr(self._sock, name)


@pytest.fixture
def refusing():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock = RefusingSocket(ours)
    link = PacketLink(sock, mtu=1500)
    far = SocketAsFarEnd(theirs)
    yield SimpleNamespace(link=link, sock=sock, far=far)
    ours.close()
    theirs.close()


async def test_without_buffers_attempts_are_bounded_and_then_the_frame_is_lost(refusing, autojump_clock):
    link = refusing.link
    start = trio.current_time()
    while not link.send([frame(1)]):
        await link.wait_writable()
    assert STUCK <= trio.current_time() - start < STUCK + 2 * LONGEST_DELAY
    assert refusing.sock.attempts < 1.1 * STUCK / LONGEST_DELAY
    assert (link.statistics.dropped_frames, link.statistics.sent_frames) == (1, 0)
    assert link.send([frame(2)]), "a stuck guest holds nothing"
    assert link.statistics.dropped_frames == 2
    refusing.sock.error = None
    assert link.send([frame(3)])
    assert await refusing.far.receive() == frame(3)
    refusing.sock.error = errno.ENOBUFS
    assert not link.send([frame(4)]), "after a success its patience is new"
    link.close()


async def test_delays_grow_and_begin_anew_after_a_success(refusing, autojump_clock):
    async def delays(count):
        found = []
        for _ in range(count):
            assert not refusing.link.send([frame(1)])
            start = trio.current_time()
            await refusing.link.wait_writable()
            found.append(trio.current_time() - start)
        return found

    expected = [0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.01, 0.01]
    assert await delays(9) == pytest.approx(expected)
    refusing.sock.error = None
    assert refusing.link.send([frame(1)])
    refusing.sock.error = errno.ENOBUFS
    assert await delays(9) == pytest.approx(expected)
    refusing.link.close()


async def test_closing_ends_a_delay(refusing, mock_clock):
    assert not refusing.link.send([frame(1)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refusing.link.wait_writable)
        await wait_all_tasks_blocked()
        refusing.link.close()
    assert trio.current_time() == 0


@pytest.mark.parametrize("error", [errno.EMSGSIZE, errno.ENOMEM])
async def test_a_frame_that_the_kernel_cannot_carry_is_lost(refusing, error):
    refusing.sock.error = error
    assert refusing.link.send([frame(1)])
    assert refusing.link.statistics.dropped_frames == 1
    refusing.link.close()

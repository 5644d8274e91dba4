"""StreamLink: conformance over everything that it runs on, and the edges of both framings."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from tapdev.link import MAX_FRAME, Link, LinkClosed
from tapdev.stream import BATCH, BUFFER, QEMU, VMNET, Framing, StreamLink, stream_link
from tests.tapdev.link_conformance import PATIENCE, LinkConformance, frame
from tests.tapdev.stream_far import framed, over_pipes, over_socket, over_tcp, over_unix

if TYPE_CHECKING:
    from collections.abc import Iterator


def is_a_link(link: Link) -> Link:
    return link


class TestQemuOverUnix(LinkConformance):
    @pytest.fixture
    def make_ends(self):
        async def make():
            link, far = over_unix(QEMU, 65520)
            return is_a_link(link), far

        return make


class TestVmnetOverUnix(LinkConformance):
    @pytest.fixture(params=[1500, 65520])
    def make_ends(self, request):
        async def make():
            return over_unix(VMNET, request.param)

        return make


class TestQemuOverTcp(LinkConformance):
    @pytest.fixture
    def make_ends(self):
        async def make():
            return over_tcp(QEMU, 65520)

        return make


class TestVmnetOverPipes(LinkConformance):
    @pytest.fixture
    def make_ends(self):
        async def make():
            return over_pipes(VMNET, 1500)

        return make


@contextmanager
def link_and_peer(framing: Framing = QEMU, received: bytes = b"") -> Iterator[tuple[StreamLink, socket.socket]]:
    """A link and the plain socket on its other end, with room enough that a test may send before anybody reads."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    theirs.settimeout(PATIENCE)
    with theirs, closing(stream_link(ours, framing, mtu=1500, received=received)) as link:
        yield link, theirs


def drain(link: StreamLink) -> list[bytes]:
    """What `link` has now, in bursts."""
    frames = []
    while True:
        view = link.receive()
        if view is None:
            link.release()
            view = link.receive()
            if view is None:
                return frames
        frames.append(bytes(view))


def is_gone(link: StreamLink, match: str | None = None) -> None:
    with pytest.raises(LinkClosed, match=match):
        link.receive()
    with pytest.raises(LinkClosed, match=match):
        link.send([frame(1)])
    link.release()


async def exactly(peer: socket.socket, count: int) -> bytes:
    def read() -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = peer.recv(count - len(data))
            assert piece
            data += piece
        return bytes(data)

    return await trio.to_thread.run_sync(read)


# Lengths


@pytest.mark.parametrize("length", [14, 60, 1514, 65534, 65535, MAX_FRAME])
async def test_a_frame_of_any_length_that_ipv4_can_fill(length):
    with link_and_peer() as (link, peer):
        peer.sendall(framed(QEMU, frame(1, 64), frame(2, length) if length > 17 else bytes(length)))
        received = drain(link)
        assert [len(data) for data in received] == [64, length]
        assert link.statistics.errors == 0
        assert link.statistics.received_bytes == 64 + length


@pytest.mark.parametrize("framing", [QEMU, VMNET])
@pytest.mark.parametrize("length", [0, 1, 13])
async def test_what_is_shorter_than_an_ethernet_header_is_skipped(framing, length):
    with link_and_peer(framing) as (link, peer):
        peer.sendall(framed(framing, frame(1), bytes(length), frame(2)))
        assert drain(link) == [frame(1), frame(2)]
        assert link.statistics.errors == 1


@pytest.mark.parametrize("length", [MAX_FRAME + 1, 69632])
async def test_what_qemu_may_send_but_ip_cannot_fill_is_skipped(length):
    with link_and_peer() as (link, peer):
        for round_ in range(10):  # more than the buffer holds
            peer.sendall(framed(QEMU, bytes(length), frame(round_)))
            assert drain(link) == [frame(round_)]
        assert link.statistics.errors == 10
        assert link.statistics.received_frames == 10


@pytest.mark.parametrize("length", [69633, 0x474554 << 8, 2**31, 2**32 - 1])
async def test_a_length_that_no_peer_writes_ends_the_link(length):
    with link_and_peer() as (link, peer):
        peer.sendall(framed(QEMU, frame(1), frame(2)) + length.to_bytes(4, "big") + bytes(100))
        assert link.receive() == frame(1)
        assert link.receive() == frame(2)
        is_gone(link, f"{length} octets.*no qemu stream.*69632")
        is_gone(link, "no qemu stream")
        with trio.fail_after(PATIENCE):
            await link.wait_readable()
            await link.wait_writable()


async def test_nothing_but_empty_frames_takes_bounded_time():
    with link_and_peer() as (link, peer):
        peer.sendall(bytes(4 * 3 * BATCH) + framed(QEMU, frame(1)))
        turns = 0
        with trio.fail_after(PATIENCE):
            while (view := link.receive()) is None:
                await link.wait_readable()
                turns += 1
        assert view == frame(1)
        assert turns == 3
        assert link.statistics.errors == 3 * BATCH


@pytest.mark.parametrize("length", [0, 13, MAX_FRAME + 1])
async def test_what_is_no_ethernet_frame_is_not_sent(length):
    with link_and_peer() as (link, peer):
        assert link.send([bytes(length)])
        assert link.send([frame(1)])
        assert await exactly(peer, 68) == framed(QEMU, frame(1))
        assert (link.statistics.dropped_frames, link.statistics.sent_frames) == (1, 1)


async def test_vmnet_cannot_say_more_than_16_bits():
    with link_and_peer(VMNET) as (link, _):
        assert link.send([bytes(65536)])
        assert link.statistics.dropped_frames == 1


@pytest.mark.parametrize(("framing", "most"), [(VMNET, 65521), (QEMU, 65535)])
async def test_an_mtu_that_the_framing_cannot_carry_is_refused(framing, most):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(ValueError, match=f"at most {most}"):
            stream_link(ours, framing, mtu=most + 1)
        stream_link(ours, framing, mtu=most).close()


# The stream cut anywhere


@pytest.mark.parametrize("framing", [QEMU, VMNET])
async def test_split_at_every_octet(framing):
    frames = [frame(1, 20), bytes(14), bytes(3), frame(2, 30)]
    stream = framed(framing, *frames)
    for cut in range(len(stream) + 1):
        with link_and_peer(framing) as (link, peer):
            peer.sendall(stream[:cut])
            received = drain(link)
            peer.sendall(stream[cut:])
            received += drain(link)
            assert received == [data for data in frames if len(data) >= 14]
        with link_and_peer(framing, received=stream[:cut]) as (link, peer):
            peer.sendall(stream[cut:])
            assert drain(link) == received


@given(
    st.sampled_from([QEMU, VMNET]),
    st.lists(st.one_of(st.integers(0, 100), st.integers(0, 65535)), max_size=30),
    st.lists(st.integers(1, 100_000), min_size=1, max_size=30),
    st.integers(0, 200),
    st.integers(1, 2 * BATCH),
)
def test_frames_arrive_equal_however_the_stream_is_cut(framing, lengths, cuts, early, burst):
    frames = [bytes([number]) * length for number, length in enumerate(lengths)]
    stream = framed(framing, *frames)

    async def go() -> list[bytes]:
        received: list[bytes] = []
        with link_and_peer(framing, received=stream[:early]) as (link, peer):
            peer.setblocking(False)
            left = memoryview(stream)[early:]
            ended = False
            turn = 0
            while True:
                if left:
                    try:
                        left = left[peer.send(left[: cuts[turn % len(cuts)]]) :]
                    except BlockingIOError:
                        pass
                elif not ended:
                    ended = True
                    peer.shutdown(socket.SHUT_WR)
                turn += 1
                held = []
                try:
                    while len(held) < burst and (view := link.receive()) is not None:
                        held.append(view)
                        link.hold()
                except LinkClosed:
                    assert ended
                    return received + [bytes(view) for view in held]
                received += [bytes(view) for view in held]
                link.release()

    assert trio.run(go) == [data for data in frames if len(data) >= 14]


def read_for_ever(link: StreamLink) -> None:
    while True:
        link.receive()
        link.release()


@given(st.binary(max_size=2000), st.binary(max_size=100))
def test_garbage_only_ends_the_link(garbage, early):
    async def go() -> None:
        for framing in (QEMU, VMNET):
            with link_and_peer(framing, received=early) as (link, peer):
                peer.sendall(garbage)
                peer.shutdown(socket.SHUT_WR)
                with pytest.raises(LinkClosed):
                    read_for_ever(link)

    trio.run(go)


# The buffer


async def test_a_thousand_frames_of_one_read_are_found_burst_by_burst():
    frames = [frame(number) for number in range(1000)]
    with link_and_peer() as (link, peer):
        peer.sendall(framed(QEMU, *frames))
        received = []
        while len(received) < 1000:
            with trio.fail_after(PATIENCE):
                await link.wait_readable()  # though the kernel has nothing more
            views = [link.receive() for _ in range(BATCH)]
            received += [bytes(view) for view in views if view is not None]
            link.release()
        assert received == frames
        assert link.receive() is None


async def test_frames_that_came_with_the_handshake_need_nothing_of_the_kernel():
    frames = [frame(number, 9000) for number in range(BUFFER // 4000)]
    with link_and_peer(received=framed(QEMU, *frames)) as (link, _):
        with trio.fail_after(PATIENCE):
            await link.wait_readable()
        assert drain(link) == frames


async def test_held_frames_stay_while_more_is_read_and_the_buffer_is_bounded():
    with link_and_peer() as (link, peer):
        peer.setblocking(False)
        views: list[memoryview] = []
        sent = 0
        while True:
            peer.sendall(framed(QEMU, frame(sent, 5000)))
            sent += 1
            view = link.receive()
            if view is None:
                break
            views.append(view)
            link.hold()
        assert len(views) > 20
        assert [bytes(view) for view in views] == [frame(number, 5000) for number in range(len(views))]
        assert sum(map(len, views)) <= BUFFER
        link.release()
        assert drain(link) == [frame(number, 5000) for number in range(len(views), sent)]


async def test_a_partial_frame_at_the_end_of_the_buffer_moves_to_its_front():
    frames = [frame(number, 60_000) for number in range(40)]
    stream = framed(QEMU, *frames)
    received = []
    with link_and_peer() as (link, peer):
        for start in range(0, len(stream), 200_000):
            peer.sendall(stream[start : start + 200_000])
            received += drain(link)
    assert received == frames


async def test_a_wait_for_a_partial_frame_is_for_the_kernel():
    with link_and_peer() as (link, peer):
        peer.sendall(framed(QEMU, frame(1))[:-1])
        assert link.receive() is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.wait_readable)
            await wait_all_tasks_blocked()
            peer.sendall(framed(QEMU, frame(1))[-1:])
        assert link.receive() == frame(1)


# The end of the stream


@pytest.mark.parametrize(("tail", "match"), [(b"", "closed the stream"), (b"\0\0\0", "in the middle of a frame")])
async def test_the_peer_says_that_it_will_send_no_more(tail, match):
    frames = [frame(number) for number in range(3 * BATCH)]
    with link_and_peer() as (link, peer):
        peer.sendall(framed(QEMU, *frames) + tail)
        peer.shutdown(socket.SHUT_WR)
        assert [link.receive() for _ in frames] == frames
        is_gone(link, match)


async def test_a_reset_is_the_end():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with closing(stream_link(ours, QEMU, mtu=1500)) as link:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        await link.wait_readable()
        is_gone(link, "reset")


async def test_frames_that_came_before_a_send_failed_are_still_received():
    with link_and_peer() as (link, peer):
        peer.sendall(framed(QEMU, frame(1), frame(2)))
        assert link.receive() == frame(1)
        peer.sendall(framed(QEMU, frame(3)))
        peer.close()
        with pytest.raises(LinkClosed, match="Broken pipe"):
            link.send([frame(1)])
        assert [link.receive(), link.receive()] == [frame(2), frame(3)]
        is_gone(link)


async def test_a_broken_pipe_towards_the_guest_ends_the_wait_for_frames():
    link, far = over_pipes(QEMU, 1500)
    with closing(link), closing(far):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.wait_readable)
            await wait_all_tasks_blocked()
            await far.incoming.aclose()
            with pytest.raises(LinkClosed, match="Broken pipe"):
                link.send([frame(1)])
        is_gone(link, "Broken pipe")


async def test_a_file_can_be_read_and_dev_null_be_written(tmp_path):
    path = tmp_path / "frames"
    path.write_bytes(framed(VMNET, frame(1), frame(2)))
    fds = os.open(path, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)
    with closing(StreamLink(*fds, VMNET, mtu=1500)) as link, trio.fail_after(PATIENCE):
        await link.wait_readable()
        assert [link.receive(), link.receive()] == [frame(1), frame(2)]
        assert link.send([frame(1)])
        await link.wait_writable()
        await link.wait_readable()
        is_gone(link, "closed the stream")


# What the kernel takes only partly


@contextmanager
def narrow() -> Iterator[tuple[StreamLink, socket.socket]]:
    with link_and_peer() as (link, peer):
        with socket.socket(fileno=os.dup(link._write_fd)) as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        yield link, peer


def fill(link: StreamLink, length: int) -> int:
    """Send frames of `length` until the link takes no more, the last of them partly."""
    count = 0
    while link.send([frame(count, length)]):
        count += 1
    return count


async def test_a_frame_taken_partly_is_finished_though_nobody_sends_again():
    with narrow() as (link, peer):
        count = fill(link, 60_000)
        assert count == 1
        data = b""
        with trio.fail_after(PATIENCE):
            while len(data) < 60_004:
                await wait_all_tasks_blocked()
                data += peer.recv(1000)
        assert data == framed(QEMU, frame(0, 60_000))
        assert (link.statistics.sent_frames, link.statistics.sent_bytes) == (1, 60_000)


async def test_a_slow_reader_gets_every_frame_whole_and_in_order():
    lengths = [14 + 17 * number % 9000 for number in range(200)]
    frames = [frame(number, max(length, 20)) for number, length in enumerate(lengths)]
    expected = framed(QEMU, *frames)
    data = bytearray()
    with narrow() as (link, peer):
        peer.setblocking(False)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def read() -> None:
                while len(data) < len(expected):
                    await trio.lowlevel.wait_readable(peer)
                    data.extend(peer.recv(777))

            with trio.fail_after(4 * PATIENCE):
                for one in frames:
                    while not link.send([one[:14], one[14:]]):
                        await link.wait_writable()
        assert data == expected


async def test_many_may_wait_until_the_link_takes_frames():
    with narrow() as (link, peer):
        fill(link, 5000)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(link.wait_writable)
            await wait_all_tasks_blocked()
            assert not link.send([frame(1)])
            while nursery.child_tasks:
                peer.recv(1 << 16)
                await wait_all_tasks_blocked()
        assert link.send([frame(1)])


async def test_a_cancelled_wait_leaves_the_others_and_the_partial_frame_alone():
    with narrow() as (link, peer):
        fill(link, 60_000)
        with trio.move_on_after(0):
            await link.wait_writable()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.wait_writable)
            await wait_all_tasks_blocked()
            assert await exactly(peer, 60_004) == framed(QEMU, frame(0, 60_000))


async def test_a_kernel_without_memory_loses_a_frame_but_never_half_of_one(monkeypatch):
    writev = os.writev

    def no_memory(fd: int, parts: object) -> int:
        raise OSError(errno.ENOBUFS, "No buffer space available")

    with narrow() as (link, peer):
        monkeypatch.setattr(os, "writev", no_memory)
        assert link.send([frame(1)])
        assert (link.statistics.dropped_frames, link.statistics.sent_frames) == (1, 0)
        monkeypatch.setattr(os, "writev", writev)
        assert fill(link, 60_000) == 1
        monkeypatch.setattr(os, "writev", no_memory)
        assert not link.send([frame(2)])
        monkeypatch.setattr(os, "writev", writev)
        assert await exactly(peer, 60_004) == framed(QEMU, frame(0, 60_000))


async def test_a_peer_that_never_reads_costs_one_frame():
    with narrow() as (link, _):
        fill(link, 60_000)
        for number in range(1000):
            assert not link.send([frame(number, 60_000)])
        assert len(link._unsent) < 60_004


async def test_closing_ends_every_wait_and_leaves_no_task():
    tasks = trio.lowlevel.current_statistics().tasks_living
    with narrow() as (link, _):
        fill(link, 60_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.wait_writable)
            nursery.start_soon(link.wait_readable)
            await wait_all_tasks_blocked()
            link.close()
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        with trio.fail_after(PATIENCE):
            await link.wait_readable()
            await link.wait_writable()
        is_gone(link, "this end")


async def test_closing_at_once_after_a_partial_frame():
    tasks = trio.lowlevel.current_statistics().tasks_living
    with narrow() as (link, _):
        fill(link, 60_000)
    await wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_the_peer_goes_while_a_frame_is_being_finished():
    with narrow() as (link, peer):
        fill(link, 60_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.wait_writable)
            await wait_all_tasks_blocked()
            peer.close()
        is_gone(link)


async def test_a_pipe_whose_reader_goes_while_a_frame_is_being_finished():
    link, far = over_pipes(QEMU, 1500)
    with closing(link), closing(far):
        fill(link, 60_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.wait_writable)
            nursery.start_soon(link.wait_readable)
            await wait_all_tasks_blocked()
            await far.incoming.aclose()
        is_gone(link, "Broken pipe")


# Descriptors


@pytest.mark.parametrize("blocking", [True, False])
async def test_the_blocking_mode_is_given_back(blocking):
    reader, writer = os.pipe()
    kept = os.dup(reader), os.dup(writer)
    for fd in kept:
        os.set_blocking(fd, blocking)
    link = StreamLink(reader, writer, VMNET, mtu=1500)
    assert not any(os.get_blocking(fd) for fd in kept)
    link.close()
    assert [os.get_blocking(fd) for fd in kept] == [blocking, blocking]
    for fd in kept:
        os.close(fd)


async def test_the_blocking_mode_of_one_terminal_that_is_both_is_given_back():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = StreamLink(os.dup(ours.fileno()), os.dup(ours.fileno()), VMNET, mtu=1500)
        assert not os.get_blocking(ours.fileno())
        link.close()
        assert os.get_blocking(ours.fileno())


async def test_tcp_sends_at_once():
    link, far = over_tcp(QEMU, 1500)
    with closing(link), closing(far), socket.socket(fileno=os.dup(link._write_fd)) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_link_over_what_the_handshake_used():
    """`over_socket` with a socket that was already non-blocking, as trio leaves it."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    link, far = over_socket(ours, theirs, VMNET, 1500)
    with closing(link), closing(far):
        assert ours.fileno() == -1
        await far.send(frame(1))
        assert link.receive() == frame(1)

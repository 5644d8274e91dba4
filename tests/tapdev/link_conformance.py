"""What every Link must do, whatever carries its frames.

A test module of a link subclasses `LinkConformance` and overrides the fixture `make_ends`.  The far end is whatever
the other side of that link is: another link, a raw socket on a TAP device, a framed stream.

The suite's own frames carry the EtherType that IEEE 802 leaves to local experiments; every other frame that arrives
is ignored, because a kernel on the far end says things of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import pytest
import trio

from tapdev.link import Link, LinkClosed

ETHERTYPE = b"\x88\xb5"
ADDRESSES = b"\xff\xff\xff\xff\xff\xff\x02\x50\x00\x00\x00\x01"
PATIENCE = 5  # seconds


class FarEnd(Protocol):
    async def send(self, frame: bytes) -> None: ...
    async def receive(self) -> bytes: ...
    def close(self) -> None: ...


class LinkAsFarEnd:
    """A second Link as the far end of the first."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def send(self, frame: bytes) -> None:
        while not self._link.send([frame]):
            await self._link.wait_writable()

    async def receive(self) -> bytes:
        while (frame := self._link.receive()) is None:
            await self._link.wait_readable()
        return bytes(frame)

    def close(self) -> None:
        self._link.close()


def frame(number: int, length: int = 64) -> bytes:
    """A frame of `length` octets that tells its number."""
    head = ADDRESSES + ETHERTYPE + number.to_bytes(4, "big")
    return head + bytes((number + i) & 0xFF for i in range(length - len(head)))


def is_ours(data: bytes | memoryview) -> bool:
    return bytes(data[12:14]) == ETHERTYPE


async def next_frame(link: Link) -> memoryview:
    """The next frame of the suite that `link` has; waits for it."""
    with trio.fail_after(PATIENCE):
        while True:
            view = link.receive()
            if view is None:
                await link.wait_readable()
            elif is_ours(view):
                return view


async def next_at(far: FarEnd) -> bytes:
    with trio.fail_after(PATIENCE):
        while not is_ours(data := await far.receive()):
            pass
        return data


Ends = tuple[Link, FarEnd]
MakeEnds = Callable[[], Awaitable[Ends]]


class LinkConformance:
    closes = True  # the link can tell that its far end is gone

    @pytest.fixture
    def make_ends(self) -> MakeEnds:
        raise NotImplementedError("override make_ends")

    @pytest.fixture
    async def ends(self, make_ends: MakeEnds):
        link, far = await make_ends()
        yield link, far
        far.close()
        link.close()

    async def test_frames_cross_both_ways_in_order(self, ends: Ends) -> None:
        link, far = ends
        for number in range(20):
            await far.send(frame(number))
        for number in range(20):
            assert await next_frame(link) == frame(number)
            link.release()
        for number in range(20):
            assert link.send([frame(number)])
        for number in range(20):
            assert await next_at(far) == frame(number)

    async def test_a_frame_is_the_concatenation_of_its_parts(self, ends: Ends) -> None:
        link, far = ends
        whole = frame(7, 200)
        assert link.send([whole[:14], memoryview(whole)[14:50], bytearray(whole[50:]), b""])
        assert await next_at(far) == whole

    async def test_the_sender_may_reuse_its_buffers_at_once(self, ends: Ends) -> None:
        link, far = ends
        buffer = bytearray(frame(1, 100))
        assert link.send([buffer])
        buffer[:] = bytes(100)
        assert await next_at(far) == frame(1, 100)

    async def test_the_largest_ordinary_frame_crosses(self, ends: Ends) -> None:
        link, far = ends
        whole = frame(3, link.capabilities.mtu + 14)
        assert link.send([whole])
        assert await next_at(far) == whole
        await far.send(whole)
        assert await next_frame(link) == whole

    async def test_an_idle_link_has_no_frame(self, ends: Ends) -> None:
        link, _ = ends
        while (view := link.receive()) is not None:
            assert not is_ours(view)

    async def test_held_frames_live_until_release(self, ends: Ends) -> None:
        link, far = ends
        for number in range(8):
            await far.send(frame(number))
        views = []
        for _ in range(8):
            views.append(await next_frame(link))
            link.hold()
        assert [bytes(view) for view in views] == [frame(number) for number in range(8)]
        link.release()

    async def test_a_burst_that_holds_everything_ends_and_the_next_one_goes_on(self, ends: Ends) -> None:
        link, far = ends
        total = 1000
        received: list[bytes] = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def feed() -> None:
                for number in range(total):
                    await far.send(frame(number))
                    if number % 50 == 0:
                        await trio.lowlevel.checkpoint()

            with trio.fail_after(4 * PATIENCE):
                while len(received) < total:
                    await link.wait_readable()
                    held = []
                    while (view := link.receive()) is not None:
                        held.append(view)
                        link.hold()
                        assert len(held) < total, "holding is bounded"
                    received += [bytes(view) for view in held if is_ours(view)]
                    link.release()
        assert received == [frame(number) for number in range(total)]

    async def test_waiting_for_a_frame_ends_when_it_comes(self, ends: Ends) -> None:
        link, far = ends
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def later() -> None:
                await trio.sleep(0.01)
                await far.send(frame(1))

            assert await next_frame(link) == frame(1)

    async def test_an_idle_link_can_be_written(self, ends: Ends) -> None:
        link, _ = ends
        with trio.fail_after(PATIENCE):
            await link.wait_writable()

    async def test_waits_are_cancellable(self, ends: Ends) -> None:
        link, _ = ends
        while link.receive() is not None:
            pass
        with trio.CancelScope() as scope:
            scope.cancel()
            await link.wait_readable()
        assert scope.cancelled_caught

    async def test_statistics_count_frames_and_octets(self, ends: Ends) -> None:
        link, far = ends
        assert link.send([frame(1, 60)])
        assert link.send([frame(2, 100)])
        assert (link.statistics.sent_frames, link.statistics.sent_bytes) == (2, 160)
        before = link.statistics.received_frames, link.statistics.received_bytes
        await far.send(frame(1, 80))
        await next_frame(link)
        assert link.statistics.received_frames > before[0]
        assert link.statistics.received_bytes >= before[1] + 80

    async def test_an_ordinary_frame_has_no_offload(self, ends: Ends) -> None:
        link, far = ends
        await far.send(frame(1))
        await next_frame(link)
        assert link.gso_type == 0
        assert not link.checksum_partial

    async def test_a_closed_link_says_so_and_closes_twice(self, ends: Ends) -> None:
        link, _ = ends
        link.close()
        link.close()
        with pytest.raises(LinkClosed):
            link.receive()
        with pytest.raises(LinkClosed):
            link.send([frame(1)])

    async def test_the_far_end_goes_away(self, ends: Ends) -> None:
        link, far = ends
        if not self.closes:
            return
        await far.send(frame(1))
        far.close()
        assert await next_frame(link) == frame(1), "what was sent before still arrives"
        with pytest.raises(LinkClosed):
            await next_frame(link)

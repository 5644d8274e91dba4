from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tapdev.link import MAX_FRAME, Gso, Link, LinkCapabilities, LinkClosed
from tapdev.memory import SLOTS, memory_link_pair
from tests.tapdev.link_conformance import LinkAsFarEnd, LinkConformance, frame

OFFLOADS = LinkCapabilities(mtu=1500, checksum=True, tso4=True, tso6=True, uso=True)


def is_a_link(link: Link) -> Link:
    return link


class TestConformance(LinkConformance):
    @pytest.fixture(params=[1500, 65521])
    def make_ends(self, request):
        async def make():
            left, right = memory_link_pair(mtu=request.param)
            return is_a_link(left), LinkAsFarEnd(right)

        return make


class TestConformanceOfANarrowLink(LinkConformance):
    """20 frames: the most that the suite sends without waiting."""

    @pytest.fixture
    def make_ends(self):
        async def make():
            left, right = memory_link_pair(queue_frames=20)
            return left, LinkAsFarEnd(right)

        return make


async def test_a_full_link_refuses_and_tells_when_it_has_room():
    left, right = memory_link_pair(queue_frames=2)
    assert left.send([frame(1)])
    assert left.send([frame(2)])
    assert not left.send([frame(3)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.wait_writable)
        await wait_all_tasks_blocked()
        assert right.receive() == frame(1)
    assert left.send([frame(3)])
    assert [bytes(right.receive() or b""), bytes(right.receive() or b"")] == [frame(2), frame(3)]


async def test_offload_metadata_is_carried_through():
    left, right = memory_link_pair(capabilities=OFFLOADS)
    left.send([frame(1, 9000)], 34, 16, Gso.TCPV4, 1448, 66)
    left.send([frame(2)], 34, 6)
    left.send([frame(3)])
    assert right.receive() == frame(1, 9000)
    assert (right.gso_type, right.gso_size, right.checksum_partial) == (Gso.TCPV4, 1448, True)
    right.receive()
    assert (right.gso_type, right.checksum_partial) == (Gso.NONE, True)
    right.receive()
    assert (right.gso_type, right.checksum_partial) == (Gso.NONE, False)


@pytest.mark.parametrize("arguments", [(34, 16), (34, 16, Gso.TCPV4, 1448, 66), (0, 0, Gso.UDP_L4, 100, 42)])
async def test_an_offload_that_the_link_lacks_is_a_bug(arguments):
    left, _ = memory_link_pair()
    with pytest.raises(ValueError, match="offload"):
        left.send([frame(1)], *arguments)


async def test_a_super_frame_needs_its_metadata():
    left, _ = memory_link_pair(capabilities=OFFLOADS)
    with pytest.raises(ValueError, match="gso_size"):
        left.send([frame(1)], 34, 16, Gso.TCPV4)


async def test_a_view_that_nobody_held_dies_with_the_next_frame():
    left, right = memory_link_pair()
    left.send([frame(1)])
    left.send([frame(2)])
    view = right.receive()
    right.receive()
    assert view == b"\xdd" * 64


async def test_held_views_die_at_release():
    left, right = memory_link_pair()
    left.send([frame(1)])
    view = right.receive()
    right.hold()
    right.release()
    assert view == b"\xdd" * 64


async def test_slots_are_bounded():
    left, right = memory_link_pair()
    for number in range(SLOTS + 1):
        left.send([frame(number)])
    for _ in range(SLOTS):
        assert right.receive() is not None
        right.hold()
    assert right.receive() is None
    right.release()
    assert right.receive() == frame(SLOTS)


@pytest.mark.parametrize("length", [0, 13, MAX_FRAME + 1])
async def test_what_is_no_ethernet_frame_is_lost(length):
    left, right = memory_link_pair()
    assert left.send([bytes(length)])
    assert right.receive() is None
    assert left.statistics.dropped_frames == 1
    assert left.statistics.sent_frames == 0


async def test_closing_wakes_everybody_at_both_ends():
    for closer in (0, 1):
        pair = memory_link_pair(queue_frames=1)
        pair[0].send([frame(1)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair[0].wait_readable)
            nursery.start_soon(pair[0].wait_writable)
            await wait_all_tasks_blocked()
            pair[closer].close()
        with pytest.raises(LinkClosed):
            pair[0].send([frame(2)])


async def test_a_link_that_queues_nothing_is_refused():
    with pytest.raises(ValueError, match="0 frames"):
        memory_link_pair(queue_frames=0)

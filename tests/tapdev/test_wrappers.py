from __future__ import annotations

import random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tapdev.link import Gso, Link, LinkCapabilities
from tapdev.memory import memory_link_pair
from tapdev.wrappers import Direction, Faults, Impair, Tee
from tests.tapdev.link_conformance import LinkAsFarEnd, LinkConformance, frame

OFFLOADS = LinkCapabilities(mtu=1500, checksum=True, tso4=True, tso6=True, uso=True)


class Listener:
    def __init__(self) -> None:
        self.heard: list[tuple[bytes, int, int, int, bool]] = []

    def __call__(self, parts, direction, gso_type, gso_size, checksum_partial) -> None:
        self.heard.append((b"".join(parts), direction, gso_type, gso_size, checksum_partial))


WRAPPERS = {
    "a tee without a listener": Tee,
    "a tee with one": lambda link: Tee(link, Listener()),
    "no faults": lambda link: Impair(link, random.Random(1)),
    "a tee of a tee of no faults": lambda link: Tee(Tee(Impair(link, random.Random(1))), Listener()),
}


class TestConformance(LinkConformance):
    @pytest.fixture(params=WRAPPERS)
    def make_ends(self, request):
        async def make():
            left, right = memory_link_pair()
            wrapped: Link = WRAPPERS[request.param](left)
            return wrapped, LinkAsFarEnd(right)

        return make


async def test_a_tee_shows_both_directions_with_their_offload():
    left, right = memory_link_pair(capabilities=OFFLOADS)
    listener = Listener()
    tee = Tee(left, listener)
    assert tee.capabilities is left.capabilities
    tee.send([frame(1, 9000)[:54], frame(1, 9000)[54:]], 34, 16, Gso.TCPV4, 1448, 54)
    tee.send([frame(2)])
    right.send([frame(3, 3000)], 34, 6, Gso.UDP_L4, 100, 42)
    right.send([frame(4)], 34, 6)
    tee.receive()
    assert (tee.gso_type, tee.gso_size, tee.checksum_partial) == (Gso.UDP_L4, 100, True)
    tee.receive()
    assert (tee.gso_type, tee.checksum_partial) == (Gso.NONE, True)
    assert tee.receive() is None
    assert listener.heard == [
        (frame(1, 9000), Direction.OUT, Gso.TCPV4, 1448, True),
        (frame(2), Direction.OUT, 0, 0, False),
        (frame(3, 3000), Direction.IN, Gso.UDP_L4, 100, True),
        (frame(4), Direction.IN, 0, 0, True),
    ]


async def test_a_tee_shows_what_was_sent_and_not_what_was_refused():
    left, _ = memory_link_pair(queue_frames=1)
    listener = Listener()
    tee = Tee(left, listener)
    assert tee.send([frame(1)])
    assert not tee.send([frame(2)])
    assert [heard[0] for heard in listener.heard] == [frame(1)]


async def test_a_listener_may_come_and_go():
    left, _ = memory_link_pair()
    tee = Tee(left)
    tee.send([frame(1)])
    tee.tap = listener = Listener()
    tee.send([frame(2)])
    tee.tap = None
    tee.send([frame(3)])
    assert [heard[0] for heard in listener.heard] == [frame(2)]


def through(faults: Faults, total: int, *, seed: int = 1, incoming: bool, hold: int = 1) -> tuple[list[bytes], Impair]:
    """What arrives of frames 0 to `total` that go through faults, and the link that had them."""
    left, right = memory_link_pair(queue_frames=4 * total + 1)
    rng = random.Random(seed)
    link = Impair(left, rng, incoming=faults) if incoming else Impair(left, rng, outgoing=faults)
    sender, receiver = (right, link) if incoming else (link, right)
    for number in range(total):
        assert sender.send([frame(number)])
    arrived: list[bytes] = []
    views: list[memoryview] = []
    while (view := receiver.receive()) is not None:
        receiver.hold()
        views.append(view)
        if len(views) == hold:
            arrived += map(bytes, views)
            views.clear()
            receiver.release()
    return arrived + [bytes(view) for view in views], link


PROBABILITIES = st.sampled_from([0.0, 0.01, 0.3, 1.0])
FAULTS = st.builds(Faults, drop=PROBABILITIES, duplicate=PROBABILITIES, reorder=PROBABILITIES)


@given(faults=FAULTS, incoming=st.booleans(), seed=st.integers(0, 9), hold=st.sampled_from([1, 7, 32]))
def test_every_frame_is_accounted_for(faults, incoming, seed, hold):
    total = 60
    arrived, link = through(faults, total, seed=seed, incoming=incoming, hold=hold)
    counts = link.incoming_faults if incoming else link.outgoing_faults
    waiting = link._late is not None or link._late_sent is not None
    assert len(arrived) == total - counts.dropped + counts.duplicated - waiting
    assert set(arrived) <= {frame(number) for number in range(total)}
    assert len(arrived) - len(set(arrived)) == counts.duplicated
    if not (faults.reorder or faults.duplicate):
        assert arrived == sorted(arrived)


@pytest.mark.parametrize("incoming", [True, False])
def test_faults_come_as_often_as_asked(incoming):
    total = 4000
    faults = Faults(drop=0.1, duplicate=0.1, reorder=0.1, corrupt=0.1)
    arrived, link = through(faults, total, incoming=incoming, hold=32)
    counts = link.incoming_faults if incoming else link.outgoing_faults
    for name in ("dropped", "duplicated", "reordered", "corrupted"):
        assert 0.05 * total < getattr(counts, name) < 0.15 * total, name
    sound = {frame(number) for number in range(total)}
    damaged = [data for data in arrived if data not in sound]
    assert 0 < len(damaged) <= counts.corrupted + counts.duplicated


@pytest.mark.parametrize("incoming", [True, False])
def test_the_same_seed_gives_the_same_faults(incoming):
    faults = Faults(drop=0.1, duplicate=0.1, reorder=0.1, corrupt=0.1)
    first, _ = through(faults, 300, incoming=incoming)
    second, _ = through(faults, 300, incoming=incoming)
    other, _ = through(faults, 300, incoming=incoming, seed=2)
    assert first == second
    assert first != other


@pytest.mark.parametrize("incoming", [True, False])
def test_a_reordered_frame_changes_places_with_the_next(incoming):
    arrived, _ = through(Faults(reorder=1.0), 6, incoming=incoming)
    assert arrived == [frame(number) for number in (1, 0, 3, 2, 5, 4)]


async def test_a_duplicate_that_waits_makes_the_link_readable():
    left, right = memory_link_pair()
    link = Impair(left, random.Random(1), incoming=Faults(duplicate=1.0))
    right.send([frame(1)])
    assert link.receive() == frame(1)
    with trio.fail_after(1):
        await link.wait_readable()
    assert link.receive() == frame(1)
    assert link.receive() is None


async def test_faults_keep_the_offload_of_each_frame():
    left, right = memory_link_pair(capabilities=OFFLOADS)
    link = Impair(left, random.Random(1), incoming=Faults(reorder=1.0), outgoing=Faults(reorder=1.0))
    assert link.capabilities is left.capabilities
    right.send([frame(1, 3000)], 34, 16, Gso.TCPV4, 1448, 54)
    right.send([frame(2)])
    assert link.receive() == frame(2)
    assert (link.gso_type, link.checksum_partial) == (Gso.NONE, False)
    assert link.receive() == frame(1, 3000)
    assert (link.gso_type, link.gso_size, link.checksum_partial) == (Gso.TCPV4, 1448, True)
    link.send([frame(3, 3000)], 34, 16, Gso.TCPV6, 1000, 74)
    link.send([frame(4)])
    assert right.receive() == frame(4)
    assert right.receive() == frame(3, 3000)
    assert (right.gso_type, right.gso_size, right.checksum_partial) == (Gso.TCPV6, 1000, True)


async def test_corruption_makes_a_link_unreliable_and_needs_checksums():
    left, _ = memory_link_pair()
    assert not Impair(left, random.Random(1), incoming=Faults(corrupt=0.1)).capabilities.reliable
    left, _ = memory_link_pair(capabilities=OFFLOADS)
    with pytest.raises(ValueError, match="checksum offload"):
        Impair(left, random.Random(1), outgoing=Faults(corrupt=0.1))


@pytest.mark.parametrize("wrong", [-0.1, 1.1])
def test_a_probability_is_one(wrong):
    with pytest.raises(ValueError, match="not a probability"):
        Faults(drop=wrong)

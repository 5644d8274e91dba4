"""RFC 2018, 2883, 6675, and the tail-loss probe of RFC 8985: selective acknowledgements, both ways."""

from __future__ import annotations

import struct

import pytest

from tests.conformance.script import MSS, NOP, SACK_PERMITTED, Script, mss, scale

RESCUE = 9 * MSS + 1  # the last of ten, once more when nothing else may leave: NextSeg, rule 4
OFFER = mss(MSS) + NOP + scale(7) + SACK_PERMITTED + NOP * 2


def opened(script: Script) -> Script:
    script.open(options=OFFER)
    return script


def blocks(script: Script, *edges: tuple[int, int]) -> bytes:
    """A SACK option of the guest; edges relative to our first number."""
    numbers = b"".join(struct.pack("!II", (script.irs + a) % 2**32, (script.irs + b) % 2**32) for a, b in edges)
    return NOP * 2 + bytes([5, 2 + len(numbers)]) + numbers


def segment(first: int, last: int | None = None) -> tuple[int, int]:
    """The edges of full segments, counted from 0."""
    return first * MSS + 1, ((first if last is None else last) + 1) * MSS + 1


def send(script: Script, count: int) -> None:
    script.host_writes(bytes(count * MSS))
    assert [h.seq for h in script.everything()] == [1 + i * MSS for i in range(count)]


# The receiver


async def test_rfc2018_2_permission_is_answered_in_kind(make_script) -> None:
    asked, not_asked = make_script(), make_script()
    asked.inject("S", options=OFFER)
    assert asked.expect("S.").kinds[4] == b""
    not_asked.inject("S", options=mss(MSS))
    assert 4 not in not_asked.expect("S.").kinds


async def test_rfc2018_2_our_syn_permits_it(script: Script) -> None:
    script.host_calls()
    assert 4 in script.expect("S").kinds


async def test_rfc2018_2_only_in_syns(script: Script) -> None:
    opened(script)
    script.inject(".", "early", seq=100)
    script.host_writes(bytes(5000))
    script.host_finishes()
    frames = [script.read(frame) for frame in script.log]
    assert all((4 in h.kinds) == ("S" in h.flags) for h in frames)


async def test_rfc2018_3_no_blocks_without_permission(script: Script) -> None:
    script.open(options=mss(MSS) + NOP + scale(7))
    script.inject(".", "early", seq=100)
    assert 5 not in script.expect(".").kinds


async def test_rfc2018_3_a_block_is_what_is_held(script: Script) -> None:
    opened(script)
    script.inject(".", bytes(100), seq=101)
    assert script.expect(".", ack=1).sacks(script.iss) == [(101, 201)]
    script.inject(".", bytes(50), seq=201)
    assert script.expect(".", ack=1).sacks(script.iss) == [(101, 251)]


async def test_rfc2018_3_as_many_as_fit(script: Script) -> None:
    """Four, without timestamps."""
    opened(script)
    for i in range(1, 8):
        script.inject(".", bytes(10), seq=100 * i)
    assert len(script.everything()[-1].sacks(script.iss)) == 4


async def test_rfc2018_3_no_blocks_when_nothing_is_held(script: Script) -> None:
    opened(script)
    script.inject(".", bytes(10), seq=11)
    script.inject(".", bytes(10), seq=1)
    assert 5 not in script.everything()[-1].kinds
    script.inject(".", bytes(10), seq=21)
    assert 5 not in script.expect(".", ack=31).kinds


async def test_rfc2018_4_the_newest_comes_first(script: Script) -> None:
    opened(script)
    for start in (1000, 3000, 2000, 5000):
        script.inject(".", bytes(10), seq=start)
        assert script.expect(".").sacks(script.iss)[0] == (start, start + 10)


async def test_rfc2018_4_then_those_that_were_told_last(script: Script) -> None:
    opened(script)
    for start in (1000, 3000, 2000):
        script.inject(".", bytes(10), seq=start)
    assert script.everything()[-1].sacks(script.iss) == [(2000, 2010), (3000, 3010), (1000, 1010)]


async def test_rfc2883_4_a_duplicate_is_reported_first(script: Script) -> None:
    opened(script)
    script.inject(".", bytes(100))
    script.everything()
    script.inject(".", bytes(100), seq=1)
    assert script.expect(".", ack=101).sacks(script.iss) == [(1, 101)]


# The sender


async def test_rfc2018_5_nothing_is_freed_before_the_cumulative_ack(script: Script) -> None:
    opened(script)
    send(script, 5)
    script.inject(ack=1, options=blocks(script, segment(1, 4)))
    assert script.connection.sender.queued == 5 * MSS


ADVERSARIAL = [
    [(5000, 1000)],  # inverted
    [(100_000, 200_000)],  # never sent
    [(1, 2**31 - 1)],
    [(2**31, 2**31 + 1460)],
    [(-5000, -1000)],  # below SND.UNA
    [(-5000, 5000)],
    [(1461, 1461)],  # empty
    [(1461, 4381), (2921, 5841), (1461, 14601), (1, 14601)],  # overlapping
    [(1, 14601)],  # all of it, SND.UNA too
    [(2, 3), (5, 6), (8, 9), (11, 12)],  # crumbs
    [(0, 0), (0, 0), (0, 0), (0, 0)],
]


@pytest.mark.parametrize("edges", ADVERSARIAL)
async def test_rfc2018_5_no_block_does_harm(script: Script, edges: list[tuple[int, int]]) -> None:
    """Whatever it says, the data is still there, and arrives."""
    opened(script)
    send(script, 10)
    for _ in range(5):
        script.inject(ack=1, options=blocks(script, *edges))
    assert script.connection.sender.queued == 10 * MSS
    script.acked = 1
    got = {h.seq for h in script.everything()}
    for _ in range(30):
        script.wait()
        for h in script.everything():
            assert 1 <= h.seq <= 10 * MSS
            got.add(h.seq)
            if h.seq <= script.acked < h.seq + len(h.payload):
                script.acked = h.seq + len(h.payload)
        script.inject(ack=script.acked)
        if script.acked == 10 * MSS + 1:
            break
    assert script.connection.sender.queued == 0


async def test_rfc6675_5_what_is_missing_is_sent_again_and_nothing_else(script: Script) -> None:
    """Segments 2 and 5 of ten were lost."""
    opened(script)
    send(script, 10)
    script.inject(ack=2 * MSS + 1)
    script.inject(ack=2 * MSS + 1, options=blocks(script, segment(3)))
    script.inject(ack=2 * MSS + 1, options=blocks(script, segment(3, 4)))
    script.silence()
    for last in range(6, 10):
        script.inject(ack=2 * MSS + 1, options=blocks(script, segment(6, last), segment(3, 4)))
    heard = [h.seq for h in script.everything()]
    script.inject(ack=5 * MSS + 1, options=blocks(script, segment(6, 9)))
    heard += [h.seq for h in script.everything()]
    assert sorted(set(heard) - {RESCUE}) == [2 * MSS + 1, 5 * MSS + 1]
    assert len(heard) <= 3
    script.inject(ack=10 * MSS + 1)
    script.silence()
    assert script.connection.sender.queued == 0


async def test_rfc6675_5_the_window_halves_once(script: Script) -> None:
    opened(script)
    send(script, 10)
    for last in range(1, 10):
        script.inject(ack=1, options=blocks(script, segment(1, last)))
    assert {h.seq for h in script.everything()} - {RESCUE} == {1}
    script.inject(ack=10 * MSS + 1)
    assert script.connection.sender.congestion.window == 5 * MSS


async def test_rfc6675_5_a_window_update_is_no_loss(script: Script) -> None:
    opened(script)
    send(script, 5)
    for i in range(5):
        script.inject(ack=1, win=60_000 + i)
    script.silence()


async def test_rfc2018_8_after_a_timeout_blocks_are_forgotten(script: Script) -> None:
    """The guest may throw away what it had not acknowledged."""
    opened(script)
    send(script, 4)
    script.inject(ack=1, options=blocks(script, segment(1, 2)))
    script.everything()
    seen: set[int] = set()
    script.acked = 1
    for _ in range(12):
        script.wait()
        for h in script.everything():
            seen.add(h.seq)
            if h.seq == script.acked:
                script.acked += len(h.payload)
        script.inject(ack=script.acked)
        for h in script.everything():
            seen.add(h.seq)
            if h.seq == script.acked:
                script.acked += len(h.payload)
        script.inject(ack=script.acked)
        script.everything()
        if script.acked == 4 * MSS + 1:
            break
    assert seen >= {1, MSS + 1, 2 * MSS + 1}


async def test_rfc3708_what_came_twice_had_not_been_lost(script: Script) -> None:
    """The first of ten was late: the congestion window is what it was."""
    opened(script)
    send(script, 10)
    script.inject(ack=1, options=blocks(script, segment(1, 9)))
    script.expect(".", seq=1)
    script.inject(ack=10 * MSS + 1)
    assert script.connection.sender.congestion.window == 5 * MSS
    script.host_writes(bytes(MSS))
    script.inject(ack=11 * MSS + 1, options=blocks(script, segment(0)))
    assert script.connection.sender.congestion.window >= 10 * MSS


# The tail


def measured(script: Script, rtt: float = 0.01) -> None:
    opened(script)
    for _ in range(10):
        script.host_writes("x")
        script.expect(".", "x")
        script.now += rtt
        script.inject()


async def test_rfc8985_7_the_last_segment_is_sent_again_before_the_timeout(script: Script) -> None:
    measured(script)
    script.host_writes(bytes(3 * MSS))
    last = script.everything()[-1]
    script.inject(ack=last.seq)
    rto = script.connection.sender.rtt.rto
    assert script.wait() < rto / 2
    script.expect(".", seq=last.seq)


async def test_rfc8985_7_once_and_then_the_timer(script: Script) -> None:
    measured(script)
    script.host_writes(bytes(3 * MSS))
    heard = script.everything()
    script.wait()
    assert [h.seq for h in script.everything()] == [heard[-1].seq]
    rto = script.connection.sender.rtt.rto
    assert script.wait() == pytest.approx(rto, rel=0.3)
    assert script.everything()[0].seq == heard[0].seq


async def test_rfc8985_7_an_answer_with_sack_repairs_the_rest_without_the_timer(script: Script) -> None:
    """The last three of four were lost."""
    measured(script)
    script.host_writes(bytes(4 * MSS))
    heard = script.everything()
    base = heard[0].seq
    script.inject(ack=base + MSS)
    script.acked = base + MSS
    script.wait()
    script.expect(".", seq=base + 3 * MSS)
    began = script.now
    script.inject(ack=base + MSS, options=blocks(script, (base + 3 * MSS, base + 4 * MSS)))
    seen = {h.seq for h in script.everything()}
    while not {base + MSS, base + 2 * MSS} <= seen:
        script.wait()
        seen |= {h.seq for h in script.everything()}
        assert script.now - began < 0.1

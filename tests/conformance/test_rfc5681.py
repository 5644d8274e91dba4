"""RFC 5681 and RFC 6582: congestion control towards a guest that knows no SACK."""

from __future__ import annotations

import pytest

from tapdev.link import LinkCapabilities
from tests.conformance.script import MSS, NOP, Script, mss, scale

WIDE = mss(MSS) + NOP + scale(7)  # windows of up to 8 MiB: the guest's is never the limit


def opened(script: Script) -> Script:
    script.open(options=WIDE, win=65535)
    script.program.setblocking(False)
    return script


def more(script: Script) -> None:
    """The host has as much to say as its socket takes."""
    try:
        while True:
            script.program.send(bytes(100 * MSS))
    except BlockingIOError:
        pass
    script.turn()


def flight(script: Script) -> int:
    """How many full segments left; the guest acknowledges all of them, and has seen them."""
    more(script)
    heard = script.everything()
    assert heard
    script.acked = max(h.seq + len(h.payload) for h in heard)
    return round(sum(len(h.payload) for h in heard) / MSS)


@pytest.mark.requirement("RFC5681 3.1-iw")
async def test_rfc5681_3_1_the_initial_window_is_ten_segments(script: Script) -> None:
    """RFC 6928."""
    assert flight(opened(script)) == 10


async def test_rfc5681_3_1_slow_start_doubles(script: Script) -> None:
    opened(script)
    flights = []
    for _ in range(4):
        flights.append(flight(script))
        script.inject()
    assert flights == [10, 20, 40, 80]


async def test_rfc5681_3_1_congestion_avoidance_adds_one_for_each_round_trip(script: Script) -> None:
    opened(script)
    flight(script)
    start = script.acked
    script.inject(ack=start - 10 * MSS)
    for _ in range(3):
        script.inject(ack=start - 10 * MSS)
    script.everything()
    script.inject(ack=start)
    window = script.connection.sender.congestion.window
    assert window == 5 * MSS
    for _ in range(6):
        flight(script)
        script.inject()
        grown = script.connection.sender.congestion.window - window
        assert 0 < grown <= MSS + 1
        window += grown


async def test_rfc5681_3_1_after_a_timeout_one_segment_then_slow_start_up_to_half(script: Script) -> None:
    opened(script)
    flight(script)
    script.acked -= 10 * MSS
    script.wait()
    assert [h.seq for h in script.everything()] == [1]
    assert script.connection.sender.congestion.ssthresh == 5 * MSS
    script.inject(ack=MSS + 1)
    assert len(script.everything()) == 2
    script.inject(ack=10 * MSS + 1)
    script.everything()
    assert script.connection.sender.congestion.window <= 12 * MSS


async def test_rfc5681_3_1_a_second_timeout_of_the_same_data_does_not_halve_again(script: Script) -> None:
    """Equation 4's note: ssthresh holds while the same segment is sent again and again."""
    opened(script)
    flight(script)
    script.wait()
    first = script.connection.sender.congestion.ssthresh
    script.wait()
    script.wait()
    assert script.connection.sender.congestion.ssthresh in (first, 2 * MSS)


async def test_rfc5681_3_2_two_duplicates_are_no_loss(script: Script) -> None:
    opened(script)
    flight(script)
    for _ in range(2):
        script.inject(ack=1)
    assert all(h.seq > 1 for h in script.everything())  # limited transmit may send something new


async def test_rfc5681_3_2_three_are(script: Script) -> None:
    opened(script)
    flight(script)
    for _ in range(3):
        script.inject(ack=1)
    heard = script.everything()
    assert [h.seq for h in heard if h.seq <= 10 * MSS] == [1]
    assert script.connection.sender.congestion.ssthresh == 5 * MSS


async def test_rfc5681_3_2_further_duplicates_let_new_data_leave_and_the_end_halves_the_window(script: Script) -> None:
    opened(script)
    flight(script)
    more(script)
    for _ in range(9):
        script.inject(ack=1)
    heard = script.everything()
    assert [h.seq for h in heard].count(1) == 1
    assert any(h.seq > 10 * MSS for h in heard)
    script.inject(ack=max(h.seq + len(h.payload) for h in heard))
    assert script.connection.sender.congestion.window == 5 * MSS


@pytest.mark.parametrize("kind", ["data", "window", "nothing outstanding"])
async def test_rfc5681_3_2_what_is_no_duplicate(script: Script, kind: str) -> None:
    """Section 2: no data, no change of window, and something outstanding."""
    opened(script)
    flight(script)
    if kind == "nothing outstanding":
        script.inject()
    for i in range(5):
        if kind == "data":
            script.inject(".", "x", ack=1)
        elif kind == "window":
            script.inject(".", ack=1, win=60_000 - i)
        else:
            script.inject()
    assert not any(h.payload and h.seq == 1 for h in script.everything())


async def test_rfc5681_4_1_slow_start_again_after_an_idle_connection(script: Script) -> None:
    opened(script)
    for _ in range(3):
        flight(script)
        script.inject()
    while script.connection.sender.queued:
        script.inject(ack=script.acked)
        for h in script.everything():
            script.acked = max(script.acked, h.seq + len(h.payload))
    assert script.connection.sender.congestion.window >= 40 * MSS
    script.advance(10.0)
    script.silence()
    assert flight(script) == 10


async def test_rfc6582_3_2_a_partial_ack_repeats_the_next_hole(script: Script) -> None:
    """Segments 1, 4 and 7 of ten were lost."""
    opened(script)
    flight(script)
    for _ in range(3):
        script.inject(ack=1)
    assert 1 in [h.seq for h in script.everything()]
    script.inject(ack=3 * MSS + 1)
    assert 3 * MSS + 1 in [h.seq for h in script.everything()]
    script.inject(ack=6 * MSS + 1)
    assert 6 * MSS + 1 in [h.seq for h in script.everything()]
    script.inject(ack=10 * MSS + 1)
    script.everything()
    assert script.connection.sender.congestion.window == 5 * MSS


async def test_rfc6582_3_2_duplicates_of_old_losses_do_not_halve_twice(script: Script) -> None:
    """Section 3.2 step 1: what was sent before recovery began is one loss."""
    opened(script)
    flight(script)
    for _ in range(3):
        script.inject(ack=1)
    script.inject(ack=3 * MSS + 1)
    for _ in range(5):
        script.inject(ack=3 * MSS + 1)
    assert script.connection.sender.congestion.ssthresh == 5 * MSS


@pytest.mark.requirement("RFC3465 2.2")
async def test_the_ack_of_a_super_frame_counts_whole(make_script) -> None:
    script = make_script(capabilities=LinkCapabilities(mtu=1500, checksum=True, tso4=True))
    opened(script)
    assert flight(script) == 10
    script.inject()
    assert flight(script) == 20

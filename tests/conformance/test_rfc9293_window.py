"""RFC 9293 section 3.8.6: windows, those that shrink and those that are closed."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.conformance.script import MSS, NOP, Script, mss, scale
from vpnkit.proto.tcp.state import State

HOUR = 3600.0


def closed_with_data(script: Script, data: bytes = b"later") -> Script:
    """The guest's window is closed, and the host has something to say."""
    script.open(win=0)
    return script.host_writes(data).silence()


def refuse_probe(script: Script) -> float:
    """Wait for the next probe, and answer that the window is still closed.  Returns how long that took."""
    took = script.wait()
    script.everything()
    script.inject(ack=script.acked, win=0)
    return took


async def test_rfc9293_must_1_the_high_bit_of_a_window_is_no_sign(script: Script) -> None:
    script.open(win=0x8000)
    script.host_writes(bytes(10 * MSS))
    assert sum(len(s.payload) for s in script.everything()) == 10 * MSS


async def test_rfc9293_must_1_the_largest_scaled_window_is_a_gibibyte(script: Script) -> None:
    script.open(options=mss(MSS) + NOP + scale(14))
    assert script.connection.sender.window == 0xFFFF << 14
    script.host_writes(bytes(10 * MSS))
    assert len(script.everything()) == 10


@pytest.mark.parametrize("before_wrap", [1, 1000, 5000])
async def test_rfc9293_rec_1_a_window_that_reaches_over_2_32_is_used_whole(make_script, before_wrap: int) -> None:
    script = make_script(our_iss=2**32 - before_wrap)
    script.open(win=4 * MSS)
    script.host_writes(bytes(10 * MSS))
    assert [s.seq for s in script.everything()] == [1 + i * MSS for i in range(4)]
    script.inject(ack=4 * MSS + 1, win=2 * MSS)
    assert [s.seq for s in script.everything()] == [1 + i * MSS for i in (4, 5)]


def feed_until_closed(script: Script, lengths: list[int]) -> tuple[list[int], int]:
    """Send segments of these lengths, round and round, to a program that reads nothing.  Returns the right edges that
    were heard, and how many octets were sent."""
    edges = [65535]
    while script.next + MSS <= edges[-1]:
        for length in lengths:
            script.inject(".", bytes(length), ack=1)
            edges += [heard.ack + (heard.win << 7) for heard in script.everything()]
    return edges, script.next - 1


async def test_rfc9293_shld_14_the_right_edge_never_moves_left(script: Script) -> None:
    script.open()
    edges, sent = feed_until_closed(script, [1460, 1460, 1459, 1024])
    assert edges == sorted(edges)
    assert sent > 200_000


@pytest.mark.requirement("RFC9293 window-rounding")
async def test_tiny_segments_move_the_edge_by_less_than_a_step_and_what_was_offered_is_taken(script: Script) -> None:
    script.open()
    edges, _ = feed_until_closed(script, [1, 1025, 897])
    assert all(after > before - 128 for before, after in pairwise(edges))
    highest = max(edges)
    script.inject(".", bytes(highest - script.next), ack=1)
    assert script.expect(".").ack == highest


async def test_rfc9293_shld_14_a_program_that_reads_moves_it_right(script: Script) -> None:
    script.open()
    edges = []
    for _ in range(30):
        script.inject(".", bytes(MSS), ack=1)
        script.host_reads(700)
        edges += [heard.ack + (heard.win << 7) for heard in script.everything()]
    assert edges == sorted(edges)


@pytest.mark.parametrize("left", [0, 1, 700, MSS, 3 * MSS + 5])
async def test_rfc9293_must_34_a_window_that_shrinks_below_what_is_in_flight(script: Script, left: int) -> None:
    script.open()
    script.host_writes(bytes(10 * MSS))
    script.everything()
    script.inject(ack=1, win=left)
    for _ in range(5):
        script.wait()
        assert all(s.payload for s in script.everything())
    script.inject(ack=1, win=65535)
    while script.acked < 10 * MSS + 1:
        script.wait() if not script.frames else None
        for heard in script.everything():
            script.acked = max(script.acked, heard.seq + len(heard.payload)) if heard.seq <= script.acked else 0
        script.inject(ack=script.acked)
    assert script.state is State.ESTABLISHED


async def test_rfc9293_shld_15_no_new_data_while_the_window_is_shrunk(script: Script) -> None:
    script.open()
    script.host_writes(bytes(8 * MSS))
    assert len(script.everything()) == 8
    script.inject(ack=MSS + 1, win=MSS)
    script.host_writes(bytes(8 * MSS))
    script.silence()
    script.inject(ack=7 * MSS + 1, win=MSS)
    script.silence()
    script.inject(ack=8 * MSS + 1, win=2 * MSS)
    assert [s.seq for s in script.everything()] == [8 * MSS + 1, 9 * MSS + 1]


async def test_rfc9293_shld_16_old_data_within_the_shrunken_window_is_sent_again(script: Script) -> None:
    script.open()
    script.host_writes(bytes(8 * MSS))
    script.everything()
    script.inject(ack=MSS + 1, win=2 * MSS)
    script.wait()
    heard = script.everything()
    assert heard[0].seq == MSS + 1
    assert all(s.seq + len(s.payload) <= 3 * MSS + 1 for s in heard)


async def test_rfc9293_shld_17_data_beyond_the_edge_does_not_time_out(script: Script) -> None:
    """An hour with the window shrunk to nothing below data in flight, and every probe answered."""
    script.open()
    script.host_writes(bytes(8 * MSS))
    script.everything()
    script.acked = MSS + 1
    script.inject(ack=MSS + 1, win=0)
    ends = script.now + HOUR
    while script.now < ends:
        script.wait()
        script.everything()
        script.inject(ack=MSS + 1, win=0)
    assert script.state is State.ESTABLISHED
    script.inject(ack=MSS + 1, win=65535)
    assert script.expect(".", seq=MSS + 1).payload


async def test_rfc9293_must_35_a_window_that_shrank_to_zero_is_probed(script: Script) -> None:
    script.open()
    script.host_writes(bytes(2 * MSS))
    script.everything()
    script.inject(ack=2 * MSS + 1, win=0)
    script.host_writes("more")
    script.silence()
    script.wait()
    script.expect(".", seq=2 * MSS + 1)


async def test_rfc9293_must_36_a_probe_is_one_octet_and_the_answer_opens_at_once(script: Script) -> None:
    closed_with_data(script, b"later")
    script.wait()
    script.expect(".", "l", seq=1)
    script.inject(ack=1, win=65535)
    script.expect(".", "later", seq=1)


async def test_rfc9293_must_36_a_probe_that_was_taken_counts(script: Script) -> None:
    closed_with_data(script, b"later")
    script.wait()
    script.expect(".", "l", seq=1)
    script.inject(ack=2, win=65535)
    script.expect(".", "ater", seq=2)


async def test_rfc9293_must_36_an_update_without_a_probe_opens_too(script: Script) -> None:
    closed_with_data(script, b"later")
    script.inject(ack=1, win=65535)
    script.expect(".", "later", seq=1)


async def test_rfc9293_shld_29_the_first_probe_after_one_timeout(script: Script) -> None:
    closed_with_data(script)
    assert script.wait() == pytest.approx(script.connection.sender.rtt.rto / 2, rel=0.01)  # it doubled by the probe


async def test_rfc9293_shld_30_the_interval_doubles_up_to_a_minute(script: Script) -> None:
    closed_with_data(script)
    gaps = [refuse_probe(script) for _ in range(12)]
    for before, after in pairwise(gaps):
        assert after == pytest.approx(min(2 * before, 60.0), rel=0.01)
    assert gaps[-1] == pytest.approx(60.0)


async def test_rfc9293_must_37_two_days_of_answered_probes(script: Script) -> None:
    closed_with_data(script, bytes(50_000))
    ends = script.now + 48 * HOUR
    while script.now < ends:
        refuse_probe(script)
    assert script.state is State.ESTABLISHED
    script.inject(ack=script.acked, win=65535)
    while script.acked < 50_001:
        assert script.frames
        while script.frames:
            script.expect(".")
        script.inject()


async def test_rfc9293_may_8_our_window_may_stay_closed(script: Script) -> None:
    """The program sleeps for an hour, the guest probes, nothing is lost and nothing ends."""
    script.open()
    sent = 0
    edge = 65535
    while script.next + MSS <= edge:
        script.inject(".", bytes([sent % 251]) * MSS, ack=1)
        sent += 1
        edge = max(heard.ack + (heard.win << 7) for heard in script.everything())
    for _ in range(60):
        script.advance(60.0)
        script.inject(".", "x", seq=edge, ack=1)
        assert script.expect(".").ack <= edge
    assert script.state is State.ESTABLISHED
    got = b""
    while part := script.host_reads():
        got += part
    assert got == b"".join(bytes([i % 251]) * MSS for i in range(sent))
    assert script.everything()[-1].win > 0


def fill(script: Script) -> int:
    """Send until our window is closed to the last octet; returns its edge."""
    edge = script.next + 65535
    while True:
        script.inject(".", bytes(min(MSS, edge - script.next)), ack=1)
        heard = script.everything()
        if heard:
            edge = heard[-1].ack + (heard[-1].win << 7)
        if edge == script.next:
            return edge


async def test_rfc9293_must_66_rst_is_believed_while_our_window_is_closed(script: Script) -> None:
    script.open()
    edge = fill(script)
    script.inject("R", seq=edge)
    assert not script.guest.tcp.flows
    script.silence()


async def test_rfc9293_must_66_urgent_and_ack_are_processed_while_our_window_is_closed(script: Script) -> None:
    script.open()
    edge = fill(script)
    script.host_writes("answer")
    script.expect(".", "answer", seq=1)
    script.inject(".U", "!", seq=edge, ack=7, urgent=1)
    script.expect(".", "", ack=edge)
    assert script.connection.sender.queued == 0

"""RFC 9293 sections 3.8.6.2.2 and 3.8.6.3: when we acknowledge, and what window we tell."""

from __future__ import annotations

import pytest

from tests.conformance.script import MSS, Script


def segments(script: Script, count: int, length: int = MSS) -> list[bytes]:
    return [script.segment(".", bytes([i]) * length) for i in range(count)]


@pytest.mark.parametrize("count", [2, 3, 10, 40])
async def test_rfc9293_must_58_a_burst_gets_few_acks(script: Script, count: int) -> None:
    script.open()
    script.burst(*segments(script, count))
    assert len(script.everything()) <= -(-count // 2)


async def test_rfc9293_must_59_the_whole_burst_is_looked_at_first(script: Script) -> None:
    """In the wrong order, with a hole that the last one fills."""
    script.open()
    script.burst(*reversed(segments(script, 5, 100)))
    assert script.everything()[-1].ack == 501
    assert script.host_reads() == b"".join(bytes([i]) * 100 for i in range(5))


async def test_rfc9293_shld_31_what_came_early_is_kept(script: Script) -> None:
    script.open()
    one, two, three = segments(script, 3, 10)
    script.burst(three).burst(two)
    assert script.host_reads() == b""
    script.everything()
    script.burst(one)
    script.expect(".", ack=31)
    assert script.host_reads() == bytes(10) + b"\x01" * 10 + b"\x02" * 10


async def test_rfc9293_shld_31_within_bounds(script: Script) -> None:
    """SegmentSmack: a thousand ranges of one octet each."""
    script.open()
    for i in range(1000):
        script.inject(".", "x", seq=3 + 2 * i, ack=1)
    assert len(script.connection.receiver.assembler._ranges) == 64
    script.everything()
    script.inject(".", bytes(2001), seq=1, ack=1)
    assert script.everything()[-1].ack >= 2002


async def test_rfc9293_may_13_an_early_segment_is_answered_at_once(script: Script) -> None:
    script.open()
    for i in range(4):
        script.inject(".", "early", seq=100 + 5 * i, ack=1)
        script.expect(".", "", seq=1, ack=1)


def converse(script: Script) -> None:
    """A question and its answer, so that we know this for a conversation."""
    script.inject(".", "question")
    script.host_writes("answer")
    script.everything()
    script.acked += 6
    script.inject()
    script.everything()


async def test_rfc9293_shld_18_the_ack_of_a_question_travels_with_the_answer(script: Script) -> None:
    script.open()
    converse(script)
    script.inject(".", "question")
    script.silence()
    script.host_writes("answer")
    script.expect(".", "answer", ack=script.next)
    script.silence()


async def test_rfc9293_must_40_it_waits_much_less_than_half_a_second(script: Script) -> None:
    script.open()
    converse(script)
    script.inject(".", "question")
    script.silence()
    assert script.wait() < 0.5
    script.expect(".", "", ack=script.next)


async def test_rfc9293_shld_19_two_full_segments_do_not_wait(script: Script) -> None:
    script.open()
    converse(script)
    first, second = segments(script, 2)
    script.burst(first)
    script.silence()
    script.burst(second)
    script.expect(".", "", ack=script.next)


async def test_rfc9293_shld_19_every_second_segment_of_a_stream(script: Script) -> None:
    """One at a time, each its own burst."""
    script.open()
    for frame in segments(script, 20):
        script.burst(frame)
    acks = [heard.ack for heard in script.everything()]
    assert len(acks) >= 10
    assert acks[-1] == script.next


async def test_rfc9293_must_39_the_window_does_not_open_by_crumbs(script: Script) -> None:
    """The program reads slowly out of a full buffer: an update comes for two segments or half of the buffer."""
    script.open()
    edge = 65535
    while script.next < edge:
        script.inject(".", bytes(min(MSS, edge - script.next)), ack=1)
        edge = max([edge, *(heard.ack + (heard.win << 7) for heard in script.everything())])
    updates = []
    while script.host_reads(512):
        for heard in script.everything():
            updates.append(heard.ack + (heard.win << 7) - edge)
            edge = heard.ack + (heard.win << 7)
    assert updates
    assert all(gained >= 2 * MSS - 128 for gained in updates)

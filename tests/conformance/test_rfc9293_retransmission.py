"""RFC 9293 sections 3.8.1 and 3.8.2; the numbers are in test_rfc6298.py and test_rfc5681.py."""

from __future__ import annotations

import itertools

import pytest

from tests.conformance.script import MSS, Script


async def test_rfc9293_must_18_what_is_not_acknowledged_comes_again(script: Script) -> None:
    script.open()
    script.host_writes("hello")
    script.expect(".", "hello", seq=1)
    script.wait()
    script.expect(".", "hello", seq=1)
    script.inject(".", ack=6)
    assert script.connection.sender.queued == 0


async def test_rfc9293_must_18_a_fin_too(script: Script) -> None:
    script.open()
    script.host_finishes()
    script.expect("F.", seq=1)
    script.wait()
    script.expect("F.", seq=1)


async def test_rfc9293_must_18_and_a_syn_ack(script: Script) -> None:
    script.inject("S")
    script.expect("S.")
    assert script.wait() == pytest.approx(1.0)
    script.expect("S.")
    script.inject()
    script.inject(".", "x")
    script.expect(".", ack=2)


async def test_rfc9293_must_18_an_answer_after_a_retransmission_is_no_sample(script: Script) -> None:
    """Karn: nobody knows which of the two it answers."""
    script.open()
    script.host_writes("hello")
    script.wait()
    script.now += 7.0
    script.inject(".", ack=6)
    assert script.connection.sender.rtt.srtt < 1.0


async def test_rfc9293_must_19_slow_start(script: Script) -> None:
    """Ten segments, then twice as many."""
    script.open(win=65535)
    script.host_writes(bytes(60 * MSS))
    first = script.everything()
    assert len(first) == 10
    script.inject(ack=10 * MSS + 1)
    assert len(script.everything()) == 20


async def test_rfc9293_must_19_one_segment_after_a_timeout(script: Script) -> None:
    script.open()
    script.host_writes(bytes(10 * MSS))
    script.everything()
    script.advance(5.0)
    script.everything()
    assert script.connection.sender.congestion.window == MSS
    script.inject(ack=MSS + 1)
    assert [heard.seq for heard in script.everything()] == [MSS + 1, 2 * MSS + 1]


async def test_rfc9293_must_19_the_timeout_doubles(script: Script) -> None:
    script.open()
    script.host_writes("x")
    script.inject(ack=2)
    script.host_writes("y")
    script.everything()
    times = []
    for _ in range(6):
        script.wait()
        script.everything()
        times.append(script.now)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps[1:] == pytest.approx([2 * gap for gap in gaps[:-1]], rel=0.02)

"""RFC 9293 section 3.8.3: a guest that does not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conformance.script import Script


def until_given_up(script: Script) -> tuple[int, float]:
    """How many segments leave until we give up, and how long that takes."""
    began = script.now
    count = 0
    while script.guest.tcp.flows:
        script.advance(script.guest.deadlines.queue.next_deadline() - script.now)
        count += sum("R" not in heard.flags for heard in script.everything())
        assert script.now < began + 3600.0
    return count, script.now - began


async def test_rfc9293_must_20_data_that_is_never_acknowledged_ends_the_connection(script: Script) -> None:
    script.open()
    script.host_writes("hello?")
    script.everything()
    until_given_up(script)
    assert "R" in script.read(script.log[-1]).flags
    assert script.program.recv(10) == b""


async def test_rfc9293_shld_10_more_than_three_retransmissions(script: Script) -> None:
    script.open()
    script.host_writes("hello?")
    script.everything()
    assert until_given_up(script)[0] >= 3


async def test_rfc9293_shld_11_more_than_100_seconds(script: Script) -> None:
    """A paused guest survives: fast answers before do not shorten it."""
    script.open()
    for _ in range(20):
        script.host_writes("x")
        script.acked += 1
        script.now += 0.0001
        script.inject()
    script.everything()
    script.host_writes("hello?")
    script.everything()
    assert until_given_up(script)[1] >= 120.0


async def test_rfc9293_shld_11_an_answer_just_before_saves_it(script: Script) -> None:
    script.open()
    script.host_writes("hello?")
    script.everything()
    script.advance(119.0)
    script.everything()
    script.inject(ack=7)
    script.host_writes("good")
    script.expect(".", "good", seq=7)
    assert script.wait() < 5.0


async def test_rfc9293_must_22_a_syn_that_is_never_answered(script: Script) -> None:
    script.host_calls()
    script.everything()
    count, seconds = until_given_up(script)
    assert count >= 3
    assert seconds >= 100.0
    assert script.program.recv(10) == b""


async def test_rfc9293_must_23_for_three_minutes(script: Script) -> None:
    script.host_calls()
    script.everything()
    assert until_given_up(script)[1] >= 180.0


@pytest.mark.requirement("RFC9293 MUST-22")
async def test_a_syn_ack_that_is_never_acknowledged(script: Script) -> None:
    script.inject("S")
    script.everything()
    count, seconds = until_given_up(script)
    assert count >= 3
    assert seconds >= 60.0

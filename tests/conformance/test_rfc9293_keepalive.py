"""RFC 9293 section 3.8.4: keep-alives, by which a connection of a guest that vanished is told from an idle one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vpnkit.proto.tcp.state import State

if TYPE_CHECKING:
    from tests.conformance.script import Script

TWO_HOURS = 7200.0


@pytest.mark.requirement("RFC5382 REQ-5")
async def test_rfc9293_may_5_a_guest_that_vanished_is_found_out(script: Script) -> None:
    script.open()
    script.advance(2 * TWO_HOURS)
    assert len(script.everything()) >= 3
    assert not script.guest.tcp.flows
    assert script.program.recv(10) == b""


@pytest.mark.requirement("RFC5382 REQ-5")
async def test_rfc9293_may_5_one_that_answers_is_left_alone(script: Script) -> None:
    """For two days."""
    script.open()
    for _ in range(24):
        assert script.wait() >= TWO_HOURS - 1.0
        script.everything()
        script.inject()
    assert script.state is State.ESTABLISHED
    script.host_writes("still here")
    script.expect(".", "still here", seq=1)


async def test_rfc9293_must_26_not_while_something_is_outstanding(script: Script) -> None:
    """The retransmission timer decides then."""
    script.open(win=0)
    script.host_writes("waits for the window")
    ends = script.now + 2 * TWO_HOURS
    while script.now < ends:
        script.wait()
        for heard in script.everything():
            assert heard.seq == 1
            assert heard.payload
        script.inject(".", ack=1)


async def test_rfc9293_must_26_not_while_data_moves(script: Script) -> None:
    script.open()
    for _ in range(10):
        script.advance(TWO_HOURS - 10.0)
        script.silence()
        script.inject(".", "x")
        script.expect(".", "", ack=script.next)
    for _ in range(10):
        script.advance(TWO_HOURS - 10.0)
        script.silence()
        script.host_writes("x")
        script.expect(".", "x")
        script.inject()
    script.silence()


async def test_rfc9293_must_28_not_before_two_hours(script: Script) -> None:
    script.open()
    script.advance(TWO_HOURS - 1.0)
    script.silence()
    assert script.wait() <= 75.0


@pytest.mark.parametrize("lost", [1, 2, 5, 8])
async def test_rfc9293_must_29_lost_probes_are_not_the_end(script: Script, lost: int) -> None:
    script.open()
    for i in range(lost + 1):
        took = script.wait()
        script.expect(".", "")
        assert took == pytest.approx(75.0) if i else took >= TWO_HOURS - 1.0
    script.inject()
    assert script.wait() >= TWO_HOURS - 1.0
    assert script.state is State.ESTABLISHED


async def test_rfc9293_shld_12_a_probe_has_no_data(script: Script) -> None:
    """Its number is one that the guest acknowledged, so that it must answer."""
    script.open()
    script.host_writes("abc")
    script.expect(".", "abc")
    script.inject()
    script.wait()
    script.expect(".", "", seq=3, ack=1)


async def test_rfc9293_shld_12_a_probe_of_the_guest_is_answered(script: Script) -> None:
    """With and without the octet of garbage (MAY-6)."""
    script.open()
    script.inject(".", "abc")
    script.everything()
    script.host_reads()
    script.inject(".", seq=3)
    script.expect(".", "", ack=4)
    script.inject(".", "?", seq=3)
    script.expect(".", "", ack=4)
    assert script.host_reads() == b""


@pytest.mark.requirement("RFC9293 MUST-25")
async def test_a_half_closed_connection_is_probed_too(script: Script) -> None:
    script.open()
    script.inject("F.")
    script.expect(".", ack=2)
    script.advance(2 * TWO_HOURS)
    assert not script.guest.tcp.flows

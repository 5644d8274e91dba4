"""RFC 9293 sections 3.8.6.2.1 and 3.7.4: silly windows, and Nagle's algorithm."""

from __future__ import annotations

import pytest

from tests.conformance.script import MSS, Script


async def test_rfc9293_must_38_a_window_that_opens_by_octets_gets_no_crumbs(script: Script) -> None:
    script.open(win=4 * MSS)
    script.host_writes(bytes(20 * MSS))
    assert len(script.everything()) == 4
    for i in range(1, 1000):
        script.inject(ack=4 * MSS + 1, win=i)
        script.silence()
    script.inject(ack=4 * MSS + 1, win=MSS)
    assert len(script.expect(".").payload) == MSS


async def test_rfc9293_must_38_half_of_the_largest_window_is_enough(script: Script) -> None:
    """Of a guest whose whole buffer is smaller than a segment."""
    script.open(win=1000)
    script.host_writes(bytes(5000))
    script.inject(ack=1001, win=499)
    script.everything()
    script.inject(ack=1001, win=500)
    heard = script.everything()
    assert not heard or len(heard[0].payload) >= 499


async def test_rfc9293_must_38_in_the_end_a_crumb_is_better_than_a_deadlock(script: Script) -> None:
    script.open(win=4 * MSS)
    script.host_writes(bytes(20 * MSS))
    script.everything()
    script.inject(ack=4 * MSS + 1, win=100)
    script.silence()
    script.acked = 4 * MSS + 1
    script.wait()
    assert 0 < len(script.expect(".", seq=4 * MSS + 1).payload) <= 100


async def test_rfc9293_must_38_what_ends_a_message_leaves(script: Script) -> None:
    script.open()
    script.host_writes(bytes(MSS + 3))
    assert [len(heard.payload) for heard in script.everything()] == [MSS, 3]


@pytest.mark.requirement("RFC9293 SHLD-7", "RFC9293 MUST-17")
async def test_small_writes_do_not_wait_for_acks(script: Script) -> None:
    """Nagle's algorithm is off."""
    script.open()
    for letter in "abc":
        script.host_writes(letter)
        script.expect(".", letter)

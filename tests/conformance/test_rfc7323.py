"""RFC 7323 section 2: window scale.  There are no timestamps."""

from __future__ import annotations

import pytest

from tests.conformance.script import MSS, NOP, Script, mss, pad, scale


async def test_rfc7323_2_2_scale_is_answered_only_when_asked(make_script) -> None:
    with_scale, without = make_script(), make_script()
    with_scale.inject("S", options=mss(MSS) + NOP + scale(7))
    assert 3 in with_scale.expect("S.").kinds
    without.inject("S", options=mss(MSS))
    assert 3 not in without.expect("S.").kinds


async def test_rfc7323_2_2_our_syn_offers_it_and_without_answer_both_are_0(script: Script) -> None:
    script.host_calls()
    assert 3 in script.expect("S").kinds
    script.inject("S.", options=mss(MSS))
    script.expect(".", win=65535)
    script.inject(".", win=1000)
    assert script.connection.sender.window == 1000


async def test_rfc7323_2_2_nor_is_it_in_any_other_segment(script: Script) -> None:
    script.open()
    script.host_writes(bytes(5000))
    script.inject(".", bytes(5000), ack=1)
    script.host_finishes()
    frames = [script.read(frame) for frame in script.log]
    assert all(3 not in heard.kinds for heard in frames if "S" not in heard.flags)


async def test_rfc7323_2_2_the_window_of_a_syn_is_not_scaled(script: Script) -> None:
    script.inject("S", win=1000, options=mss(MSS) + NOP + scale(7))
    script.expect("S.", win=65535)
    script.inject(".", win=1000)
    assert script.connection.sender.window == 128_000
    script.host_writes(bytes(8 * MSS))
    assert len(script.everything()) == 8


async def test_rfc7323_2_2_before_the_third_segment_only_the_unscaled_window_counts(script: Script) -> None:
    script.inject("S", win=1000, options=mss(MSS) + NOP + scale(7))
    assert script.connection.sender.window == 1000


async def test_rfc7323_2_2_scale_in_a_later_segment_means_nothing(script: Script) -> None:
    script.open()
    script.inject(".", win=500, options=pad(scale(14)))
    assert script.connection.sender.window == 500


async def test_rfc7323_2_2_ours_is_what_our_windows_are_shifted_by(script: Script) -> None:
    script.inject("S", options=mss(MSS) + NOP + scale(0))
    (shift,) = script.expect("S.").kinds[3]
    script.inject(".")
    script.inject(".", "x")
    assert script.expect(".").win << shift == script.connection.receiver.capacity


@pytest.mark.parametrize("shift", [15, 16, 100, 255])
async def test_rfc7323_2_3_more_than_14_is_14(script: Script, shift: int) -> None:
    script.open(options=mss(MSS) + NOP + scale(shift), win=3)
    assert script.connection.sender.window == 3 << 14


@pytest.mark.parametrize("length", [1, 100, 127, 128, 129, 1459])
async def test_rfc7323_2_4_rounding_does_not_take_back(script: Script, length: int) -> None:
    script.open()
    edge = 65536
    for _ in range(300):
        script.inject(".", bytes(length), ack=1)
        for heard in script.everything():
            right = heard.ack + (heard.win << 7)
            assert right >= edge
            edge = right


async def test_rfc7323_2_4_every_octet_that_was_offered_is_taken(script: Script) -> None:
    """The program does not read; the guest fills the window to its last octet."""
    script.open()
    edge = 65536
    while script.next < edge:
        script.inject(".", bytes(min(1459, edge - script.next)), ack=1)
        edge = max([edge, *(heard.ack + (heard.win << 7) for heard in script.everything())])
    got = 0
    while data := script.host_reads():
        got += len(data)
    assert got == edge - 1

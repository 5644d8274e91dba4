"""RFC 6298: the retransmission timer."""

from __future__ import annotations

import pytest

from tests.conformance.script import MSS, Script
from vpnkit.proto.tcp import rtt
from vpnkit.proto.tcp.rtt import RttEstimator

LEAST = rtt.MINIMUM  # section 2.4 is a deviation


def measure(script: Script, seconds: float) -> None:
    """One round trip of `seconds`."""
    script.host_writes("x")
    script.expect(".", "x")
    script.now += seconds
    script.inject()


def timeout(script: Script) -> float:
    """How long the next segment may stay without an answer."""
    script.host_writes("y")
    script.expect(".", "y")
    took = script.wait()
    script.expect(".", "y")
    return took


async def test_rfc6298_2_1_one_second_before_the_first_sample(script: Script) -> None:
    script.inject("S")
    script.expect("S.")
    assert script.wait() == pytest.approx(1.0)


@pytest.mark.parametrize("sample", [0.1, 0.25, 1.0, 3.0])
async def test_rfc6298_2_2_after_the_first_sample(script: Script, sample: float) -> None:
    """SRTT is R, RTTVAR is R/2, so the timeout is 3 R."""
    script.open()
    measure(script, sample)
    assert timeout(script) == pytest.approx(max(3 * sample, LEAST))


def test_rfc6298_2_2_the_granularity_counts() -> None:
    estimator = RttEstimator()
    for _ in range(200):
        estimator.sample(0.5)
    assert estimator.rto == pytest.approx(0.5 + rtt.GRANULARITY, abs=1e-6)


VECTORS = [
    # samples -> SRTT, RTTVAR, RTO, by hand: RTTVAR first, with the old SRTT
    ([1.0], 1.0, 0.5, 3.0),
    ([1.0, 1.0], 1.0, 0.375, 2.5),
    ([1.0, 2.0], 1.125, 0.625, 3.625),
    ([1.0, 2.0, 0.5], 1.046875, 0.625, 3.546875),
    ([0.4, 0.8, 0.8], 0.49375, 0.275, 1.59375),
]


@pytest.mark.parametrize(("samples", "srtt", "rttvar", "rto"), VECTORS)
def test_rfc6298_2_3_gains_of_an_eighth_and_a_quarter(
    samples: list[float], srtt: float, rttvar: float, rto: float
) -> None:
    estimator = RttEstimator()
    for sample in samples:
        estimator.sample(sample)
    assert (estimator.srtt, estimator.rttvar, estimator.rto) == pytest.approx((srtt, rttvar, rto))


@pytest.mark.parametrize(("samples", "srtt", "rttvar", "rto"), VECTORS)
async def test_rfc6298_2_3_through_the_whole_guest(
    script: Script, samples: list[float], srtt: float, rttvar: float, rto: float
) -> None:
    script.open()
    for sample in samples:
        measure(script, sample)
    assert timeout(script) == pytest.approx(rto)


@pytest.mark.requirement("RFC6298 2.4")
async def test_not_less_than_200_ms(script: Script) -> None:
    script.open()
    for _ in range(50):
        measure(script, 0.0001)
    assert timeout(script) == pytest.approx(0.2)


async def test_rfc6298_2_5_not_more_than_60_s(script: Script) -> None:
    script.open()
    measure(script, 50.0)
    assert timeout(script) == pytest.approx(60.0)


async def test_rfc6298_3_a_retransmitted_segment_is_no_sample(script: Script) -> None:
    script.open()
    measure(script, 0.1)
    before = script.connection.sender.rtt.srtt
    assert timeout(script) > 0
    script.now += 30.0
    script.inject()
    assert script.connection.sender.rtt.srtt == before


async def test_rfc6298_3_nor_one_that_was_sent_before_it(script: Script) -> None:
    """The ACK of a flight of which one was repeated."""
    script.open()
    measure(script, 0.1)
    before = script.connection.sender.rtt.srtt
    script.host_writes(bytes(3 * MSS))
    script.everything()
    script.wait()
    script.everything()
    script.now += 30.0
    script.inject(ack=3 * MSS + 2)
    assert script.connection.sender.rtt.srtt == before


async def test_rfc6298_3_one_sample_for_each_round_trip(script: Script) -> None:
    script.open()
    for i in range(10):
        before = script.connection.sender.rtt.srtt
        measure(script, 1.0 + i)
        assert script.connection.sender.rtt.srtt > before


async def test_rfc6298_5_1_data_that_leaves_starts_the_timer(script: Script) -> None:
    script.open()
    script.now += 100.0
    assert timeout(script) == pytest.approx(1.0)


async def test_rfc6298_5_1_it_runs_already_and_goes_on(script: Script) -> None:
    """More data does not put it off."""
    script.open()
    script.host_writes("a")
    for _ in range(9):
        script.advance(0.1)
        script.host_writes("b")
    script.everything()
    assert script.wait() == pytest.approx(0.1)


async def test_rfc6298_5_2_when_all_is_acknowledged_it_stops(script: Script) -> None:
    script.open()
    measure(script, 0.1)
    script.advance(600.0)
    script.silence()


async def test_rfc6298_5_3_an_ack_of_new_data_restarts_it(script: Script) -> None:
    script.open()
    script.host_writes(bytes(4 * MSS))
    script.everything()
    for i in range(1, 4):
        script.advance(0.15)
        script.inject(ack=i * MSS + 1)
        script.silence()
    rto = script.connection.sender.rtt.rto
    assert script.wait() == pytest.approx(rto)
    assert script.everything()[0].seq == 3 * MSS + 1


async def test_rfc6298_5_3_a_duplicate_does_not(script: Script) -> None:
    script.open()
    script.host_writes("a")
    script.everything()
    script.advance(0.9)
    script.inject(ack=1)
    assert script.wait() == pytest.approx(0.1)


async def test_rfc6298_5_4_the_earliest_segment_is_sent_again(script: Script) -> None:
    script.open()
    script.host_writes(bytes(5 * MSS))
    script.everything()
    script.inject(ack=2 * MSS + 1)
    script.wait()
    assert [heard.seq for heard in script.everything()] == [2 * MSS + 1]


async def test_rfc6298_5_5_the_timeout_doubles(script: Script) -> None:
    script.open()
    script.host_writes("a")
    script.everything()
    assert [script.wait() for _ in range(8)] == pytest.approx([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0])


async def test_rfc6298_5_6_and_runs_again(script: Script) -> None:
    script.open()
    script.host_writes("a")
    script.everything()
    for _ in range(3):
        script.wait()
        script.expect(".", "a", seq=1)
    script.inject(ack=2)
    script.advance(600.0)
    script.silence()


async def test_rfc6298_5_7_three_seconds_for_data_after_a_lost_syn_ack(script: Script) -> None:
    script.inject("S")
    script.expect("S.")
    script.wait()
    script.expect("S.")
    script.inject()
    assert timeout(script) == pytest.approx(3.0)


async def test_rfc6298_5_7_and_after_a_lost_syn(script: Script) -> None:
    script.host_calls()
    script.expect("S")
    script.wait()
    script.expect("S")
    script.inject("S.")
    script.expect(".")
    assert timeout(script) == pytest.approx(3.0)

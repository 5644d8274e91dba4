from __future__ import annotations

import pytest

from vpnkit.proto.tcp.rtt import INITIAL, MAXIMUM, MINIMUM, RttEstimator


def test_before_the_first_sample():
    assert RttEstimator().rto == INITIAL == 1.0


def test_the_vector_of_rfc_6298():
    """Section 2.2: SRTT = R, RTTVAR = R/2.  Section 2.3: the variance first, gains of 1/4 and 1/8."""
    estimator = RttEstimator()
    estimator.sample(2.0)
    assert (estimator.srtt, estimator.rttvar, estimator.rto) == (2.0, 1.0, 6.0)
    estimator.sample(4.0)
    assert estimator.rttvar == pytest.approx(0.75 * 1.0 + 0.25 * 2.0)
    assert estimator.srtt == pytest.approx(0.875 * 2.0 + 0.125 * 4.0)
    assert estimator.rto == pytest.approx(2.25 + 4 * 1.25)


def test_bounds():
    estimator = RttEstimator()
    estimator.sample(0.0)
    assert estimator.rto == MINIMUM
    estimator.sample(1000.0)
    assert estimator.rto == MAXIMUM


def test_back_off_doubles_up_to_the_bound_and_is_forgotten():
    estimator = RttEstimator()
    estimator.sample(0.01)
    seen = []
    for _ in range(10):
        estimator.back_off()
        seen.append(estimator.rto)
    assert seen == pytest.approx([0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60, 60])
    estimator.restart()
    assert estimator.rto == MINIMUM


def test_back_off_without_a_sample():
    estimator = RttEstimator()
    estimator.back_off()
    assert estimator.rto == 2.0
    estimator.restart()
    assert estimator.rto == INITIAL

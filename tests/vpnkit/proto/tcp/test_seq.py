from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vpnkit.proto.tcp.seq import MASK, after, before, distance

sequences = st.integers(0, MASK)


@given(sequences, st.integers(-(2**31), 2**31 - 1))
def test_distance_undoes_addition(start, delta):
    assert distance(start, (start + delta) & MASK) == delta


@given(sequences, st.integers(1, 2**31 - 1))
def test_before_and_after_across_the_wrap(start, delta):
    end = (start + delta) & MASK
    assert before(start, end)
    assert not before(end, start)
    assert after(end, start)
    assert not after(start, end)


@given(sequences)
def test_nothing_is_before_itself(start):
    assert not before(start, start)
    assert not after(start, start)

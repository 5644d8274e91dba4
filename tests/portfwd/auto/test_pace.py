"""How often it is looked."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from portfwd.auto.pace import LEAST, QUICK_FOR, Pace


def looks(pace, start, end, hints=()):
    """The times of looks until `end`, with hints at those times."""
    now, found, hints = start, [], sorted(hints)
    while True:
        due = pace.due(now)
        if hints and hints[0] <= due:
            now = max(hints.pop(0), now)
            pace.hint(now)
            continue
        now = max(due, now)
        if now >= end:
            return found
        pace.looked(now, changed=False)
        found.append(now)


def test_idle_costs_less_than_two_looks_a_second():
    for is_told in (True, False):
        pace = Pace(0.0, is_told=is_told)
        looks(pace, 0.0, QUICK_FOR + 1)
        assert len(looks(pace, QUICK_FOR + 1, QUICK_FOR + 101)) < 180


def test_a_hint_is_followed_up_at_once_and_a_moment_later():
    pace = Pace(0.0, is_told=True)
    looks(pace, 0.0, 9.5)
    times = looks(pace, 9.5, 10.3, hints=[9.7])
    assert [round(time - 9.7, 3) for time in times if time >= 9.7] == [0.0, 0.05, 0.1, 0.25]


def test_who_is_told_nothing_looks_quickly_after_a_change():
    pace = Pace(0.0, is_told=False)
    looks(pace, 0.0, 10.0)
    pace.looked(10.0, changed=True)
    assert len(looks(pace, 10.0, 12.0)) >= 19


@given(st.lists(st.floats(0, 10), max_size=200))
def test_however_many_hints(hints):
    pace = Pace(0.0, is_told=True)
    times = looks(pace, 0.0, 11.0, hints)
    assert all(later - earlier >= LEAST * 0.99 for earlier, later in itertools.pairwise(times))
    if hints:  # the last hint is seen
        assert any(time >= max(hints) for time in times)

"""The table itself: every state can be reached, can be left, and knows what a reset does to it."""

from __future__ import annotations

import pytest

from vpnkit.proto.tcp.state import SYNCHRONIZED, TRANSITIONS, Event, State, moved

BIRTHS = {State.SYN_HELD, State.SYN_SENT}


def reachable(start: set[State]) -> set[State]:
    seen = set(start)
    while new := {after for (before, _), after in TRANSITIONS.items() if before in seen} - seen:
        seen |= new
    return seen


def test_every_state_can_be_reached():
    assert reachable(BIRTHS) == set(State)


@pytest.mark.parametrize("state", list(State))
def test_every_state_can_end(state):
    assert State.CLOSED in reachable({state})


@pytest.mark.parametrize("state", [s for s in State if s is not State.CLOSED])
def test_an_abort_ends_every_state(state):
    assert moved(state, Event.ABORT) is State.CLOSED


def test_nothing_happens_in_closed():
    assert not [event for (state, event) in TRANSITIONS if state is State.CLOSED]


def test_what_cannot_happen_is_a_bug():
    with pytest.raises(KeyError):
        moved(State.TIME_WAIT, Event.FINISH)


def test_without_aborts_only_acknowledged_fins_end_a_synchronized_connection():
    ends = {(state, event) for (state, event), after in TRANSITIONS.items() if after is State.CLOSED}
    assert {pair for pair in ends if pair[1] is not Event.ABORT} == {(State.LAST_ACK, Event.ACK_OF_FIN)}


def test_nothing_leads_back_to_a_handshake():
    for (before, _), after in TRANSITIONS.items():
        if before in SYNCHRONIZED:
            assert after in SYNCHRONIZED or after is State.CLOSED

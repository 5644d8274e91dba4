"""The automaton of RFC 9293 section 3.3.2 as a table that can be printed, drawn and walked by a test.

Two states of the RFC are missing.  LISTEN: a SYN from the guest is a question put to the host, so a connection begins
its life in SYN_HELD and answers only when the host's `connect` did.  CLOSED is where every connection ends; nothing
happens to it there.

Only transitions live here.  What is acceptable, and what must be sent, is the business of receiver and sender.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    SYN_HELD = "SYN-HELD"  # ours: the guest's SYN waits for the host
    SYN_SENT = "SYN-SENT"
    SYN_RECEIVED = "SYN-RECEIVED"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT_1 = "FIN-WAIT-1"
    FIN_WAIT_2 = "FIN-WAIT-2"
    CLOSE_WAIT = "CLOSE-WAIT"
    CLOSING = "CLOSING"
    LAST_ACK = "LAST-ACK"
    TIME_WAIT = "TIME-WAIT"
    CLOSED = "CLOSED"

    synchronized: bool  # the guest has acknowledged our SYN and we its


class Event(Enum):
    ACCEPT = "the host accepted"
    SYN = "the guest's SYN alone"  # simultaneous open
    SYN_ACK = "the guest's SYN-ACK"
    ACK_OF_SYN = "our SYN is acknowledged"
    FINISH = "our side has no more to send"
    ACK_OF_FIN = "our FIN is acknowledged"
    PEER_FIN = "the guest's FIN"
    ABORT = "reset, refused, timed out or given up"


# (state, what happened) -> next state.  A pair that is not here cannot happen: `moved` raises.
TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.SYN_HELD, Event.ACCEPT): State.SYN_RECEIVED,
    (State.SYN_SENT, Event.SYN): State.SYN_RECEIVED,
    (State.SYN_SENT, Event.SYN_ACK): State.ESTABLISHED,
    (State.SYN_RECEIVED, Event.ACK_OF_SYN): State.ESTABLISHED,
    (State.ESTABLISHED, Event.FINISH): State.FIN_WAIT_1,
    (State.ESTABLISHED, Event.PEER_FIN): State.CLOSE_WAIT,
    (State.FIN_WAIT_1, Event.ACK_OF_FIN): State.FIN_WAIT_2,
    (State.FIN_WAIT_1, Event.PEER_FIN): State.CLOSING,
    (State.FIN_WAIT_2, Event.PEER_FIN): State.TIME_WAIT,
    (State.CLOSE_WAIT, Event.FINISH): State.LAST_ACK,
    (State.CLOSING, Event.ACK_OF_FIN): State.TIME_WAIT,
    (State.LAST_ACK, Event.ACK_OF_FIN): State.CLOSED,
}
TRANSITIONS.update({(state, Event.ABORT): State.CLOSED for state in State if state is not State.CLOSED})

SYNCHRONIZED: Final = frozenset(
    {
        State.ESTABLISHED,
        State.FIN_WAIT_1,
        State.FIN_WAIT_2,
        State.CLOSE_WAIT,
        State.CLOSING,
        State.LAST_ACK,
        State.TIME_WAIT,
    }
)


for _state in State:
    _state.synchronized = _state in SYNCHRONIZED  # asked for every segment: an attribute is cheaper than a set


def moved(state: State, event: Event) -> State:
    """The state after `event`.  Raises KeyError when `event` cannot happen in `state`: that is a bug of ours."""
    return TRANSITIONS[state, event]

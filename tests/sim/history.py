"""What the two ends of every connection did and saw: the applications' truth, kept outside the network under test."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.sim.scenario import TcpPlan

NOISE: Final = random.Random(0).randbytes(1 << 17)


def octets(start: int, offset: int, count: int) -> bytes:
    """`count` octets from `offset` of the endless stream number `start`: no two streams begin alike."""
    period = len(NOISE)
    made = b""
    at = (start + offset) % period
    while len(made) < count:
        share = NOISE[at : at + count - len(made)]
        made += share
        at = (at + len(share)) % period
    return made


@dataclass
class Side:
    """One end of one connection: a guest's connection, or a socket of the host as its far peer sees it."""

    flow: int
    stream: int  # which stream of octets it writes
    began: float
    connected: bool = False
    wrote: int = 0
    read: bytearray = field(default_factory=bytearray)
    fin_sent: bool = False
    fin_seen: bool = False
    rst_sent: bool = False
    rst_seen: bool = False
    refused: str = ""  # what came instead of an answer
    over: bool = False
    causes: list[str] = field(default_factory=list)  # why this connection need not end well

    def expected(self) -> bytes:
        return octets(self.stream, 0, self.wrote)


@dataclass
class FlowHistory:
    plan: TcpPlan
    guest: list[Side] = field(default_factory=list)
    host: list[Side] = field(default_factory=list)
    errors: set[int] = field(default_factory=set)  # what `connect` said to it


class History:
    def __init__(self) -> None:
        self.flows: dict[int, FlowHistory] = {}
        self.everywhere: list[str] = []  # causes that may hit any connection
        self._streams = 0

    def flow(self, plan: TcpPlan) -> FlowHistory:
        return self.flows.setdefault(plan.number, FlowHistory(plan))

    def side(self, plan: TcpPlan, now: float, *, guest: bool) -> Side:
        self._streams += 1
        side = Side(plan.number, self._streams * 7919, now)
        history = self.flow(plan)
        (history.guest if guest else history.host).append(side)
        return side

"""Whatever the wire between two connections does: what is read is a prefix of what was written, everything once the
wire works again, and both ends close.

Segments are lost, doubled, swapped and held back; users write, read and finish when they like; time passes or not.
After every step the invariants of both ends hold: the window's edge never moves to the left, no more than the window
and one probe is ever in flight, and a deadline that passed is not there any more.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.vpnkit.proto.tcp.pair import OFFER, SUPER, End, Segment, passive_for, pull, push
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.tcp.connection import Offer, TcpConnection
from vpnkit.proto.tcp.seq import MASK, distance
from vpnkit.proto.tcp.state import State
from vpnkit.wire.tcp import ACK, RST, SYN

ENDS = st.sampled_from([0, 1])
JUMBO = Offer(mss=8960, limit=8960)
TINY = Offer(mss=100, limit=100)


class Wire(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.wires: list[list[Segment]] = [[], []]  # from end 0, from end 1
        self.ends: list[End] = []
        self.edges: list[int | None] = [None, None]  # the highest that the end's window was told to reach, absolute
        self.last_advertised: list[int | None] = [None, None]
        self.lossy = True
        self.aborted = False

    @initialize(
        iss=st.sampled_from([0, 2**32 - 5, 2**31 - 3]),
        their_iss=st.sampled_from([7, 2**32 - 1, 2**32 - 3000]),
        offer=st.sampled_from([OFFER, SUPER, JUMBO, TINY]),
        their_offer=st.sampled_from([OFFER, SUPER, TINY]),
        capacity=st.sampled_from([1000, 5000, 1 << 20]),
    )
    def begin(self, iss: int, their_iss: int, offer: Offer, their_offer: Offer, capacity: int) -> None:
        active = TcpConnection.active(iss, offer, self.now)
        (syn,) = pull(active)
        passive = passive_for(syn, their_iss, their_offer)
        passive.accept(self.now)
        passive.receiver.capacity = capacity
        self.ends = [End(active), End(passive)]
        self.note(0, syn)
        self.leave()

    # What happens

    def note(self, index: int, segment: Segment) -> None:
        """Keep what was told about the window, and hold the sender to it."""
        other = 1 - index
        edge = self.edges[other]
        if segment.payload:
            assert edge is not None
            assert distance(edge, (segment.sequence + len(segment.payload)) & MASK) <= 1, "beyond the window"
        if not segment.flags & ACK or segment.flags & RST:
            return
        connection = self.ends[index].connection
        scale = 0 if segment.flags & SYN else connection.receiver.scale
        told = (segment.acknowledgement + (segment.window << scale)) & MASK
        before = self.last_advertised[index]
        if before is not None and not segment.flags & SYN:
            assert distance(before, told) >= -1, "the window shrank"  # -1: a FIN beyond it was taken
        self.last_advertised[index] = told
        highest = self.edges[index]
        if highest is None or distance(highest, told) > 0:
            self.edges[index] = told

    def leave(self) -> None:
        for index, end in enumerate(self.ends):
            for segment in pull(end.connection, self.now):
                self.note(index, segment)
                self.wires[index].append(segment)

    def arrive(self, index: int, segment: Segment) -> None:
        """`segment` of end `index` comes to the other one."""
        other = self.ends[1 - index]
        push(other.connection, segment, self.now)
        other.take()

    @rule(index=ENDS, length=st.sampled_from([1, 50, 1460, 3000, 20000]))
    def write(self, index: int, length: int) -> None:
        end = self.ends[index]
        if end.connection.is_open and not end.connection.sender.finishing and end.connection.sender.queued < 200_000:
            start = len(end.written)
            end.write(bytes((start + i) % 251 for i in range(length)))
            self.leave()

    @rule(index=ENDS, length=st.sampled_from([1, 100, 5000, 10**6]))
    def read(self, index: int, length: int) -> None:
        end = self.ends[index]
        if end.connection.is_open or end.unread:
            end.reads = False
            end.read(length)
            self.leave()

    @rule(index=ENDS, reads=st.booleans())
    def fall_asleep_or_wake(self, index: int, reads: bool) -> None:
        self.ends[index].reads = reads
        self.ends[index].take()
        self.leave()

    @rule(index=ENDS)
    def finish(self, index: int) -> None:
        connection = self.ends[index].connection
        if connection.state in (State.ESTABLISHED, State.CLOSE_WAIT):
            connection.finish()
            self.leave()

    @rule(index=ENDS, count=st.integers(1, 20))
    def deliver(self, index: int, count: int) -> None:
        for _ in range(count):
            if self.wires[index]:
                self.arrive(index, self.wires[index].pop(0))
        self.leave()

    @rule(index=ENDS, count=st.integers(1, 20))
    def deliver_one_by_one(self, index: int, count: int) -> None:
        for _ in range(count):
            if self.wires[index]:
                self.arrive(index, self.wires[index].pop(0))
                self.leave()

    @rule(index=ENDS, place=st.integers(0, 30))
    @precondition(lambda self: any(self.wires))
    def lose(self, index: int, place: int) -> None:
        wire = self.wires[index]
        if wire:
            del wire[place % len(wire)]

    @rule(index=ENDS, place=st.integers(0, 30), to=st.integers(0, 30))
    @precondition(lambda self: any(self.wires))
    def swap(self, index: int, place: int, to: int) -> None:
        wire = self.wires[index]
        if wire:
            wire.insert(to % len(wire), wire.pop(place % len(wire)))

    @rule(index=ENDS, place=st.integers(0, 30))
    @precondition(lambda self: any(self.wires))
    def double(self, index: int, place: int) -> None:
        wire = self.wires[index]
        if wire:
            wire.append(wire[place % len(wire)])

    @rule(seconds=st.sampled_from([0.001, 0.1, 0.3, 1.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.deadlines()
        self.leave()

    def deadlines(self) -> None:
        for end in self.ends:
            if end.connection.next_deadline() <= self.now:
                end.connection.on_deadline(self.now)
                assert end.connection.next_deadline() > self.now

    # What always holds

    @invariant()
    def a_prefix(self) -> None:
        for one, other in (self.ends, self.ends[::-1]) if self.ends else ():
            assert one.written.startswith(other.got + other.unread)

    @invariant()
    def nothing_left_to_say(self) -> None:
        for end in self.ends:
            assert end.connection.next_segment() is None

    @invariant()
    def a_timer_runs_while_something_is_outstanding(self) -> None:
        for end in self.ends:
            connection = end.connection
            if connection.is_open and connection.state is not State.TIME_WAIT and connection.sender.queued:
                assert connection.next_deadline() != NEVER

    # The end

    def teardown(self) -> None:
        if not self.ends:
            return
        for end in self.ends:
            end.reads = True
            end.take()
        self.leave()
        for _ in range(3000):
            if any(end.connection.aborted for end in self.ends):
                return  # the wire lost one segment sixteen times: so it goes
            for index in (0, 1):
                while self.wires[index]:
                    self.arrive(index, self.wires[index].pop(0))
                self.leave()
            for end in self.ends:
                if end.connection.state in (State.ESTABLISHED, State.CLOSE_WAIT):
                    end.connection.finish()
            self.leave()
            if any(self.wires):
                continue
            if all(end.connection.is_closed for end in self.ends):
                break
            deadline = min(end.connection.next_deadline() for end in self.ends)
            assert deadline != NEVER, "both ends wait for ever"
            self.now = max(self.now, deadline)
            self.deadlines()
            self.leave()
        states = [end.connection.state for end in self.ends]
        assert set(states) <= {State.CLOSED, State.TIME_WAIT}, states
        assert self.ends[0].got == self.ends[1].written
        assert self.ends[1].got == self.ends[0].written


TestWire = Wire.TestCase
TestWire.settings = settings(max_examples=150, stateful_step_count=60, deadline=None, derandomize=True)

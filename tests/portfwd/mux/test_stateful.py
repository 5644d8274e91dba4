"""Two sides of the protocol, whose octets arrive in any pieces, against a model of what a channel is."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from portfwd.mux.core import WINDOW, Changed, Greeted, Mux, Opened
from portfwd.mux.wire import Destination, Protocol

WHERE = Destination(Protocol.TCP, ip_address("127.0.0.1"), 80)
CHOICE = st.integers(0, 1000)


class End:
    def __init__(self, mux, channel):
        self.mux = mux
        self.channel = channel
        self.written = b""
        self.read = b""
        self.other = None


class Sides(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.sides = [Mux(backwards=True), Mux(backwards=False)]
        self.pipes = [b"", b""]  # to each side
        self.ends = []
        self.waiting = {}

    def pick(self, choice):
        return self.ends[choice % len(self.ends)]

    @rule(side=st.integers(0, 1))
    def open(self, side):
        if len(self.sides[side].channels) < 8:
            end = End(self.sides[side], self.sides[side].open(WHERE))
            self.ends.append(end)
            self.waiting[1 - side, end.channel.number] = end

    @rule(side=st.integers(0, 1), count=st.integers(1, 200_000))
    def carry(self, side, count):
        self.pipes[side] += self.sides[1 - side].take_output()
        data, self.pipes[side] = self.pipes[side][:count], self.pipes[side][count:]
        for event in self.sides[side].receive(data):
            if isinstance(event, Opened):
                channel = self.sides[side].channels[event.channel]
                end = End(self.sides[side], channel)
                end.other = self.waiting.pop((side, event.channel))
                end.other.other = end
                self.ends.append(end)
                self.sides[side].accept(channel)
            else:
                assert isinstance(event, Changed | Greeted)

    @precondition(lambda self: self.ends)
    @rule(choice=CHOICE, count=st.integers(1, 2 * WINDOW))
    def write(self, choice, count):
        end = self.pick(choice)
        channel = end.channel
        count = min(count, channel.room)
        if count and not channel.shutdown_sent and not channel.close_sent:
            data = (b"%d." % len(end.written)) * count
            end.mux.send(channel, data[:count])
            end.written += data[:count]

    @precondition(lambda self: self.ends)
    @rule(choice=CHOICE, count=st.integers(1, WINDOW))
    def read(self, choice, count):
        end = self.pick(choice)
        if not end.channel.close_sent:
            end.read += end.mux.read(end.channel, count)
        if end.channel.shutdown_received and not end.channel.received and not end.channel.close_sent:
            assert end.read == end.other.written  # the end comes after everything

    @precondition(lambda self: self.ends)
    @rule(choice=CHOICE)
    def shutdown(self, choice):
        end = self.pick(choice)
        end.mux.shutdown(end.channel)

    @precondition(lambda self: self.ends)
    @rule(choice=CHOICE)
    def close(self, choice):
        end = self.pick(choice)
        end.mux.close(end.channel)

    @invariant()
    def what_is_read_was_written(self):
        for end in self.ends:
            assert len(end.channel.received) <= WINDOW  # both respect windows
            if end.other is not None:
                assert end.other.written.startswith(end.read)
        for side in self.sides:
            assert side.excess == 0
            for number, channel in side.channels.items():
                assert number == channel.number
                assert not (channel.close_sent and channel.close_received)

    def teardown(self):
        for end in list(self.ends):
            end.mux.close(end.channel)
        for _ in range(3):
            for side in (0, 1):
                self.carry(side, 1 << 30)
                for channel in list(self.sides[side].channels.values()):
                    self.sides[side].close(channel)
        assert [side.channels for side in self.sides] == [{}, {}]


Sides.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSides = Sides.TestCase

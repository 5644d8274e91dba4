"""What a guest's segments do to the receiving half: order, windows, FINs and the rules of RFC 5961."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.vpnkit.proto.tcp.pair import Script, established
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.tcp import receiver as receiver_module
from vpnkit.proto.tcp.connection import CHALLENGE_ACKS, CHALLENGE_SECONDS
from vpnkit.proto.tcp.receiver import CAPACITY, FIRST_CAPACITY, ROUNDING
from vpnkit.proto.tcp.seq import distance
from vpnkit.proto.tcp.state import State
from vpnkit.wire.tcp import ACK, FIN, PSH, RST, SYN, URG

ISS = [0, 2**32 - 5]


@pytest.fixture(params=ISS)
def script(request):
    return Script(iss=request.param, irs=request.param)


class TestOrder:
    def test_in_order(self, script):
        script.gets("abc").gets("def", flags=ACK | PSH)
        assert script.inbox() == b"abcdef"
        (ack,) = script.says(".")
        assert (ack.sequence, ack.acknowledgement) == (1, 7)

    def test_one_ack_for_a_burst(self, script):
        for _ in range(50):
            script.gets("x" * 100)
        script.says(".")

    def test_early_and_late(self, script):
        script.gets("def", seq=4)
        (ack,) = script.says(".")
        assert ack.acknowledgement == 1
        assert script.inbox() == b""
        script.gets("abc", seq=1)
        assert script.inbox() == b"abcdef"
        (ack,) = script.says(".")
        assert ack.acknowledgement == 7

    def test_repeated(self, script):
        script.gets("abc").pull()
        script.gets("abc", seq=1)
        (ack,) = script.says(".")
        assert ack.acknowledgement == 4
        assert script.inbox() == b"abc"

    def test_overlapping_what_was_taken(self, script):
        script.gets("abc")
        script.gets("bcdef", seq=2)
        assert script.inbox() == b"abcdef"

    def test_overlapping_what_came_early(self, script):
        script.gets("efg", seq=5).gets("abcde", seq=1)
        assert script.inbox() == b"abcdefg"

    def test_beyond_the_window_is_cut(self, script):
        script.connection.receiver.capacity = 0
        edge = distance(script.connection.receiver.nxt, script.connection.receiver.edge)
        script.gets(b"x" * (edge + 100))
        assert len(script.inbox()) == edge

    def test_wholly_beyond_the_window_is_refused_and_answered(self, script):
        edge = distance(script.connection.receiver.nxt, script.connection.receiver.edge)
        script.gets("abc", seq=edge + 1)
        script.says(".")
        assert not script.connection.receiver.assembler

    def test_keep_alive(self, script):
        script.gets(seq=0)
        (ack,) = script.says(".")
        assert ack.acknowledgement == 1

    def test_keep_alive_with_an_octet(self, script):
        script.gets("a").pull()
        script.inbox()
        script.gets("a", seq=1)
        script.says(".")
        assert script.inbox() == b""

    def test_without_ack_nothing_is_taken(self, script):
        script.gets("abc", flags=PSH)
        script.gets("abc", flags=0)
        assert script.inbox() == b""
        script.says()

    def test_urgent_data_is_data(self, script):
        script.gets("abc", flags=ACK | URG)
        assert script.inbox() == b"abc"

    def test_an_ack_of_what_was_never_sent_is_corrected_and_its_data_dropped(self, script):
        script.gets("abc", ack=2)
        assert script.inbox() == b""
        (ack,) = script.says(".")
        assert ack.acknowledgement == 1

    def test_a_pure_ack_is_not_answered(self, script):
        for _ in range(5):
            script.gets()
        script.says()


class TestWindow:
    def test_it_opens_after_the_handshake(self, script):
        script.gets("x")
        (ack,) = script.says(".")
        assert ack.window << 7 == pytest.approx(FIRST_CAPACITY, abs=256)

    def test_it_grows_while_the_host_takes_everything(self, script):
        for _ in range(40):
            room = distance(script.connection.receiver.nxt, script.connection.receiver.edge)
            script.gets(b"x" * min(room, 60000))
            script.inbox()
            script.pull()
        assert script.connection.receiver.capacity == CAPACITY

    def fill(self, script):
        """The host takes nothing until the window is closed."""
        receiver = script.connection.receiver
        while True:
            room = distance(receiver.nxt, receiver.edge)
            if not room:
                return
            script.gets(b"x" * min(room, 60000))
            receiver.buffered += len(script.inbox())
            script.pull()

    def test_it_closes_at_the_capacity(self, script):
        self.fill(script)
        capacity = script.connection.receiver.capacity
        assert capacity == FIRST_CAPACITY
        assert capacity <= script.connection.receiver.buffered < capacity + ROUNDING

    def test_it_closes_for_a_guest_that_sends_octet_by_octet(self, script, monkeypatch):
        monkeypatch.setattr(receiver_module, "ROUNDING", 2000)
        self.fill(script)
        receiver = script.connection.receiver
        capacity = receiver.capacity
        receiver.buffered = capacity - 5_000
        script.connection.consumed(0)
        script.says(".")
        edges = [receiver.edge]
        for _ in range(10_000):
            if receiver.nxt == receiver.edge:
                break
            script.gets("x")
            receiver.buffered += len(script.inbox())
            script.pull()
            edges.append(receiver.edge)
        assert receiver.nxt == receiver.edge
        assert capacity + 1000 < receiver.buffered < capacity + 2128
        assert all(distance(one, other) >= 0 for one, other in pairwise(edges))

    def test_beyond_a_closed_window_data_is_refused_but_the_ack_counts(self, script):
        self.fill(script)
        script.write(b"hello")
        script.says("5.")
        script.gets("more")
        assert script.inbox() == b""
        assert script.connection.sender.queued == 0
        (ack,) = script.says(".")
        assert ack.window == 0

    def test_a_reset_is_taken_with_a_closed_window(self, script):
        self.fill(script)
        script.gets(flags=RST)
        assert script.state is State.CLOSED

    def test_a_fin_is_refused_with_a_closed_window_and_taken_later(self, script):
        self.fill(script)
        script.gets(flags=ACK | FIN)
        assert script.state is State.ESTABLISHED
        script.says(".")
        script.connection.consumed(script.connection.receiver.buffered)
        script.says(".")
        script.gets(flags=ACK | FIN)
        assert script.state is State.CLOSE_WAIT

    def test_it_reopens_without_being_asked_but_not_by_crumbs(self, script):
        self.fill(script)
        script.connection.consumed(script.connection.receiver.buffered - script.connection.receiver.capacity)
        for _ in range(2919):
            script.connection.consumed(1)
        script.says()
        script.connection.consumed(1)
        (ack,) = script.says(".")
        assert 0 < ack.window << 7 <= 2920

    def test_an_open_window_is_not_updated_for_every_octet(self, script):
        receiver = script.connection.receiver
        script.gets(b"x" * 60000)
        receiver.buffered += len(script.inbox())
        script.pull()
        updates = 0
        for _ in range(60):
            script.connection.consumed(1000)
            updates += len(script.pull())
        assert updates == 0

    def test_half_of_a_big_window_is_worth_an_update(self, script):
        receiver = script.connection.receiver
        for _ in range(10):
            script.gets(b"x" * 60000)
            receiver.buffered += len(script.inbox())
            script.pull()
        script.connection.consumed(600_000)
        script.says(".")

    def test_after_the_fin_no_update_is_due(self, script):
        script.gets(b"x" * 60000, flags=ACK | FIN)
        receiver = script.connection.receiver
        receiver.buffered += len(script.inbox())
        script.says(".")
        script.connection.consumed(60000)
        script.says()


class TestFin:
    def test_in_order(self, script):
        script.gets("abc", flags=ACK | FIN)
        assert script.state is State.CLOSE_WAIT
        assert script.connection.receiver.finished
        (ack,) = script.says(".")
        assert ack.acknowledgement == 5

    def test_repeated(self, script):
        script.gets(flags=ACK | FIN).pull()
        script.gets(seq=1, flags=ACK | FIN)
        (ack,) = script.says(".")
        assert ack.acknowledgement == 2

    def test_before_its_data(self, script):
        script.gets("def", seq=4, flags=ACK | FIN)
        assert script.state is State.ESTABLISHED
        script.gets("abc", seq=1)
        assert script.state is State.CLOSE_WAIT
        assert script.inbox() == b"abcdef"

    def test_alone_before_its_data(self, script):
        """Nothing waits in the assembler then, and still the data must not take the short way past the FIN."""
        script.gets(seq=4, flags=ACK | FIN)
        script.gets("abc", seq=1)
        assert script.state is State.CLOSE_WAIT
        (ack,) = script.says(".")
        assert ack.acknowledgement == 5

    def test_data_behind_it_does_not_count(self, script):
        script.gets(seq=4, flags=ACK | FIN)
        script.gets("abcdef", seq=1)
        assert script.state is State.CLOSE_WAIT
        assert script.inbox() == b"abc"

    def test_data_after_it_is_not_delivered(self, script):
        script.gets("abc", flags=ACK | FIN).pull()
        assert script.inbox() == b"abc"
        script.gets("more", seq=5)
        assert script.inbox() == b""
        script.says(".")

    def test_it_carries_the_end_of_repeated_data(self, script):
        script.gets("abc").pull()
        script.gets("abc", seq=1, flags=ACK | FIN)
        assert script.state is State.CLOSE_WAIT
        assert script.inbox() == b"abc"

    def test_at_the_edge_of_the_window(self, script):
        script.connection.receiver.capacity = 0
        edge = distance(script.connection.receiver.nxt, script.connection.receiver.edge)
        script.gets(b"x" * edge, flags=ACK | FIN)
        assert script.state is State.CLOSE_WAIT
        assert len(script.inbox()) == edge


def in_state(state: State, iss: int) -> Script:
    script = Script(iss=iss, irs=iss)
    if state in (State.FIN_WAIT_1, State.FIN_WAIT_2, State.CLOSING, State.TIME_WAIT):
        script.connection.finish()
        script.says("F.")
    if state is State.FIN_WAIT_2:
        script.gets()
    if state is State.CLOSING:
        script.gets(flags=ACK | FIN, ack=1).pull()
    if state is State.TIME_WAIT:
        script.gets(flags=ACK | FIN).pull()
    if state in (State.CLOSE_WAIT, State.LAST_ACK):
        script.gets(flags=ACK | FIN).pull()
    if state is State.LAST_ACK:
        script.connection.finish()
        script.says("F.")
    assert script.state is state
    return script


OPEN_STATES = [
    State.ESTABLISHED,
    State.FIN_WAIT_1,
    State.FIN_WAIT_2,
    State.CLOSE_WAIT,
    State.CLOSING,
    State.LAST_ACK,
]


@pytest.mark.parametrize("iss", ISS)
@pytest.mark.parametrize("state", OPEN_STATES, ids=lambda s: s.name)
class TestBlindAttacks:
    """RFC 5961."""

    def test_a_reset_at_the_edge_resets(self, state, iss):
        script = in_state(state, iss)
        script.gets(flags=RST)
        assert script.state is State.CLOSED
        assert script.connection.aborted == "reset by the guest"
        script.says()

    def test_a_reset_elsewhere_in_the_window_is_challenged(self, state, iss):
        script = in_state(state, iss)
        nxt = distance(script.irs, script.connection.receiver.nxt)
        script.gets(seq=nxt + 1, flags=RST)
        (ack,) = script.says(".")
        assert ack.acknowledgement == nxt
        assert script.state is state

    @pytest.mark.parametrize("away", [-1, -100_000, 2**21, 2**31])
    def test_a_reset_outside_is_ignored(self, state, iss, away):
        script = in_state(state, iss)
        script.gets(seq=distance(script.irs, script.connection.receiver.nxt) + away, flags=RST)
        script.says()
        assert script.state is state

    @pytest.mark.parametrize("away", [-1, 0, 1, 1000, 2**21, 2**31])
    def test_a_syn_is_challenged(self, state, iss, away):
        script = in_state(state, iss)
        nxt = distance(script.irs, script.connection.receiver.nxt)
        for flags in (SYN, SYN | ACK):
            script.gets(seq=nxt + away, flags=flags)
            (ack,) = script.says(".")
            assert ack.acknowledgement == nxt
            assert script.state is state

    def test_challenges_are_few(self, state, iss):
        script = in_state(state, iss)
        nxt = distance(script.irs, script.connection.receiver.nxt)
        answers = 0
        for _ in range(50):
            script.gets(seq=nxt + 1, flags=RST)
            answers += len(script.pull())
        assert answers == CHALLENGE_ACKS
        script.now += CHALLENGE_SECONDS + 1
        script.gets(seq=nxt + 1, flags=RST)
        script.says(".")


@pytest.mark.parametrize("iss", ISS)
def test_time_wait_acknowledges_a_repeated_fin_and_ignores_the_rest(iss):
    script = in_state(State.TIME_WAIT, iss)
    script.gets(seq=1, flags=ACK | FIN).says(".")
    script.gets().says()
    script.gets(flags=RST).says()
    assert script.state is State.TIME_WAIT


@pytest.mark.parametrize("iss", ISS)
class TestClosing:
    def test_half_close_each_way(self, iss):
        pair = established(iss, iss)
        pair.a.connection.finish()
        pair.exchange()
        assert (pair.a.connection.state, pair.b.connection.state) == (State.FIN_WAIT_2, State.CLOSE_WAIT)
        pair.b.write(bytes(100_000))
        for _ in range(100):
            pair.exchange()
        assert pair.a.got == bytes(100_000)
        pair.b.connection.finish()
        pair.exchange()
        assert (pair.a.connection.state, pair.b.connection.state) == (State.TIME_WAIT, State.CLOSED)
        assert pair.a.connection.is_closed
        assert not pair.b.connection.aborted

    def test_both_close_at_once(self, iss):
        pair = established(iss, iss)
        pair.a.write(b"abc")
        pair.a.connection.finish()
        pair.b.connection.finish()
        pair.exchange()
        assert pair.b.got == b"abc"
        assert pair.a.connection.state is State.TIME_WAIT
        assert pair.b.connection.state is State.TIME_WAIT

    def test_fin_and_its_ack_in_one_segment(self, iss):
        script = in_state(State.FIN_WAIT_1, iss)
        script.gets("bye", flags=ACK | FIN)
        assert script.state is State.TIME_WAIT
        assert script.inbox() == b"bye"
        (ack,) = script.says(".")
        assert (ack.sequence, ack.acknowledgement) == (2, 5)

    def test_finish_twice_is_once(self, iss):
        script = in_state(State.FIN_WAIT_1, iss)
        script.connection.finish()
        script.says()

    def test_abort_twice_is_once(self, iss):
        script = Script(iss=iss, irs=iss)
        script.connection.abort("one")
        script.connection.abort("two")
        assert script.connection.aborted == "one"
        script.says("R.")
        script.says()

    def test_nothing_is_said_by_or_to_a_closed_connection(self, iss):
        script = Script(iss=iss, irs=iss)
        script.connection.abort("gone", reset=False)
        script.gets("abc").gets(flags=SYN).gets(flags=FIN | ACK)
        script.says()

    def test_a_lingering_connection_gives_up(self, iss):
        script = in_state(State.FIN_WAIT_2, iss)
        script.connection.linger(script.now)
        script.connection.linger(script.now + 30)  # the first one counts
        script.wait_deadline()
        assert script.now == 60
        assert script.state is State.CLOSED
        script.says("R.")

    def test_lingering_does_not_cut_off_data_that_still_travels(self, iss):
        script = Script(iss=iss, irs=iss)
        script.gets(window=0)
        script.write(bytes(10))
        script.connection.finish()
        script.connection.linger(script.now)
        script.says()
        while script.now < 300:
            script.wait_deadline()
            if script.pull():
                script.gets(ack=1, window=0)  # slow, but alive
        assert script.state is State.FIN_WAIT_1
        script.gets(ack=1)
        script.says("10F.")
        script.gets()
        assert script.state is State.FIN_WAIT_2
        while script.state is State.FIN_WAIT_2:
            script.wait_deadline()
        assert script.now < 500


class TestDelayedAck:
    """The ACK of a request travels with its answer, when the host is known to answer at once."""

    def ping_pong(self, script):
        script.now = 10.0
        script.gets("ping")
        script.write(b"pong").says("4.")
        script.gets("ping")
        return script

    def test_it_waits_for_the_answer(self, script):
        self.ping_pong(script).says()
        (answer,) = script.write(b"pong").says("4.")
        assert answer.acknowledgement == 9
        assert script.connection.receiver.ack_deadline == NEVER

    def test_not_longer_than_2_ms(self, script):
        self.ping_pong(script).says()
        script.wait_deadline()
        assert script.now == pytest.approx(10.002)
        script.says(".")
        script.gets("ping").says(".")  # and not again before an answer was quick

    def test_two_full_segments_do_not_wait(self, script):
        self.ping_pong(script).says()
        script.gets(bytes(1460)).says()
        script.gets(bytes(1460)).says(".")

    def test_neither_does_a_fin_nor_what_came_early(self, script):
        self.ping_pong(script).says()
        script.gets("late", seq=20).says(".")
        self.ping_pong(Script()).gets(flags=ACK | FIN).says(".")

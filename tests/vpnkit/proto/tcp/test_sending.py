"""What the sending half lets leave: windows, segmentation, time-outs, recovery and probes."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.vpnkit.proto.tcp.pair import OFFER, SUPER, Script, established, pull, push
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.tcp.rtt import MAXIMUM, MINIMUM
from vpnkit.proto.tcp.sender import MAX_BUFFERED, MAX_RETRANSMISSIONS
from vpnkit.proto.tcp.seq import distance
from vpnkit.proto.tcp.state import State
from vpnkit.wire.tcp import ACK, FIN, PSH

MSS = 1460
ISS = [0, 2**32 - 5]


def data(length: int, start: int = 0) -> bytes:
    return bytes((start + i) * 7 % 251 for i in range(length))


@pytest.fixture(params=ISS)
def script(request):
    return Script(iss=request.param, irs=request.param)


def numbers(segments):
    return [(s.sequence, len(s.payload)) for s in segments]


class TestSegments:
    def test_one_octet_leaves_at_once(self, script):
        (segment,) = script.write(b"x").says("1.")
        assert segment.flags & PSH
        script.says()

    def test_cut_at_the_mss(self, script):
        assert numbers(script.write(data(4000)).pull()) == [(1, 1460), (1461, 1460), (2921, 1080)]

    def test_a_segment_never_spans_two_writes(self, script):
        assert numbers(script.write(b"abc").write(b"def").pull()) == [(1, 3), (4, 3)]

    def test_super_segments_are_whole_segments(self):
        script = Script(offer=SUPER, window=2**20)
        script.connection.sender.congestion.window = 2**20
        left = script.write(data(70_000)).pull()
        assert numbers(left) == [(1, 44 * MSS), (1 + 44 * MSS, 70_000 - 44 * MSS)]

    def test_a_super_segment_ends_where_the_window_does(self):
        script = Script(offer=SUPER, window=10 * MSS + 256)
        left = script.write(data(70_000)).pull()
        assert sum(len(s.payload) for s in left) <= 10 * MSS + 256
        assert len(left[0].payload) % MSS == 0

    def test_an_ack_rides_on_data(self, script):
        script.gets("question")
        (segment,) = script.write(b"answer").says("6.")
        assert segment.acknowledgement == 9
        script.says()

    def test_fin_rides_on_the_last_octets(self, script):
        script.write(b"abc")
        script.connection.finish()
        (segment,) = script.says("3F.")
        script.gets()
        assert script.state is State.FIN_WAIT_2
        assert segment.end == 5

    def test_fin_waits_for_the_window(self, script):
        script.gets(window=3000)
        script.write(data(3100))
        script.connection.finish()
        script.says("1460.", "1460.")
        script.gets(window=3000)
        script.says("180F.")

    def test_initial_window(self, script):
        assert len(script.write(data(60_000)).pull()) == 10

    def test_slow_start_doubles(self):
        script = Script(window=2**20)
        script.write(data(250_000))
        flights = [len(script.pull())]
        for _ in range(3):
            script.gets(window=2**20)
            flights.append(len(script.pull()))
        assert flights == [10, 20, 40, 80]

    def test_bounded_by_the_guests_window(self, script):
        script.gets(window=3000)
        script.write(data(10_000))
        assert sum(len(s.payload) for s in script.pull()) <= 3000 + 127

    def test_room_follows_the_window_and_has_a_bound(self, script):
        sender = script.connection.sender
        assert sender.room() == 14600
        sender.congestion.window = 2**24
        assert sender.room() in (65535, 65536)
        script.gets(window=2**22)
        assert sender.room() == MAX_BUFFERED
        script.write(data(MAX_BUFFERED - MSS + 1))
        assert sender.room() == 0

    def test_with_a_closed_window_there_is_something_to_probe_with(self, script):
        script.gets(window=0)
        assert script.connection.sender.room() == MSS


class TestWindow:
    def test_the_window_of_a_syn_is_not_scaled(self):
        script = Script(established=False, window=5000, scale=7)
        script.connection.accept(0.0)
        assert script.connection.sender.window == 5000

    def test_scaled_after_that(self, script):
        script.gets(window=512 << 7)
        assert script.connection.sender.window == 512 << 7

    def test_an_older_segment_does_not_move_it(self, script):
        script.gets("abc", window=10_000)
        script.gets(seq=0, window=0)  # a keep-alive of long ago
        assert script.connection.sender.window >= 10_000

    def test_silly_windows_are_not_filled(self, script):
        script.write(data(MSS)).pull()
        script.gets(window=MSS)
        script.write(data(MSS)).pull()
        script.gets(window=256)
        script.write(data(MSS))
        script.says()
        script.wait_deadline()  # the override of RFC 9293 section 3.8.6.2.1
        (segment,) = script.pull()
        assert len(segment.payload) == 256

    def test_half_of_the_largest_window_is_not_silly(self):
        script = Script(window=1024)
        script.write(data(5000))
        script.says("1024.")
        script.gets(window=512)
        script.says("512.")

    def test_shrunk_below_what_is_in_flight(self, script):
        script.write(data(10 * MSS)).pull()
        script.gets(ack=1 + MSS, window=2 * MSS)
        script.write(data(5 * MSS))
        script.says()
        script.wait_deadline()
        assert numbers(script.pull()) == [(1 + MSS, MSS)]  # one segment after a time-out
        script.gets(ack=1 + 2 * MSS, window=2 * MSS)
        for segment in script.pull():
            assert segment.end <= 1 + 4 * MSS + 128

    def test_shrunk_to_nothing_is_probed(self, script):
        script.write(data(10 * MSS)).pull()
        script.gets(ack=1 + MSS, window=0)
        script.says()
        script.wait_deadline()
        assert numbers(script.pull()) == [(1 + MSS, 1)]


class TestZeroWindow:
    @pytest.fixture
    def closed(self, script):
        script.gets(window=0)
        script.write(data(3000))
        script.says()
        return script

    def test_the_first_probe_comes_after_one_rto(self, closed):
        closed.wait_deadline()
        assert closed.now == closed.connection.sender.rtt.rto / 2
        assert numbers(closed.pull()) == [(1, 1)]
        closed.says()

    def test_probes_back_off(self, closed):
        times = []
        for _ in range(12):
            closed.wait_deadline()
            if closed.pull():
                times.append(closed.now)
                closed.gets(ack=1, window=0)
        gaps = [later - sooner for sooner, later in pairwise(times)]
        assert gaps == sorted(gaps)
        assert gaps[-1] == MAXIMUM

    def test_open_for_days_while_probes_are_answered(self, closed):
        while closed.now < 48 * 3600:
            closed.wait_deadline()
            if closed.pull():
                closed.gets(ack=1, window=0)
        assert closed.state is State.ESTABLISHED
        closed.gets(ack=1)
        assert numbers(closed.pull()) == [(1, 1460), (1461, 1460), (2921, 80)]

    def test_given_up_when_nobody_answers(self, closed):
        while closed.state is State.ESTABLISHED:
            closed.wait_deadline()
            closed.pull() if closed.state is State.ESTABLISHED else None
        assert 100 < closed.now < 3600
        closed.says("R.")

    def test_a_probe_that_was_taken_is_not_sent_again(self, closed):
        closed.wait_deadline()
        closed.says("1.")
        closed.gets(ack=2, window=0)
        closed.gets(ack=2, window=60_000)
        assert numbers(closed.pull()) == [(2, 1460), (1462, 1460), (2922, 79)]

    def test_a_probe_that_was_dropped_is_sent_again(self, closed):
        closed.wait_deadline()
        closed.says("1.")
        closed.gets(ack=1, window=0)
        closed.gets(ack=1, window=60_000)
        assert numbers(closed.pull()) == [(1, 1460), (1461, 1460), (2921, 80)]
        closed.gets(ack=3001)
        assert closed.connection.sender.queued == 0
        assert closed.connection.next_deadline() == NEVER

    def test_taken_octet_by_octet(self, closed):
        for i in range(20):
            closed.wait_deadline()
            assert numbers(closed.pull()) == [(1 + i, 1)]
            closed.gets(ack=2 + i, window=0).says()
        closed.gets(ack=21)
        assert sum(len(s.payload) for s in closed.pull()) == 2980

    def test_opened_with_an_old_timer_running_nothing_is_repeated(self, closed):
        """The persist timer must not be taken for a retransmission timer of what left later."""
        deadline = closed.connection.next_deadline()
        closed.now = deadline - 0.001
        closed.gets(ack=1, window=60_000)
        closed.pull()
        assert closed.connection.next_deadline() > deadline + 0.1

    def test_a_silly_window_that_opens_with_its_timer_running(self, script):
        script.gets(window=128)
        script.write(data(3000))
        script.says()
        script.now = script.connection.next_deadline() - 0.001
        script.gets(ack=1, window=60_000)
        script.pull()
        assert script.connection.next_deadline() > script.now + 0.1

    def test_fin_does_not_jump_the_queue(self, closed):
        closed.connection.finish()
        closed.says()
        closed.gets(ack=1, window=60_000)
        closed.says("1460.", "1460.", "80F.")

    def test_fin_with_nothing_before_it_leaves(self, script):
        script.gets(window=0)
        script.connection.finish()
        script.says("F.")


class TestTimeout:
    def test_back_off_and_give_up(self, script):
        script.write(b"abc").says("3.")
        gaps, then = [], 0.0
        while script.state is State.ESTABLISHED:
            script.wait_deadline()
            gaps.append(script.now - then)
            then = script.now
            if script.state is State.ESTABLISHED:
                (segment,) = script.says("3.")
                assert segment.sequence == 1
        assert len(gaps) == MAX_RETRANSMISSIONS + 1
        assert gaps[:7] == [1, 2, 4, 8, 16, 32, 60]
        assert sum(gaps) > 100  # SHLD-11
        script.says("R.")
        assert script.connection.aborted == "the guest stopped answering"

    def test_nothing_in_flight_no_timer(self, script):
        assert script.connection.next_deadline() == NEVER
        script.write(b"abc").says("3.")
        script.gets()
        assert script.connection.next_deadline() == NEVER

    def test_an_ack_of_a_part_restarts_it(self, script):
        script.write(data(3000)).pull()
        script.now = 0.5
        script.gets(ack=1461)
        assert script.connection.next_deadline() >= 0.5 + MINIMUM

    def test_the_rtt_is_measured(self, script):
        script.write(b"abc").says("3.")
        script.now = 0.05
        script.gets()
        assert script.connection.sender.rtt.srtt == pytest.approx(0.05)

    def test_karn(self, script):
        """What was sent twice is not measured."""
        script.write(b"abc").says("3.")
        script.wait_deadline().says("3.")
        script.now += 0.01
        script.gets()
        assert script.connection.sender.rtt.srtt == 0

    def test_one_segment_then_slow_start(self, script):
        script.write(data(10 * MSS)).pull()
        script.wait_deadline()
        assert numbers(script.pull()) == [(1, MSS)]
        script.gets(ack=1 + MSS)
        assert numbers(script.pull()) == [(1 + MSS, MSS), (1 + 2 * MSS, MSS)]

    def test_the_guest_had_more_than_we_thought(self, script):
        script.write(data(10 * MSS)).pull()
        script.wait_deadline().pull()
        script.gets(ack=1 + 9 * MSS)
        assert numbers(script.pull()) == [(1 + 9 * MSS, MSS)]
        script.gets(ack=1 + 10 * MSS).says()
        assert script.connection.next_deadline() == NEVER

    def test_fin_is_sent_again(self, script):
        script.connection.finish()
        script.says("F.")
        script.wait_deadline()
        (segment,) = script.says("F.")
        assert segment.sequence == 1
        script.gets(ack=2)
        assert script.state is State.FIN_WAIT_2

    def test_data_and_fin_are_sent_again(self, script):
        script.write(b"abc")
        script.says("3.")
        script.connection.finish()
        script.says("F.")
        script.wait_deadline()
        script.says("3F.")
        script.gets(ack=4)
        assert script.state is State.FIN_WAIT_1
        script.says("F.") if script.connection.next_segment() else script.wait_deadline().says("F.")
        script.gets(ack=5)
        assert script.state is State.FIN_WAIT_2


class TestRecovery:
    def lose_first(self, script, segments: int = 10):
        script.gets(window=60_000)
        script.write(data(segments * MSS))
        assert len(script.pull()) == segments
        return script

    def test_the_third_duplicate_repeats_one_segment(self, script):
        self.lose_first(script)
        for _ in range(2):
            script.gets(ack=1, window=60_000).says()
        script.gets(ack=1, window=60_000)
        assert numbers(script.pull()) == [(1, MSS)]
        script.gets(ack=1, window=60_000).says()

    def test_data_and_window_changes_are_not_duplicates(self, script):
        self.lose_first(script)
        for i in range(5):
            script.gets("x", ack=1, window=60_000).pull()
            script.gets(ack=1, window=60_000 - 256 * (i + 1))
        script.says()
        assert script.connection.sender.recovery.duplicates == 0

    def test_each_partial_ack_repeats_the_next_hole(self, script):
        """RFC 6582: segments 1, 3 and 5 of ten were lost."""
        self.lose_first(script)
        for _ in range(3):
            script.gets(ack=1, window=60_000)
        assert numbers(script.pull()) == [(1, MSS)]
        script.gets(ack=1 + 2 * MSS, window=60_000)
        assert numbers(script.pull()) == [(1 + 2 * MSS, MSS)]
        script.gets(ack=1 + 4 * MSS, window=60_000)
        assert numbers(script.pull()) == [(1 + 4 * MSS, MSS)]
        script.gets(ack=1 + 10 * MSS, window=60_000)
        script.says()
        assert not script.connection.sender.recovery.active

    def test_a_hole_that_was_filled_meanwhile_is_not_repeated(self, script):
        """A partial ACK and the full one in the same burst."""
        self.lose_first(script)
        for _ in range(3):
            script.gets(ack=1, window=60_000)
        script.pull()
        script.gets(ack=1 + 2 * MSS, window=60_000)
        script.gets(ack=1 + 10 * MSS, window=60_000)
        script.says()
        script.write(b"abc")
        assert numbers(script.pull()) == [(1 + 10 * MSS, 3)]

    def test_neither_is_a_fin(self, script):
        self.lose_first(script)
        script.connection.finish()
        script.says("F.")
        for _ in range(3):
            script.gets(ack=1, window=60_000)
        script.pull()
        script.gets(ack=1 + 2 * MSS, window=60_000)
        script.gets(ack=2 + 10 * MSS, window=60_000)
        script.says()
        assert script.state is State.FIN_WAIT_2

    def test_a_repeated_segment_does_not_say_a_fin_that_was_not_said(self, script):
        self.lose_first(script, 1)
        script.gets(ack=1, window=60_000).gets(ack=1, window=60_000).gets(ack=1, window=60_000)
        script.connection.finish()
        assert [(s.sequence, s.kind) for s in script.pull()] == [(1, "."), (1 + MSS, "F.")]
        script.gets(ack=2 + MSS)
        assert script.state is State.FIN_WAIT_2
        script.says()

    def test_the_window_halves_once(self, script):
        self.lose_first(script)
        for _ in range(3):
            script.gets(ack=1, window=60_000)
        script.pull()
        assert script.connection.sender.congestion.ssthresh == 5 * MSS
        script.gets(ack=1 + 10 * MSS, window=60_000)
        assert script.connection.sender.congestion.window == 5 * MSS

    def test_no_second_fast_retransmit_for_the_same_flight(self, script):
        self.lose_first(script)
        script.wait_deadline().pull()
        for _ in range(5):
            script.gets(ack=1, window=60_000).says()

    def test_fast_retransmit_still_works_after_two_gigabytes(self):
        """The point where recovery ends must not look like the future."""
        script = Script()
        sender = script.connection.sender
        for _ in range(40):
            script.write(b"x").pull()
            jump = 0x04000000  # as if that much more had been sent and acknowledged
            for name in ("una", "nxt", "top", "end"):
                setattr(sender, name, (getattr(sender, name) + jump) & 0xFFFFFFFF)
            sender._chunks.clear()
            sender._chunks.append(((sender.una) & 0xFFFFFFFF, b"x"))
            script.gets()
        self.lose_first(script)
        for _ in range(3):
            script.gets(ack=sender.una - script.iss, window=60_000)
        assert len(script.pull()) == 1


class TestStatistics:
    def test_retransmissions_are_counted(self, script):
        script.write(b"abc").pull()
        script.wait_deadline().pull()
        script.wait_deadline().pull()
        assert script.connection.sender.retransmitted == 2


@pytest.mark.parametrize("iss", ISS)
@pytest.mark.parametrize("offer", [OFFER, SUPER], ids=["mss", "super"])
def test_bulk_both_ways(iss, offer):
    pair = established(iss, iss, offer)
    a, b = data(400_000), data(300_000, 5)
    pair.a.write(a)
    pair.b.write(b)
    pair.exchange(2000)
    assert pair.b.got == a
    assert pair.a.got == b
    assert pair.a.connection.next_deadline() == pair.b.connection.next_deadline() == NEVER


def test_a_reader_that_sleeps_and_wakes():
    pair = established(2**32 - 5, 77)
    pair.b.reads = False
    sent = data(3_000_000)
    pair.a.write(sent)
    pair.a.connection.finish()
    pair.exchange(5000)
    pair.pass_time(3600)
    assert len(pair.b.unread) < 1_200_000
    pair.b.reads = True
    pair.b.take()
    pair.exchange(5000)
    assert pair.b.got == sent
    assert pair.b.connection.state is State.CLOSE_WAIT


def test_flags_of_our_segments(script):
    """Never URG, never SYN, MSS only in a SYN."""
    script.write(data(5000))
    script.connection.finish()
    for segment in script.pull():
        assert not segment.flags & ~(ACK | PSH | FIN)
        assert not segment.options


class TestLostAcks:
    """What one end must still understand when the other did not hear it."""

    def test_both_ends_missed_the_last_ack(self):
        """Each goes back and has nothing that the other one takes: the numbers of their ACKs must still be good."""
        pair = established()
        pair.a.write(b"abc")
        pair.b.write(b"defg")
        for end, other in ((pair.a, pair.b), (pair.b, pair.a)):
            for segment in pull(end.connection):
                push(other.connection, segment)
            other.take()
        for end in (pair.a, pair.b):
            pull(end.connection)  # the ACKs are lost
            end.connection.sender.window = 1  # so small that it keeps the octets back
            end.connection.sender.window_max = 60_000
        pair.pass_time(10)
        assert (pair.a.got, pair.b.got) == (b"defg", b"abc")
        assert pair.a.connection.sender.queued == pair.b.connection.sender.queued == 0

    def test_the_ack_of_an_old_segment_counts(self, script):
        script.gets("abc").pull()
        script.write(b"hello").says("5.")
        script.gets("abc", seq=1, ack=6)
        assert script.connection.sender.queued == 0

    def test_its_window_does_too(self, script):
        """Else the old window would begin at the new SND.UNA, where nobody offered it."""
        script.gets("abc", window=8192).pull()
        script.write(data(1000)).pull()
        script.gets("abc", seq=1, ack=1001, window=7296)
        assert script.connection.sender.window == 7296

    def test_after_a_timeout_an_ack_has_the_highest_number(self, script):
        script.write(data(10 * MSS)).pull()
        script.wait_deadline()
        script.pull()
        script.gets("x", ack=1)
        assert [s.sequence for s in script.pull() if not s.payload] == [1 + 10 * MSS]

    def test_but_stays_in_a_window_that_shrank(self, script):
        script.now = 10.0  # what leaves now is no answer to anything, so ACKs are not delayed
        script.write(data(10 * MSS)).pull()
        script.gets("x", ack=1, window=256)
        (ack,) = script.says(".")
        assert ack.sequence == 257

    def test_an_ack_at_the_edge_of_our_window(self, script):
        """The guest filled it, and its first segment was lost."""
        script.write(b"hello").says("5.")
        edge = distance(script.connection.receiver.nxt, script.connection.receiver.edge)
        script.gets(seq=1 + edge, ack=6)
        assert script.connection.sender.queued == 0


def test_rfc9293_must_61_psh_on_the_last_segment_only(script):
    left = script.write(data(4000)).write(data(100)).pull()
    assert [bool(s.flags & PSH) for s in left] == [False, False, False, True]

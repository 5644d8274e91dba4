"""What is done about loss: SACK recovery, tail-loss probes, links that change the order, and hostile SACK blocks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vpnkit.proto.tcp.lossy import Lossy, Weather
from tests.vpnkit.proto.tcp.pair import SUPER, Script
from vpnkit.proto.tcp.recovery import ACK_DELAY, REORDERING
from vpnkit.proto.tcp.rtt import LEAST_PROBE, MINIMUM
from vpnkit.proto.tcp.sack import MAX_RANGES, Scoreboard
from vpnkit.proto.tcp.seq import MASK
from vpnkit.proto.tcp.state import State
from vpnkit.wire.tcp import SynOptions, decode_sack, decode_syn_options, encode_sack

MSS = 1460
ISS = [0, 2**32 - 5000]
WIDE = 200_000  # octets of window


@pytest.fixture(params=ISS)
def script(request):
    return Script(iss=request.param, irs=request.param, sack=True, window=65535)


def flight(script: Script, segments: int, rtt: float = 0.0) -> Script:
    """`segments` full ones are in flight, and the round-trip time is known if it is given."""
    if rtt:
        script.write(b"x").pull()
        script.now += rtt
        script.gets(window=WIDE)
        start = 2
    else:
        script.gets(window=WIDE)
        start = 1
    script.start = start
    script.connection.sender.congestion.window = segments * MSS
    script.write(bytes(segments * MSS))
    assert len(script.pull()) == segments
    return script


def sacks(script: Script, una: int, *ranges: tuple[int, int]) -> Script:
    """An ACK up to segment `una` of the flight, with the segments of `ranges` as blocks."""
    at = lambda n: (script.iss + script.start + n * MSS) & MASK  # noqa: E731
    blocks = encode_sack([(at(one), at(end)) for one, end in ranges])
    return script.gets(ack=script.start + una * MSS, window=WIDE, options=blocks)


def numbers(script: Script) -> list[tuple[int, int]]:
    """(which segment of the flight, how many) of what leaves."""
    return [((s.sequence - script.start) // MSS, len(s.payload) // MSS) for s in script.pull() if s.payload]


class TestNegotiation:
    def test_rfc2018_2_we_ask_only_those_who_can(self):
        for sack in (True, False):
            script = Script(established=False, sack=sack)
            script.connection.accept(0.0)
            (answer,) = script.says("S.")
            assert decode_syn_options(answer.options) == SynOptions(1460, 7, sack)

    def test_rfc2018_3_without_it_no_block_is_sent(self):
        script = Script()
        script.gets("late", seq=100)
        (ack,) = script.says(".")
        assert not ack.options


class TestReceiver:
    def blocks(self, script: Script) -> list[tuple[int, int]]:
        (ack,) = script.says(".")
        return [((one - script.irs) & MASK, (end - script.irs) & MASK) for one, end in decode_sack(ack.options)]

    def test_rfc2018_4_the_newest_block_comes_first(self, script):
        script.gets("late", seq=100)
        assert self.blocks(script) == [(100, 104)]
        script.gets("later", seq=200)
        assert self.blocks(script) == [(200, 205), (100, 104)]
        script.gets("more", seq=104)
        assert self.blocks(script) == [(100, 108), (200, 205)]

    def test_rfc2018_4_as_many_as_fit(self, script):
        for i in range(7):
            script.gets("x", seq=100 + 10 * i).pull()
        script.gets("x", seq=300)
        assert len(self.blocks(script)) == 4

    def test_none_when_the_hole_is_filled(self, script):
        script.gets("late", seq=5).pull()
        script.gets("abcd", seq=1)
        assert self.blocks(script) == []

    def test_rfc2883_4_what_came_twice(self, script):
        script.gets("abcdef").pull()
        script.gets("abc", seq=1)
        assert self.blocks(script) == [(1, 4)]
        script.gets()
        script.says()

    def test_each_early_segment_of_a_burst_is_acknowledged(self, script):
        """A guest who counts duplicates needs three."""
        for i in range(10):
            script.gets("x", seq=100 + i)
        script.says(".", ".", ".")

    def test_they_leave_besides_data(self, script):
        script.gets("late", seq=100)
        script.write(b"answer")
        data, ack = script.says("6.", ".")
        assert not data.options
        assert ack.options


class TestSender:
    def test_rfc6675_5_only_the_hole_is_repeated(self, script):
        flight(script, 10)
        sacks(script, 0, (1, 4))
        assert numbers(script) == [(0, 1)]
        sacks(script, 0, (1, 10))
        assert numbers(script) == []

    def test_several_holes_in_one_ack(self, script):
        flight(script, 20)
        sacks(script, 0, (1, 2), (5, 6), (9, 20))
        assert numbers(script) == [(0, 1), (2, 1), (3, 1), (4, 1), (6, 1), (7, 1), (8, 1)]
        assert script.connection.sender.congestion.window == 10 * MSS

    def test_two_segments_above_are_not_enough(self, script):
        flight(script, 10, rtt=0.1)
        sacks(script, 0, (1, 3))
        assert numbers(script) == []

    def test_but_if_nothing_more_comes_they_are(self, script):
        """RFC 8985 section 6.2, step 5: a quarter of a round trip later."""
        flight(script, 3, rtt=0.1)
        start = script.now
        sacks(script, 0, (1, 3))
        script.wait_deadline()
        assert script.now == pytest.approx(start + 0.025)
        assert numbers(script) == [(0, 1)]

    def test_new_data_leaves_during_recovery(self, script):
        flight(script, 10)
        sacks(script, 0, (1, 8))
        script.write(bytes(5 * MSS))
        assert numbers(script) == [(0, 1), (10, 1), (11, 1)]  # pipe: 8, 9, and these three

    def test_a_hole_in_a_super_segment(self):
        script = Script(offer=SUPER, sack=True)
        script.gets(window=WIDE)
        script.start = 1
        script.connection.sender.congestion.window = 88 * MSS
        script.write(bytes(88 * MSS)).pull()
        sacks(script, 10, (40, 88))
        (segment,) = script.pull()
        assert (segment.sequence, len(segment.payload)) == (1 + 10 * MSS, 30 * MSS)

    def test_a_retransmission_that_is_lost_is_repeated(self, script):
        flight(script, 10)
        sacks(script, 0, (1, 10))
        assert numbers(script) == [(0, 1)]
        script.write(bytes(4 * MSS))
        assert numbers(script) == [(10, 1), (11, 1), (12, 1), (13, 1)]
        sacks(script, 0, (1, 13))
        assert numbers(script) == [(0, 1), (13, 1)]  # and the end of the flight, as nothing new is there (rule 4)

    def test_rfc2018_8_after_a_timeout_marks_are_forgotten(self, script):
        flight(script, 10)
        sacks(script, 0, (1, 10))
        assert numbers(script) == [(0, 1)]
        script.wait_deadline()
        assert not script.connection.sender.recovery.board
        assert numbers(script) == [(0, 1)]
        script.gets(ack=script.start + MSS, window=WIDE)
        assert numbers(script) == [(1, 1), (2, 1)]

    def test_rfc6675_5_1_but_what_is_said_after_it_counts(self, script):
        flight(script, 10)
        script.wait_deadline()
        assert numbers(script) == [(0, 1)]
        sacks(script, 1, (2, 9))
        assert numbers(script) == [(1, 1), (9, 1)]
        sacks(script, 10)
        script.says()

    def test_rfc2018_5_nothing_is_freed_before_it_is_acknowledged(self, script):
        flight(script, 10)
        sacks(script, 0, (0, 10))
        assert script.connection.sender.queued == 10 * MSS
        script.wait_deadline()
        assert numbers(script)[0] == (0, 1)

    def test_a_fin_is_repeated_when_it_is_the_hole(self, script):
        script.connection.finish()
        script.says("F.")
        script.wait_deadline()
        script.says("F.")
        script.gets(ack=2)
        assert script.state is State.FIN_WAIT_2


class TestOrder:
    """A link that changes the order."""

    def test_what_comes_late_by_itself_makes_us_patient(self, script):
        flight(script, 10, rtt=0.1)
        sacks(script, 0, (1, 3))
        sacks(script, 3)
        assert script.connection.sender.recovery.board.late
        sacks(script, 3, (4, 10))
        assert numbers(script) == []
        script.wait_deadline()
        assert numbers(script) == [(3, 1)]

    def test_rfc3708_a_reduction_for_nothing_is_undone(self, script):
        flight(script, 10)
        sacks(script, 0, (1, 10))
        assert numbers(script) == [(0, 1)]
        assert script.connection.sender.congestion.window == 5 * MSS
        sacks(script, 10)
        sacks(script, 10, (0, 1))  # it came twice
        assert script.connection.sender.congestion.window == 5 * MSS  # nothing outstanding: nothing to look at
        script.write(bytes(MSS)).pull()
        sacks(script, 11, (0, 1))
        assert script.connection.sender.congestion.window >= 10 * MSS


class TestTail:
    """RFC 8985 section 7."""

    def test_a_lost_last_segment_does_not_wait_for_the_timeout(self, script):
        flight(script, 4, rtt=0.001)
        start = script.now
        sacks(script, 3)
        script.wait_deadline()
        script.wait_deadline()  # one segment may be waiting for its ACK
        assert script.now == pytest.approx(start + LEAST_PROBE + ACK_DELAY)
        assert script.now < start + MINIMUM
        assert numbers(script) == [(3, 1)]
        assert script.connection.sender.recovery.probes == 1
        sacks(script, 4)
        script.says()

    def test_two_lost_segments_are_repaired_by_the_probes_sack(self, script):
        flight(script, 4, rtt=0.001)
        start = script.now
        sacks(script, 2)
        script.wait_deadline()
        assert numbers(script) == [(3, 1)]
        sacks(script, 2, (3, 4))
        script.wait_deadline()
        assert numbers(script) == [(2, 1)]
        assert script.now == pytest.approx(start + LEAST_PROBE + REORDERING)

    def test_new_data_is_a_better_probe(self, script):
        flight(script, 10, rtt=0.001)
        script.write(bytes(MSS)).says()
        script.wait_deadline()
        assert numbers(script) == [(10, 1)]

    def test_one_probe_then_the_timeout(self, script):
        flight(script, 4, rtt=0.001)
        script.wait_deadline()
        assert numbers(script) == [(3, 1)]
        probed = script.now
        script.wait_deadline()
        assert script.now == pytest.approx(probed + MINIMUM)
        assert numbers(script) == [(0, 1)]

    def test_a_probe_that_repaired_a_loss_halves_the_window(self, script):
        flight(script, 4, rtt=0.001)
        script.wait_deadline()
        script.pull()
        script.connection.sender.congestion.window = 20 * MSS
        script.write(bytes(MSS)).says("1460.")
        sacks(script, 5)
        assert script.connection.sender.congestion.ssthresh < 10 * MSS

    def test_not_without_sack(self):
        script = flight(Script(), 4, rtt=0.001)
        start = script.now
        script.wait_deadline()
        assert script.now >= start + MINIMUM


class TestAdversary:
    """SACK blocks that no guest should send."""

    @pytest.mark.parametrize(
        "block",
        [(5, 2), (0, 0), (-3, -1), (-3, 2), (2, 11), (20, 30), (2, 2**31), (3, 3)],
        ids=str,
    )
    def test_blocks_out_of_place_are_ignored(self, script, block):
        flight(script, 10)
        for _ in range(10):
            one, end = ((script.iss + script.start + n * MSS) & MASK for n in block)
            script.gets(ack=script.start, window=WIDE, options=encode_sack([(one, end)]))
        assert not script.connection.sender.recovery.board
        assert numbers(script) == []

    def test_the_scoreboard_is_bounded(self):
        board = Scoreboard()
        for i in range(10_000):
            board.add(2 * i + 1, 2 * i + 2)
        assert board.octets == MAX_RANGES
        board.add(0, 20_000)
        assert board.octets == 20_000

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(
        st.lists(
            st.tuples(
                st.integers(-2, 12),
                st.lists(st.tuples(st.integers(-5000, 40_000), st.integers(-5000, 40_000)), max_size=4),
                st.sampled_from(["", "", "time", "write"]),
            ),
            max_size=40,
        )
    )
    def test_whatever_he_says(self, steps):
        script = flight(Script(iss=2**32 - 9000, sack=True), 10, rtt=0.001)
        sender = script.connection.sender
        for una, blocks, what in steps:
            if what == "time" and script.connection.next_deadline() < 1e9:
                script.now = max(script.now, script.connection.next_deadline())
                script.connection.on_deadline(script.now)
            elif what == "write" and sender.queued < 100_000:
                script.write(bytes(3000))
            base = sender.una
            options = encode_sack([((base + one) & MASK, (base + end) & MASK) for one, end in blocks])
            acknowledgement = (sender.una + max(una, 0) * MSS - script.iss) & MASK
            script.gets(ack=acknowledgement, window=WIDE, options=options)
            for segment in script.pull():
                assert (segment.sequence + script.iss + len(segment.payload) - sender.una) & MASK <= WIDE + 128
            board = sender.recovery.board
            assert 0 <= board.octets <= (sender.top - sender.una) & MASK
            assert sender.budget.used == sender.queued


@settings(max_examples=200, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=30),
    st.lists(st.integers(0, 10), max_size=30),
    st.integers(0, 80),
    st.integers(0, 80),
)
def test_the_scoreboard_is_a_set_of_octets(ranges, moves, one, end):
    board = Scoreboard()
    known: set[int] = set()
    base = 0
    for i, (start, length) in enumerate(ranges):
        news = set(range(base + start, base + start + length)) - known
        assert board.add(base + start, base + start + length) == len(news)
        known |= news
        if i < len(moves):
            board.advance(moves[i])
            base += moves[i]
            known = {x for x in known if x >= base}
        assert board.octets == len(known)
        assert board.top == max(known, default=base - 1) + 1
    one, end = base + one, base + end
    assert board.held(one, end) == len(known & set(range(one, end)))
    missing = [x for x in range(one, end) if x not in known]
    hole = board.hole(one, end)
    assert (hole[0] if hole else None) == (missing[0] if missing else None)
    if hole is not None:
        assert all(x not in known for x in range(*hole))
        assert hole[1] == end or hole[1] in known


WEATHERS = {
    "fine": Weather(),
    "loss1": Weather(loss=1),
    "loss5": Weather(loss=5),
    "loss20": Weather(loss=20),
    "swap20": Weather(swap=20, depth=3),
    "swap20far": Weather(swap=20, depth=32),
    "double20": Weather(double=20),
    "all": Weather(loss=2, swap=5, double=1),
}


@pytest.mark.parametrize("sack", [True, False], ids=["sack", "plain"])
@pytest.mark.parametrize("weather", WEATHERS)
@pytest.mark.parametrize("delay", [0.0, 0.0005, 0.01])
def test_every_octet_arrives_once_whatever_the_weather(weather, delay, sack):
    for seed in range(3):
        Lossy(seed, 60_000 if "20" in weather else 150_000, WEATHERS[weather], delay=delay, sack=sack).run()


@pytest.mark.parametrize("lost", [1, 2, 3, 5])
def test_the_end_of_a_transfer_is_not_worth_a_timeout(lost):
    """The last segments are lost once."""
    octets = 40 * MSS

    def drop(who, segment, times):
        place = (segment.sequence - (2**32 - 100_000) - 1) & MASK
        return who == "a" and times == 1 and octets - lost * MSS <= place < octets and len(segment.payload) > 0

    quiet = Lossy(1, octets).run()
    assert Lossy(1, octets, drop=drop).run() < quiet + 0.1 < quiet + MINIMUM

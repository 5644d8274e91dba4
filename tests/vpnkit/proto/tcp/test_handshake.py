from __future__ import annotations

import pytest

from tests.vpnkit.proto.tcp.pair import OFFER, Pair, Script, Segment, established, passive_for, pull, push
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.tcp.connection import MIN_MSS, Offer, TcpConnection
from vpnkit.proto.tcp.state import State
from vpnkit.wire.tcp import ACK, FIN, RST, SYN, SynOptions, decode_syn_options

ISS = [0, 2**32 - 5, 2**32 - 1, 2**31 - 1]
SYN_OPTIONS = SynOptions(1460, 7).encode()


@pytest.mark.parametrize("iss", ISS)
class TestPassive:
    def test_a_held_syn_is_not_answered_and_absorbs_its_duplicates(self, iss):
        script = Script(iss=iss, irs=iss, established=False)
        script.says()
        script.gets(seq=0, flags=SYN, options=SYN_OPTIONS).says()
        assert script.state is State.SYN_HELD
        assert script.connection.next_deadline() == NEVER

    def test_refused(self, iss):
        script = Script(iss=iss, irs=iss, established=False)
        script.connection.abort("refused")
        (reset,) = script.connection and pull(script.connection)
        assert (reset.kind, reset.sequence) == ("R.", 0)
        assert reset.acknowledgement == (iss + 1) & 0xFFFFFFFF
        assert script.state is State.CLOSED
        script.says()

    def test_given_up_in_silence(self, iss):
        script = Script(iss=iss, irs=iss, established=False)
        script.connection.abort("timed out", reset=False)
        script.says()

    def test_accepted(self, iss):
        script = Script(iss=iss, irs=iss, established=False)
        script.connection.accept(0.0)
        (answer,) = script.says("S.")
        assert (answer.sequence, answer.acknowledgement, answer.window) == (0, 1, 65535)
        options = decode_syn_options(answer.options)
        assert (options.mss, options.window_scale) == (1460, 7)
        script.says()
        script.gets()
        assert script.state is State.ESTABLISHED
        assert script.connection.next_deadline() == NEVER
        script.says()

    def test_the_guest_resets_a_held_syn(self, iss):
        script = Script(iss=iss, irs=iss, established=False)
        script.gets(seq=2, flags=RST)
        assert script.state is State.SYN_HELD
        script.gets(seq=1, flags=RST)
        assert script.state is State.CLOSED
        script.says()

    def test_data_with_the_last_ack_of_the_handshake(self, iss):
        script = Script(iss=iss, irs=iss, established=False)
        script.connection.accept(0.0)
        script.says("S.")
        script.gets("abc", flags=ACK)
        assert script.inbox() == b"abc"
        (ack,) = script.says(".")
        assert ack.acknowledgement == 4

    def test_a_fin_with_the_last_ack_of_the_handshake(self, iss):
        script = Script(iss=iss, irs=iss, established=False)
        script.connection.accept(0.0)
        script.says("S.")
        script.gets("abc", flags=ACK | FIN)
        assert script.state is State.CLOSE_WAIT
        (ack,) = script.says(".")
        assert ack.acknowledgement == 5

    def test_an_ack_of_something_else_is_reset_and_the_handshake_goes_on(self, iss):
        """RFC 9293 section 3.10.7.4: <SEQ=SEG.ACK><CTL=RST>."""
        script = Script(iss=iss, irs=iss, established=False)
        script.connection.accept(0.0)
        script.says("S.")
        for wrong in (0, 2, 77):
            script.gets("abc", ack=wrong)
            assert script.state is State.SYN_RECEIVED
            (reset,) = script.pull()
            assert reset.flags & RST
            assert reset.sequence == wrong
        assert not script.inbox()
        script.gets(ack=1)
        assert script.state is State.ESTABLISHED

    def test_a_reset_in_syn_received(self, iss):
        script = Script(iss=iss, irs=iss, established=False)
        script.connection.accept(0.0)
        script.says("S.")
        script.gets(seq=5, flags=RST)
        script.says(".")  # a challenge
        assert script.state is State.SYN_RECEIVED
        script.gets(seq=1, flags=RST)
        assert script.state is State.CLOSED
        assert script.connection.aborted
        script.says()

    def test_aborted_in_syn_received(self, iss):
        script = Script(iss=iss, irs=iss, established=False)
        script.connection.accept(0.0)
        script.says("S.")
        script.connection.abort("no more")
        (reset,) = script.says("R.")
        assert reset.sequence == 1


class TestSynAckIsLost:
    def test_it_is_sent_again_with_back_off_and_given_up(self):
        script = Script(established=False)
        script.connection.accept(0.0)
        script.says("S.")
        times = []
        while script.state is State.SYN_RECEIVED:
            script.wait_deadline()
            times.append(script.now)
            if script.state is State.SYN_RECEIVED:
                script.says("S.")
        assert times == [1, 3, 7, 15, 31, 63, 123]
        script.says("R.")
        assert script.connection.next_deadline() == NEVER

    def test_a_repeated_syn_is_answered_at_once(self):
        script = Script(established=False)
        script.connection.accept(0.0)
        script.says("S.")
        script.gets(seq=0, flags=SYN, options=SYN_OPTIONS).says("S.")
        script.gets()
        assert script.state is State.ESTABLISHED

    def test_in_syn_received_nothing_is_sent_before_the_guest_knows_us(self):
        script = Script(established=False)
        script.connection.accept(0.0)
        script.write(b"banner")
        script.says("S.")
        script.gets(ack=1).says("6.")


@pytest.mark.parametrize("iss", ISS)
class TestActive:
    def answer(self, connection: TcpConnection, **changes: object) -> bool:
        values: dict[str, object] = {
            "sequence": 7,
            "acknowledgement": (connection._iss + 1) & 0xFFFFFFFF,
            "flags": SYN | ACK,
            "window": 1000,
            "options": SynOptions(1000, 3).encode(),
        }
        return push(connection, Segment(**(values | changes)))  # type: ignore[arg-type]

    def test_answered(self, iss):
        connection = TcpConnection.active(iss, OFFER, 0.0)
        (syn,) = pull(connection)
        assert (syn.kind, syn.sequence, syn.acknowledgement, syn.window) == ("S", iss, 0, 65535)
        assert self.answer(connection)
        assert connection.state is State.ESTABLISHED
        (ack,) = pull(connection)
        assert (ack.kind, ack.sequence, ack.acknowledgement) == (".", (iss + 1) & 0xFFFFFFFF, 8)
        assert connection.sender.window == 1000  # the window of a SYN is not scaled
        assert connection.sender.mss == 1000

    def test_refused(self, iss):
        connection = TcpConnection.active(iss, OFFER, 0.0)
        pull(connection)
        assert self.answer(connection, flags=RST | ACK)
        assert connection.state is State.CLOSED
        assert connection.aborted == "refused by the guest"
        assert not pull(connection)

    def test_a_blind_reset_is_ignored(self, iss):
        connection = TcpConnection.active(iss, OFFER, 0.0)
        pull(connection)
        assert self.answer(connection, flags=RST)
        assert self.answer(connection, flags=RST | ACK, acknowledgement=iss)
        assert connection.state is State.SYN_SENT

    def test_an_ack_of_something_else_deserves_a_reset(self, iss):
        connection = TcpConnection.active(iss, OFFER, 0.0)
        pull(connection)
        assert not self.answer(connection, acknowledgement=iss)
        assert not self.answer(connection, flags=ACK, acknowledgement=(iss + 2) & 0xFFFFFFFF)
        assert connection.state is State.SYN_SENT

    def test_an_ack_alone_and_a_fin_alone_are_ignored(self, iss):
        connection = TcpConnection.active(iss, OFFER, 0.0)
        pull(connection)
        assert self.answer(connection, flags=ACK)
        assert self.answer(connection, flags=FIN)
        assert connection.state is State.SYN_SENT

    def test_silence(self, iss):
        connection = TcpConnection.active(iss, OFFER, 0.0)
        assert [s.kind for s in pull(connection)] == ["S"]
        syns, now = 1, 0.0
        while connection.state is State.SYN_SENT:
            now = connection.next_deadline()
            connection.on_deadline(now)
            assert connection.next_deadline() > now
            syns += len(pull(connection, now))
        assert syns == 8
        assert now == 183  # MUST-23: three minutes
        assert connection.state is State.CLOSED

    def test_given_up_before_an_answer_nothing_is_said(self, iss):
        connection = TcpConnection.active(iss, OFFER, 0.0)
        pull(connection)
        connection.abort("the host is gone")
        assert not pull(connection)

    def test_both_call_at_once(self, iss):
        """RFC 9293 section 3.5, figure 8."""
        one, other = TcpConnection.active(iss, OFFER, 0.0), TcpConnection.active(99, OFFER, 0.0)
        (syn,), (other_syn,) = pull(one), pull(other)
        push(one, other_syn)
        push(other, syn)
        assert one.state is other.state is State.SYN_RECEIVED
        pair = Pair(one, other)
        pair.exchange()
        assert one.state is other.state is State.ESTABLISHED
        pair.a.write(b"hello")
        pair.exchange()
        assert pair.b.got == b"hello"


class TestOptions:
    def test_without_window_scale_nobody_scales(self):
        script = Script(scale=None)
        assert script.connection.receiver.scale == script.connection.sender.scale == 0
        script.gets("x")
        (ack,) = script.says(".")
        assert ack.window == 65534 + 1 or ack.window == 65535

    def test_without_window_scale_the_syn_ack_offers_none(self):
        script = Script(scale=None, established=False)
        script.connection.accept(0.0)
        (answer,) = script.says("S.")
        assert decode_syn_options(answer.options).window_scale is None

    def test_a_scale_above_14_counts_as_14(self):
        syn = Segment(0, 0, SYN, 1, options=bytes([3, 3, 255, 0]))
        connection = passive_for(syn, 0)
        assert connection.sender.scale == 14

    @pytest.mark.parametrize("mss", [0, 1, 63])
    def test_a_tiny_mss_is_not_believed(self, mss):
        script = Script(mss=mss)
        script.write(bytes(200))
        assert [len(s.payload) for s in script.pull()] == [MIN_MSS, MIN_MSS, MIN_MSS, 200 - 3 * MIN_MSS]

    def test_no_mss_means_536(self):
        connection = passive_for(Segment(0, 0, SYN, 65535), 0)
        assert connection.sender.mss == 536

    def test_their_mss_above_ours_is_cut(self):
        script = Script(mss=65535, offer=Offer(1460, 1460))
        assert script.connection.sender.mss == 1460


def test_two_of_us_can_talk():
    for iss in ISS:
        pair = established(iss, iss ^ 0x80000000)
        pair.a.write(b"ping")
        pair.b.write(b"pong")
        pair.exchange()
        assert (pair.a.got, pair.b.got) == (b"pong", b"ping")


class TestLostSyn:
    def lose(self, syns: int) -> Script:
        script = Script(established=False, sack=True)
        script.connection.accept(0.0)
        script.says("S.")
        for _ in range(syns):
            script.wait_deadline().says("S.")
        script.gets()
        return script

    def test_rfc6298_5_7_the_first_timeout_is_three_seconds(self):
        script = self.lose(1)
        script.write(b"x").says("1.")
        start = script.now
        script.wait_deadline()
        assert script.now == start + 3
        script.says("1.")

    def test_rfc5681_3_1_two_lost_ones_leave_a_window_of_one_segment(self):
        script = self.lose(1)
        assert script.connection.sender.congestion.window == 14600
        script = self.lose(2)
        assert script.connection.sender.congestion.window == 1460

    def test_without_a_loss_it_is_one_second(self):
        script = self.lose(0)
        script.write(b"x").says("1.")
        script.wait_deadline()
        assert script.now == 1

"""Idle guests, RFC 9293 section 3.8.4 and RFC 5382 REQ-5."""

from __future__ import annotations

import pytest

from tests.vpnkit.proto.tcp.pair import OFFER, Script, Segment, pull, push
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.tcp.connection import TcpConnection
from vpnkit.proto.tcp.keepalive import Keepalive
from vpnkit.proto.tcp.state import State
from vpnkit.wire.tcp import ACK, FIN, SynOptions

IDLE = 7200.0
ALWAYS = Keepalive()


def watched(keepalive: Keepalive | None = ALWAYS, iss: int = 0) -> Script:
    script = Script(iss=iss, irs=iss, established=False)
    script.connection = TcpConnection.passive(iss, OFFER, iss, SynOptions(1460, 7), 65535, keepalive=keepalive)
    script.connection.accept(0.0)
    script.says("S.")
    script.gets()
    return script


def test_rfc9293_must_26_28_shld_12_the_first_probe_comes_after_two_hours_without_data():
    script = watched(iss=2**32 - 1)
    script.wait_deadline()
    assert script.now == IDLE
    (probe,) = script.says(".")
    assert (probe.sequence, probe.payload) == (0, b"")  # SND.NXT - 1
    script.says()


def test_rfc9293_must_29_nine_probes_75_seconds_apart_and_he_is_gone():
    script = watched()
    times = []
    while script.state is State.ESTABLISHED:
        script.wait_deadline()
        times.append(script.now)
        script.pull() if script.state is State.ESTABLISHED else None
    assert times == [IDLE + 75 * i for i in range(10)]
    assert script.connection.aborted == "the guest is gone"
    script.says("R.")
    assert script.connection.next_deadline() == NEVER


def test_one_answer_is_enough():
    script = watched()
    for _ in range(9):
        script.wait_deadline()
        script.says(".")
    script.gets()
    script.says()
    script.wait_deadline()
    assert script.now == IDLE + 8 * 75 + 75  # it is looked up then,
    script.says()
    script.wait_deadline()
    assert script.now == IDLE + 8 * 75 + IDLE  # and asked again two hours after the answer
    script.says(".")


def test_data_after_the_silence_still_flows():
    script = watched()
    script.wait_deadline()
    script.says(".")
    script.gets("hello")
    assert script.inbox() == b"hello"
    script.says(".")
    assert not script.connection.receiver.early


@pytest.mark.parametrize("who", ["guest", "host"])
def test_whoever_spoke_last_puts_it_off(who):
    script = watched()
    script.now = 5000.0
    if who == "guest":
        script.gets("x").pull()
    else:
        script.write(b"x").pull()
        script.gets()
    script.wait_deadline()
    assert script.now == IDLE
    script.says()
    script.wait_deadline()
    assert script.now == 5000 + IDLE
    script.says(".")


def test_rfc9293_must_26_not_while_something_is_outstanding():
    script = watched()
    script.gets(window=0)
    script.write(b"x")
    script.says()
    while script.now < 3 * IDLE:
        script.wait_deadline()
        for segment in script.pull():
            assert segment.payload  # a probe of the window, no keep-alive
            script.gets(ack=1, window=0)
    assert script.state is State.ESTABLISHED


def test_half_closed_is_watched_too():
    script = watched()
    script.gets(flags=ACK | FIN).pull()
    script.wait_deadline()
    assert script.state is State.CLOSE_WAIT
    script.says(".")


def test_rfc9293_must_24_27_it_can_be_left_out_and_set():
    script = watched(None)
    assert script.connection.next_deadline() == NEVER
    script = watched(Keepalive(10.0, 1.0, 2))
    while script.state is State.ESTABLISHED:
        script.wait_deadline().pull()
    assert script.now == 12


def test_a_guest_of_ours_answers():
    other = TcpConnection.active(0, OFFER, 0.0)
    (syn,) = pull(other)
    one = TcpConnection.passive(7, OFFER, syn.sequence, SynOptions(1460, 7), 65535, keepalive=Keepalive())
    one.accept(0.0)
    for end, peer in ((one, other), (other, one), (one, other)):
        for segment in pull(end):
            push(peer, segment)
    one.on_deadline(one.next_deadline())
    (probe,) = pull(one, IDLE)
    assert isinstance(probe, Segment)
    push(other, probe, IDLE)
    (answer,) = pull(other, IDLE)
    push(one, answer, IDLE)
    assert not pull(one, IDLE)
    assert one._idle.probes == 0

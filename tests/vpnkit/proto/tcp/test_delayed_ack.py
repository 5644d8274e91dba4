"""When an ACK waits for data to travel with (RFC 9293 section 3.8.6.3)."""

from __future__ import annotations

from tests.vpnkit.proto.tcp.pair import Script
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.tcp.receiver import DELAYED_ACK, Receiver

FULL = 1460


def answered(receiver: Receiver, now: float) -> None:
    """The guest asked and the host answered at once: from now on the flow is interactive."""
    receiver.hear(100, FULL, now)
    receiver.told(True, now + DELAYED_ACK / 4)


def test_the_first_data_is_acknowledged_at_once():
    receiver = Receiver(0, 7)
    receiver.hear(100, FULL, 1.0)
    assert receiver.ack_due
    assert receiver.ack_deadline == NEVER


def test_interactive_data_waits_for_the_answer():
    receiver = Receiver(0, 7)
    answered(receiver, 1.0)
    receiver.hear(100, FULL, 2.0)
    assert not receiver.ack_due
    assert receiver.ack_deadline == 2.0 + DELAYED_ACK
    receiver.told(True, 2.0005)
    assert receiver.ack_deadline == NEVER


def test_it_does_not_wait_longer_than_the_delay_nor_the_next_time():
    receiver = Receiver(0, 7)
    answered(receiver, 1.0)
    receiver.hear(100, FULL, 2.0)
    receiver.on_deadline(2.0 + DELAYED_ACK)
    assert receiver.ack_due
    receiver.told(False, 2.0 + DELAYED_ACK)
    receiver.hear(100, FULL, 3.0)
    assert receiver.ack_due


def test_every_second_full_segment_is_acknowledged_at_once():
    """SHLD-19."""
    receiver = Receiver(0, 7)
    answered(receiver, 1.0)
    receiver.hear(FULL, FULL, 2.0)
    assert not receiver.ack_due
    receiver.hear(FULL, FULL, 2.0001)
    assert receiver.ack_due


def test_a_slow_answer_makes_a_flow_not_interactive():
    receiver = Receiver(0, 7)
    receiver.hear(100, FULL, 1.0)
    receiver.told(False, 1.0)
    receiver.told(True, 1.0 + 10 * DELAYED_ACK)
    receiver.hear(100, FULL, 2.0)
    assert receiver.ack_due


def test_the_general_path_waits_as_the_fast_one_does():
    """Half closed, so that nothing is predicted."""
    script = Script()
    script.connection.finish()
    script.says("F.")
    script.gets()
    script.now = 10.0
    receiver = script.connection.receiver
    answered(receiver, 10.0)
    script.gets("ping")
    assert not receiver.ack_due
    assert receiver.ack_deadline == 10.0 + DELAYED_ACK

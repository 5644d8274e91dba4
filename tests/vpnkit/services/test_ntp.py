"""The time service: octets in, octets out."""

from __future__ import annotations

import itertools
import sys

import pytest

from vpnkit.services.ntp import NtpService, host_leap
from vpnkit.wire import ntp
from vpnkit.wire.ntp import NtpPacket

SECOND = 10**9
QUESTION = NtpPacket(3, 4, ntp.CLIENT, transmit=77).encode()


def test_both_times_are_the_clocks():
    service = NtpService(itertools.count(SECOND, SECOND).__next__, lambda: ntp.LEAP_DELETE)
    answer = ntp.decode(service.datagram(memoryview(QUESTION + bytes(20)), 0.0))
    assert (answer.receive, answer.transmit) == (ntp.timestamp(SECOND), ntp.timestamp(2 * SECOND))
    assert (answer.origin, answer.leap) == (77, ntp.LEAP_DELETE)
    assert (service.received, service.answered) == (1, 1)


@pytest.mark.parametrize(
    ("data", "reason"), [(QUESTION[:47], "malformed"), (b"", "malformed"), (b"\x24" + QUESTION[1:], "mode")]
)
def test_what_is_dropped_is_counted(data, reason):
    service = NtpService()
    assert service.datagram(data, 0.0) is None
    assert service.dropped == {reason: 1}
    assert service.answered == 0


def test_an_answer_is_not_longer_than_a_question():
    assert len(NtpService().datagram(QUESTION, 0.0)) == len(QUESTION)


def test_the_hosts_leap_indicator():
    assert host_leap() in (ntp.LEAP_NONE, ntp.LEAP_INSERT, ntp.LEAP_DELETE)


def test_elsewhere_nothing_is_known_of_leap_seconds(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert host_leap() == ntp.LEAP_NONE

"""Whom the SNTP server answers, and what it says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.proto.leases import Drop
from vpnkit.proto.ntp import BURST, KISS_SECONDS, PER_SECOND, NtpServer
from vpnkit.wire import ntp
from vpnkit.wire.ntp import NtpPacket

NOW = ntp.timestamp(1_800_000_000 * 10**9)
ASKED = 0xDEAD_BEEF_0BAD_CAFE


def question(version: int = 4, mode: int = ntp.CLIENT) -> NtpPacket:
    return NtpPacket(ntp.LEAP_UNKNOWN, version, mode, poll=6, transmit=ASKED)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
@pytest.mark.parametrize(("mode", "answered"), [(3, 4), (1, 2)])
def test_an_answer(version, mode, answered):
    """RFC 4330 section 6."""
    answer = NtpServer().receive(question(version, mode), NOW, ntp.LEAP_INSERT, 5.0)
    assert isinstance(answer, NtpPacket)
    assert (answer.leap, answer.version, answer.mode, answer.poll) == (ntp.LEAP_INSERT, version, answered, 6)
    assert 1 < answer.stratum < 16
    assert (answer.origin, answer.receive) == (ASKED, NOW)
    assert answer.reference <= NOW


@pytest.mark.parametrize("mode", [0, 2, 4, 5, 6, 7])
def test_what_is_no_question_has_no_answer(mode):
    """Neither answers, so that two servers never talk to each other, nor control messages (CVE-2013-5211)."""
    assert NtpServer().receive(question(mode=mode), NOW, 0, 0.0) == Drop("mode")


@pytest.mark.parametrize("version", [0, 5, 7])
def test_versions_that_there_are_not(version):
    assert NtpServer().receive(question(version), NOW, 0, 0.0) == Drop("version")


def test_a_kiss_of_death():
    """RFC 5905 section 7.4: who asks too often is told, once a second, and then not answered."""
    server = NtpServer()
    for _ in range(BURST):
        assert server.receive(question(), NOW, 0, 100.0).stratum
    kiss = server.receive(question(), NOW, 0, 100.0)
    assert (kiss.stratum, kiss.leap, kiss.reference_id, kiss.origin) == (0, ntp.LEAP_UNKNOWN, b"RATE", ASKED)
    assert server.receive(question(), NOW, 0, 100.0) == Drop("rate")
    assert server.receive(question(), NOW, 0, 100.0 + 1 / PER_SECOND).stratum
    assert server.receive(question(), NOW, 0, 100.1 + 1 / PER_SECOND) == Drop("rate")
    assert server.receive(question(), NOW, 0, 100.2 + KISS_SECONDS).stratum != 0


@given(st.lists(st.floats(0, 3), max_size=200))
def test_no_more_than_the_rate(gaps):
    server, now, answers = NtpServer(), 0.0, 0
    for gap in gaps:
        now += gap
        answer = server.receive(question(), NOW, 0, now)
        answers += isinstance(answer, NtpPacket) and answer.stratum > 0
        assert answers <= BURST + now * PER_SECOND + 1e-6

"""The congestion window where it is neither growing nor halved, and ACKs from long ago."""

from __future__ import annotations

import pytest

from tests.vpnkit.proto.tcp.pair import Script
from vpnkit.proto.tcp.sender import MAX_BUFFERED

MSS = 1460


@pytest.fixture(params=[0, 2**32 - 5])
def script(request):
    return Script(iss=request.param, irs=request.param)


class TestIdle:
    """RFC 5681 section 4.1."""

    def test_after_a_pause_the_window_begins_anew(self, script):
        sender = script.connection.sender
        sender.congestion.window = 2**20
        script.gets(window=2**20)
        script.write(b"x").pull()
        script.gets(window=2**20)
        assert sender.room(script.now + 0.1) == MAX_BUFFERED
        assert sender.room(script.now + 10) == 14600

    def test_not_while_something_is_in_flight(self, script):
        sender = script.connection.sender
        sender.congestion.window = 2**20
        script.gets(window=2**20)
        script.write(bytes(MSS)).pull()
        sender.room(script.now + 10)
        assert sender.congestion.window == 2**20


class TestNewReno:
    def test_rfc6582_3_2_a_partial_ack_deflates(self, script):
        script.gets(window=60_000)
        script.write(bytes(10 * MSS)).pull()
        for _ in range(5):
            script.gets(ack=1, window=60_000)
        congestion = script.connection.sender.congestion
        assert congestion.window == (5 + 3 + 2) * MSS
        script.pull()
        script.gets(ack=1 + 4 * MSS, window=60_000)
        assert congestion.window == (10 - 4 + 1) * MSS
        script.gets(ack=1 + 10 * MSS, window=60_000)
        assert congestion.window == 5 * MSS


class TestAckRange:
    """RFC 5961 section 5, MAY-12."""

    def test_an_ack_of_long_ago_is_challenged_and_its_data_dropped(self, script):
        for _ in range(8):  # more than the largest window
            script.write(bytes(10 * MSS)).pull()
            script.gets(window=20_000)
        script.gets("abc", ack=1, window=20_000)
        assert script.inbox() == b""
        script.says(".")

    def test_one_within_the_largest_window_is_an_old_duplicate(self, script):
        script.write(bytes(10 * MSS)).pull()
        script.gets(window=20_000)
        script.gets("abc", ack=1, window=20_000)
        assert script.inbox() == b"abc"

    def test_they_are_few(self, script):
        answers = 0
        for _ in range(50):
            script.gets("abc", ack=2)
            answers += len(script.pull())
        assert answers == 10

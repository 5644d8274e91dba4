"""RFC 9293 sections 3.5.2, 3.6: RST, FIN and TIME-WAIT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vpnkit.proto.tcp.pair import Script as Core
from vpnkit.net import tcp
from vpnkit.proto.tcp.state import State

if TYPE_CHECKING:
    from tests.conformance.script import Script


def finish(script: Script) -> Script:
    """We close first, so that TIME-WAIT is ours."""
    script.open()
    script.host_finishes()
    script.expect("F.", seq=1)
    script.inject("F.", ack=2)
    script.expect(".", ack=2)
    assert not script.guest.tcp.flows
    return script


async def test_rfc9293_shld_2_the_data_of_a_rst_is_ignored(script: Script) -> None:
    script.open()
    script.inject("R", "because")
    assert not script.guest.tcp.flows
    assert script.program.recv(10) == b""
    script.silence()


async def test_rfc9293_shld_3_data_for_a_program_that_closed_gets_a_rst(script: Script) -> None:
    script.open()
    script.host_closes()
    script.everything()
    script.inject(".", "for nobody")
    script.expect("R.")
    assert not script.guest.tcp.flows


async def test_rfc9293_shld_3_so_does_what_nobody_will_read_any_more(script: Script) -> None:
    """The program closes with octets of the guest unread."""
    script.open()
    for _ in range(300):
        script.inject(".", bytes(1460), ack=1)
    script.everything()
    script.host_closes()
    assert "R" in script.everything()[-1].flags


async def test_rfc9293_shld_3_a_segment_of_no_connection_gets_a_rst(script: Script) -> None:
    script.inject(".", "what", seq=10, ack=77)
    script.expect("R", absolute_seq=77)
    script.inject("F", seq=10)
    script.expect("R.", absolute_seq=0, absolute_ack=(script.iss + 11) % 2**32)
    script.inject("R.", seq=10, ack=77)
    script.silence()


@pytest.mark.requirement("RFC9293 MUST-12")
async def test_a_half_closed_connection_still_works_the_other_way(script: Script) -> None:
    """MAY-1 is not used: rsync, ssh and HTTP/1.0 live from this."""
    script.open()
    script.inject("F.", "request")
    script.expect(".", ack=9)
    assert script.host_reads() == b"request"
    assert script.program.recv(10) == b""
    for _ in range(3):
        script.advance(3600.0)
        script.everything()
        script.host_writes("answer")
        assert script.expect(".", "answer")
        script.inject()
    script.host_finishes()
    script.expect("F.")
    script.inject()
    assert not script.guest.tcp.flows


@pytest.mark.requirement("RFC9293 MUST-12")
async def test_the_host_closes_its_half_and_the_guest_goes_on(script: Script) -> None:
    script.open()
    script.host_finishes()
    script.expect("F.", seq=1)
    for _ in range(3):
        script.inject(".", "more", ack=2)
        script.expect(".")
    assert script.host_reads() == b"more" * 3


@pytest.mark.requirement("RFC9293 MUST-12")
async def test_both_close_at_once(script: Script) -> None:
    script.open()
    script.host_finishes()
    script.expect("F.", seq=1)
    script.inject("F.", ack=1)
    script.expect(".", ack=2)
    assert script.state is State.CLOSING
    script.inject(".", ack=2)
    assert not script.guest.tcp.flows
    assert len(script.guest.tcp._time_wait) == 1


@pytest.mark.requirement("RFC9293 msl")
async def test_rfc9293_must_13_a_repeated_fin_is_acknowledged_for_60_s(script: Script) -> None:
    finish(script)
    for _ in range(5):
        script.advance(11.9)
        script.inject("F.", seq=1, ack=2)
        script.expect(".", seq=2, ack=2)
    script.advance(1.0)
    script.inject("F.", seq=1, ack=2)
    script.expect("R")


@pytest.mark.requirement("RFC9293 time-wait-limit")
async def test_rfc9293_must_13_its_table_is_small_and_bounded(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "MAX_TIME_WAIT", 3)
    for i in range(6):
        script.ports = (30_000 + i).to_bytes(2, "big") + script.ports[2:]
        script.next = script.acked = 0
        script.heard_irs = False
        finish(script)
    assert [int.from_bytes(key[8:10], "big") for key in script.guest.tcp._time_wait] == [30_003, 30_004, 30_005]


@pytest.mark.requirement("RFC9293 fin-wait-2")
def test_a_guest_that_never_finishes_is_given_up_when_a_service_is_done() -> None:
    core = Core()
    core.connection.finish()
    core.says("F.")
    core.gets(ack=2)
    core.connection.linger(core.now)
    core.wait_deadline()
    assert core.now == 60.0
    assert core.connection.is_closed


async def test_rfc9293_must_13_time_wait_is_not_ended_by_a_rst(script: Script) -> None:
    """RFC 1337: TIME-WAIT assassination."""
    finish(script)
    script.inject("R", seq=2)
    script.silence()
    script.inject("F.", seq=1, ack=2)
    script.expect(".", ack=2)


@pytest.mark.requirement("RFC9293 time-wait-ack")
async def test_a_pure_ack_in_time_wait_is_not_answered(script: Script) -> None:
    finish(script)
    for seq in (2, 1, 1000, -1000):
        script.inject(".", seq=seq, ack=2)
    script.silence()
    script.inject(".", "data", seq=2, ack=2)
    script.expect(".", seq=2, ack=2)


async def test_rfc9293_may_2_a_greater_syn_opens_anew(script: Script) -> None:
    finish(script)
    script.inject("S", seq=1000)
    script.heard_irs = False
    script.expect("S.", ack=1001)


async def test_rfc9293_may_2_our_new_number_is_greater_too(script: Script) -> None:
    finish(script)
    before = script.irs
    script.advance(1.0)
    script.heard_irs = False
    script.inject("S", seq=1000)
    script.expect("S.")
    assert 2 < (script.irs - before) % 2**32 < 2**31


async def test_rfc9293_may_2_a_syn_with_fin_opens_nothing_and_ends_nothing(script: Script) -> None:
    finish(script)
    script.inject("SF", seq=1000)
    script.expect(".", seq=2, ack=2)
    script.inject("F.", seq=1, ack=2)
    script.expect(".", ack=2)


@pytest.mark.parametrize("seq", [-1000, 0, 1])
async def test_rfc9293_may_2_an_older_syn_is_told_where_we_are(script: Script, seq: int) -> None:
    finish(script)
    script.inject("S", seq=seq)
    script.expect(".", seq=2, ack=2)
    assert not script.guest.tcp.flows

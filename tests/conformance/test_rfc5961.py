"""RFC 5961: segments that somebody forged without seeing the connection."""

from __future__ import annotations

import pytest

from tests.conformance.script import SYNCHRONIZED, Script, into
from vpnkit.proto.tcp.state import State


@pytest.mark.parametrize("state", SYNCHRONIZED)
@pytest.mark.parametrize("offset", [-1, -1000, 2**31, 2**24])
async def test_rfc5961_3_a_rst_outside_of_the_window_is_dropped(script: Script, state: State, offset: int) -> None:
    into(script, state)
    script.inject("R", seq=script.next + offset)
    script.inject("R.", seq=script.next + offset)
    script.silence()
    assert script.state is state


@pytest.mark.parametrize("state", [*SYNCHRONIZED, State.SYN_RECEIVED])
@pytest.mark.requirement("RFC7857 2.2")
async def test_rfc5961_3_a_rst_at_rcv_nxt_is_believed(script: Script, state: State) -> None:
    into(script, state)
    script.inject("R")
    script.silence()
    assert not script.guest.tcp.flows


@pytest.mark.parametrize("state", SYNCHRONIZED)
@pytest.mark.parametrize("offset", [1, 10_000])
@pytest.mark.requirement("RFC7857 2.2")
async def test_rfc5961_3_a_rst_within_the_window_is_challenged(script: Script, state: State, offset: int) -> None:
    into(script, state)
    script.inject("R", seq=script.next + offset)
    script.expect(".", "", ack=script.next)
    assert script.state is state


async def test_rfc5961_3_in_syn_sent_a_rst_must_acknowledge_our_syn(script: Script) -> None:
    into(script, State.SYN_SENT)
    script.inject("R", seq=0)
    script.inject("R.", seq=0, ack=0)
    assert script.state is State.SYN_SENT
    script.inject("R.", seq=0, ack=1)
    assert not script.guest.tcp.flows


@pytest.mark.parametrize("state", SYNCHRONIZED)
@pytest.mark.parametrize("offset", [0, 1, -1, -100_000, 10_000, 2**31])
async def test_rfc5961_4_a_syn_is_challenged_wherever_it_stands(script: Script, state: State, offset: int) -> None:
    into(script, state)
    script.inject("S", seq=script.next + offset)
    script.expect(".", "", ack=script.next)
    assert script.state is state


async def test_rfc5961_4_a_guest_that_rebooted_is_there_again_at_once(script: Script) -> None:
    """The same four-tuple and a new number: the challenge tells the guest what to reset."""
    script.open()
    script.inject(".", "before")
    script.everything()
    script.host_reads()
    script.inject("S", seq=777_777)
    challenge = script.expect(".", "")
    script.inject("R", seq=challenge.ack)
    assert not script.guest.tcp.flows
    script.heard_irs = False
    script.inject("S", seq=777_777)
    script.expect("S.", ack=777_778)


@pytest.mark.parametrize("ack", [2, 1000, 2**30, 2**31 - 10])
async def test_rfc5961_5_an_ack_of_unsent_data_is_challenged(script: Script, ack: int) -> None:
    script.open()
    script.inject(".", "forged", seq=1, ack=ack)
    script.expect(".", "", seq=1, ack=1)
    assert script.host_reads() == b""


@pytest.mark.parametrize("ack", [-65_535, -100_000, -(2**30)])
async def test_rfc5961_5_an_ack_too_old_is_challenged(script: Script, ack: int) -> None:
    script.open()
    script.inject(".", "forged", seq=1, ack=ack)
    script.expect(".", "", seq=1, ack=1)
    assert script.host_reads() == b""


async def test_rfc5961_5_an_old_ack_within_a_window_is_taken_with_its_data(script: Script) -> None:
    script.open()
    script.host_writes("answer")
    script.expect(".", "answer")
    script.inject()
    script.inject(".", "late", ack=1)
    assert script.host_reads() == b"late"


@pytest.mark.parametrize("attack", ["RST", "SYN", "ACK"])
async def test_rfc5961_7_ten_in_five_seconds(script: Script, attack: str) -> None:
    script.open()

    def forge() -> None:
        if attack == "RST":
            script.inject("R", seq=5)
        elif attack == "SYN":
            script.inject("S", seq=5)
        else:
            script.inject(".", seq=1, ack=5000)

    for _ in range(100):
        forge()
    assert len(script.everything()) == 10
    script.advance(6.0)
    forge()
    script.expect(".", "")


async def test_rfc5961_7_each_connection_has_its_own(make_script) -> None:
    """CVE-2016-5696: a shared counter tells a stranger about other connections."""
    script = make_script()
    script.open()
    for _ in range(100):
        script.inject("R", seq=5)
    script.everything()
    script.ports = b"\x9c\x41" + script.ports[2:]
    script.next = script.acked = 0
    script.heard_irs = False
    script.open()
    script.inject("R", seq=5)
    script.expect(".", "")


@pytest.mark.requirement("RFC7857 7.1")
async def test_rfc5961_7_what_is_forged_moves_no_timer(script: Script) -> None:
    """Neither one that is challenged nor one that is not: CVE-2026-99283 was such."""
    script.open()
    script.host_writes("hello")
    script.expect(".", "hello")
    due = script.connection.next_deadline()
    (flow,) = script.guest.tcp.flows.values()
    active = flow.active_at
    script.now += 0.1
    for i in range(30):
        script.inject("R", seq=5 + i)
        script.inject("S", seq=i)
        script.inject(".", seq=1, ack=5000)
        script.inject("R", seq=-5)
    assert script.connection.next_deadline() == due
    assert flow.active_at == active

"""RFC 9293: what has no number there, and what is left."""

from __future__ import annotations

import pytest

from tests.conformance.script import MSS, NOP, SACK_PERMITTED, Script, flag_names, into, mss, pad, scale
from vpnkit.proto.tcp.state import State


@pytest.mark.parametrize("ports", [b"\x00\x00\x1f\x90", b"\x9c\x40\x00\x00", bytes(4)])
@pytest.mark.parametrize("flags", ["S", ".", "R", "F"])
async def test_rfc9293_port_0_is_dropped(script: Script, ports: bytes, flags: str) -> None:
    """passt crashed on it until August 2024."""
    script.ports = ports
    script.inject(flags)
    script.silence()
    assert not script.guest.tcp.flows
    assert script.guest.counters["malformed"] == 1


def another(script: Script, port: int) -> Script:
    """A connection from another port."""
    script.ports = port.to_bytes(2, "big") + (8080).to_bytes(2, "big")
    script.remote = bytes([9, 9, 9, 9])
    script.next = script.acked = 0
    script.heard_irs = script.host.held = False
    script.frames.clear()
    return script


@pytest.mark.parametrize("state", list(State))
async def test_rfc9293_all_flags_are_survived_in_every_state(script: Script, state: State) -> None:
    """Before, at and behind RCV.NXT.  At most one answer to each, and never one to a RST that fits nothing."""
    for bits in range(64):
        flags = flag_names(bits)
        for i, offset in enumerate((0, 1, -1, 100_000, 2**31)):
            another(script, 10_000 + 8 * bits + i)
            before = len(script.guest.tcp.flows)
            if state is not State.CLOSED:
                connection = open_into(script, state)
                assert len(script.guest.tcp.flows) == before + connection
            script.inject(flags, seq=script.next + offset)
            heard = script.everything()
            assert len(heard) <= 1, (flags, offset, heard)
            if "R" in flags and offset == 2**31:
                assert not heard
            if state is State.CLOSED and flags.replace("P", "").replace("U", "") != "S":
                assert not any("S" in answer.flags for answer in heard)
        for flow in list(script.guest.tcp.flows.values()):
            flow.abort("the test is over")
        script.guest.settle()
        script.turn()
    assert script.guest.counters["internal_error"] == 0


def open_into(script: Script, state: State) -> int:
    """As `into`, but there are other connections.  How many flows that made."""
    flows = set(script.guest.tcp.flows)
    single = script.guest.tcp.flows
    script.guest.tcp.flows = {}
    into(script, state)
    made = script.guest.tcp.flows
    single.update(made)
    script.guest.tcp.flows = single
    return len(set(made) - flows)


async def test_rfc9293_all_flags_no_connection_from_nonsense(script: Script) -> None:
    """Null, Xmas, SYN with FIN, SYN with RST."""
    for flags in ("", "FPU", "SF", "SR", "SRF", "SFPU", "SRFPU.", "S.F"):
        script.inject(flags, seq=0)
        assert not any("S" in heard.flags for heard in script.everything())
        assert not script.guest.tcp.flows


async def test_rfc9293_syn_with_data_is_acknowledged_without_it_and_nothing_is_lost(script: Script) -> None:
    script.inject("S", "early bird", seq=0, options=mss(MSS))
    script.expect("S.", ack=1)
    script.inject(".", "early bird", seq=1)
    script.inject(".", " twice", seq=11)
    assert script.host_reads() == b"early bird twice"


async def test_rfc9293_unsent_ack_is_answered_and_not_believed(script: Script) -> None:
    script.open()
    script.host_writes("hello")
    script.expect(".", "hello")
    script.inject(".", ack=7)
    script.expect(".", "", seq=6, ack=1)
    assert script.connection.sender.queued == 5


async def test_rfc9293_unsent_ack_nor_its_data(script: Script) -> None:
    script.open()
    script.inject(".", "forged", seq=1, ack=1000)
    script.expect(".", "", ack=1)
    assert script.host_reads() == b""


async def test_rfc9293_unsent_ack_in_syn_received_is_reset(script: Script) -> None:
    into(script, State.SYN_RECEIVED)
    script.inject(".", ack=77)
    script.expect("R", seq=77)
    assert script.state is State.SYN_RECEIVED


async def test_rfc9293_unsent_ack_in_syn_sent_is_reset(script: Script) -> None:
    into(script, State.SYN_SENT)
    script.inject("S.", seq=0, ack=77)
    script.expect("R", seq=77)
    assert script.state is State.SYN_SENT


async def test_rfc9293_straddle_the_right_edge(script: Script) -> None:
    """What lies within is taken, the rest is not."""
    script.open(options=mss(MSS))  # no scale, so that the window is 65535
    script.inject(".", bytes(1000), seq=65535 - 499, ack=1)
    script.everything()
    script.inject(".", bytes(32768), seq=1, ack=1)
    script.inject(".", bytes(65535 - 500 - 32768), seq=32769, ack=1)
    assert script.everything()[-1].ack == 65536


async def test_rfc9293_straddle_the_left_edge(script: Script) -> None:
    script.open()
    script.inject(".", "abcdef")
    script.inject(".", "defghi", seq=4)
    script.inject(".", "abc", seq=1)
    assert script.everything()[-1].ack == 10
    assert script.host_reads() == b"abcdefghi"


WRAPS = [2**32 - n for n in (1, 2, 3, 100, 1461, 5000)] + [2**31 - 1, 2**31 - 1000, 0]


@pytest.mark.parametrize("first", WRAPS)
async def test_rfc9293_wrap_of_the_guests_numbers(make_script, first: int) -> None:
    """In order, early, repeated, and the FIN."""
    script = make_script(iss=first)
    script.open(options=pad(mss(MSS) + NOP + scale(0) + SACK_PERMITTED))
    data = bytes(i * 7 % 251 for i in range(8000))
    for start in (1000, 3000, 0, 2000, 1000, 7000, 5000, 6000, 4000):
        script.inject(".", data[start : start + 1000], seq=1 + start)
    script.everything()
    script.next = 8001
    script.inject("F.")
    script.expect(".", ack=8002)
    assert script.host_reads() == data


@pytest.mark.parametrize("first", WRAPS)
@pytest.mark.parametrize("options", [b"", SACK_PERMITTED])
async def test_rfc9293_wrap_of_our_numbers(make_script, first: int, options: bytes) -> None:
    """With loss, retransmission, a partial ACK, and the FIN."""
    script = make_script(our_iss=first)
    script.open(options=pad(mss(MSS) + NOP + scale(0) + options))
    data = bytes(i * 7 % 251 for i in range(8 * MSS))
    script.host_writes(data)
    script.host_finishes()
    got = bytearray(len(data))
    heard = script.everything()
    assert [h.seq for h in heard[:8]] == [1 + i * MSS for i in range(8)]
    script.inject(ack=MSS + 1)
    script.inject(ack=MSS + 1)
    for _ in range(40):
        for h in heard:
            got[h.seq - 1 : h.seq - 1 + len(h.payload)] = h.payload
            end = h.seq + len(h.payload) + ("F" in h.flags)
            script.acked = max(script.acked, end) if h.seq <= max(script.acked, MSS + 1) else script.acked
        script.inject(ack=max(script.acked, MSS + 1))
        heard = script.everything()
        if not script.connection.sender.queued and script.state is State.FIN_WAIT_2:
            break
        if not heard:
            script.wait()
            heard = script.everything()
    assert script.state is State.FIN_WAIT_2
    assert bytes(got) == data


# The remaining rows


async def test_rfc9293_may_12_an_ack_of_long_ago_comes_from_somebody_else(script: Script) -> None:
    """RFC 5961 section 5: SND.UNA - MAX.SND.WND <= SEG.ACK <= SND.NXT, else it is dropped with its data."""
    script.open()
    script.inject(".", "forged", seq=1, ack=1 - 65535 - 1)
    script.expect(".", "", ack=1)
    assert script.host_reads() == b""
    script.inject(".", "true", seq=1, ack=1)
    assert script.host_reads() == b"true"


@pytest.mark.requirement("RFC9293 SHLD-8")
async def test_a_syn_that_offers_ecn_is_accepted_without_it(script: Script) -> None:
    script.inject("SEW", options=mss(MSS))
    assert not set("EW") & set(script.expect("S.", ack=1).flags)
    script.inject(".E")
    script.inject(".W", "data", tos=3)
    assert not set("EW") & set(script.expect(".", ack=5).flags)


@pytest.mark.requirement("RFC9293 old-data-ack")
async def test_the_ack_of_old_data_counts(script: Script) -> None:
    script.open()
    script.inject(".", "old")
    script.host_writes("new")
    script.everything()
    script.inject(".", "old", seq=1, ack=4)
    assert script.connection.sender.queued == 0


@pytest.mark.requirement("RFC9293 edge-ack")
async def test_an_ack_from_the_edge_of_the_window_counts(script: Script) -> None:
    script.open(options=mss(MSS))
    script.host_writes("new")
    script.everything()
    script.inject(".", seq=65536, ack=4)
    assert script.connection.sender.queued == 0

"""RFC 9293 sections 3.5, 3.9.1.1 and 3.10.7: how connections open."""

from __future__ import annotations

import errno

import pytest

from tests.conformance.script import OPEN, PENDING, REFUSED, UNREACHABLE, Script, ip_frame, mss, tcp_segment
from vpnkit.proto.tcp.state import State

BROADCAST_MAC = b"\xff" * 6


@pytest.mark.requirement("RFC5382 REQ-2a")
async def test_rfc9293_must_10_both_ends_call_at_once(script: Script) -> None:
    """RFC 9293 figure 7: a forward's SYN crosses the guest's SYN of the same four-tuple."""
    script.host_calls()
    script.expect("S", seq=0)
    script.inject("S", options=mss(1460))
    script.expect("S.", seq=0, ack=1)
    assert script.state is State.SYN_RECEIVED
    script.inject("S.", seq=0, ack=1)
    assert script.state is State.ESTABLISHED
    script.everything()
    script.inject(".", "guest", ack=1)
    script.expect(".", ack=6)
    assert script.host_reads() == b"guest"
    script.host_writes("host")
    script.expect(".", "host", seq=1)


async def test_rfc9293_must_10_a_plain_ack_ends_it_too(script: Script) -> None:
    script.host_calls()
    script.expect("S")
    script.inject("S")
    script.expect("S.")
    script.inject(".", ack=1)
    assert script.state is State.ESTABLISHED


async def test_rfc9293_must_11_a_rst_ends_a_passive_open_quietly(make_script) -> None:
    """The host's server sees its client go, and the guest is told nothing."""
    script = make_script(port=PENDING)
    script.inject("S")
    script.expect("S.")
    assert script.state is State.SYN_RECEIVED
    script.inject("R")
    assert not script.guest.tcp.flows
    script.silence()
    assert script.program.recv(10) == b""


async def test_rfc9293_must_11_a_rst_refuses_an_active_open(script: Script) -> None:
    script.host_calls()
    script.expect("S")
    script.inject("S")
    script.expect("S.")
    script.inject("R")
    assert not script.guest.tcp.flows
    script.silence()
    assert script.program.recv(10) == b""  # the host's client


async def test_rfc9293_must_11_a_syn_sent_is_refused_by_a_rst_that_acknowledges_it(script: Script) -> None:
    script.host_calls()
    script.expect("S")
    script.inject("R.", seq=0, ack=0)
    script.inject("R.", seq=0, ack=2)
    script.inject("R", seq=0)
    assert script.state is State.SYN_SENT
    script.inject("R.", seq=0, ack=1)
    assert not script.guest.tcp.flows


async def test_rfc9293_must_45_every_answer_comes_from_the_address_that_was_called(script: Script) -> None:
    script.open()
    script.host_writes("data")
    script.inject(".", "data", ack=5)
    script.wait() if script.connection.sender.queued else None
    script.host_finishes()
    script.inject("F.", ack=6)
    script.inject(".", "late", seq=7)
    frames = [script.read(frame) for frame in script.log]
    assert len(frames) >= 4
    assert {(heard.source, heard.ports) for heard in frames} == {(bytes([9, 9, 9, 9]), b"\x1f\x90\x9c\x40")}


@pytest.mark.parametrize(
    "address",
    ["255.255.255.255", "224.0.0.1", "239.1.2.3", "192.168.65.255", "240.0.0.1", "0.0.0.0", "127.0.0.9"],
)
async def test_rfc9293_must_57_a_syn_to_no_host_is_dropped_silently(script: Script, address: str) -> None:
    script.remote = bytes(map(int, address.split(".")))
    script.inject("S")
    script.silence()
    assert not script.guest.tcp.flows


async def test_rfc9293_must_57_a_syn_in_a_broadcast_frame_is_dropped_silently(script: Script) -> None:
    """RFC 1122 section 2.4: that the datagram itself has a good address does not help."""
    script.inject("S", seq=0, to_mac=BROADCAST_MAC)
    script.inject("S", seq=0, to_mac=b"\x01\x00\x5e\x00\x00\x01")
    script.silence()
    assert not script.guest.tcp.flows


# The order of a translator: the host's answer first


async def test_rfc9293_host_first_syn_ack_when_the_host_accepted(script: Script) -> None:
    script.host.held = True
    script.inject("S")
    script.silence()
    assert script.state is State.SYN_HELD
    script.host.answer()
    script.turn()
    script.expect("S.", ack=1)


async def test_rfc9293_host_first_rst_when_refused(make_script) -> None:
    script = make_script(port=REFUSED)
    script.inject("S", seq=0)
    script.expect("R.", ack=1, absolute_seq=0)
    assert not script.guest.tcp.flows


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENETUNREACH, 0),
        (errno.ENETDOWN, 0),
        (errno.EHOSTUNREACH, 1),
        (errno.EHOSTDOWN, 1),
        (errno.EINVAL, 1),  # what a black hole route makes of it
        (errno.ENOPROTOOPT, 2),
        (errno.EACCES, 13),
        (errno.EPERM, 13),
    ],
)
@pytest.mark.requirement("RFC5382 REQ-9")
async def test_rfc9293_host_first_icmp_when_unreachable(script: Script, number: int, code: int) -> None:
    script.host.held = True
    syn = script.segment("S", options=mss(1460))
    script.burst(syn)
    script.host.answer(number)
    script.turn()
    assert script.expect_icmp(3, code)[:28] == syn[14:42]
    script.silence()
    assert not script.guest.tcp.flows


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.ECONNRESET])
@pytest.mark.requirement("RFC5382 REQ-9")
async def test_rfc9293_host_first_rst_when_refused_later(script: Script, number: int) -> None:
    script.host.held = True
    script.inject("S")
    script.host.answer(number)
    script.turn()
    script.expect("R.", ack=1)
    script.silence()


async def test_rfc9293_host_first_silence_when_it_timed_out(script: Script) -> None:
    script.host.held = True
    script.inject("S")
    script.host.answer(errno.ETIMEDOUT)
    script.turn()
    script.silence()
    assert not script.guest.tcp.flows


async def test_rfc9293_host_first_unreachable_at_once(make_script) -> None:
    script = make_script(port=UNREACHABLE)
    script.inject("S")
    script.expect_icmp(3, 1)


async def test_rfc9293_host_first_a_repeated_syn_asks_once(script: Script) -> None:
    script.host.held = True
    for _ in range(5):
        script.inject("S", seq=0)
    script.silence()
    assert len(script.host.far) == 1
    script.host.answer()
    script.turn()
    script.expect("S.", ack=1)
    script.silence()


async def test_rfc9293_host_first_a_rst_withdraws_the_question(script: Script) -> None:
    script.host.held = True
    script.inject("S")
    script.inject("R")
    assert not script.guest.tcp.flows
    script.silence()


async def test_rfc9293_host_first_a_new_number_is_a_new_question(script: Script) -> None:
    """The guest rebooted while the host did not answer."""
    script.host.held = True
    script.inject("S", seq=0)
    script.inject("S", seq=5000)
    assert len(script.guest.tcp.flows) == 1
    script.host.answer()
    script.turn()
    script.expect("S.", ack=5001)


async def test_rfc9293_host_first_questions_are_bounded(script: Script) -> None:
    """A guest that floods black holes keeps no more than its share of pending sockets."""
    script.host.held = True
    for i in range(600):
        ports = (10_000 + i).to_bytes(2, "big") + OPEN.to_bytes(2, "big")
        remote = bytes([9, 9, i // 250, i % 250])
        script.burst(ip_frame(6, tcp_segment(ports, i, 0, 2, 65535, destination=remote), destination=remote))
    assert len(script.guest.tcp.flows) == 512
    assert script.guest.counters["tcp_held_evicted"] == 600 - 512

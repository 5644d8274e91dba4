"""RFC 9293 section 3.9.2.2: ICMP errors of the guest about segments of ours."""

from __future__ import annotations

import struct

import pytest

from tests.conformance.script import Script, internet_sum, ip_frame
from vpnkit.proto.tcp.state import State

SOFT = [(3, 0), (3, 1), (3, 5), (3, 6), (3, 11), (3, 13), (11, 0), (11, 1), (12, 0)]
HARD = [(3, 2), (3, 3), (3, 4)]


def error(script: Script, about: bytes, kind: int, code: int, rest: int = 0) -> None:
    """The guest says an ICMP error about the frame `about`."""
    body = struct.pack("!BBHI", kind, code, 0, rest) + about[14 : 14 + 28]
    body = body[:2] + struct.pack("!H", internet_sum(body)) + body[4:]
    script.burst(ip_frame(1, body, destination=script.remote))


async def test_rfc9293_must_54_the_error_reaches_the_connection_that_it_quotes(make_script) -> None:
    script = make_script()
    script.host_calls(22)
    one = script.log[-1]
    script.host_calls(23)
    assert len(script.guest.tcp.flows) == 2
    error(script, one, 3, 3)
    (left,) = script.guest.tcp.flows.values()
    assert left.key[8:10] == (23).to_bytes(2, "big")


async def test_rfc9293_must_54_one_that_quotes_what_we_never_sent_is_ignored(script: Script) -> None:
    """RFC 5927: the sequence number must be of something in flight."""
    script.host_calls()
    forged = bytearray(script.log[-1])
    forged[38:42] = struct.pack("!I", (script.read(bytes(forged)).absolute_seq + 12345) % 2**32)
    error(script, bytes(forged), 3, 3)
    assert script.state is State.SYN_SENT


@pytest.mark.parametrize(("kind", "code"), SOFT)
async def test_rfc9293_must_56_soft_errors_do_not_end_a_call(script: Script, kind: int, code: int) -> None:
    script.host_calls()
    error(script, script.log[-1], kind, code)
    assert script.state is State.SYN_SENT


@pytest.mark.parametrize(("kind", "code"), SOFT)
@pytest.mark.requirement("RFC5382 REQ-10")
async def test_rfc9293_must_56_nor_an_open_connection(script: Script, kind: int, code: int) -> None:
    script.open()
    script.host_writes("x")
    error(script, script.log[-1], kind, code)
    assert script.state is State.ESTABLISHED
    script.host_writes("y")
    assert script.state is State.ESTABLISHED


@pytest.mark.parametrize(("kind", "code"), HARD)
@pytest.mark.requirement("RFC9293 SHLD-26", "RFC5382 REQ-10")
async def test_hard_errors_do_not_end_an_open_connection(script: Script, kind: int, code: int) -> None:
    script.open()
    script.host_writes("x")
    script.expect(".", "x")
    error(script, script.log[-1], kind, code)
    script.everything()  # of "fragmentation needed" something becomes smaller: test_rfc1191.py
    script.inject()
    script.host_writes("y")
    script.expect(".", "y")


@pytest.mark.parametrize("code", [2, 3])
@pytest.mark.requirement("RFC9293 SHLD-26")
async def test_hard_errors_end_a_call(script: Script, code: int) -> None:
    script.host_calls()
    error(script, script.log[-1], 3, code)
    assert not script.guest.tcp.flows
    assert script.program.recv(10) == b""


async def test_rfc9293_must_55_source_quench_is_discarded(script: Script) -> None:
    script.open()
    script.host_writes("x")
    window = script.connection.sender.congestion.window
    error(script, script.log[-1], 4, 0)
    assert script.connection.sender.congestion.window == window
    assert script.state is State.ESTABLISHED

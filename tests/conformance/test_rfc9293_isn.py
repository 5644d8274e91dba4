"""RFC 9293 section 3.4.1: initial sequence numbers."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest

from vpnkit.net.network import NetworkOptions

if TYPE_CHECKING:
    from tests.conformance.script import Script


def first_sequence(script: Script) -> int:
    """Open and reset a connection; returns our ISN."""
    script.next = script.acked = 0
    script.heard_irs = False
    script.open()
    script.inject("R")
    assert not script.guest.tcp.flows
    return script.irs


async def test_rfc9293_must_8_the_clock_ticks_every_4_us(script: Script) -> None:
    first = first_sequence(script)
    for seconds in (1.0, 3600.0, 20_000.0):
        script.now = 1000.0 + seconds
        assert (first_sequence(script) - first) % 2**32 == int(seconds * 250_000) % 2**32


async def test_rfc9293_shld_1_other_ports_have_unrelated_numbers(script: Script) -> None:
    """Over 1e5 four-tuples every bit is fair, and neighbours have nothing in common."""
    numbers = [
        script.guest.tcp._initial_sequence(i.to_bytes(12, "big"), 0.0) for i in range(100_000)
    ]  # fmt: skip
    for bit in range(32):
        ones = sum(number >> bit & 1 for number in numbers)
        assert abs(ones - 50_000) < 1000  # six standard deviations
    assert len(set(numbers)) > 99_990
    steps = {(b - a) % 2**32 for a, b in itertools.pairwise(numbers)}
    assert len(steps) > 99_980


async def test_rfc9293_must_9_another_key_other_numbers(make_script) -> None:
    one, other = make_script(), make_script()
    other.guest.tcp._secret = bytes(32)
    assert first_sequence(one) != first_sequence(other)
    assert len(one.guest.tcp._secret) == 32


def test_rfc9293_must_9_the_key_comes_from_the_system() -> None:
    assert isinstance(NetworkOptions().rng, random.SystemRandom)


@pytest.mark.requirement("RFC9293 MUST-9")
async def test_the_key_is_not_logged(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        script.open()
    assert script.guest.tcp._secret.hex() not in caplog.text
    assert repr(script.guest.tcp._secret) not in caplog.text

"""RFC 9293 section 3.8.5: urgent data, which is data like other."""

from __future__ import annotations

import pytest

from tests.conformance.script import MSS, Script


@pytest.mark.parametrize("pointer", [0, 1, 5, 6, 1000, 65535])
async def test_rfc9293_must_31_urgent_data_of_any_length_is_delivered_in_line(script: Script, pointer: int) -> None:
    script.open()
    script.inject(".U", "hello", urgent=pointer)
    script.expect(".", "", ack=6)
    assert script.host_reads() == b"hello"


@pytest.mark.parametrize("pointer", [0, 1, 65535])
async def test_rfc9293_must_31_an_urgent_pointer_without_data(script: Script, pointer: int) -> None:
    """CVE-2019-12255 and CVE-2026-9539: lengths computed from the pointer."""
    script.open()
    script.inject(".U", urgent=pointer)
    script.inject(".", "on")
    script.expect(".", "", ack=3)
    assert script.host_reads() == b"on"


async def test_rfc9293_must_31_urgent_data_over_many_segments(script: Script) -> None:
    script.open()
    for i in range(40):
        script.inject(".U", bytes([i]) * MSS, urgent=(40 - i) * MSS, ack=1)
    script.everything()
    assert script.host_reads() == b"".join(bytes([i]) * MSS for i in range(40))


@pytest.mark.requirement("RFC9293 MUST-30")
async def test_urgent_octets_are_not_out_of_band_at_the_host(script: Script) -> None:
    script.open()
    script.inject(".U", "a!b", urgent=2)
    assert script.host_reads() == b"a!b"


async def test_rfc9293_shld_13_we_never_set_urg(script: Script) -> None:
    script.open()
    script.inject(".U", "hello", urgent=3)
    script.host_writes(bytes(3 * MSS))
    script.wait()
    script.host_finishes()
    script.inject("F.", ack=1)
    script.inject("U", seq=99, urgent=2)
    frames = [script.read(frame) for frame in script.log]
    assert len(frames) > 5
    assert all("U" not in heard.flags and heard.urgent == 0 for heard in frames)

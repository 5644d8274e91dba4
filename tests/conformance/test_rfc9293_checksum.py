"""RFC 9293 section 3.1: the checksum."""

from __future__ import annotations

import pytest

from tapdev.link import LinkCapabilities
from tests.conformance.script import MSS, Script
from tests.vpnkit.net.scripted_guest import checksums_hold


async def test_rfc9293_must_2_every_segment_of_ours_has_its_checksum(script: Script) -> None:
    """Counted here by hand for every frame that is read, and by scapy."""
    script.open()
    for length in (1, 2, 3, 255, 256, 1459, MSS):
        script.host_writes(bytes(i * 7 & 0xFF for i in range(length)))
        script.inject(".", bytes(length), ack=1)
        script.everything()
    script.host_finishes()
    script.inject("R", seq=script.next)
    for frame in script.log:
        script.read(frame)
        assert checksums_hold(frame)


@pytest.mark.parametrize("payload", [b"\xff\xff", b"\x00" * 9, b"\xff" * 1001])
async def test_rfc9293_must_2_sums_at_the_edges(script: Script, payload: bytes) -> None:
    script.open()
    for i in range(70):
        script.host_writes(payload + bytes([i]))
        script.inject(ack=script.read(script.log[-1]).seq + len(payload) + 1)
    assert all(checksums_hold(frame) for frame in script.log)


async def test_rfc9293_must_3_a_wrong_octet_anywhere_is_noticed(make_script) -> None:
    script = make_script(verify_checksums=True)
    script.open()
    good = script.segment(".", "payload", seq=1)
    for at in range(14, len(good)):
        bad = bytearray(good)
        bad[at] ^= 0x10
        script.burst(bytes(bad))
    assert script.host_reads() == b""
    script.everything()
    script.burst(good)
    assert script.host_reads() == b"payload"


async def test_rfc9293_must_3_it_is_counted_and_not_answered(make_script) -> None:
    script = make_script(verify_checksums=True)
    script.open()
    bad = bytearray(script.segment(".", "payload", seq=1))
    bad[-1] ^= 1
    script.burst(bytes(bad))
    script.silence()
    assert script.guest.counters["malformed"] + script.guest.counters["bad_checksum"] == 1


async def test_rfc9293_must_3_a_link_that_can_corrupt_is_verified_without_being_asked(make_script) -> None:
    script = make_script(capabilities=LinkCapabilities(mtu=1500, reliable=False))
    script.open()
    bad = bytearray(script.segment(".", "payload", seq=1))
    bad[-1] ^= 1
    script.burst(bytes(bad))
    assert script.host_reads() == b""


@pytest.mark.requirement("RFC9293 reliable-link")
async def test_a_partial_sum_of_a_guest_on_a_reliable_link_is_no_matter(script: Script) -> None:
    script.open()
    partial = bytearray(script.segment(".", "payload", seq=1))
    partial[50:52] = b"\x12\x34"
    script.burst(bytes(partial))
    assert script.host_reads() == b"payload"

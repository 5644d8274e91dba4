"""RFC 9293 section 3.9.1.2: PSH."""

from __future__ import annotations

from tapdev.link import LinkCapabilities
from tests.conformance.script import MSS, Script


async def test_rfc9293_must_60_one_octet_leaves_at_once(script: Script) -> None:
    script.open()
    script.host_writes("x")
    script.expect(".", "x", seq=1)


async def test_rfc9293_must_61_the_last_segment_of_a_burst_has_psh(script: Script) -> None:
    script.open()
    script.host_writes(bytes(3 * MSS + 10))
    assert [(len(s.payload), "P" in s.flags) for s in script.everything()][-1] == (10, True)


async def test_rfc9293_must_61_a_segment_that_ends_with_the_window_is_pushed_when_the_rest_leaves(
    script: Script,
) -> None:
    script.open(win=2 * MSS)
    script.host_writes(bytes(2 * MSS))
    assert "P" in script.everything()[-1].flags


async def test_rfc9293_shld_27_reads_of_one_turn_are_pushed_once(script: Script) -> None:
    """What a program wrote in three calls is one burst with one PSH."""
    script.open()
    for _ in range(3):
        script.program.send(bytes(1000))
    script.turn()
    flags = [s.flags for s in script.everything()]
    assert [("P" in f) for f in flags] == [False] * (len(flags) - 1) + [True]


async def test_rfc9293_may_16_what_the_host_wrote_in_pieces_leaves_in_few_segments(script: Script) -> None:
    script.open()
    for _ in range(100):
        script.program.send(b"0123456789")
    script.turn()
    assert script.expect(".", b"0123456789" * 100)
    script.silence()


async def test_rfc9293_shld_28_segments_of_a_stream_are_full(script: Script) -> None:
    script.open()
    script.host_writes(bytes(10 * MSS))
    assert [len(s.payload) for s in script.everything()] == [MSS] * 10


async def test_rfc9293_shld_28_super_frames_are_whole_segments(make_script) -> None:
    script = make_script(capabilities=LinkCapabilities(mtu=1500, checksum=True, tso4=True))
    script.open()
    script.host_writes(bytes(40 * MSS))
    script.inject(ack=sum(len(s.payload) for s in script.everything()) + 1)
    assert all(len(s.payload) % MSS == 0 for s in script.everything())

"""RFC 9293 sections 3.1, 3.2 and 3.7.1: options, above all the MSS."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapdev.link import LinkCapabilities
from tests.conformance.script import MSS, NOP, SACK_PERMITTED, Script, mss, pad, scale
from vpnkit.wire.tcp import decode_syn_options

KNOWN = (0, 1, 2, 3, 4, 5)
ILLEGAL = [
    b"\x02\x00\x05\xb4",  # length 0
    b"\x02\x01\x05\xb4",  # length 1
    b"\x02\x05\x05\xb4",  # beyond the header
    b"\x01\x01\x01\x02",  # a kind and no length
    b"\x01\x01\x02\x04",  # a length and no content
    b"\x03\x00\x00\x00",
    b"\x08\xff\x00\x00",
    b"\x04\x00\x05\x00",
    b"\x05\x01\x00\x00",
    b"\xfd\x00\xfd\x00",
]


def segment_sizes(script: Script) -> list[int]:
    """What the host's stream is cut into."""
    script.host_writes(bytes(20_000))
    return [len(heard.payload) for heard in script.everything()]


async def test_rfc9293_must_4_end_of_list_no_operation_and_mss(script: Script) -> None:
    """What stands behind the end of the list does not count."""
    script.open(options=NOP + NOP + mss(1000) + b"\x00" + mss(200))
    assert max(segment_sizes(script)) == 1000


@pytest.mark.parametrize("options", [NOP * 4, b"\xfe\x06abcd" + NOP * 2, b"\x08\x0a" + bytes(8) + NOP * 2, bytes(40)])
async def test_rfc9293_must_5_options_in_data_pure_acks_and_fin(script: Script, options: bytes) -> None:
    script.open()
    script.inject(".", "one", options=options)
    script.expect(".", ack=4)
    script.host_writes("answer")
    script.expect(".", "answer")
    script.inject(".", options=options)
    assert script.connection.sender.queued == 0
    script.inject("F.", "two", options=options)
    script.expect(".", ack=8)
    assert script.host_reads() == b"onetwo"


async def test_rfc9293_must_5_options_in_a_rst(script: Script) -> None:
    script.open()
    script.inject("R", options=b"\xfe\x04ab" + NOP * 4)
    assert not script.guest.tcp.flows


async def test_rfc9293_must_6_unknown_options_with_a_length_are_ignored(make_script) -> None:
    for kind in range(256):
        if kind in KNOWN:
            continue
        for content in (b"", b"x", b"xyz", bytes(20)):
            options = bytes([kind, 2 + len(content)]) + content + mss(900)
            assert decode_syn_options(pad(options)).mss == 900
    script = make_script()
    script.open(options=b"\x13\x12" + bytes(16) + mss(900))  # as an MD5 signature
    assert max(segment_sizes(script)) == 900


OPTION = st.one_of(
    st.just(NOP),
    st.builds(
        lambda kind, content: bytes([kind, 2 + len(content)]) + content,
        st.sampled_from([kind for kind in range(256) if kind not in KNOWN]),
        st.binary(max_size=6),
    ),
)


@settings(max_examples=50)
@given(st.lists(OPTION, max_size=4), st.lists(OPTION, max_size=4))
def test_rfc9293_must_68_a_length_is_all_that_is_needed_to_skip_an_option(before: list[bytes], after: list[bytes]):
    found = decode_syn_options(pad(b"".join(before) + mss(777) + scale(3) + b"".join(after)))
    assert (found.mss, found.window_scale) == (777, 3)


async def test_rfc9293_must_68_ours_have_lengths(script: Script) -> None:
    script.inject("S", options=pad(mss(MSS) + scale(2) + SACK_PERMITTED + b"\x22\x02"))
    assert script.expect("S.").kinds[2] == struct.pack("!H", MSS)


@pytest.mark.parametrize("options", ILLEGAL)
async def test_rfc9293_must_7_a_syn_with_an_illegal_length_is_dropped(script: Script, options: bytes) -> None:
    script.inject("S", seq=0, options=options)
    script.silence()
    assert script.guest.counters["malformed"] == 1
    script.open()


@pytest.mark.parametrize("options", ILLEGAL)
async def test_rfc9293_must_7_an_open_connection_survives_illegal_lengths(script: Script, options: bytes) -> None:
    script.open(options=pad(mss(MSS) + NOP + scale(0) + SACK_PERMITTED))
    script.host_writes("data")
    script.expect(".", "data")
    script.inject(".", options=options, ack=1)
    script.inject(".", "early", seq=5, options=options, ack=1)
    script.everything()
    script.inject(".", "not ", seq=1)
    script.inject(".", "early", seq=5)  # again: the first may have been dropped
    assert script.host_reads() == b"not early"


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4])
async def test_rfc9293_must_7_a_header_shorter_than_itself_or_longer_than_the_segment(
    script: Script, offset: int
) -> None:
    script.open()
    for length in (offset, 15):
        frame = bytearray(script.segment(".", "x", seq=1))
        frame[46] = length << 4
        script.burst(bytes(frame))
    script.silence()
    script.inject(".", "fine")
    script.expect(".", ack=5)


@pytest.mark.parametrize("shift", [0, 1, 2, 3])
async def test_rfc9293_must_64_options_at_any_octet(script: Script, shift: int) -> None:
    script.open(options=pad(NOP * shift + mss(1001)))
    assert max(segment_sizes(script)) == 1001


@pytest.mark.parametrize("options", [b"", mss(MSS), mss(MSS) + scale(1), mss(MSS) + SACK_PERMITTED,
                                     mss(MSS) + SACK_PERMITTED + scale(1)])  # fmt: skip
async def test_rfc9293_must_69_our_padding_is_zero_and_whole_words(script: Script, options: bytes) -> None:
    """`Heard.kinds` fails for anything but zeros behind an end of list."""
    script.open(options=pad(options))
    script.inject(".", "early", seq=100)
    script.host_writes("x")
    script.host_finishes()
    for heard in [script.read(frame) for frame in script.log]:
        assert len(heard.options) % 4 == 0
        assert heard.kinds is not None


async def test_rfc9293_must_14_syn_ack_has_our_mss_and_the_guests_is_kept(script: Script) -> None:
    script.inject("S", options=mss(700))
    assert script.expect("S.").kinds[2] == struct.pack("!H", MSS)
    script.inject()
    assert max(segment_sizes(script)) == 700


async def test_rfc9293_must_14_our_own_syn_has_it_too(script: Script) -> None:
    script.host_calls()
    assert script.expect("S").kinds[2] == struct.pack("!H", MSS)
    script.inject("S.", options=mss(800))
    script.expect(".")
    assert max(segment_sizes(script)) == 800


@pytest.mark.parametrize("mtu", [576, 1500])
@pytest.mark.requirement("RFC9293 MAY-3")
async def test_rfc9293_shld_5_mss_is_always_sent(make_script, mtu: int) -> None:
    script = make_script(capabilities=LinkCapabilities(mtu=mtu))
    script.inject("S")
    assert script.expect("S.").kinds[2] == struct.pack("!H", mtu - 40)


async def test_rfc9293_must_15_without_mss_536(script: Script) -> None:
    script.open(options=b"")
    assert max(segment_sizes(script)) == 536


async def test_rfc9293_must_16_not_more_than_the_link_allows(script: Script) -> None:
    script.open(options=mss(9000))
    assert max(segment_sizes(script)) == MSS


async def test_rfc9293_must_16_not_more_than_the_guest_allows_also_with_segmentation_offload(make_script) -> None:
    script = make_script(capabilities=LinkCapabilities(mtu=1500, checksum=True, tso4=True))
    script.open(options=mss(1000))
    script.host_writes(bytes(10_000))
    assert script.connection.sender.mss == 1000
    assert all(len(heard.payload) % 1000 == 0 for heard in script.everything())


@pytest.mark.parametrize("offered", [0, 1, 39, 63])
@pytest.mark.requirement("RFC9293 mss-floor")
async def test_rfc9293_must_16_a_silly_mss_has_a_floor(script: Script, offered: int) -> None:
    """smoltcp issue 538: it looped."""
    script.open(options=mss(offered))
    sizes = segment_sizes(script)
    assert set(sizes[:-1]) == {64}
    assert len(sizes) < 1000


@pytest.mark.parametrize("mtu", [576, 1400, 1500, 9000, 65520])
@pytest.mark.requirement("RFC9293 SHLD-6", "RFC6691 2")
async def test_rfc9293_must_67_our_mss_is_the_mtu_less_40(make_script, mtu: int) -> None:
    """Whatever options we use: RFC 6691."""
    script = make_script(capabilities=LinkCapabilities(mtu=mtu))
    script.inject("S", options=pad(mss(MSS) + scale(7) + SACK_PERMITTED))
    assert script.expect("S.").kinds[2] == struct.pack("!H", mtu - 40)


async def test_rfc9293_must_65_no_mss_without_syn(script: Script) -> None:
    script.open(options=pad(mss(MSS) + scale(7) + SACK_PERMITTED))
    script.inject(".", "early", seq=100)
    script.host_writes(bytes(5000))
    script.wait()
    script.host_finishes()
    script.inject("S", seq=5)
    frames = [script.read(frame) for frame in script.log]
    assert len(frames) > 6
    assert [2 in heard.kinds for heard in frames] == ["S" in heard.flags for heard in frames]

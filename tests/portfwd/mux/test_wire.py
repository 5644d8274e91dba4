"""The bits of the forwarder protocol: the byte vectors of the original's Go tests, and what is wrong."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.mux import udp
from portfwd.mux.wire import (
    DEDICATED,
    MAX_PAYLOAD,
    Close,
    Data,
    Destination,
    MuxError,
    Open,
    Protocol,
    Shutdown,
    Window,
    decode,
    encode,
    greeting,
    greeting_length,
    header_length,
)

LOOPBACK = Destination(Protocol.TCP, ip_address("127.0.0.1"), 8080)
LOOPBACK6 = Destination(Protocol.UDP, ip_address("::1"), 8080)
FOO = Destination(Protocol.UNIX, path="/tmp/foo")

# go/test_inputs
VECTORS = {
    "open_dedicated": ("1100 01 04000000 01 01 0400 7f000001 901f", Open(4, LOOPBACK, DEDICATED)),
    "open_multiplexed": ("1d00 01 05000000 02 02 1000" + "00" * 15 + "01 901f", Open(5, LOOPBACK6)),
    "open_multiplexed_unix": ("1300 01 05000000 02 03 0800 2f746d702f666f6f", Open(5, FOO)),
    "close": ("0700 02 06000000", Close(6)),
    "shutdown": ("0700 03 07000000", Shutdown(7)),
    "data": ("0b00 04 08000000 80000000", Data(8, 128)),
    "window": ("0f00 05 09000000 38a2870000000000", Window(9, 8888888)),
}


@pytest.mark.parametrize("name", VECTORS)
def test_go_vectors(name):
    octets, frame = VECTORS[name]
    octets = bytes.fromhex(octets)
    assert encode(frame) == octets
    assert header_length(octets + b"more") == len(octets)
    assert decode(octets) == frame


def test_greeting_is_gos():
    assert greeting() == b"https://github.com/moby/vpnkit multiplexer protocol\n\0\0"
    assert greeting_length(greeting() + b"x") == 54
    assert greeting_length(greeting(b"abc") + b"x") == 57
    for end in range(54):
        assert greeting_length(greeting()[:end]) is None


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n", b"x", greeting()[:52] + b"\xff\xff"], ids=["http", "short", "long"]
)
def test_no_greeting(data):
    with pytest.raises(MuxError):
        greeting_length(data)


def test_ipv4_mapped_into_ipv6_is_ipv4():
    """Go's net.ParseIP makes 16 octets of it."""
    octets = bytes.fromhex("1d00 01 00000000 02 01 1000" + "00" * 10 + "ffff 7f000001 901f")
    assert decode(octets) == Open(0, LOOPBACK)


@pytest.mark.parametrize(
    "octets",
    [
        "0600 02 060000",
        "ffff 02 06000000",
        "0700 06 06000000",
        "0700 00 06000000",
        "0800 04 08000000 80",
        "0b00 04 08000000 01001000",
        "0f00 01 04000000 02 01 0400 7f0000",
        "1100 01 04000000 02 01 0500 7f00000100 901f",
        "1100 01 04000000 02 07 0400 7f000001 901f",
        "0b00 01 04000000 02 03 0000",
        "0c00 01 04000000 02 03 0100 00",
        "0800 01 04000000 02",
        "0700 01 04000000",
    ],
)
def test_malformed(octets):
    data = bytes.fromhex(octets)
    with pytest.raises(MuxError):
        decode(data) if header_length(data.ljust(64, b"\0")) else None


@given(st.binary(max_size=64), st.integers(0, 5), st.integers(0, 0xFFFFFFFF))
def test_anything_is_a_frame_or_an_error(extra, command, channel):
    data = (7 + len(extra)).to_bytes(2, "little") + bytes([command]) + channel.to_bytes(4, "little") + extra
    try:
        frame = decode(data)
    except MuxError:
        return
    assert decode(encode(frame)) == frame
    assert not isinstance(frame, Data) or frame.length <= MAX_PAYLOAD


ADDRESSES = st.none() | st.ip_addresses().filter(lambda a: a.version == 4 or a.ipv4_mapped is None)
DATAGRAMS = st.lists(
    st.builds(udp.Datagram, st.binary(max_size=99), ADDRESSES, st.integers(0, 65535), st.text("abc%0", max_size=9)),
    max_size=5,
)


@given(DATAGRAMS, st.integers(1, 200))
def test_datagrams_in_pieces(datagrams, piece):
    data = b"".join(map(udp.encode, datagrams))
    cutter = udp.Datagrams()
    found = []
    for start in range(0, len(data), piece):
        found += cutter.feed(data[start : start + piece])
    assert found == datagrams


def test_gos_datagram_says_no_address():
    assert udp.encode(udp.Datagram(b"abc")) == bytes.fromhex("0d00 0000 0000 0000 0300 616263")
    original = bytes.fromhex("1100 0400 7f000001 3500 0000 0300 616263")
    assert udp.Datagrams().feed(original) == [udp.Datagram(b"abc", ip_address("127.0.0.1"), 53)]


def test_a_frame_length_that_wraps_is_not_looked_at():
    big = udp.Datagram(bytes(65507), ip_address("::1"), 1)
    assert udp.encode(big)[:2] == ((65507 + 26) & 0xFFFF).to_bytes(2, "little")
    assert udp.Datagrams().feed(udp.encode(big)) == [big]
    with pytest.raises(ValueError, match="65528"):
        udp.encode(udp.Datagram(bytes(65528)))


@given(st.binary(max_size=200))
def test_any_octets_are_datagrams_or_an_error(data):
    try:
        udp.Datagrams().feed(data)
    except MuxError:
        pass


@pytest.mark.parametrize("octets", ["0000 0300 000000 0000 0000 0000", "0000 1100", "0000 0000 0000 4100"])
def test_malformed_datagram(octets):
    with pytest.raises(MuxError):
        udp.Datagrams().feed(bytes.fromhex(octets).ljust(40, b"\0"))

from __future__ import annotations

import errno
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.helper import wire
from portfwd.helper.wire import Bind, HelperProtocolError

VECTORS = {
    # vpnkit.md 5.7: command 6, the address reversed, the port little-endian, 0 for TCP and 1 for UDP
    "06 0100007f 5000 00": Bind("tcp", ip_address("127.0.0.1"), 80),
    "06 fa41a8c0 3500 01": Bind("udp", ip_address("192.168.65.250"), 53),
    "06 00000000 bb01 00": Bind("tcp", ip_address("0.0.0.0"), 443),
    "86 00000000000000000000000000000001 5000 00": Bind("tcp", ip_address("::1"), 80),
    "86 20010db8000000000000000000000005 3500 01": Bind("udp", ip_address("2001:db8::5"), 53),
}


@pytest.mark.parametrize("text", VECTORS)
def test_vectors(text: str) -> None:
    assert wire.encode_bind(VECTORS[text]) == bytes.fromhex(text)
    assert wire.decode_bind(bytes.fromhex(text)) == VECTORS[text]


def test_init() -> None:
    assert wire.encode_init() == bytes.fromhex("564d4e335416000000") + b"0123456789" * 4
    wire.decode_init(b"VMN3T\x16\0\0\0" + b"f" * 40)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no command"),
        ("01", "command 1 is unknown"),
        ("06 0100007f 5000", "7 octets"),
        ("06 0100007f 5000 00 00", "9 octets"),
        ("06 0100007f 5000 02", "kind 2"),
        ("06 0100007f 0000 00", "port 0"),
        ("86 0100007f 5000 00", "8 octets"),
        ("86 00000000000000000000ffff7f000001 5000 00", "Bind_ipv4"),
    ],
)
def test_what_is_no_request(text: str, words: str) -> None:
    with pytest.raises(HelperProtocolError, match=words):
        wire.decode_bind(bytes.fromhex(text))


@pytest.mark.parametrize("data", [b"", b"VMNET\x16\0\0\0" + b"0" * 40, b"VMN3T\x15\0\0\0" + b"0" * 40, b"V" * 50])
def test_what_is_no_init(data: bytes) -> None:
    with pytest.raises(HelperProtocolError):
        wire.decode_init(data)


@pytest.mark.parametrize(
    ("number", "result"),
    [(0, 0), (errno.EADDRINUSE, 48), (errno.EADDRNOTAVAIL, 49), (errno.EACCES, 13), (errno.ENOBUFS, 5)],
)
def test_results(number: int, result: int) -> None:
    data = wire.encode_result(number)
    assert data == bytes((result, 0, 0, 0, 0, 0, 0, 0))
    assert wire.decode_result(data) == (errno.EIO if result == 5 else number)


def test_an_unknown_result_is_an_error() -> None:
    assert wire.decode_result(b"\xff" + bytes(7)) == errno.EIO
    with pytest.raises(HelperProtocolError):
        wire.decode_result(b"\0")


@given(st.binary(max_size=60))
def test_any_octets(data: bytes) -> None:
    for decode in (wire.decode_init, wire.decode_bind, wire.decode_result):
        try:
            found = decode(data)
        except HelperProtocolError:
            continue
        if isinstance(found, Bind):
            assert wire.encode_bind(found) == data
            assert str(found)

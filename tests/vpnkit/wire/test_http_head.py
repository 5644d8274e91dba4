"""Heads of requests that two programs could read differently."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.errors import WireError
from vpnkit.wire import http_head
from vpnkit.wire.http_head import MAX_FIELDS, MAX_HEAD


def head(*lines: str, first: str = "POST / HTTP/1.1") -> bytes:
    return "\r\n".join((first, "Host: a.example", *lines, "", "")).encode("latin-1")


SMUGGLING = {
    "two lengths": head("Content-Length: 5", "Content-Length: 6"),
    "two equal lengths": head("Content-Length: 5", "Content-Length: 5"),
    "a list of lengths": head("Content-Length: 5, 5"),
    "length with a sign": head("Content-Length: +5"),
    "length in hexadecimal": head("Content-Length: 0x5"),
    "length of nothing": head("Content-Length:"),
    "length and chunks": head("Content-Length: 5", "Transfer-Encoding: chunked"),
    "two codings": head("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
    "chunked twice": head("Transfer-Encoding: chunked, chunked"),
    "gzip": head("Transfer-Encoding: gzip, chunked"),
    "unknown coding": head("Transfer-Encoding: xchunked"),
    "vertical tab": head("Transfer-Encoding: \x0bchunked"),
    "chunks of HTTP/1.0": head("Transfer-Encoding: chunked", first="POST / HTTP/1.0"),
    "space before the colon": head("Content-Length : 5"),
    "no name": head(": 5"),
    "no colon": head("Content-Length"),
    "folded": head("X-A: b", " Content-Length: 5"),
    "folded by a tab": head("X-A: b", "\tc"),
    "folded first": head(first="POST / HTTP/1.1\r\n X: y"),
    "LF alone": b"POST / HTTP/1.1\nHost: a.example\r\n\r\n",
    "LF alone in a field": head("X: a\nContent-Length: 5"),
    "CR alone in a field": head("X: a\rContent-Length: 5"),
    "NUL": head("X: a\0b"),
    "many fields": head(*["A: b"] * MAX_FIELDS),
}


@pytest.mark.parametrize("data", SMUGGLING.values(), ids=SMUGGLING)
def test_smuggling(data):
    with pytest.raises(WireError):
        http_head.check(data)


@pytest.mark.parametrize(
    "lines", [(), ("Content-Length: 0",), ("content-length: 12 ",), ("Transfer-Encoding: Chunked",)]
)
def test_what_is_well(lines):
    data = head(*lines)
    http_head.check(data)
    assert http_head.find_end(data + b"rest") == len(data)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\n\n", b"GET / HTTP/1.1\r\nA: b\n\n", b"GET /\0", b"GET / H\rx"])
def test_a_head_without_end_is_not_waited_for(data):
    with pytest.raises(WireError):
        http_head.find_end(data + b"x")


def test_a_giant_head():
    assert not http_head.find_end(b"a" * MAX_HEAD)
    with pytest.raises(WireError):
        http_head.find_end(b"a" * (MAX_HEAD + 1))
    with pytest.raises(WireError):
        http_head.find_end(b"a" * MAX_HEAD + b"\r\n\r\n")


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_in_pieces_as_at_once(pieces):
    """The end is where it is, however the octets come."""
    data = (
        b"GET / HTTP/1.1\r\nX:"
        + b"".join(pieces).replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")
        + b"\r\n\r\n"
    )
    seen = b""
    for octet in data:
        start, seen = len(seen), seen + bytes((octet,))
        end = http_head.find_end(seen, start)
        assert end == (len(seen) if seen.endswith(b"\r\n\r\n") else 0)


@given(st.lists(st.sampled_from([*SMUGGLING.values(), head(), b"\r\n", b"Content-Length: 3", b" ", b":"]), max_size=4))
def test_what_passes_is_read_by_h11_as_one_request(parts):
    data = b"".join(parts)
    try:
        end = http_head.find_end(data)
        if not end:
            return
        http_head.check(data[:end])
    except WireError:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data[:end])
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return
    assert isinstance(event, h11.Request)
    assert connection.trailing_data[0] == b""

"""What an intermediary changes in a message."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.errors import WireError
from vpnkit.proto.http_headers import (
    HOP_BY_HOP,
    Target,
    absolute,
    parse_target,
    request_fields,
    response_fields,
    tokens,
    trailer_fields,
    upgrade_of,
)
from vpnkit.proto.http_proxy import Destination

CALLED = Destination("203.0.113.7", 8080)
A = Destination("a.example", 80)


@pytest.mark.parametrize(
    ("method", "target", "host", "to", "expected"),
    [
        (b"GET", b"http://a.example/x?y", b"b", None, Target(A, b"/x?y")),
        (b"GET", b"HTTP://A.example?y", b"b", None, Target(A, b"/?y")),
        (b"GET", b"http://a.example", None, None, Target(A, b"/")),
        (b"GET", b"/x", b"a.example", None, Target(A, b"/x")),
        (b"GET", b"/x", b"a.example:81", None, Target(Destination("a.example", 81), b"/x")),
        (b"GET", b"/x", b"a.example:81", CALLED, Target(Destination("a.example", 8080), b"/x")),
        (b"GET", b"http://b/x", b"a.example", CALLED, Target(Destination("b", 8080), b"/x")),
        (b"GET", b"/x", None, CALLED, Target(CALLED, b"/x")),
        (b"GET", b"/x", b"", CALLED, Target(CALLED, b"/x")),
        (b"OPTIONS", b"*", b"a.example", None, Target(A, b"*")),
        (b"OPTIONS", b"http://a.example", b"b", None, Target(A, b"*")),
        (b"CONNECT", b"a.example:443", b"b", None, Target(Destination("a.example", 443), b"")),
    ],
)
def test_targets(method, target, host, to, expected):
    assert parse_target(method, target, host, to=to) == expected


@pytest.mark.parametrize(
    ("method", "target", "host"),
    [
        *((b"GET", b"@a.example", b"b"), (b"GET", b"a.example/", b"b"), (b"GET", b"ftp://a.example/", b"b")),
        *((b"GET", b"http://u:p@a.example/", b"b"), (b"GET", b"http:///x", b"b"), (b"GET", b"*", b"b")),
        *((b"GET", b"http://a.example/#x", b"b"), (b"GET", b"/x", None), (b"GET", b"/x", b"a b")),
        *((b"CONNECT", b"a.example", b"b"), (b"CONNECT", b"/", b"b"), (b"CONNECT", b"http://a:1", b"b")),
        *((b"GET", b"http://a.example:80@b/", b"b"), (b"GET", b"http://a\\b/", b"b"), (b"GET", b"/", b"a,b")),
    ],
)
def test_targets_that_are_none(method, target, host):
    with pytest.raises(WireError):
        parse_target(method, target, host, to=None)


def test_the_port_is_always_written():
    assert absolute(Target(A, b"/x")) == b"http://a.example:80/x"
    assert absolute(Target(A, b"*")) == b"http://a.example:80"
    assert absolute(Target(Destination("::1", 8080), b"/")) == b"http://[::1]:8080/"


FIELDS = [
    *((b"Host", b"x"), (b"X-One", b"1"), (b"Connection", b"close, X-Two"), (b"x-two", b"2"), (b"Keep-Alive", b"3")),
    *((b"Proxy-Connection", b"keep-alive"), (b"Proxy-Authorization", b"mine"), (b"TE", b"trailers, gzip")),
    *((b"Content-Length", b"5"), (b"Upgrade", b"websocket"), (b"Authorization", b"yours")),
]


def test_request_fields():
    assert request_fields(FIELDS, A, b"1.1 us", None, None) == [
        *((b"Host", b"a.example"), (b"X-One", b"1"), (b"Content-Length", b"5"), (b"Authorization", b"yours")),
        *((b"TE", b"trailers"), (b"Connection", b"TE"), (b"Via", b"1.1 us")),
    ]
    assert (b"Proxy-Authorization", b"ours") in request_fields(FIELDS, A, b"1.1 us", b"ours", None)


def test_connection_cannot_take_away_what_frames_a_message():
    fields = [(b"Connection", b"Content-Length, Host, Transfer-Encoding"), (b"Content-Length", b"5")]
    assert (b"Content-Length", b"5") in request_fields(fields, A, b"1.1 us", None, None)
    fields = [(b"Connection", b"Transfer-Encoding"), (b"Transfer-Encoding", b"chunked")]
    assert (b"Transfer-Encoding", b"chunked") in request_fields(fields, A, b"1.1 us", None, None)


def test_chunks_count_before_a_length_in_a_response():
    fields = [(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")]
    assert response_fields(fields, b"1.1 us") == [(b"Transfer-Encoding", b"chunked"), (b"Via", b"1.1 us")]


@pytest.mark.parametrize(
    ("connection", "upgrade", "version", "expected"),
    [
        (b"Upgrade", b"websocket", b"1.1", b"websocket"),
        (b"keep-alive, upgrade", b"websocket", b"1.1", b"websocket"),
        (b"keep-alive", b"websocket", b"1.1", None),
        (b"Upgrade", b"websocket", b"1.0", None),
        (b"Upgrade", b"h2c", b"1.1", None),
        (b"Upgrade", b"websocket, H2C", b"1.1", None),
        (b"Upgrade", b"TLS/1.2", b"1.1", None),
        (b"Upgrade", b"", b"1.1", None),
    ],
)
def test_upgrades(connection, upgrade, version, expected):
    assert upgrade_of([(b"connection", connection), (b"upgrade", upgrade)], version) == expected


def test_trailers_cannot_say_what_belongs_into_a_head():
    fields = [(b"Content-Length", b"9"), (b"X-Sum", b"1"), (b"HOST", b"b"), (b"Set-Cookie", b"c")]
    assert trailer_fields(fields) == [(b"X-Sum", b"1")]


NAMES = st.sampled_from(
    [b"Connection", b"X-A", b"x-b", b"TE", b"Upgrade", b"Keep-Alive", b"Proxy-Authorization", b"Cookie"]
)
VALUES = st.sampled_from([b"", b"x-a", b"X-B, close", b"upgrade", b"websocket", b"trailers", b"content-length", b",,"])


@given(st.lists(st.tuples(NAMES, VALUES), max_size=12))
def test_whatever_is_said_what_goes_on_is_a_request(fields):
    upgrade = upgrade_of(fields, b"1.1")
    sent = request_fields(fields, A, b"1.1 us", None, upgrade)
    names = [name.lower() for name, _ in sent]
    assert names.count(b"host") == 1
    assert b"proxy-authorization" not in names
    assert set(names) & HOP_BY_HOP <= {b"connection", b"te", b"upgrade"}
    assert tokens(sent, b"connection") <= {b"te", b"upgrade"}
    assert h11.Connection(h11.CLIENT).send(h11.Request(method="GET", target="/", headers=sent))

"""The HTTP proxy's configuration and rules."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.errors import ConfigError, WireError
from vpnkit.proto.http_proxy import (
    MESSAGE,
    Destination,
    Upstream,
    from_url,
    host_of,
    parse_authority,
    parse_config,
    parse_rule,
    parse_upstream,
)


def config(**fields):
    return parse_config(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("rule", "host", "expected"),
    [
        # the original's test: no_proxy
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.0/8", "10.0.0.1", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("mit.edu", "dave.mit.edu", True),
        ("mit.edu", "mit.edu", True),
        ("mit.edu", "www.mobyproject.org", False),
        ("*.mit.edu", "dave.mit.edu", True),
        ("*.mit.edu", "mit.edu", False),
        (".mit.edu", "dave.mit.edu", True),
        (".mit.edu", "mit.edu", False),
        ("mit.edu", "notmit.edu", False),
        ("MIT.edu.", "www.mit.edu", True),
        ("www.*.com", "www.a.com", True),
        ("*", "anything.example", True),
        ("*", "10.0.0.1", False),
        ("1.0.0.10", "a.1.0.0.10", False),
        ("fd00::/8", "fd00::1", True),
        ("[fd00::1]", "fd00::1", True),
        ("10.0.0.0/8", "fd00::1", False),
        ("10.0.0.0/8", "mit.edu", False),
    ],
)
def test_rules(rule, host, expected):
    assert parse_rule(rule).fits(host) is expected


def test_a_rule_that_is_none():
    with pytest.raises(ConfigError):
        parse_rule("10.0.0.0/99")


def test_the_originals_defaults():
    made = config()
    assert (made.http, made.https, made.exclude, made.allow) == (None, None, (), ())
    assert made.file.transparent_http_ports == (80,)
    assert made.file.transparent_https_ports == (443,)
    assert made.refusal("a.example") == MESSAGE.replace("%s", "a.example")
    assert made.allows("anything.example")
    assert made.intercepts(80) is made.intercepts(443) is None


def test_exclude_is_a_list_by_commas_and_spaces():
    made = config(http="proxy.example:3128", exclude="*.local, 10.0.0.0/8 192.168.1.1,,a.example")
    assert [rule.text for rule in made.exclude] == ["*.local", "10.0.0.0/8", "192.168.1.1", "a.example"]
    assert made.upstream(False, "www.a.example") is None
    assert made.upstream(False, "b.example", "10.1.2.3") is None
    assert made.upstream(False, "b.example").host == "proxy.example"
    assert made.upstream(True, "b.example") is None


def test_what_is_said_can_be_taken_again():
    """The original writes what it cannot read."""
    made = config(http="http://u:p@proxy.example:3128", exclude="*.local 10.0.0.0/8", allow=["a.example", "10.0.0.0/8"])
    assert parse_config(made.encode()) == made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://proxy.example:3128", Upstream("http", "proxy.example", 3128)),
        ("http://proxy.example:3128/", Upstream("http", "proxy.example", 3128)),
        ("proxy.example:3129", Upstream("http", "proxy.example", 3129)),
        ("https://Proxy.Example:443", Upstream("https", "proxy.example", 443)),
        ("socks5h://10.0.0.1:1080", Upstream("socks5", "10.0.0.1", 1080)),
        ("http://us%40er:pa%3Ass@[fd00::1]:1", Upstream("http", "fd00::1", 1, b"us@er", b"pa:ss")),
        ("http://user@proxy.example:1", Upstream("http", "proxy.example", 1, b"user")),
        ("", None),
    ],
)
def test_upstreams(text, expected):
    assert parse_upstream(text) == expected
    if expected is not None:
        assert parse_upstream(str(expected)) == expected


def test_authorization():
    """RFC 7617 section 2."""
    assert parse_upstream("http://Aladdin:open%20sesame@p:1").authorization == b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    assert parse_upstream("p:1").authorization is None


@pytest.mark.parametrize(
    "text",
    ["http://p", "p", "ftp://p:1", "http://p:0", "http://p:65536", "http://a b:1", "http://p:1/path", "0x7f.1:80"],
)
def test_no_upstream(text):
    with pytest.raises(ConfigError):
        parse_upstream(text.replace("//", "//user:secret@"))
    with pytest.raises(ConfigError):
        from_url(text)


def test_errors_do_not_tell_passwords():
    with pytest.raises(ConfigError) as caught:
        parse_upstream("http://user:secret@p")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"{", b"[]", b'{"http": 1}', b'{"transparent_http_ports": [0]}', b'{"transparent_http_ports": ["80"]}'),
        *(b'{"allow": ["1.2.3.4/99"]}', b'{"exclude": "1.2.3.4/99"}', b'{"http": "p"}', b"\xff", b"[" * 100_000),
    ],
)
def test_broken_configurations(raw):
    with pytest.raises(ConfigError):
        parse_config(raw)


@given(st.binary(max_size=100))
def test_any_octets(data):
    try:
        parse_config(data)
    except ConfigError:
        pass


def test_ports_that_are_intercepted():
    made = config(http="p:1", transparent_http_ports=[80, 8080])
    assert [made.intercepts(port) for port in (80, 8080, 443, 22)] == ["http", "http", None, None]
    made = config(https="p:1")
    assert [made.intercepts(port) for port in (80, 443)] == [None, "https"]
    made = config(allow_enabled=True)
    assert [made.intercepts(port) for port in (80, 443)] == ["http", "https"]


def test_allow():
    made = config(allow_enabled=True, allow=["docker.com", "10.0.0.0/8"], allow_error_msg="no %s")
    assert [made.allows(host) for host in ("docker.com", "hub.docker.com", "10.1.1.1", "docker.com.evil.example")] == [
        *(True, True, True, False)
    ]
    assert made.refusal("x.example") == "no x.example"


# What a C library, or another proxy, may take for an address of this host
ENCODINGS = ["0", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.0.0.1.", "a.0x7f", "127.0.0.0x1"]


@pytest.mark.parametrize(
    "text", [*ENCODINGS, "::1", "[::1", "[127.0.0.1]", "a b", "a..b", "", ".", "-a", "bücher", "a" * 254]
)
def test_hosts_that_are_none(text):
    with pytest.raises(WireError):
        host_of(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("WWW.Example.com.", "www.example.com"),
        ("127.0.0.1", "127.0.0.1"),
        ("[0:0::1]", "::1"),
        ("a_b.example", "a_b.example"),
        ("1.2.3.4.example", "1.2.3.4.example"),
    ],
)
def test_hosts(text, expected):
    assert host_of(text) == expected


@pytest.mark.parametrize(
    ("text", "default", "expected"),
    [
        ("a.example:8080", None, Destination("a.example", 8080)),
        ("a.example", 80, Destination("a.example", 80)),
        ("a.example:", 80, Destination("a.example", 80)),
        ("[fd00::1]:443", None, Destination("fd00::1", 443)),
        ("a.example", None, None),
        ("user@a.example:80", 80, None),
        ("a.example:99999", 80, None),
        ("a.example:80:80", 80, None),
        ("a.example/:80", 80, None),
    ],
)
def test_authorities(text, default, expected):
    if expected is None:
        with pytest.raises(WireError):
            parse_authority(text, default)
    else:
        found = parse_authority(text, default)
        assert found == expected
        assert parse_authority(found.authority, None) == expected

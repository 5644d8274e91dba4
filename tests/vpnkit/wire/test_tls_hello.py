"""The name in a ClientHello, as OpenSSL writes it and in every way that it may be cut."""

from __future__ import annotations

import ssl
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.errors import WireError
from vpnkit.wire import tls_hello
from vpnkit.wire.tls_hello import ClientHello


def openssl_hello(name: str | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def made(*extensions: tuple[int, bytes], has_extensions: bool = True) -> bytes:
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0"
    if has_extensions:
        area = b"".join(struct.pack("!HH", kind, len(value)) + value for kind, value in extensions)
        body += struct.pack("!H", len(area)) + area
    return b"\1" + len(body).to_bytes(3, "big") + body


def names(*said: tuple[int, bytes]) -> tuple[int, bytes]:
    area = b"".join(bytes((kind,)) + struct.pack("!H", len(name)) + name for kind, name in said)
    return 0, struct.pack("!H", len(area)) + area


def records(message: bytes, size: int = 1 << 14) -> bytes:
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\3\1" + struct.pack("!H", len(piece)) + piece for piece in pieces)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", ["www.Example.com", "xn--bcher-kva.example", "a_b.example", None, "192.0.2.1"])
def test_openssl(name, version):
    expected = None if name in (None, "192.0.2.1") else name.lower()
    assert tls_hello.decode(openssl_hello(name, version)) == ClientHello(expected)


@given(st.integers(1, 600), st.integers(0, 600))
def test_cut_into_records_and_reads(size, length):
    message = openssl_hello("www.example.com")[5:]
    data = records(message, size)
    assert tls_hello.decode(data) == ClientHello("www.example.com")
    assert tls_hello.decode(data + b"more") == ClientHello("www.example.com")
    assert tls_hello.decode(data[: min(length, len(data) - 1)]) is None


def test_other_names_come_first():
    assert tls_hello.decode(records(made((10, b"xx"), names((7, b"\0\0"), (0, b"a.example"))))) == ClientHello(
        "a.example"
    )


@pytest.mark.parametrize("data", [made(), made(has_extensions=False), made((16, b"")), made(names((1, b"a")))])
def test_no_name(data):
    assert tls_hello.decode(records(data)) == ClientHello(None)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"SSH-2.0-",
        b"\x16\2\0\0\5",
        b"\x15\3\1\0\2\1\0",
        b"\x16\3\1\0\0",
        b"\x16\3\1\xff\xff",
        records(b"\2\0\0\0"),
        records(b"\1\xff\xff\xff"),
        records(b"\1\0\0\5abcde"),
        records(made(names((0, b"")))),
        records(made(names((0, b"a b")))),
        records(made(names((0, b"a\r\nHost: b")))),
        records(made(names((0, b"a..b")))),
        records(made(names((0, b"a" * 300)))),
        records(made((0, b"\0\7\0\0\2a"))),
    ],
)
def test_what_is_none(data):
    with pytest.raises(WireError):
        tls_hello.decode(data)


def test_an_endless_one():
    with pytest.raises(WireError):
        tls_hello.decode(records(b"\1\0\xff\0" + bytes(30_000), 1))


@given(st.binary(max_size=200))
def test_any_octets(data):
    for whole in (data, records(b"\1" + len(data).to_bytes(3, "big") + data)):
        try:
            tls_hello.decode(whole)
        except WireError:
            pass

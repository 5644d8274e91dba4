from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from portfwd.connect import relay_to
from portfwd.proxy_protocol import header, header_of, unix_header
from portfwd.spec import Spec, parse
from portfwd.table import ForwardTable

if TYPE_CHECKING:
    from pathlib import Path

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")


def test_version_1_as_the_specification_has_it() -> None:
    """Section 2.1's own example."""
    assert header("v1", ("192.168.0.1", 56324), ("192.168.0.11", 443)) == (
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
    )
    assert header("v1", ("2001:db8:0:0::1", 1), ("::1", 65535)) == b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n"
    assert unix_header("v1", "/run/x") == b"PROXY UNKNOWN\r\n"


def test_version_2() -> None:
    assert header("v2", ("192.168.0.1", 56324), ("192.168.0.11", 443)).hex() == (
        SIGNATURE.hex() + "2111000cc0a80001c0a8000bdc0401bb"
    )
    assert header("v2", ("2001:db8::1", 1), ("::1", 2)).hex() == (
        SIGNATURE.hex() + "21210024" + "20010db8000000000000000000000001" + "0" * 31 + "100010002"
    )
    assert unix_header("v2", "/run/x") == SIGNATURE + b"\x21\x31\x00\xd8" + bytes(108) + b"/run/x".ljust(108, b"\0")


def test_a_zone_is_left_out() -> None:
    assert header("v1", ("fe80::1%eth0", 1), ("fe80::2%eth0", 2)) == b"PROXY TCP6 fe80::1 fe80::2 1 2\r\n"


ports = st.integers(0, 65535)


@given(st.ip_addresses(v=4), st.ip_addresses(v=4), ports, ports)
def test_the_longest_line_of_version_1_is_within_its_limit(source: object, destination: object, a: int, b: int) -> None:
    line = header("v1", (str(source), a), (str(destination), b))
    assert len(line) <= 107
    assert line.endswith(b"\r\n")
    assert line[:-2].decode().split(" ") == ["PROXY", "TCP4", str(source), str(destination), str(a), str(b)]


@given(st.ip_addresses(v=6), st.ip_addresses(v=6), ports, ports)
def test_version_2_says_how_long_it_is(source: object, destination: object, a: int, b: int) -> None:
    octets = header("v2", (str(source), a), (str(destination), b))
    assert octets[:12] == SIGNATURE
    assert int.from_bytes(octets[14:16], "big") == len(octets) - 16


async def test_the_header_of_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.connect(path)
        accepted, _ = server.accept()
        with accepted:
            assert header_of("v2", accepted) == unix_header("v2", path)


async def test_it_goes_before_the_clients_first_octet(nursery: trio.Nursery) -> None:
    heard = []

    async def connect(_spec: Spec) -> trio.abc.HalfCloseableStream:
        await trio.lowlevel.checkpoint()
        ours, guest = trio.testing.memory_stream_pair()

        async def serve() -> None:
            data = b"".join([chunk async for chunk in guest])
            heard.append(data)
            await guest.send_all(b"bye")
            await guest.send_eof()

        nursery.start_soon(serve)
        return ours

    table = ForwardTable(relay_to(connect))
    [spec] = parse("127.0.0.1:0:80,proxy=v1")
    forward = await table.expose(spec, nursery)
    address, port = forward.addresses[0]
    async with await trio.open_tcp_stream(address, port) as client:
        name = client.socket.getsockname()
        await client.send_all(b"hello")
        await client.send_eof()
        assert await client.receive_some() == b"bye"
    assert heard == [f"PROXY TCP4 127.0.0.1 127.0.0.1 {name[1]} {port}\r\nhello".encode()]
    nursery.cancel_scope.cancel()

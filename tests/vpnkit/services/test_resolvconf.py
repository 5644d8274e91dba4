from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.errors import ConfigError
from vpnkit.proto.dns_upstreams import Server
from vpnkit.services.followed import MAX_FILE
from vpnkit.services.resolvconf import HOST, ResolvConf, parse, parse_server

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "servers", "search"),
    [
        ("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n", ["127.0.0.53"], []),
        ("nameserver 10.0.0.1\nnameserver ::1\nsearch a.bc d.", ["10.0.0.1", "::1"], ["a.bc", "d"]),
        ("domain corp\nsearch x y\n", [], ["x", "y"]),
        ("  nameserver\t2001:DB8::1  # main\n; nameserver 1.1.1.1\n#nameserver 1.1.1.1\n", ["2001:db8::1"], []),
        ("nameserver fe80::1%eth0\n", ["fe80::1%eth0"], []),
        ("nameserver 10.0.0.1\nnameserver 10.0.0.1\n", ["10.0.0.1"], []),
        ("nameserver\nnameserver dns.example\nnameserver 1.2.3\nnameserver 224.0.0.1\nnameserverx 1.1.1.1", [], []),
        ("\0\xff\n\nnameserver 9.9.9.9\r\n", ["9.9.9.9"], []),
        ("".join(f"nameserver 10.0.0.{n}\n" for n in range(200)), [f"10.0.0.{n}" for n in range(8)], []),
        ("", [], []),
    ],
)  # fmt: skip
def test_parse(text: str, servers: list[str], search: list[str]) -> None:
    assert parse(text) == ([Server(server) for server in servers], search)


@given(st.text() | st.lists(st.text(), max_size=5).map(lambda words: "nameserver " + " ".join(words)))
def test_any_text(text: str) -> None:
    parse(text)


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("1.1.1.1", ("1.1.1.1", 53)),
        ("1.1.1.1#5353", ("1.1.1.1", 5353)),
        ("2606:4700::1111#53", ("2606:4700::1111", 53)),
        ("[::1]#5353", ("::1", 5353)),
        ("fe80::1%eth0", ("fe80::1%eth0", 53)),
    ],
)
def test_server(text: str, server: tuple[str, int]) -> None:
    assert parse_server(text) == Server(*server)


@pytest.mark.parametrize(
    "text",
    ["", "dns.example", "1.1.1.1:53", "1.1.1.1#", "1.1.1.1#0", "1.1.1.1#65536", "1.1.1.1#-1", "1.1.1.1#٣", "#53"],
)
def test_bad_server(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a DNS server"):
        parse_server(text)


@given(st.text(max_size=30))
def test_any_server(text: str) -> None:
    try:
        server = parse_server(text)
    except ConfigError:
        return
    assert 0 < server.port < 65536 or server == HOST


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_follows_the_file(tmp_path: Path) -> None:
    path, clock = tmp_path / "resolv.conf", Clock()
    conf = ResolvConf(str(path), clock)
    assert conf.servers() == []
    path.write_text("nameserver 10.0.0.1\nsearch a\n")
    assert conf.servers() == []  # looked less than a second ago
    clock.now += 1
    assert conf.servers() == [Server("10.0.0.1")]
    assert conf.search() == ["a"]
    for bad in (b"", b"# nothing\n", bytes(range(256))):
        path.write_bytes(bad)
        clock.now += 1
        assert conf.servers() == [Server("10.0.0.1")]
    path.unlink()
    clock.now += 1
    assert conf.servers() == [Server("10.0.0.1")]
    assert conf.reloads == 1
    replacement = tmp_path / "new"
    replacement.write_text("nameserver ::1\n")
    os.replace(replacement, path)
    clock.now += 1
    assert conf.servers() == [Server("::1")]
    clock.now += 1
    assert conf.servers() is conf.servers()
    assert conf.reloads == 2


def test_a_huge_file_is_read_in_part(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(b"nameserver 10.0.0.1\n" + b"#" * MAX_FILE + b"\nnameserver 10.0.0.2\n")
    assert ResolvConf(str(path)).servers() == [Server("10.0.0.1")]


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    assert ResolvConf(str(tmp_path)).servers() == []

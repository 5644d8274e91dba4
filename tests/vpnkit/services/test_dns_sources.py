"""Where servers come from; the formats are those of vpnkit.md 2.2, and 9.2's tests of its parser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.errors import ConfigError
from vpnkit.proto.dns_upstreams import Routes, Server
from vpnkit.services import dns_file
from vpnkit.services.dns_sources import Sources, parse_source, parse_zone
from vpnkit.services.hosts import Hosts
from vpnkit.services.hosts import parse as parse_hosts
from vpnkit.services.resolvconf import HOST, parse_server
from vpnkit.wire.dns import encode_name

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_two_nameservers_and_a_search_list() -> None:
    routes, search = dns_file.parse("nameserver 10.0.0.2\nnameserver 1.2.3.4#54\nsearch a b c")
    assert routes == Routes([Server("10.0.0.2"), Server("1.2.3.4", 54)], racing=True)
    assert search == ["a", "b", "c"]
    assert dns_file.parse("nameserver 10.0.0.2\nnameserver 1.2.3.4#54\nsearch a b c\n") == (routes, search)


def test_zone_timeout_order_and_comments() -> None:
    routes, search = dns_file.parse(
        """
        # a comment
        zone ignored.before.any.nameserver
        nameserver  10.0.0.2   # and one here
        zone corp.example lan
        timeout 2000
        nameserver fe80:0:0:0:0:0:0:1
        order 1
        assume-offline-after 5
        something else
        nameserver ::1#5353
        search first
        search second
        """
    )
    corp = Server("10.0.0.2", timeout=2.0)
    one, five = Server("fe80::1", order=1), Server("::1", 5353)
    assert routes == Routes([five, one], {encode_name("corp.example"): [corp], encode_name("lan"): [corp]}, racing=True)
    assert search == ["first"]


def test_servers_that_all_have_zones_are_asked_about_everything() -> None:
    routes, _ = dns_file.parse("nameserver 10.0.0.1\nzone a\nnameserver 10.0.0.2\nzone b\n")
    assert routes.default == (Server("10.0.0.1"), Server("10.0.0.2"))
    assert routes.servers(encode_name("x.b")) == (Server("10.0.0.2"),)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("nameserver 1.1.1.1\nnameserver dns.example", "line 2: 'dns.example' is not a DNS server"),
        ("nameserver 1.1.1.1\ntimeout soon", "line 2: 'soon' is not a number"),
        ("nameserver 1.1.1.1\norder -1", "line 2: '-1' is not a number"),
        ("nameserver 1.1.1.1\nzone a..b", "zone 'a..b'"),
        ("nameserver 1.1.1.1#99999", "line 1"),
        ("nameserver 1.1.1.1\n" * 65, "more than 64"),
    ],
)
def test_files_that_make_no_sense(text: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        dns_file.parse(text)


@given(st.text() | st.lists(st.sampled_from(["nameserver", "zone", "order", "1.1.1.1", "a.b", "#", "\n", "99"])))
def test_any_file(text: str | list[str]) -> None:
    try:
        routes, _ = dns_file.parse(text if isinstance(text, str) else " ".join(text))
    except ConfigError:
        return
    assert all(isinstance(server, Server) for server in routes.default)


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("tls:1.1.1.1", Server("1.1.1.1", 853, "tls")),
        ("tls:1.1.1.1#one.one.one.one", Server("1.1.1.1", 853, "tls", "one.one.one.one")),
        ("tls:1.1.1.1:8853#one.", Server("1.1.1.1", 8853, "tls", "one")),
        ("tls:2606:4700::1111#one", Server("2606:4700::1111", 853, "tls", "one")),
        ("tls:[2606:4700::1111]:8853", Server("2606:4700::1111", 8853, "tls")),
        ("tls:[::1]", Server("::1", 853, "tls")),
        ("host", HOST),
    ],
)
def test_servers(text: str, server: Server) -> None:
    assert parse_server(text) == parse_source(text) == server


@pytest.mark.parametrize(
    "text", ["tls:", "tls:dns.example", "tls:1.1.1.1:0", "tls:1.1.1.1:x", "tls:1.1.1.1#", "tls:1.1.1.1#a b", "tls:[::1"]
)
def test_no_servers_over_tls(text: str) -> None:
    if text == "tls:[::1":
        assert parse_server(text).address == "::1"
        return
    with pytest.raises(ConfigError, match="is not a DNS server"):
        parse_server(text)


def test_zones() -> None:
    assert parse_zone("Corp.Example=10.0.0.2,10.0.0.3#54") == (
        encode_name("corp.example"),
        (Server("10.0.0.2"), Server("10.0.0.3", 54)),
    )
    for wrong in ("corp", "=10.0.0.1", "corp=", "corp=x", "a..b=10.0.0.1", "corp=10.0.0.1,"):
        with pytest.raises(ConfigError, match=r"is not|not a domain name"):
            parse_zone(wrong)


def test_a_file_on_the_command_line(tmp_path: Path) -> None:
    good = tmp_path / "servers"
    good.write_text("nameserver 10.0.0.1\n")
    assert parse_source(str(good)) == good
    for text, wrong in (("search a\n", "no nameserver"), ("nameserver x\n", "line 1")):
        bad = tmp_path / "bad"
        bad.write_text(text)
        with pytest.raises(ConfigError, match=wrong):
            parse_source(str(bad))
    with pytest.raises(ConfigError, match="is not a file"):
        parse_source(str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="is not a DNS server"):
        parse_source("missing")


def test_a_file_is_followed(tmp_path: Path) -> None:
    """And one that makes no sense for a moment does not unlearn what the last good one said."""
    clock = Clock()
    path = tmp_path / "servers"
    path.write_text("nameserver 10.0.0.1\nsearch a.example\n")
    sources = Sources([Server("10.0.0.9"), path], {encode_name("z"): [Server("10.0.0.8")]}, clock=clock)
    assert sources.routes().default == (Server("10.0.0.9"), Server("10.0.0.1"))
    assert sources.search() == ["a.example"]
    for text in ("nameserver nonsense\n", "", "search b\n"):
        path.write_text(text)
        clock.now += 1
        assert sources.routes().default == (Server("10.0.0.9"), Server("10.0.0.1"))
    assert sources.problems == 1
    (tmp_path / "new").write_text("nameserver 10.0.0.2\nzone corp\nnameserver 10.0.0.3\n")
    (tmp_path / "new").rename(path)
    clock.now += 1
    assert sources.routes().default == (Server("10.0.0.9"), Server("10.0.0.3"))
    assert sources.routes().servers(encode_name("x.corp")) == (Server("10.0.0.2"),)
    assert sources.routes().servers(encode_name("x.z")) == (Server("10.0.0.8"),)
    assert sources.search() == []


def test_resolv_conf_unless_something_is_said(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 10.0.0.1\nnameserver [10.0.0.2]:54\n")
    clock = Clock()
    sources = Sources(resolv_conf=str(path), clock=clock)
    assert sources.routes() == Routes([Server("10.0.0.1"), Server("10.0.0.2", 54)])
    assert sources.routes() is sources.routes()
    other = Sources([("10.0.0.7", 53)], resolv_conf=str(path), clock=clock)
    assert other.routes() == Routes([Server("10.0.0.7")])


def test_hosts_windows_style_and_mac_style() -> None:
    """9.1: comments, tabs, several names on a line, ::1, 255.255.255.255."""
    windows = "# comment\r\n102.54.94.97\trhino.acme.com  # source\r\n\r\n::1 localhost\r\n127.0.0.1 localhost\r\n"
    assert [(name, len(address)) for name, address in parse_hosts(windows)] == [
        ("rhino.acme.com", 4),
        ("localhost", 16),
        ("localhost", 4),
    ]
    mac = "127.0.0.1\tlocalhost\n255.255.255.255\tbroadcasthost\n::1 localhost a b\nfe80::1%lo0 localhost\nx y\n"
    assert [name for name, _ in parse_hosts(mac)] == ["localhost", "broadcasthost", "localhost", "a", "b", "localhost"]


def test_hosts_files_are_followed(tmp_path: Path) -> None:
    clock = Clock()
    paths = [tmp_path / "one", tmp_path / "two"]
    hosts = Hosts([str(path) for path in paths], clock)
    assert not hosts.look()
    paths[1].write_text("10.0.0.1 a b..c\n")
    clock.now += 1
    assert hosts.look()
    assert hosts.skipped == 1
    clock.now += 1
    assert not hosts.look()
    paths[0].write_text("\0\xff 10.0.0.2\n10.0.0.3 " + "x" * 300 + "\n")
    clock.now += 1
    assert hosts.look()
    assert hosts.skipped == 2

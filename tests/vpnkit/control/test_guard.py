"""Who may ask: names that point at us from outside, pages, tokens; and the token's file."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.vpnkit.control.asking import asker
from tests.vpnkit.control.reporter import FixedOperator
from vpnkit.control.guard import GuestGuard, TokenGuard, host_of
from vpnkit.control.instance import instance_router
from vpnkit.control.token import TcpControl, parse_address, read_token
from vpnkit.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from vpnkit.control.routes import Router

TOKEN = "abcdefghijklmnop"
GUARD = TokenGuard(TOKEN, ["box.example"])
BEARER = {"Authorization": f"Bearer {TOKEN}"}
EXPOSE = {"spec": "9090:90"}


@pytest.fixture
def router() -> Router:
    return instance_router(FixedOperator())


@pytest.mark.parametrize(
    ("authority", "welcome"),
    [
        ("127.0.0.1:6060", True),
        ("127.0.0.1", True),
        ("[::1]:6060", True),
        ("192.0.2.1:1", True),
        ("localhost", True),
        ("LocalHost.:6060", True),
        ("box.example:6060", True),
        ("evil.example", False),
        ("evil.example:6060", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1:6060@evil.example", False),
        ("127.0.0.1:x", False),
        ("0x7f000001", False),
        ("2130706433", False),
        ("[::1", False),
        ("[127.0.0.1]", False),
        ("", False),
    ],
)
async def test_rebind_host_header_matrix(router: Router, authority: str, welcome: bool) -> None:
    async with asker(router, GUARD, authority=authority) as ask:
        answer = await ask("GET", "/v1/status", **BEARER)
    assert answer.status == (200 if welcome else 421)
    if not welcome:
        assert answer.error() == "misdirected"


async def test_the_target_counts_before_the_host(router: Router) -> None:
    """RFC 9112 section 3.2.2."""
    async with asker(router, GUARD, authority="127.0.0.1") as ask:
        assert (await ask("GET", "http://127.0.0.1:1/v1/status", **BEARER)).status == 200
        assert (await ask("GET", "http://evil.example/v1/status", **BEARER)).status == 421
    async with asker(router, GUARD, authority="evil.example") as ask:
        assert (await ask("GET", "@127.0.0.1/v1/status", **BEARER)).status == 421


@pytest.mark.parametrize("origin", ["null", "http://evil.example", "http://127.0.0.1:6060", ""])
async def test_pages_are_refused_whatever_they_know(router: Router, origin: str) -> None:
    async with asker(router, GUARD, authority="127.0.0.1") as ask:
        answer = await ask("GET", "/v1/status", Origin=origin, **BEARER)
    assert (answer.status, answer.error()) == (403, "foreign_origin")


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN.upper()}",
        f"{TOKEN}",
        "Bearer \xe9",
    ],
)
async def test_without_the_token_there_is_nothing_to_see(router: Router, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    async with asker(router, GUARD, authority="127.0.0.1") as ask:
        for method, target in (("GET", "/v1/status"), ("GET", "/nothing"), ("POST", "/v1/forwards")):
            answer = await ask(method, target, EXPOSE if method == "POST" else None, **headers)
            assert (answer.status, answer.error()) == (401, "unauthorized")
            assert answer.header("www-authenticate") == 'Bearer realm="vpnkit"'
            assert answer.header("connection") == "close"


async def test_with_it_there_is_everything(router: Router) -> None:
    async with asker(router, GUARD, authority="127.0.0.1") as ask:
        assert (await ask("GET", "/v1/status", Authorization=f"bearer  {TOKEN}")).status == 200
        assert (await ask("POST", "/v1/forwards", EXPOSE, **BEARER)).status == 201
        assert (await ask("DELETE", "/v1/forwards?spec=9090:90", **BEARER)).status == 200


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_what_a_form_can_send_changes_nothing(router: Router, content_type: str) -> None:
    body = b'{"local":":1","remote":"192.168.65.3:1","spec":"1:1"}'
    async with asker(router, GUARD, authority="127.0.0.1") as ask:
        for path in ("/v1/forwards", "/services/forwarder/expose", "/forwards/expose/port"):
            answer = await ask("POST", path, body, content_type=content_type, **BEARER)
            assert (answer.status, answer.error()) == (415, "unsupported_media_type")
        answer = await ask(
            "POST", "/services/forwarder/expose", body, content_type="Application/JSON; charset=utf-8", **BEARER
        )
        assert answer.status == 200


async def test_guests_come_by_our_names_and_addresses_only(router: Router) -> None:
    guard = GuestGuard(["gateway.containers.internal"])
    for authority, status in (("192.168.65.1", 200), ("gateway.containers.internal", 200), ("evil.example", 421)):
        async with asker(router, guard, authority=authority) as ask:
            assert (await ask("GET", "/services/forwarder/all")).status == status
            assert (await ask("GET", "/services/forwarder/all", Origin="http://evil.example")).status == 403


def test_hosts() -> None:
    assert host_of("a.b:1") == "a.b"
    assert host_of("a.b:") == "a.b"
    assert host_of("[fe80::1]") == "fe80::1"
    assert host_of("a:b:c") == ""


# The token


def test_a_token_is_made_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = read_token(path)
    assert len(token) >= 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_token(path) == token
    assert read_token(tmp_path / "other") != token
    assert token not in repr(TcpControl("127.0.0.1", 1, token))


@pytest.mark.parametrize("text", ["", "short", "x" * 1025, "two words of a token", "tokentokentoken\xe9", "a\nb" * 20])
def test_what_is_no_token(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"--control-token-file .*/token "):
        read_token(path)


def test_a_token_that_others_can_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="has mode 0640; others can read it: chmod 0600"):
        read_token(path)
    path.chmod(0o600)
    assert read_token(path) == TOKEN


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a file"):
        read_token(tmp_path)
    with pytest.raises(ConfigError, match="cannot be made"):
        read_token(tmp_path / "no" / "token")
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(ConfigError, match="is not a file"):
        read_token(tmp_path / "fifo")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:6060", ("127.0.0.1", 6060)),
        ("localhost:0", ("127.0.0.1", 0)),
        ("[::1]:6060", ("::1", 6060)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("", None),
        (":6060", None),
        ("6060", None),
        ("::1:6060", None),
        ("[127.0.0.1]:6060", None),
        ("host.example:6060", None),
        ("127.0.0.1:65536", None),
        ("127.0.0.1:+1", None),
        ("127.0.0.1:", None),
    ],
)
def test_addresses(text: str, expected: tuple[str, int] | None) -> None:
    if expected is not None:
        assert parse_address(text) == expected
    else:
        with pytest.raises(ValueError, match=r"is not ADDR:PORT like 127\.0\.0\.1:6060"):
            parse_address(text)

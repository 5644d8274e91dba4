"""--http-proxy: a file, or a proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vpnkit.cli.options import http_proxy
from vpnkit.errors import ConfigError
from vpnkit.proto.http_proxy import ProxyConfig, Upstream

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://proxy.example:3128", Upstream("http", "proxy.example", 3128)),
        ("proxy.example:3128", Upstream("http", "proxy.example", 3128)),
        ("socks5://u:p@10.0.0.1:1080", Upstream("socks5", "10.0.0.1", 1080, b"u", b"p")),
    ],
)
def test_a_proxy_is_for_everything(text: str, expected: Upstream) -> None:
    config = http_proxy(text)
    assert isinstance(config, ProxyConfig)
    assert config.http == config.https == expected
    assert config.intercepts(80) == "http"
    assert config.intercepts(443) == "https"


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "http.json"
    path.write_text("{}")
    assert http_proxy(str(path)) == path


@pytest.mark.parametrize("text", ["/there/is/no.json", "no.json", "", "http://proxy.example", "ftp://p:1", "p:99999"])
def test_what_is_neither(text: str) -> None:
    with pytest.raises((ValueError, ConfigError)):
        http_proxy(text)

"""The proxy's configuration: given, followed, replaced."""

from __future__ import annotations

import os

import pytest

from vpnkit.errors import ConfigError
from vpnkit.proto.http_proxy import from_url, parse_config
from vpnkit.services.http_proxy.service import HttpProxyService


@pytest.fixture
def followed(tmp_path):
    """A service, its file, and a function that lets time pass."""
    now = [0.0]
    path = tmp_path / "http.json"
    path.write_text('{"http": "first.example:1"}')
    service = HttpProxyService(file=path, clock=lambda: now[0])

    def later():
        now[0] += 2

    return service, path, later


def test_a_file_is_followed(followed):
    service, path, later = followed
    assert service.config().http.host == "first.example"
    path.write_text('{"http": "second.example:1", "transparent_http_ports": [8080]}')
    later()
    assert service.config().http.host == "second.example"
    assert (service.intercepts(80), service.intercepts(8080)) == (False, True)


def test_a_file_that_is_replaced_by_another(followed, tmp_path):
    service, path, later = followed
    (tmp_path / "new").write_text('{"http": "second.example:1"}')
    os.replace(tmp_path / "new", path)
    later()
    assert service.config().http.host == "second.example"


@pytest.mark.parametrize("text", ["", "{", '{"http": 5}', '{"http": "nowhere"}', '{"http": "gateway.example:1"}'])
def test_a_bad_file_keeps_what_was_and_says_why(followed, text, caplog):
    service, path, later = followed

    def check(config):
        if config.http.host == "gateway.example":
            raise ConfigError("that is me")

    service._check = check
    path.write_text(text)
    later()
    assert service.config().http.host == "first.example"
    assert len(caplog.records) == 1
    assert "still holds" in caplog.text
    later()
    assert len([service.config() for _ in range(3)]) == 3
    assert len(caplog.records) == 1


def test_a_file_that_vanishes_and_comes_back(followed):
    service, path, later = followed
    path.unlink()
    later()
    assert service.config() is None
    assert not service.intercepts(80)
    path.write_text('{"https": "second.example:1"}')
    later()
    assert service.config().https.host == "second.example"


def test_it_has_to_be_right_at_the_start(tmp_path):
    for text in (None, "{", "x" * (2 << 20)):
        path = tmp_path / "http.json"
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigError, match="--http-proxy"):
            HttpProxyService(file=path)


def test_replaced():
    service = HttpProxyService(from_url("http://a.example:1"))
    service.replace(parse_config(b"{}"))
    assert service.config() == parse_config(b"{}")
    service.replace(None)
    assert service.config() is None

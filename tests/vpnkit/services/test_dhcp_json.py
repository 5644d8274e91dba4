from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.errors import ConfigError
from vpnkit.services.dhcp_json import CHECK_SECONDS, DhcpJson, DhcpSettings, parse


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float = CHECK_SECONDS) -> None:
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def write(path, text: str, mtime: int) -> None:
    path.write_text(text)
    os.utime(path, (mtime, mtime))


@pytest.mark.parametrize(
    ("text", "domain", "search"),
    [
        ("{}", "", ()),
        ('{"searchDomains": ["a.com", "b.com"], "domainName": "example.com"}', "example.com", ("a.com", "b.com")),
        ('{"domainName": "example.com", "other": [1, {}]}', "example.com", ()),
        ('{\n  "searchDomains": []\n}\n', "", ()),
    ],
)
def test_what_a_file_says(text, domain, search):
    assert parse(text.encode()) == DhcpSettings(domain, search)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'{"domainName": 7}',
        b'{"searchDomains": "a.com"}',
        b'{"searchDomains": ["a..com"]}',
        b'{"domainName": "' + b"x" * 64 + b'"}',
        b'{"domainName": "\xff"}',
        b'{"searchDomains": [' + b",".join(b'"a"' for _ in range(33)) + b"]}",
        b"{}" + b" " * 70_000,
    ],
)
def test_broken(raw):
    with pytest.raises(ConfigError):
        parse(raw)


@given(st.binary(max_size=100))
def test_any_octets(raw):
    try:
        parse(raw)
    except ConfigError:
        pass


def test_it_is_followed(tmp_path, clock):
    path = tmp_path / "dhcp.json"
    write(path, '{"domainName": "one.example"}', 1)
    file = DhcpJson(path, clock)
    assert file.settings().domain_name == "one.example"
    write(path, '{"domainName": "two.example"}', 2)
    assert file.settings().domain_name == "one.example"  # not looked at so soon
    clock.passes()
    assert file.settings().domain_name == "two.example"
    new = tmp_path / "new"
    write(new, '{"domainName": "3hr.example"}', 2)
    new.rename(path)  # as editors do
    clock.passes()
    assert file.settings().domain_name == "3hr.example"


def test_one_that_has_gone_says_nothing_and_may_come_back(tmp_path, clock, caplog):
    path = tmp_path / "dhcp.json"
    write(path, '{"domainName": "one.example"}', 1)
    file = DhcpJson(path, clock)
    path.unlink()
    for _ in range(3):
        clock.passes()
        assert file.settings() == DhcpSettings()
    assert len(caplog.records) == 1
    write(path, '{"domainName": "one.example"}', 1)
    clock.passes()
    assert file.settings().domain_name == "one.example"


def test_a_broken_one_leaves_what_was(tmp_path, clock, caplog):
    path = tmp_path / "dhcp.json"
    write(path, '{"domainName": "one.example"}', 1)
    file = DhcpJson(path, clock)
    write(path, '{"domainName": ', 2)
    for _ in range(3):
        clock.passes()
        assert file.settings().domain_name == "one.example"
    assert len(caplog.records) == 1


@pytest.mark.parametrize("text", [None, "{"])
def test_at_the_start_it_must_be_there_and_right(tmp_path, text):
    path = tmp_path / "dhcp.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)):
        DhcpJson(path)

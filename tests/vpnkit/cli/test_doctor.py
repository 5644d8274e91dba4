from __future__ import annotations

import errno
import json
import os
import resource
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from vpnkit.cli import checks, main
from vpnkit.cli.checks import Check

if TYPE_CHECKING:
    from collections.abc import Callable

linux = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")


@linux
def test_every_fact_says_how_to_mend_what_is_not_well() -> None:
    found = list(checks.checks())
    assert len(found) == len(checks.ALL)
    for check in found:
        assert check.detail
        assert check.state == "OK" or check.mend, check
        assert "cannot tell" not in check.detail, check


def only(monkeypatch: pytest.MonkeyPatch, *found: Check) -> None:
    functions: list[Callable[[], Check]] = [lambda check=check: check for check in found]
    monkeypatch.setattr(checks, "ALL", tuple(functions))


def test_the_status_is_what_run_needs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    only(monkeypatch, Check("a", "OK", "fine", needed=True), Check("b", "missing", "gone", "fetch it"))
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "OK       a                 fine",
        "missing  b                 gone",
        "                           -> fetch it",
    ]
    only(monkeypatch, Check("a", "missing", "gone", needed=True))
    assert main(["doctor"]) == 1


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    only(monkeypatch, Check("a", "warn", "odd", "mend it"))
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"name": "a", "state": "warn", "detail": "odd", "mend": "mend it", "needed": False}
    ]


def test_a_check_that_fails_is_a_fact_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Check:
        raise RuntimeError("oops")

    monkeypatch.setattr(checks, "ALL", (broken,))
    assert list(checks.checks()) == [Check("broken", "warn", "cannot tell: RuntimeError: oops")]


@pytest.mark.parametrize(("number", "words"), [(errno.ENOENT, "modprobe tun"), (errno.EACCES, "chmod 0666")])
def test_without_the_tun_device(monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    def denied(path: str, _flags: int) -> int:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", denied)
    check = checks.tun_device()
    assert (check.state, check.needed) == ("missing", True)
    assert words in check.mend


def test_without_user_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_unshare_user", lambda: errno.EPERM)
    check = checks.user_namespaces()
    assert (check.state, check.detail) == ("warn", "Operation not permitted")
    assert "apparmor" in check.mend


def test_a_child_that_fails_is_an_error_and_not_a_second_process() -> None:
    def broken() -> int:
        raise RuntimeError

    assert checks._in_child(broken) == errno.EIO


@linux
def test_a_guest_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from tapdev import netns

    def refuse(*_: object) -> None:
        raise netns.NamespaceError("cannot make a user namespace: denied; run as root")

    monkeypatch.setattr(netns, "spawn", refuse)
    check = checks.guest()
    assert (check.state, check.needed) == ("missing", True)
    assert (check.detail, check.mend) == ("cannot make a user namespace: denied", "run as root")


class NoSocket(socket.socket):
    def __init__(self, *_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")


def test_without_ping_or_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", NoSocket)
    ping, ipv6 = checks.ping(), checks.ipv6()
    assert ping.state == ipv6.state == "warn"
    assert f"gid {os.getegid()}" in ping.detail
    assert "ping_group_range" in ping.mend


@pytest.mark.parametrize(("world", "state"), [(True, "OK"), (False, "warn")])
def test_a_way_into_the_ipv6_world(monkeypatch: pytest.MonkeyPatch, world: bool, state: str) -> None:
    monkeypatch.setattr(checks, "has_ipv6", lambda: world)
    monkeypatch.setattr(socket.socket, "bind", lambda *_: None)
    assert checks.ipv6().state == state


@pytest.mark.parametrize(
    ("limit", "state"), [(1024, "warn"), (4096, "OK"), (resource.RLIM_INFINITY, "OK")], ids=["few", "enough", "all"]
)
def test_descriptors(monkeypatch: pytest.MonkeyPatch, limit: int, state: str) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, limit))
    assert checks.descriptors().state == state


@pytest.mark.parametrize(("release", "state"), [("4.19.0-9", "missing"), ("5.3.0", "OK"), ("6.18.44-fc", "OK")])
def test_kernels(monkeypatch: pytest.MonkeyPatch, release: str, state: str) -> None:
    monkeypatch.setattr("platform.release", lambda: release)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr(sys, "platform", "linux")
    assert checks.kernel().state == state


def test_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LIBRARIES", ("trio", "no-such-library"))
    check = checks.libraries()
    assert (check.state, check.mend) == ("missing", "pip install no-such-library")

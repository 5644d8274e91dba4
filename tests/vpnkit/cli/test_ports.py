"""`expose` and `unexpose` against a control socket."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio

from portfwd.spec import Spec
from tests.vpnkit.control.reporter import FixedOperator
from vpnkit.cli import main
from vpnkit.cli.ports import show
from vpnkit.control.api import serve_control
from vpnkit.control.instance import instance_router
from vpnkit.control.paths import socket_path
from vpnkit.net.report import ForwardReport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> AsyncIterator[FixedOperator]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    made = FixedOperator()
    await nursery.start(serve_control, socket_path("default"), instance_router(made))
    yield made
    nursery.cancel_scope.cancel()


async def run(*argv: str) -> int:
    return await trio.to_thread.run_sync(main, argv)


async def test_there_and_gone(operator: FixedOperator, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("expose", "9090:90", "9000-9001:80-81,proxy=v2") == 0
    assert capsys.readouterr().out == "9090:90\n9000:80,proxy=v2\n9001:81,proxy=v2\n"
    assert await run("unexpose", "9090:90", "8080:80") == 0
    assert capsys.readouterr().out == "9090:90\n8080:80\n"
    assert [spec.host_port for spec in operator.specs] == [9000, 9001]
    assert operator.reset == []
    assert await run("unexpose", "--close", "9000:80,proxy=v2") == 0
    assert [spec.host_port for spec in operator.reset] == [9000]


async def test_json(operator: FixedOperator, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("expose", "--json", "9090:90") == 0
    [report] = json.loads(capsys.readouterr().out)
    assert (report["spec"], report["host_port"], report["guest_port"]) == ("9090:90", 9090, 90)


@pytest.mark.parametrize("command", ["expose", "unexpose"])
async def test_a_wrong_spec_asks_nobody(
    operator: FixedOperator, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(command, "9090:90", "80:90:x") == 2
    captured = capsys.readouterr()
    assert "forward '80:90:x': '90' is not an IP address" in captured.err
    assert captured.err.count("\n") == 1
    assert operator.specs == [Spec(8080, 80)]


async def test_what_the_instance_refuses(operator: FixedOperator, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("expose", "8080:81") == 1
    assert "says: " in capsys.readouterr().err
    assert await run("unexpose", "9:9") == 1
    assert "9:9 is not forwarded" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["expose", "unexpose"])
async def test_nobody_to_tell(operator: FixedOperator, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(command, "--name", "other", "9:9") == 1
    assert "no instance 'other' is running" in capsys.readouterr().err
    assert await run(command) == 2


def test_what_has_no_port() -> None:
    common = {"host_address": "", "host_port": 0, "guest_address": None, "connections": 1, "accepted": 5, "spec": "s"}
    reports = [
        ForwardReport(protocol="unix", guest_port=80, host_path="/run/a.sock", **common),
        ForwardReport(protocol="unix", guest_port=0, host_path="/run/b.sock", guest_path="/run/g.sock", **common),
        ForwardReport(
            protocol="udp",
            guest_port=53,
            **{**common, "host_address": "::1", "host_port": 53, "guest_address": "fd65::3"},
        ),
        ForwardReport(protocol="tcp", guest_port=1024, guest_cid=3, **{**common, "host_address": "127.0.0.1"}),
    ]
    assert show(reports).splitlines() == [
        "PROTO  HOST         GUEST             OPEN  ACCEPTED  FAILED  REFUSED  FORWARD",
        "unix   /run/a.sock  first:80          1     5         0       0        s",
        "unix   /run/b.sock  unix:/run/g.sock  1     5         0       0        s",
        "udp    [::1]:53     [fd65::3]:53      1     5         0       0        s",
        "tcp    127.0.0.1:0  vsock:3:1024      1     5         0       0        s",
    ]

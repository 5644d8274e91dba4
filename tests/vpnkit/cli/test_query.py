"""`status`, `guests`, `flows`, `leases` and `ports` against a control socket."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from tests.vpnkit.control.reporter import FixedOperator
from vpnkit.cli import guests, main, status, text
from vpnkit.control.api import serve_control
from vpnkit.control.instance import instance_router
from vpnkit.control.paths import make_runtime_directory, socket_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
async def instance(runtime: Path, nursery: trio.Nursery) -> AsyncIterator[Path]:
    path: Path = await nursery.start(serve_control, socket_path("default"), instance_router(FixedOperator()))
    yield path
    nursery.cancel_scope.cancel()


async def run(*argv: str) -> int:
    return await trio.to_thread.run_sync(main, argv)


EXPECTED = {
    "status": [
        "name           default, pid 4711, vpnkit 0.1.0, up 1h02m",
        "network        192.168.65.0/24, gateway 192.168.65.1, host 192.168.65.2, mtu 65520",
        "dns            192.0.2.53#53, 2001:db8::53#53",
        "guests         1",
        "flows          tcp 2, udp 1, icmp 0",
        "to host        120.6 KiB in 1200 frames",
        "to guest       94.2 MiB in 3400 frames",
        "refused_flows  3",
        "warning        the kernel has no UDP segmentation offload",
    ],
    "guests": [
        "ID  LINK    MAC                IP                              MTU    OFFLOADS       TO HOST    TO GUEST",
        "1   netns:  02:50:00:00:00:01  192.168.65.3,fd65:7670:6e6b::3  65520  checksum,tso4  120.6 KiB  94.2 MiB",
    ],
    "flows": [
        "ID  PROTO  DIR  GUEST               REMOTE          HOST            STATE        TO HOST  TO GUEST  AGE  IDLE"
        "  RTT      RETRANS",
        "7   tcp    out  192.168.65.3:51000  192.0.2.80:443  192.0.2.80:443  ESTABLISHED  517 B    1.0 MiB   12s  0s  "
        "  0.09 ms  0",
    ],
    "ports": [
        "PROTO  HOST            GUEST     OPEN  ACCEPTED  FAILED  REFUSED  FORWARD",
        "tcp    127.0.0.1:8080  first:80  0     0         0       0        8080:80",
    ],
    "leases": [
        "IP            MAC                HOST NAME  CLIENT ID       EXPIRES  STATE",
        "192.168.65.3  02:50:00:00:00:01  guest      01025000000001  never    bound",
    ],
}


@pytest.mark.parametrize("command", EXPECTED)
async def test_tables(instance: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(command) == 0
    assert capsys.readouterr().out.splitlines() == EXPECTED[command]


@pytest.mark.parametrize("command", EXPECTED)
async def test_json_is_the_answer_itself(instance: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(command, "--json", "--control", str(instance)) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    report = json.loads(out)
    assert report["pid"] == 4711 if command == "status" else len(report) == 1


async def test_another_name_lists_those_that_run(instance: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("status", "--name", "other") == 1
    err = capsys.readouterr().err
    assert err == f"vpnkit: no instance 'other' is running ({instance.parent}/other.sock); running: default\n"


def test_none_is_running(runtime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_runtime_directory()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path("default")))
    assert main(["flows"]) == 1
    err = capsys.readouterr().err
    assert "no instance 'default' is running" in err
    assert err.endswith("none is; `vpnkit run CMD` starts one\n")


async def test_an_answer_of_another_version(
    instance: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vpnkit.control.client.get", lambda *_: b'{"name":1}')
    assert await run("status") == 1
    assert "this version does not understand" in capsys.readouterr().err


def test_ipv6_while_it_is_offered() -> None:
    report = FixedOperator().status()
    assert "ipv6 " not in status.show(report)
    told = msgspec.structs.replace(report, prefix6="fd65:7670:6e6b::/64", gateway6="fd65:7670:6e6b::1")
    assert "ipv6           fd65:7670:6e6b::/64, gateway fd65:7670:6e6b::1, no host alias\n" in status.show(told)
    told = msgspec.structs.replace(told, host6="fd65:7670:6e6b::2")
    assert ", gateway fd65:7670:6e6b::1, host fd65:7670:6e6b::2\n" in status.show(told)


@pytest.mark.parametrize(
    ("addresses", "shown"),
    [
        (["fe80::1", "fd65:7670:6e6b::3", "fd65:7670:6e6b::4"], "fd65:7670:6e6b::3"),
        (["fe80::1"], "fe80::1"),
        (["fe80::1", "192.168.65.3"], "192.168.65.3"),
        ([], "-"),
    ],
)
def test_addresses_of_a_guest(addresses: list[str], shown: str) -> None:
    [report] = FixedOperator().guests()
    ip = next((address for address in addresses if "." in address), None)
    report = msgspec.structs.replace(report, ip=ip, addresses=addresses)
    assert guests.show([report]).splitlines()[1].split()[3] == shown


def test_what_a_guest_chose_cannot_move_the_cursor() -> None:
    shown = text.table(["host name"], [["\x1b[2Jevil\r\n\u202e"], [""], ["naïve"]])
    assert shown.splitlines() == ["HOST NAME", "?[2Jevil???", "-", "naïve"]


@pytest.mark.parametrize(
    ("octets", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (2 << 50, "2048.0 TiB")],
)
def test_sizes(octets: int, expected: str) -> None:
    assert text.size(octets) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0s"), (59.9, "59s"), (60, "1m00s"), (3725.5, "1h02m"), (86400 * 3 + 4 * 3600, "3d04h")],
)
def test_durations(seconds: float, expected: str) -> None:
    assert text.duration(seconds) == expected

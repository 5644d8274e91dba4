from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from tests.vpnkit.control.reporter import FixedOperator
from vpnkit.control import client
from vpnkit.control.api import serve_control
from vpnkit.control.client import NotRunning
from vpnkit.control.gradually import gradually
from vpnkit.control.instance import instance_router
from vpnkit.control.paths import ControlError
from vpnkit.net.report import FlowReport, ForwardReport, GuestReport, LeaseReport, StatusReport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def operator() -> FixedOperator:
    return FixedOperator()


@pytest.fixture
async def control(tmp_path: Path, operator: FixedOperator, nursery: trio.Nursery) -> AsyncIterator[Path]:
    path: Path = await nursery.start(serve_control, tmp_path / "x.sock", instance_router(operator))
    yield path
    nursery.cancel_scope.cancel()


async def ask(path: Path, target: str) -> bytes:
    return await trio.to_thread.run_sync(client.get, path, target)


async def test_every_report_arrives_as_it_was(control: Path, operator: FixedOperator) -> None:
    decode = msgspec.json.decode
    assert decode(await ask(control, "/v1/status"), type=StatusReport) == operator.status()
    assert decode(await ask(control, "/v1/guests"), type=list[GuestReport]) == operator.guests()
    assert decode(await ask(control, "/v1/flows"), type=list[FlowReport]) == operator.flows()
    assert decode(await ask(control, "/v1/leases"), type=list[LeaseReport]) == operator.leases()
    assert decode(await ask(control, "/v1/forwards"), type=list[ForwardReport]) == operator.forwards()


async def test_the_names_of_the_fields_are_the_interface(control: Path) -> None:
    flow = json.loads(await ask(control, "/v1/flows"))[0]
    assert {"guest", "remote", "host", "rtt_us", "bytes_to_guest"} < set(flow)
    assert json.loads(await ask(control, "/v1/leases"))[0]["expires_in_seconds"] is None


async def test_what_the_instance_says_is_the_error(control: Path) -> None:
    with pytest.raises(ControlError, match="says: there is nothing at /v1/nothing"):
        await ask(control, "/v1/nothing")


async def test_the_path_is_gone_with_the_server(tmp_path: Path, operator: FixedOperator) -> None:
    async with trio.open_nursery() as nursery:
        path = await nursery.start(serve_control, tmp_path / "x.sock", instance_router(operator))
        assert path.exists()
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_a_taken_path_fails_before_started(control: Path, operator: FixedOperator) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ControlError, match="already served by process")):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, control, instance_router(operator))


def test_nobody_there(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with pytest.raises(NotRunning, match=re.escape(str(path))):
        client.get(path, "/v1/status")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NotRunning):
        client.get(path, "/v1/status")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "broke off: .*"),
        (b"SSH-2.0-OpenSSH\r\n", "broke off: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", "broke off: "),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 3\r\n\r\n\xff{}", "says: HTTP status 500"),
        (b'HTTP/1.1 503 Busy\r\n\r\n{"error":{"code":"c","message":"too many"}}', "says: too many"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "says: HTTP status 204"),
    ],
)
async def test_strange_servers(tmp_path: Path, nursery: trio.Nursery, answer: bytes, message: str) -> None:
    path = tmp_path / "x.sock"
    with trio.socket.socket(trio.socket.AF_UNIX) as server:
        await server.bind(str(path))
        server.listen()

        async def serve() -> None:
            connection, _ = await server.accept()
            with connection:
                await connection.recv(4096)
                await connection.send(answer) if answer else None

        nursery.start_soon(serve)
        with pytest.raises(ControlError, match=message):
            await ask(path, "/v1/status")


async def test_a_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.02)
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(ControlError, match="does not answer"):
            await ask(path, "/v1/status")


async def test_a_long_table_lets_others_run() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        assert await gradually(iter(range(10_000))) == list(range(10_000))
        nursery.cancel_scope.cancel()
    assert turns >= 50

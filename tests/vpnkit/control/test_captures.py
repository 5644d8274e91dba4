"""`/v1/captures`, over the connection that is behind every listener."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import jsonschema
import pytest
import trio
import trio.testing
from openapi_spec_validator import validate

from pcap.reader import read
from pcap.ring import Direction
from tests.pcap.frames import FRAMES
from tests.vpnkit.control.asking import asker
from tests.vpnkit.control.reporter import FixedOperator
from vpnkit.control.captures import capture_routes
from vpnkit.control.client import request, stream
from vpnkit.control.http import serve_http
from vpnkit.control.instance import instance_router
from vpnkit.control.listen import listening
from vpnkit.control.openapi import document
from vpnkit.control.paths import ControlError
from vpnkit.control.routes import Router
from vpnkit.net.captures import Captures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def captures() -> Captures:
    made = Captures()
    feed(made)
    return made


def feed(made: Captures) -> None:
    tap = made.capture.tap("memory")
    for frame in FRAMES.values():
        tap((frame,), Direction.IN, 0, 0, False)


@asynccontextmanager
async def asking(captures: Captures | None) -> AsyncIterator:
    async with asker(Router(capture_routes(captures))) as ask:
        yield ask


async def test_the_list(captures: Captures) -> None:
    async with asking(captures) as ask:
        answer = await ask("GET", "/v1/captures")
    rings = {report["name"]: report for report in json.loads(answer.body)}
    assert rings["dns.pcap"] | {"bytes": 0} == {
        "name": "dns.pcap", "filter": "udp(port=53) | tcp(port=53)", "snaplen": 1500, "ring": 262144,
        "direction": "both", "private": False, "packets": 5, "bytes": 0, "seen": 5, "dropped": 0,
    }  # fmt: skip


async def test_a_file(captures: Captures) -> None:
    async with asking(captures) as ask:
        answer = await ask("GET", "/v1/captures/dns")
        classic = await ask("GET", "/v1/captures/dns.pcap?format=pcap")
        nothing = await ask("HEAD", "/v1/captures/dns")
    assert (answer.status, answer.header("content-type")) == (200, "application/x-pcapng")
    assert [packet.data for packet, _ in read(answer.body)] == [packet.data for packet in captures.ring("dns")]
    assert (classic.body[:4], classic.header("content-type")) == (b"\xd4\xc3\xb2\xa1", "application/vnd.tcpdump.pcap")
    assert nothing.body == b""
    assert [(line.action, line.rule, line.packets) for line in captures.audit()] == [
        ("read", "dns.pcap", 5), ("read", "dns.pcap", 5),
    ]  # fmt: skip


async def test_rules_come_and_go(captures: Captures) -> None:
    wanted = {"name": "web", "filter": "tcp port 80", "snaplen": 60, "ring": 5000, "direction": "in", "private": True}
    async with asking(captures) as ask:
        made = await ask("POST", "/v1/captures", wanted)
        again = await ask("POST", "/v1/captures", wanted)
        feed(captures)
        answer = await ask("GET", "/v1/captures/web")
        gone = await ask("DELETE", "/v1/captures/web")
        missing = await ask("DELETE", "/v1/captures/web")
    assert (made.status, json.loads(made.body)["filter"]) == (201, "tcp port 80")
    assert (again.status, again.error()) == (409, "cannot_capture")
    assert [packet.data for packet, _ in read(answer.body)] == [FRAMES["syn"], FRAMES["tcp data"][:54]]
    assert (gone.status, json.loads(gone.body)["packets"]) == (200, 2)
    assert (missing.status, missing.error()) == (404, "no_capture")
    assert [line.action for line in captures.audit()] == ["add", "read", "remove"]


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "code"),
    [
        ("POST", "/v1/captures", {"name": "x", "filter": "tcp prot 80"}, 400, "bad_filter"),
        ("POST", "/v1/captures", {"name": "x", "snaplen": 0}, 400, "bad_capture"),
        ("POST", "/v1/captures", {"filter": ""}, 400, "bad_request"),
        ("POST", "/v1/captures", {"name": "x", "color": "red"}, 400, "bad_request"),
        ("GET", "/v1/captures/nothing", None, 404, "no_capture"),
        ("GET", "/v1/captures/dns?format=xml", None, 400, "bad_request"),
        ("GET", "/v1/captures/dns?follow=1", None, 400, "bad_request"),
        ("GET", "/v1/captures/dns?x=1", None, 400, "bad_request"),
        ("GET", "/v1/follow?filter=tcp+prot", None, 400, "bad_filter"),
        ("GET", "/v1/follow", None, 400, "bad_request"),
        ("GET", "/v1/follow?filter=&snaplen=0", None, 400, "bad_request"),
        ("GET", "/v1/follow?filter=&snaplen=99999999999999", None, 400, "bad_request"),
    ],
)
async def test_what_is_wrong(
    captures: Captures, method: str, target: str, body: object, status: int, code: str
) -> None:
    async with asking(captures) as ask:
        answer = await ask(method, target, body)
    assert (answer.status, answer.error()) == (status, code), answer.body
    assert captures.audit() == []


async def test_an_instance_without_captures_says_so() -> None:
    async with asking(None) as ask:
        for method, target in (("GET", "/v1/captures"), ("GET", "/v1/follow?filter="), ("GET", "/v1/capture-audit")):
            answer = await ask(method, target)
            assert (answer.status, answer.error()) == (409, "captures_off")


async def test_the_document_describes_them(captures: Captures) -> None:
    described = json.loads(json.dumps(document(instance_router(FixedOperator(), capture_routes(captures)))))
    validate(described)
    captures.audited("read", "x", None)
    async with asking(captures) as ask:
        for target in ("/v1/captures", "/v1/capture-audit"):
            schema = described["paths"][target]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
            value = json.loads((await ask("GET", target)).body)
            assert value
            whole = {"components": described["components"], **schema}
            jsonschema.Draft202012Validator(whole).validate(value)


# Over a socket


@pytest.fixture
async def path(tmp_path: Path, captures: Captures, nursery: trio.Nursery) -> AsyncIterator[Path]:
    place = tmp_path / "control.sock"
    with listening(place) as listener:
        nursery.start_soon(serve_http, listener, Router(capture_routes(captures)))
        yield place
        nursery.cancel_scope.cancel()


async def test_a_filter_is_followed_until_the_reader_goes(path: Path, captures: Captures) -> None:
    import os

    pieces: Iterator[bytes] = stream(path, "/v1/follow?filter=udp+port+53")
    with trio.fail_after(10):
        data = await trio.to_thread.run_sync(next, pieces)
        feed(captures)
        while len(list(read(data))) < 4:
            data += await trio.to_thread.run_sync(next, pieces)
        assert [packet.data for packet, _ in read(data)] == [
            FRAMES[name] for name in ("dns query", "dns answer", "dns refused", "dns unknown record")
        ]
        [line] = captures.audit()
        assert (line.action, line.rule, line.pid, line.uid) == ("follow", "udp port 53", os.getpid(), os.geteuid())
        assert not line.ended
        pieces.close()
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert line.ended
    feed(captures)
    assert line.packets == 4


async def test_what_the_instance_refuses_is_said(path: Path) -> None:
    with pytest.raises(ControlError, match="column 1"):
        await trio.to_thread.run_sync(list, stream(path, "/v1/follow?filter=prot"))
    with pytest.raises(ControlError, match="no capture is called"):
        await trio.to_thread.run_sync(request, path, "DELETE", "/v1/captures/nothing")

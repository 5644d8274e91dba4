"""`vpnkit capture ...` against a control socket."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from pcap.reader import read
from pcap.ring import Direction
from tests.pcap.frames import FRAMES
from vpnkit.cli import main
from vpnkit.control.api import serve_control
from vpnkit.control.captures import capture_routes
from vpnkit.control.paths import socket_path
from vpnkit.control.routes import Router
from vpnkit.net.captures import Captures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def captures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery) -> AsyncIterator[Captures]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    made = Captures()
    feed(made)
    await nursery.start(serve_control, socket_path("default"), Router(capture_routes(made)))
    yield made
    nursery.cancel_scope.cancel()


def feed(made: Captures) -> None:
    tap = made.capture.tap("memory")
    for frame in FRAMES.values():
        tap((frame,), Direction.IN, 0, 0, False)


async def run(*argv: str) -> int:
    return await trio.to_thread.run_sync(main, ["capture", *argv])


async def test_list(captures: Captures, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "PACKETS", "BYTES", "DROPPED", "RING", "SNAPLEN", "DIRECTION", "FILTER"]
    assert lines[2].startswith("dns.pcap         5        ")
    assert lines[2].endswith("256.0 KiB  1500     both       udp(port=53) | tcp(port=53)")
    assert await run("list", "--json") == 0
    assert json.loads(capsys.readouterr().out)[1]["name"] == "dns.pcap"


async def test_read_into_a_file(captures: Captures, tmp_path: Path) -> None:
    file = tmp_path / "out.pcapng"
    assert await run("read", "dns", "-o", str(file)) == 0
    assert [packet.data for packet, _ in read(file.read_bytes())] == [packet.data for packet in captures.ring("dns")]
    assert await run("read", "dns", "--format", "pcap", "-o", str(file)) == 0
    assert file.read_bytes()[:4] == b"\xd4\xc3\xb2\xa1"


async def test_read_to_standard_output(captures: Captures, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert await run("read", "dns.pcap") == 0
    assert len(list(read(capfdbinary.readouterr().out))) == 5


async def test_read_as_text(captures: Captures, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("read", "dns", "--print") == 0
    assert "192.168.65.3 > 192.168.65.1 DNS query A host.internal" in capsys.readouterr().out


class Ends(io.BytesIO):
    """Standard output of which the reader goes away after some octets."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def write(self, data: bytes) -> int:  # type: ignore[override]
        super().write(data)
        if self.tell() > self.after:
            raise BrokenPipeError
        return len(data)


@pytest.mark.parametrize("wanted", ["all", "udp and not port 53"])
async def test_follow_until_the_reader_goes(
    captures: Captures, wanted: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nursery: trio.Nursery
) -> None:
    taken = Ends(4000)
    with (tmp_path / "stdout").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setattr("vpnkit.cli.capture.standard_output", lambda: taken)

        async def traffic() -> None:
            while True:
                feed(captures)
                await trio.sleep(0.01)

        nursery.start_soon(traffic)
        with trio.fail_after(10):
            assert await run("follow", wanted) == 0
    frames = [packet.data for packet, _ in read(taken.getvalue())]
    assert FRAMES["udp"] in frames
    assert (FRAMES["dns query"] in frames) is (wanted == "all")


async def test_add_and_remove(captures: Captures, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["add", "web", "tcp port 80", "--ring", "64k", "--snaplen", "60", "--direction", "in", "--private"]
    assert await run(*argv) == 0
    rule = captures.ring("web").rule
    assert (str(rule.when), rule.limit_bytes, rule.snaplen, rule.direction, rule.private) == (
        "tcp port 80", 65536, 60, Direction.IN, True,
    )  # fmt: skip
    assert await run("add", "web", "tcp") == 1
    assert "there is a capture named web already" in capsys.readouterr().err
    assert await run("remove", "web") == 0
    assert await run("remove", "web") == 1
    assert await run("audit") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[4:6] for line in lines[1:]] == [["add", "web"], ["remove", "web"]]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["add", "web", "tcp prot 80"], ["tcp prot 80", "    ^", "column 5: expected `and`, `or` or the end"]),
        (["follow", "port"], ["port", "    ^", "column 5: expected a port, not the end"]),
        (["add", "web", "tcp", "--ring", "lots"], ["'lots' is not a size like 65536"]),
        (["follow", "dns", "--snaplen", "60"], ["dns.pcap is a ring"]),
        (["add", "web", "tcp", "--snaplen", "0"], ["0 is not in the range"]),
    ],
)
async def test_what_is_wrong_is_said(
    captures: Captures, argv: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(*argv) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in said), error


async def test_a_capture_that_is_not_there(captures: Captures, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("read", "nothing", "-o", "/dev/null") == 1
    assert "no capture is called 'nothing'" in capsys.readouterr().err


async def test_packets_are_not_for_a_terminal(
    captures: Captures, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert await run("read", "dns") == 2
    assert "not for a terminal" in capsys.readouterr().err

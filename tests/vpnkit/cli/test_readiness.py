"""Who hears that every socket accepts."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from vpnkit.cli.readiness import ServiceManager, ready_line, write_ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio.testing import MockClock


@pytest.fixture
def notified() -> Iterator[tuple[Path, socket.socket]]:
    with (
        tempfile.TemporaryDirectory(prefix="vk-") as name,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        path = Path(name, "notify")
        receiver.bind(str(path))
        receiver.setblocking(False)
        yield path, receiver


def messages(receiver: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(receiver.recv(4096).decode())
        except BlockingIOError:
            return found


def test_the_ready_line() -> None:
    assert ready_line("/c", ["qemu:/a", "dgram:/b,/c"], ["80:80"]) == (
        "ready control=/c link=qemu:/a link=dgram:/b,/c forward=80:80"
    )
    line = ready_line("/c", ["qemu:/a b\nc"])
    assert line == 'ready control=/c link="qemu:/a b\\nc"'
    assert json.loads(line.partition("link=")[2]) == "qemu:/a b\nc"


def test_the_ready_descriptor() -> None:
    reader, writer = os.pipe()
    write_ready(writer)
    assert os.read(reader, 10) == b"1"
    assert os.read(reader, 10) == b""
    os.close(reader)


def test_a_ready_descriptor_that_nobody_reads(caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    write_ready(writer)
    assert caplog.messages == [f"--ready-fd {writer}: Broken pipe"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writer)


def test_the_service_manager_is_told(notified: tuple[Path, socket.socket]) -> None:
    path, receiver = notified
    environ = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "3000000", "HOME": "/"}
    manager = ServiceManager(environ)
    assert environ == {"HOME": "/"}
    assert manager.watchdog == 1.5
    manager.ready("all\nwell")
    manager.stopping()
    manager.close()
    manager.stopping()
    assert messages(receiver) == [f"READY=1\nSTATUS=all well\nMAINPID={os.getpid()}", "STOPPING=1"]


@pytest.mark.skipif(sys.platform != "linux", reason="the abstract namespace is Linux's")
def test_the_service_manager_has_an_abstract_name() -> None:
    name = f"vpnkit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        manager = ServiceManager({"NOTIFY_SOCKET": f"@{name}"})
        manager.stopping()
        manager.close()
        assert receiver.recv(100) == b"STOPPING=1"


async def test_the_watchdog_is_fed_at_half_its_time(
    notified: tuple[Path, socket.socket], nursery, mock_clock: MockClock
) -> None:

    path, receiver = notified
    manager = ServiceManager({"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())})
    nursery.start_soon(manager.feed_watchdog)
    await trio.testing.wait_all_tasks_blocked()
    assert messages(receiver) == ["WATCHDOG=1"]
    mock_clock.jump(0.99)
    await trio.testing.wait_all_tasks_blocked()
    assert messages(receiver) == []
    mock_clock.jump(0.01)
    await trio.testing.wait_all_tasks_blocked()
    assert messages(receiver) == ["WATCHDOG=1"]
    nursery.cancel_scope.cancel()
    manager.close()


@pytest.mark.parametrize("more", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}])
async def test_no_watchdog(notified: tuple[Path, socket.socket], more: dict[str, str]) -> None:
    path, receiver = notified
    manager = ServiceManager({"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "2000000", **more})
    await manager.feed_watchdog()
    manager.close()
    assert messages(receiver) == []


def test_without_a_service_manager_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    manager = ServiceManager({"WATCHDOG_USEC": "2000000"})
    manager.ready("well")
    manager.close()
    assert manager.watchdog is None
    assert caplog.messages == []


def test_a_service_manager_that_cannot_be_reached(caplog: pytest.LogCaptureFixture) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": "/nowhere/at/all"})
    manager.ready("well")
    manager.close()
    ServiceManager({"NOTIFY_SOCKET": "vsock:2:1"}).ready("well")
    assert caplog.messages == [
        "cannot notify the service manager at '/nowhere/at/all': No such file or directory",
        "NOTIFY_SOCKET is 'vsock:2:1', neither a path nor an abstract name; nobody is notified",
    ]

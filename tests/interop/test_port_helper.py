"""`vpnkit helper` as a process of root's, and an unprivileged `vpnkit run` that has port 80 by it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.interop.guest_tools import Namespace
from tests.tapdev.guests import NOBODY, as_user, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(sys.platform != "linux", reason="network namespaces need Linux"),
]

SECONDS = 20
VPNKIT = [sys.executable, "-m", "vpnkit"]
# says "served", and answers one connection
WEB = """
import socket
server = socket.create_server(("", 80))
print("served", flush=True)
connection, _ = server.accept()
connection.sendall(b"hello from the guest")
connection.shutdown(socket.SHUT_WR)
connection.recv(1)  # until the client has read it all
"""


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A network of its own, where ports below 1024 need privilege whatever the machine says."""
    namespace = Namespace.new()
    namespace.set("ip_unprivileged_port_start", 1024)
    yield namespace
    namespace.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vk-") as name:
        os.chmod(name, 0o755)
        runtime = Path(name, "run")
        runtime.mkdir()
        os.chown(runtime, NOBODY, NOBODY)
        yield Path(name)


@pytest.fixture
def start(host: Namespace, directory: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def begin(argv: list[str]) -> subprocess.Popen[str]:
        with host.entered():
            process = subprocess.Popen(
                argv,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(XDG_RUNTIME_DIR=str(directory / "run")),
            )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=SECONDS)


@pytest.fixture
def helper(start: Callable[..., subprocess.Popen[str]], directory: Path) -> Callable[..., subprocess.Popen[str]]:
    def begin(*more: str) -> subprocess.Popen[str]:
        process = start([*VPNKIT, "helper", "--listen", f"{directory}/helper", *more])
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready helper={directory}/helper\n", process.communicate()[1]
        return process

    return begin


def run(directory: Path, *more: str, command: tuple[str, ...] = ("true",)) -> list[str]:
    argv = [*VPNKIT, "run", "--no-capture", "--port-helper", f"{directory}/helper", *more, "--", *command]
    return as_user("nobody", argv)


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=SECONDS)
    return process.returncode, err


def sockets(process: subprocess.Popen[str]) -> set[str]:
    links = (os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir())
    return {link for link in links if link.startswith("socket:")}


def test_port_80_of_nobody(
    host: Namespace,
    directory: Path,
    start: Callable[..., subprocess.Popen[str]],
    helper: Callable[..., subprocess.Popen[str]],
) -> None:
    serving = helper("--allow-uid", str(NOBODY), "--allow", "80,53")
    before = sockets(serving)
    process = start(run(directory, "-p", "80:80", "-p", "53:53/udp", command=(sys.executable, "-c", WEB)))
    assert process.stdout is not None
    assert process.stdout.readline() == "served\n", finished(process)
    with host.entered(), socket.create_connection(("127.0.0.1", 80), timeout=SECONDS) as client:
        assert client.makefile("rb").read() == b"hello from the guest"
    assert finished(process) == (0, "")
    # The helper keeps nothing: the port is free again, and it has as many descriptors as before.
    with host.entered(), socket.create_server(("127.0.0.1", 80)):
        pass
    assert sockets(serving) == before
    serving.send_signal(signal.SIGTERM)
    status, said = finished(serving)
    assert status == 0
    assert f"of uid {NOBODY} has 127.0.0.1:80/tcp" in said
    assert f"of uid {NOBODY} has [::1]:53/udp" in said
    assert not (directory / "helper").exists()


@pytest.mark.parametrize(
    ("allow", "port", "words", "logged"),
    [
        (("--allow-uid", str(NOBODY), "--allow", "443"), "80:80", "does not allow it", "127.0.0.1:80/tcp is not allow"),
        (("--allow-uid", str(NOBODY)), "0.0.0.0:80:80", "does not allow it", "0.0.0.0:80/tcp is not allowed"),
        (("--allow-uid", "12345"), "80:80", "hung up: it does not serve this user", f"uid {NOBODY}, which is not all"),
    ],
    ids=["port", "address", "user"],
)
def test_what_is_refused(
    directory: Path,
    start: Callable[..., subprocess.Popen[str]],
    helper: Callable[..., subprocess.Popen[str]],
    allow: tuple[str, ...],
    port: str,
    words: str,
    logged: str,
) -> None:
    serving = helper(*allow)
    status, said = finished(start(run(directory, "-p", port)))
    assert status == 1
    assert said.count("\n") == 1
    assert "needs privilege" in said
    assert words in said
    assert serving.stderr is not None
    assert select.select([serving.stderr], [], [], SECONDS)[0]
    assert logged in serving.stderr.readline()
    assert serving.poll() is None


def test_nobody_helps(directory: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    status, said = finished(start(run(directory, "-p", "80:80")))
    assert status == 1
    assert f"and the port helper at {directory}/helper is not there" in said


def test_everybody_may_connect_and_one_has_the_path(
    directory: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    nobody = start(as_user("nobody", [*VPNKIT, "helper", "--listen", f"{directory}/run/h", "--allow-uid", "12345"]))
    assert nobody.stdout is not None
    assert nobody.stdout.readline() == f"ready helper={directory}/run/h\n"
    assert (directory / "run/h").stat().st_mode & 0o777 == 0o666
    again = start(as_user("nobody", [*VPNKIT, "helper", "--listen", f"{directory}/run/h", "--allow-uid", "12345"]))
    status, said = finished(again)
    assert status == 1
    assert "is already served by process" in said

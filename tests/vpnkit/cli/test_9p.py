"""`--9p PATH`: served while the instance runs, gone with it, and a place of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.tapdev.guests import environment
from tests.vpnkit.cli.test_serve_process import SECONDS, SERVE, Served
from tests.vpnkit.control.p9.client import P9Client

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vk-") as made:
        yield Path(made)


def listing(path: Path) -> list[str]:
    async def ask() -> list[str]:
        async with await trio.open_unix_socket(path) as stream:
            return await (await P9Client(stream).begin()).listing()

    return trio.run(ask)


NAMES = [".", "..", "README", "status.json", "guests.json", "flows.json", "leases.json", "forwards.json"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_serve(directory: Path, number: int) -> None:
    path = directory / "p9"
    argv = [*SERVE, "--link", f"qemu:{directory}/vm", "--9p", str(path)]
    served = Served(directory, argv)
    try:
        assert served.ready().startswith("ready ")
        assert path.lstat().st_mode & 0o777 == 0o600
        assert listing(path)[: len(NAMES)] == NAMES
        other = subprocess.run(
            [*SERVE, "--link", f"qemu:{directory}/vm2", "--9p", str(path), "--control", f"{directory}/c2"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment(),
        )
        assert other.returncode == 1
        assert "9P socket" in other.stderr
        assert "choose another --9p" in other.stderr
    finally:
        served.end(number)
    if number == signal.SIGTERM:
        assert not path.exists()
        return
    again = Served(directory, argv)  # what a killed one left is replaced
    assert again.ready().startswith("ready ")
    assert listing(path)[: len(NAMES)] == NAMES
    assert again.end()[0] == 0


@pytest.mark.root
@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces need Linux")
def test_run(directory: Path) -> None:
    path = directory / "p9"
    argv = [sys.executable, "-m", "vpnkit", "run", "--9p", str(path), "sh", "-c", "echo ready; read line; exit 3"]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(XDG_RUNTIME_DIR=str(directory))
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert listing(path)[: len(NAMES)] == NAMES
        process.communicate(b"\n", SECONDS)
    assert process.returncode == 3
    assert not path.exists()


@pytest.mark.parametrize(
    "options", [["--9p", "{}/c", "--control", "{}/c"], ["--9p", "{}/vm"], ["--9p", "/" + "x" * 120]]
)
def test_a_place_of_its_own(directory: Path, options: list[str]) -> None:
    done = subprocess.run(
        [*SERVE, "--link", f"qemu:{directory}/vm", *(option.format(directory) for option in options)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=environment(XDG_RUNTIME_DIR=str(directory)),
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vpnkit.control import paths
from vpnkit.control.paths import ControlError
from vpnkit.errors import ConfigError


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_the_runtime_directory_of_the_session_is_used(runtime: Path) -> None:
    assert paths.socket_path("default") == runtime / "vpnkit" / "default.sock"


@pytest.mark.parametrize("configured", [None, "", "relative/run", "/nonexistent/run"])
def test_without_one_there_is_a_directory_per_user(
    configured: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    if configured is not None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", configured)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert paths.runtime_directory() == tmp_path / f"vpnkit-{os.geteuid()}"


def test_a_runtime_directory_of_another_user_is_not_used(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(runtime).st_uid + 1)
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    assert paths.runtime_directory().parent == Path("/tmp")


def test_the_directory_is_made_closed(runtime: Path) -> None:
    made = paths.make_runtime_directory()
    assert made.stat().st_mode & 0o7777 == 0o700
    assert paths.make_runtime_directory() == made


def test_an_open_directory_is_refused(runtime: Path) -> None:
    (runtime / "vpnkit").mkdir()
    (runtime / "vpnkit").chmod(0o755)
    with pytest.raises(ControlError, match="mode 0755"):
        paths.make_runtime_directory()


def test_a_symbolic_link_is_refused(runtime: Path) -> None:
    (runtime / "elsewhere").mkdir(mode=0o700)
    (runtime / "vpnkit").symlink_to(runtime / "elsewhere")
    with pytest.raises(ControlError, match="not a directory"):
        paths.make_runtime_directory()


def test_a_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ControlError, match=f"belongs to uid {owner}"):
        paths.check_private(tmp_path)


@pytest.mark.parametrize("name", ["default", "a", "dev-2.test_x", "A" * 63])
def test_names(name: str) -> None:
    assert paths.check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../x", "a b", "a\n", "é", "A" * 64, "-x"])
def test_names_that_are_no_names(name: str) -> None:
    with pytest.raises(ConfigError, match="instance name"):
        paths.check_name(name)


def test_a_path_that_no_socket_can_have() -> None:
    paths.check_length(Path("/" + "x" * (paths.MAX_PATH - 1)))
    with pytest.raises(ConfigError, match="octets"):
        paths.check_length(Path("/" + "x" * paths.MAX_PATH))


def test_instances_are_those_that_answer(runtime: Path) -> None:
    assert paths.instances() == []
    directory = paths.make_runtime_directory()
    live, dead = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    with live, dead:
        live.bind(str(directory / "live.sock"))
        live.listen()
        dead.bind(str(directory / "dead.sock"))
        (directory / "note.txt").touch()
        assert paths.instances() == ["live"]
    assert paths.instances() == []


def test_who_serves_a_path(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    assert paths.served_by(path) is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(path))
        assert paths.served_by(path) == "another process"
    assert paths.served_by(path) is None

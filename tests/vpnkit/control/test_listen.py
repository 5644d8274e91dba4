from __future__ import annotations

import os
import socket
import stat
import struct
from typing import TYPE_CHECKING

import pytest

from vpnkit.control.listen import listening, permitted
from vpnkit.control.paths import ControlError

if TYPE_CHECKING:
    from pathlib import Path


async def test_the_socket_is_ours_alone_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "x.sock"
    before = os.umask(0)
    try:
        with listening(path):
            status = path.lstat()
            assert stat.S_ISSOCK(status.st_mode)
            assert status.st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700
            assert os.umask(0) == 0
        assert not path.exists()
    finally:
        os.umask(before)


async def test_what_a_dead_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listening(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.parametrize("mode", [0o700, 0o777])
async def test_what_a_live_process_serves_is_an_error_that_names_it(tmp_path: Path, mode: int) -> None:
    os.chmod(tmp_path, mode)
    path = tmp_path / "x.sock"
    with listening(path):
        with (
            pytest.raises(ControlError, match=rf"x\.sock is already served by process {os.getpid()};"),
            listening(path),
        ):
            pass
        assert path.exists()


async def test_a_live_process_whose_backlog_is_full_is_alive(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as waiting:
        full.bind(str(path))
        full.listen(0)
        waiting.connect(str(path))
        with pytest.raises(ControlError, match="served by another process"), listening(path):
            pass


async def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    path.write_text("precious")
    with pytest.raises(ControlError, match="not a socket"), listening(path):
        pass
    assert path.read_text() == "precious"


async def test_a_symbolic_link_is_never_followed(tmp_path: Path) -> None:
    path, target = tmp_path / "x.sock", tmp_path / "target"
    path.symlink_to(target)
    with pytest.raises(ControlError, match="not a socket"), listening(path):
        pass
    assert path.is_symlink()
    assert not target.exists()


async def test_somebody_elses_socket_at_our_path_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with listening(path):
        path.unlink()
        path.write_text("theirs")
    assert path.read_text() == "theirs"


async def test_a_place_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ControlError, match="cannot make"), listening(tmp_path / "file" / "x.sock"):
        pass


@pytest.mark.parametrize(("uid", "allowed"), [(os.geteuid(), True), (0, True), (os.geteuid() + 1, False)])
def test_peers(uid: int, allowed: bool) -> None:
    class Peer:
        socket: Peer

        def getsockopt(self, *_: int) -> bytes:
            return struct.pack("iII", 1, uid, 1)

    peer = Peer()
    peer.socket = peer
    assert permitted(peer) is allowed  # type: ignore[arg-type]

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tapdev import unix_path
from tapdev.unix_path import PathError, check_length, claim, permitted, served_by
from tests.tapdev.guests import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAM, SEQPACKET, DGRAM = socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM
KINDS = pytest.mark.parametrize("kind", [STREAM, SEQPACKET, DGRAM], ids=["stream", "seqpacket", "dgram"])
OTHERS = pytest.mark.parametrize("other", [STREAM, SEQPACKET, DGRAM], ids=["stream", "seqpacket", "dgram"])


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vk-") as path:
        yield Path(path)


@contextmanager
def claimed(path: Path, kind: int = STREAM) -> Iterator[socket.socket]:
    server, owned = claim(path, kind)
    with server:
        yield server
        owned.unlink()


@KINDS
def test_the_socket_is_ours_alone_and_goes_away(directory: Path, kind: int) -> None:
    path = directory / "x.sock"
    before = os.umask(0)
    try:
        with claimed(path, kind) as server:
            status = path.lstat()
            assert stat.S_ISSOCK(status.st_mode)
            assert status.st_mode & 0o777 == 0o600
            assert os.umask(0) == 0
            assert not server.getblocking()
            assert not server.get_inheritable()
            assert os.listdir(directory) == ["x.sock"]
        assert os.listdir(directory) == []
    finally:
        os.umask(before)


@KINDS
def test_others_can_connect(directory: Path, kind: int) -> None:
    path = directory / "x.sock"
    with claimed(path, kind) as server, socket.socket(socket.AF_UNIX, kind) as client:
        client.connect(str(path))
        if kind == DGRAM:
            client.send(b"x")
            assert server.recv(10) == b"x"
        else:
            server.accept()[0].close()


@KINDS
@OTHERS
def test_what_a_dead_process_left_is_replaced(directory: Path, kind: int, other: int) -> None:
    path = directory / "x.sock"
    with socket.socket(socket.AF_UNIX, other) as dead:
        dead.bind(str(path))
    with claimed(path, kind):
        assert served_by(path) is not None


@KINDS
@OTHERS
def test_what_a_live_process_serves_is_an_error_that_names_it(directory: Path, kind: int, other: int) -> None:
    path = directory / "x.sock"
    with claimed(path, other):
        owner = "another process" if other == DGRAM else f"process {os.getpid()}"
        with pytest.raises(PathError, match=rf"x\.sock is already served by {owner}$") as caught, claimed(path, kind):
            pass
        assert caught.value.errno == errno.EADDRINUSE
        assert path.exists()


def test_a_full_backlog_is_alive(directory: Path) -> None:
    path = directory / "x.sock"
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as waiting:
        full.bind(str(path))
        full.listen(0)
        waiting.connect(str(path))
        with pytest.raises(PathError, match="served by another process"), claimed(path):
            pass


def test_a_datagram_socket_that_talks_to_somebody_else_is_alive(directory: Path) -> None:
    path, peer = directory / "x.sock", directory / "peer.sock"
    with socket.socket(socket.AF_UNIX, DGRAM) as server, socket.socket(socket.AF_UNIX, DGRAM) as other:
        other.bind(str(peer))
        server.bind(str(path))
        server.connect(str(peer))
        with pytest.raises(PathError, match="served by another process"), claimed(path, DGRAM):
            pass


@KINDS
def test_a_file_is_never_replaced(directory: Path, kind: int) -> None:
    path = directory / "x.sock"
    path.write_text("precious")
    with pytest.raises(PathError, match="not a socket"), claimed(path, kind):
        pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("elsewhere")])
def test_nothing_but_a_socket_is_replaced(directory: Path, make) -> None:
    path = directory / "x.sock"
    make(path)
    before = path.lstat()
    with pytest.raises(PathError, match="not a socket"), claimed(path):
        pass
    assert path.lstat() == before
    assert not (directory / "elsewhere").exists()


def test_a_link_to_a_dead_socket_is_not_followed(directory: Path) -> None:
    path, target = directory / "x.sock", directory / "target"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(target))
    path.symlink_to(target)
    with pytest.raises(PathError, match="not a socket"), claimed(path):
        pass
    assert target.exists()


@pytest.mark.parametrize("make", [Path.touch, lambda path: socket.socket(socket.AF_UNIX).bind(str(path))])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_somebody_elses_thing_at_our_path_stays(directory: Path, make) -> None:
    path = directory / "x.sock"
    with claimed(path):
        path.unlink()
        make(path)
        theirs = path.lstat().st_ino
    assert path.lstat().st_ino == theirs


def test_our_path_is_unlinked_wherever_we_are_by_then(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    with claimed(Path("x.sock")):
        monkeypatch.chdir("/")
    assert not (directory / "x.sock").exists()


def test_a_directory_that_is_not_there(directory: Path) -> None:
    expected = re.escape(f"cannot be bound: No such file or directory {directory / 'gone'}")
    with pytest.raises(PathError, match=expected) as caught:
        claim(directory / "gone" / "x.sock", STREAM)
    assert caught.value.errno == errno.ENOENT


def test_a_path_that_no_socket_can_have(directory: Path) -> None:
    check_length("/" + "x" * (unix_path.MAX_PATH - 1))
    with pytest.raises(PathError, match=rf"has {unix_path.MAX_PATH + 1} octets, at most {unix_path.MAX_PATH} fit"):
        claim("/" + "x" * unix_path.MAX_PATH, STREAM)
    longest = directory / ("x" * (unix_path.MAX_PATH - len(str(directory)) - 1))
    with claimed(longest):
        assert longest.exists()


def test_a_socket_that_we_may_not_ask(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory / "x.sock"
    with claimed(path):
        monkeypatch.setattr(unix_path, "connected", _refuse)
        with pytest.raises(PathError, match="cannot be bound: Permission denied"), claimed(path):
            pass
        assert path.exists()


def _refuse(*_: object, **__: object) -> socket.socket:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_lock_that_is_not_given_up(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix_path, "LOCK_SECONDS", 0.0)
    lock = directory / ".x.sock.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(PathError, match=re.escape(f"does not go on; end it, or remove {lock}")):
            claim(directory / "x.sock", STREAM)
    assert os.listdir(directory) == [lock.name]


def test_a_lock_that_a_killed_process_left(directory: Path) -> None:
    (directory / ".x.sock.lock").touch()
    with claimed(directory / "x.sock"):
        assert os.listdir(directory) == ["x.sock"]


def test_somebody_elses_file_is_no_lock(directory: Path) -> None:
    lock = directory / ".x.sock.lock"
    lock.write_text("precious")
    with pytest.raises(PathError, match="in use for something else"):
        claim(directory / "x.sock", STREAM)
    assert lock.read_text() == "precious"


RACE = """
import os, socket, sys
from tapdev.unix_path import PathError, claim

path, kind, racers, rounds = sys.argv[1], int(sys.argv[2]), 6, 25
for _ in range(rounds):
    with socket.socket(socket.AF_UNIX, kind) as dead:
        dead.bind(path)
    begin, results, end = os.pipe(), os.pipe(), os.pipe()
    children = []
    for _ in range(racers):
        pid = os.fork()
        if pid == 0:
            os.close(begin[1])
            os.close(end[1])
            os.read(begin[0], 1)
            try:
                server, owned = claim(path, kind)
            except PathError as error:
                os.write(results[1], b"." if "already served" in str(error) else b"?")
                os._exit(0)
            os.write(results[1], b"W")
            os.read(end[0], 1)  # alive until everybody has tried
            owned.unlink()
            os._exit(0)
        children.append(pid)
    os.close(begin[1])
    got = b""
    while len(got) < racers:
        got += os.read(results[0], racers)
    os.close(end[1])
    for pid in children:
        os.waitpid(pid, 0)
    for fd in (begin[0], end[0], *results):
        os.close(fd)
    assert sorted(got) == sorted(b"W" + b"." * (racers - 1)), got
    assert os.listdir(os.path.dirname(path)) == []
"""


@KINDS
def test_of_those_that_start_at_the_same_moment_one_wins(directory: Path, kind: int) -> None:
    command = [sys.executable, "-c", RACE, str(directory / "x.sock"), str(int(kind))]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("uid", "allowed"), [(os.geteuid(), True), (0, True), (os.geteuid() + 1, False)])
def test_peers(uid: int, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Peer:
        def getsockopt(self, _level: int, _option: int, _size: int, /) -> bytes:
            return struct.pack("iII", 1, uid, 1)

    assert permitted(Peer()) is allowed
    monkeypatch.setattr(sys, "platform", "darwin")
    assert permitted(Peer())


class DarwinSocket:
    """What macOS says of a peer: struct xucred, and his process id."""

    def __init__(self, version: int = 0) -> None:
        self._version = version

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert level == 0
        if option == 1:
            return struct.pack("=IIhxx16I", self._version, 501, 1, *range(16))[:size]
        assert (option, size) == (2, 4)
        return struct.pack("=i", 4711)


def test_credentials_as_macos_gives_them(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert unix_path.peer_credentials(DarwinSocket()) == (4711, 501)
    assert unix_path.peer_credentials(DarwinSocket(version=9)) is None
    with socket.socket(socket.AF_UNIX) as unconnected:
        assert unix_path.peer_credentials(unconnected) is None, "no such option here"

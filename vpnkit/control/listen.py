"""A unix socket that only we and our own user may use: claimed, never stolen, and taken away at the end."""

from __future__ import annotations

import errno
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from tapdev import unix_path
from vpnkit.control.paths import ControlError, check_length, make_runtime_directory, runtime_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BACKLOG: Final = 32
P9_SOCKET: Final = ("9P socket", "choose another --9p")  # for `listening`
ATTEMPTS: Final = 10  # to find the directory that we made


@contextmanager
def listening(
    path: Path, name: str = "control socket", instead: str = "choose another --name or --control"
) -> Iterator[trio.SocketListener]:
    """A listener on `path`, mode 0600, in a directory made 0700 if needed; the path is gone afterwards.

    What a dead process left there is replaced.  Raises ControlError when a live one serves it, or when it is not a
    socket at all; it calls the socket `name` and says what to do `instead`.
    """
    check_length(path)
    server, owned = _claim(path, name, instead)
    try:
        yield trio.SocketListener(trio.socket.from_stdlib_socket(server))
    finally:
        owned.unlink()
        server.close()
        if path.parent == runtime_directory():
            _remove_if_empty(path.parent)


def process_of(stream: trio.SocketStream) -> tuple[int, int] | None:
    """(pid, uid) of the process at the other end; None over TCP, or where the system does not tell."""
    if stream.socket.family != getattr(socket, "AF_UNIX", None):
        return None
    return unix_path.peer_credentials(stream.socket)


def permitted(stream: trio.SocketStream) -> bool:
    """Whether the process at the other end is our own user's or root's.  True where the system does not tell."""
    return unix_path.permitted(stream.socket)


def _claim(path: Path, name: str, instead: str) -> tuple[socket.socket, unix_path.OwnedPath]:
    attempts = 0
    while True:
        _make_directory(path.parent)
        attempts += 1
        try:
            return unix_path.claim(path, socket.SOCK_STREAM, backlog=BACKLOG)
        except unix_path.PathError as error:
            # Another instance that ended just now took its empty directory with it.
            if error.errno != errno.ENOENT or attempts == ATTEMPTS:
                raise ControlError(f"{name} {error}; {instead}") from error


def _make_directory(directory: Path) -> None:
    if directory == runtime_directory():
        make_runtime_directory()
        return
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ControlError(f"cannot make {directory}: {error.strerror}") from error


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        pass  # somebody else's socket is there

"""A unix socket that only we and our own user may use: claimed, never stolen, and taken away at the end."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from vpnkit.control.paths import (
    ControlError,
    check_length,
    check_private,
    make_runtime_directory,
    peer_credentials,
    runtime_directory,
    served_by,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

BACKLOG: Final = 32
ATTEMPTS: Final = 10  # to find the directory that we made


@contextmanager
def listening(path: Path) -> Iterator[trio.SocketListener]:
    """A listener on `path`, mode 0600, in a directory made 0700 if needed; the path is gone afterwards.

    What a dead process left there is replaced.  Raises ControlError when a live one serves it, or when it is not a
    socket at all.
    """
    check_length(path)
    for attempt in range(ATTEMPTS):
        _make_directory(path.parent)
        try:
            with _locked(path.parent):
                _remove_stale(path)
                listener = _bind(path)
                ours = os.lstat(path)
            break
        except OSError as error:
            # Another instance that ended just now took its empty directory with it.
            if error.errno != errno.ENOENT or attempt + 1 == ATTEMPTS:
                raise ControlError(f"cannot listen on control socket {path}: {error.strerror}") from error
    try:
        yield listener
    finally:
        _unlink_if_same(path, ours)  # first: while we listen, nobody else can have our inode
        listener.socket.close()
        if path.parent == runtime_directory():
            _remove_if_empty(path.parent)


def permitted(stream: trio.SocketStream) -> bool:
    """Whether the process at the other end is our own user's or root's.  True where the system does not tell."""
    credentials = peer_credentials(stream.socket)
    return credentials is None or credentials[1] in (0, os.geteuid())


def _make_directory(directory: Path) -> None:
    if directory == runtime_directory():
        make_runtime_directory()
        return
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ControlError(f"cannot make {directory}: {error.strerror}") from error


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Nobody else of us examines or replaces a socket of `directory` meanwhile.

    A lock on a directory that others may open is theirs to hold for ever, so there we go without.
    """
    try:
        check_private(directory)
    except ControlError:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ControlError(f"{path} exists and is not a socket; remove it, or choose another path with --control")
    owner = served_by(path)
    if owner:
        raise ControlError(f"control socket {path} is already served by {owner}; choose another --name or --control")
    log.info("replacing control socket %s of a process that is gone", path)
    _unlink_if_same(path, status)


def _bind(path: Path) -> trio.SocketListener:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        umask = os.umask(0o177)  # the mode must be right from the first moment, not after a chmod
        try:
            server.bind(os.fspath(path))
        finally:
            os.umask(umask)
        server.listen(BACKLOG)
        return trio.SocketListener(trio.socket.from_stdlib_socket(server))
    except BaseException:
        server.close()
        raise


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        pass  # somebody else's socket is there


def _unlink_if_same(path: Path, ours: os.stat_result) -> None:
    try:
        now = os.lstat(path)
        if (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino):
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("cannot remove %s: %s", path, error.strerror)

"""A unix socket at a path: claimed, never stolen, for our own user only, and taken away at the end.

The path must not exist, or be what a dead process left there.  Whether its owner lives is asked by connecting: the
kernel refuses (ECONNREFUSED) when no process has the socket any more, and says EPROTOTYPE when one has it that is of
another type.  Between that question and our bind nobody else of us may answer it the same way, so both happen under a
lock: an empty file beside the path, there only for that moment.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import stat
import struct
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

# macOS, sys/un.h and sys/ucred.h
SOL_LOCAL: Final = 0
LOCAL_PEERCRED: Final = 1
LOCAL_PEERPID: Final = 2
XUCRED_VERSION: Final = 0
XUCRED_SIZE: Final = 76  # version 4 | uid 4 | ngroups 2 | pad 2 | groups 16 x 4

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

MAX_PATH: Final = 107 if sys.platform == "linux" else 103  # octets of sun_path without the final NUL
BACKLOG: Final = 128
OURS_ONLY: Final = 0o177  # umask
LOCK_SECONDS: Final = 2.0  # a claim takes under a millisecond; who holds the lock longer is stopped or stuck
LOCK_POLL: Final = 0.01

# The types a path can have, as far as this system knows them: all but SOCK_STREAM only answer "of another type".
TYPES: Final[tuple[int, ...]] = tuple(
    int(getattr(socket, name))
    for name in ("SOCK_STREAM", "SOCK_SEQPACKET", "SOCK_DGRAM")
    if hasattr(socket, name) and not (name == "SOCK_SEQPACKET" and sys.platform == "darwin")
)
# EAGAIN: its backlog is full.  EPERM: a datagram socket that is connected to somebody else.
ALIVE: Final = frozenset({errno.EAGAIN, errno.EPERM})
GONE: Final = frozenset({errno.ECONNREFUSED, errno.ENOENT})


class PathError(Exception):
    """A socket path that we cannot have.  One line that begins with the path."""

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.errno = number  # of the system call that failed, if one did


class HasOptions(Protocol):
    """A socket of the standard library or of trio."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class OwnedPath:
    """A path that we have bound."""

    path: str
    device: int
    inode: int

    def unlink(self) -> None:
        """Remove the path if it is still ours.  To be called before the socket is closed: then nobody else can have
        our inode."""
        _unlink_if_same(self.path, self.device, self.inode)


def check_length(path: str | os.PathLike[str]) -> None:
    """Raises PathError when no socket can have this path."""
    length = len(os.fsencode(path))
    if length > MAX_PATH:
        raise PathError(
            f"socket path {os.fspath(path)} has {length} octets, at most {MAX_PATH} fit; choose a shorter one"
        )


def claim(path: str | os.PathLike[str], kind: int, *, backlog: int = BACKLOG) -> tuple[socket.socket, OwnedPath]:
    """A socket of type `kind` bound to `path`, mode 0600 from its first moment; it listens unless it is SOCK_DGRAM.

    What a dead process left there is replaced.  Raises PathError when a live one has it, when it is not a socket, and
    when the system will not have it.
    """
    path = os.fspath(path)
    check_length(path)
    try:
        with _locked(path):
            _remove_stale(path)
            return _bind(path, kind, backlog)
    except OSError as error:
        where = f" {os.path.dirname(path) or '.'}" if error.errno == errno.ENOENT else ""
        raise PathError(f"{path} cannot be bound: {error.strerror}{where}", error.errno) from error


def served_by(path: str | os.PathLike[str]) -> str | None:
    """Who has the unix socket `path`, in words; None when no process has.  Raises OSError when it cannot be known."""
    for kind in TYPES:
        try:
            with connected(path, kind=kind) as connection:
                credentials = peer_credentials(connection) if kind != socket.SOCK_DGRAM else None
            return f"process {credentials[0]}" if credentials else "another process"
        except OSError as error:
            if error.errno in GONE:
                return None
            if error.errno in ALIVE:
                return "another process"
            if error.errno != errno.EPROTOTYPE:
                raise
    return "another process"


def peer_credentials(connection: HasOptions) -> tuple[int, int] | None:
    """(pid, uid) of the process at the other end, or None where the system does not tell."""
    if sys.platform == "darwin":
        return _darwin_credentials(connection)
    option = getattr(socket, "SO_PEERCRED", None)
    if sys.platform != "linux" or option is None:
        return None
    credentials = connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("iII"))
    pid, uid, _gid = struct.unpack("iII", credentials)
    return pid, uid


def _darwin_credentials(connection: HasOptions) -> tuple[int, int] | None:
    """sys/un.h: LOCAL_PEERCRED gives a struct xucred, which begins with its version and the effective uid."""
    try:
        credentials = connection.getsockopt(SOL_LOCAL, LOCAL_PEERCRED, XUCRED_SIZE)
        pid = connection.getsockopt(SOL_LOCAL, LOCAL_PEERPID, struct.calcsize("i"))
    except OSError:
        return None
    version, uid = struct.unpack_from("=II", credentials)
    return (struct.unpack("=i", pid)[0], uid) if version == XUCRED_VERSION else None


def permitted(connection: HasOptions) -> bool:
    """Whether the process at the other end is our own user's or root's.  True where the system does not tell."""
    credentials = peer_credentials(connection)
    return credentials is None or credentials[1] in (0, os.geteuid())


def connected(path: str | os.PathLike[str], timeout: float = 0.0, *, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket connected to `path`; non-blocking unless there is a timeout, in seconds.  Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, kind)
    try:
        connection.settimeout(timeout)
        connection.connect(os.fspath(path))
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Nobody else of us claims `path` meanwhile.  Raises PathError after LOCK_SECONDS, and OSError."""
    directory, name = os.path.split(path)
    lock = os.path.join(directory, f".{name}.lock")
    descriptor = _lock(path, lock)
    try:
        yield
    finally:
        os.unlink(lock)  # while it is locked: who waits for it sees then that it is not the one at the path any more
        os.close(descriptor)


def _lock(path: str, lock: str) -> int:
    deadline = time.monotonic() + LOCK_SECONDS
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        descriptor = os.open(lock, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(descriptor)
            if not stat.S_ISREG(held.st_mode) or held.st_size:
                raise PathError(f"{path} cannot be claimed: {lock}, its lock, is in use for something else; move it")
            if _same(lock, held.st_dev, held.st_ino):
                return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise PathError(
                    f"{path} is being claimed by a process that does not go on; end it, or remove {lock}", errno.EAGAIN
                ) from None
            time.sleep(LOCK_POLL)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _remove_stale(path: str) -> None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise PathError(f"{path} exists and is not a socket; remove it, or choose another path", errno.EEXIST)
    owner = served_by(path)
    if owner:
        raise PathError(f"{path} is already served by {owner}", errno.EADDRINUSE)
    log.info("replacing socket %s of a process that is gone", path)
    _unlink_if_same(path, status.st_dev, status.st_ino)


def _bind(path: str, kind: int, backlog: int) -> tuple[socket.socket, OwnedPath]:
    server = socket.socket(socket.AF_UNIX, kind)
    try:
        umask = os.umask(OURS_ONLY)  # the mode must be right from the first moment, not after a chmod
        try:
            server.bind(path)
        finally:
            os.umask(umask)
        status = os.lstat(path)
        owned = OwnedPath(os.path.abspath(path), status.st_dev, status.st_ino)
        if kind != socket.SOCK_DGRAM:
            server.listen(backlog)
        server.setblocking(False)
        return server, owned
    except BaseException:
        server.close()
        raise


def _same(path: str, device: int, inode: int) -> bool:
    try:
        now = os.lstat(path)
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) == (device, inode)


def _unlink_if_same(path: str, device: int, inode: int) -> None:
    try:
        if _same(path, device, inode):
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("cannot remove %s: %s", path, error.strerror)

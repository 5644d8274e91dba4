"""The side without the privilege: it asks a helper for a bound socket, and looks at what it was given."""

from __future__ import annotations

import array
import errno
import os
import socket
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import trio

from portfwd.helper.wire import (
    INIT,
    RESULT,
    Bind,
    HelperProtocolError,
    decode_init,
    decode_result,
    encode_bind,
    encode_init,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ASK_SECONDS: Final = 5.0
MAX_DESCRIPTORS: Final = 8  # that one message may bring; the kernel closes the others
CLOSE_ON_EXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class HelperError(Exception):
    """There is no help.  One line that begins with what was asked: "the port helper at PATH"."""


async def ask(path: str, wanted: Bind) -> socket.socket:
    """The socket `wanted`, bound and not listening, from the helper at `path`.

    Raises HelperError when there is no helper, or none for us, and OSError when it says why it could not bind.
    """
    async with _greeted(path) as connection:
        try:
            await _send(connection, encode_bind(wanted))
            answer, descriptors = await _receive(connection)
        except (ConnectionError, EOFError):
            if wanted.address.version == 6:  # the original's does not know the command, and says so by hanging up
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT)) from None
            raise
        made = [socket.socket(fileno=descriptor) for descriptor in _sockets(descriptors)]
        try:
            number = decode_result(answer)
            if number:
                raise OSError(number, os.strerror(number))
            if len(made) != 1 or not _is(made[0], wanted):
                raise HelperProtocolError(f"it did not give {wanted}")
            return made.pop()
        finally:
            for other in made:
                other.close()


async def greet(path: str) -> None:
    """Only find out whether a helper is at `path`, and serves us.  Raises HelperError."""
    async with _greeted(path):
        pass


@asynccontextmanager
async def _greeted(path: str) -> AsyncIterator[trio.socket.SocketType]:
    """A connection with both Inits said; what goes wrong is a HelperError."""
    who = f"the port helper at {path}"
    connection = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            await connection.connect(path)
        except OSError as error:
            is_absent = error.errno in (errno.ENOENT, errno.ECONNREFUSED)
            raise HelperError(f"{who} is not there" if is_absent else f"{who}: {error.strerror}") from error
        with trio.fail_after(ASK_SECONDS):
            await _send(connection, encode_init())
            decode_init(await _read(connection, INIT.size))
            yield connection
    except trio.TooSlowError:
        raise HelperError(f"{who} did not answer in {ASK_SECONDS:g} s") from None
    except (ConnectionError, EOFError):
        raise HelperError(f"{who} hung up: it does not serve this user (see its --allow-uid), or not this") from None
    except HelperProtocolError as error:
        raise HelperError(f"{who} is none: {error}") from None
    finally:
        connection.close()


async def _send(connection: trio.socket.SocketType, data: bytes) -> None:
    while data:
        data = data[await connection.send(data) :]


async def _read(connection: trio.socket.SocketType, size: int) -> bytes:
    found = b""
    while len(found) < size:
        data = await connection.recv(size - len(found))
        if not data:
            raise EOFError
        found += data
    return found


async def _receive(connection: trio.socket.SocketType) -> tuple[bytes, list[int]]:
    """The result, and the descriptors that came with its first octets.  Nothing is left open when it fails."""
    data, ancillary, _, _ = await connection.recvmsg(RESULT.size, socket.CMSG_SPACE(4 * MAX_DESCRIPTORS), CLOSE_ON_EXEC)
    descriptors: list[int] = []
    for level, kind, octets in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(octets[: len(octets) - len(octets) % numbers.itemsize])
            descriptors += numbers
    try:
        if not data:
            raise EOFError
        return data + await _read(connection, RESULT.size - len(data)), descriptors
    except BaseException:
        _close(descriptors)
        raise


def _sockets(descriptors: list[int]) -> list[int]:
    """`descriptors`, for nobody else to inherit; all are closed, and HelperProtocolError raised, if one is no
    socket."""
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    try:
        for descriptor in descriptors:
            socket.socket(fileno=descriptor).detach()
    except OSError:
        _close(descriptors)
        raise HelperProtocolError("it gave what is no socket") from None
    return descriptors


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _is(made: socket.socket, wanted: Bind) -> bool:
    """Whether `made` is bound as was asked, and to nobody yet: a helper that errs must not open another port."""
    family = socket.AF_INET if wanted.address.version == 4 else socket.AF_INET6
    kind = socket.SOCK_STREAM if wanted.protocol == "tcp" else socket.SOCK_DGRAM
    if (made.family, made.type) != (family, kind):
        return False
    address, port = made.getsockname()[:2]
    return ip_address(address) == wanted.address and port == wanted.port

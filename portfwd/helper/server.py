"""The side with the privilege: it binds what is allowed for who is allowed, hands the socket over and forgets it.

One request for each connection.  Who may ask is known by the kernel's word for the process at the other end; a system
that gives no such word is a system on which nobody may.
"""

from __future__ import annotations

import errno
import logging
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from portfwd.accept import Acceptor
from portfwd.complaints import Complaints
from portfwd.helper.wire import (
    INIT,
    PADDED,
    Bind,
    HelperProtocolError,
    decode_bind,
    decode_init,
    encode_init,
    encode_result,
    size_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Network, IPv6Network

    AnyNetwork: TypeAlias = IPv4Network | IPv6Network
    # (pid, uid) of the process at the other end, or None where the system does not tell.
    Credentials: TypeAlias = Callable[[trio.socket.SocketType], tuple[int, int] | None]

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 16
REQUEST_SECONDS: Final = 5.0  # a client asks as soon as it is there


@dataclass(frozen=True)
class Allowed:
    """What may be bound, and by whom."""

    uids: frozenset[int]
    ports: tuple[range, ...]
    networks: tuple[AnyNetwork, ...]

    def permits(self, bind: Bind) -> bool:
        """Whether the port and the address are on the lists.  Any address at all (0.0.0.0 and ::) has to be there as
        itself or within 0.0.0.0/0 and ::/0."""
        if not any(bind.port in ports for ports in self.ports):
            return False
        return any(_covers(network, bind) for network in self.networks)


def _covers(network: AnyNetwork, bind: Bind) -> bool:
    if network.version != bind.address.version or bind.address not in network:
        return False
    return not bind.address.is_unspecified or network.prefixlen in (0, network.max_prefixlen)


class Helper:
    """A server on one listener."""

    def __init__(self, allowed: Allowed, credentials: Credentials) -> None:
        self.allowed = allowed
        self.bound = 0  # sockets handed over
        self.refused = 0  # clients, and requests
        self._credentials = credentials
        self._serving = 0
        self._complaints = Complaints(log)

    async def serve(self, listener: trio.SocketListener) -> None:
        """Serve until cancelled, or until the listener is closed, which it is afterwards."""
        acceptor = Acceptor(listener, "port helper")
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    stream = await acceptor.accept()
                    client = self._admitted(stream)
                    if client is None:
                        await trio.aclose_forcefully(stream)
                    else:
                        self._serving += 1
                        nursery.start_soon(self._serve, stream, client)
        except* trio.ClosedResourceError:
            pass
        finally:
            acceptor.close()

    def _admitted(self, stream: trio.SocketStream) -> str | None:
        """Who the client is, in words, or None for one who is refused."""
        found = self._credentials(stream.socket)
        if found is None:
            self._refuse("a client of unknown user: this system does not tell")
            return None
        pid, uid = found
        if uid not in self.allowed.uids:
            self._refuse(f"process {pid} of uid {uid}, which is not allowed")
            return None
        if self._serving >= MAX_CONNECTIONS:
            self._refuse(f"process {pid}: there are {self._serving} clients already")
            return None
        return f"process {pid} of uid {uid}"

    def _refuse(self, whom: str) -> None:
        self.refused += 1
        self._complaints.warning("refused %s", whom)

    async def _serve(self, stream: trio.SocketStream, client: str) -> None:
        try:
            with trio.move_on_after(REQUEST_SECONDS):
                await self._answer(stream, client)
                # Padding that nobody read would make the end of the connection an error for the client.
                with trio.move_on_after(REQUEST_SECONDS):
                    left = PADDED
                    while left > 0 and (data := await stream.receive_some(left)):
                        left -= len(data)
        except HelperProtocolError as error:
            self._refuse(f"{client}: {error}")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("%s went away", client)
        finally:
            self._serving -= 1
            await trio.aclose_forcefully(stream)

    async def _answer(self, stream: trio.SocketStream, client: str) -> None:
        wanted = await read_request(stream)
        if not self.allowed.permits(wanted):
            self._refuse(f"{client}: {wanted} is not allowed")
            await stream.send_all(encode_result(errno.EACCES))
            return
        try:
            made = bind(wanted)
        except OSError as error:
            log.info("%s wanted %s: %s", client, wanted, error.strerror)
            await stream.send_all(encode_result(error.errno or errno.EIO))
            return
        with made:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, made.fileno().to_bytes(4, sys.byteorder))
            try:
                await stream.socket.sendmsg([encode_result(0)], [rights])
            except OSError as error:
                log.info("%s did not take %s: %s", client, wanted, error.strerror)
                return
        self.bound += 1
        log.info("%s has %s", client, wanted)


def bind(wanted: Bind) -> socket.socket:
    """A socket bound as forwards are, not listening.  Raises OSError."""
    family = socket.AF_INET if wanted.address.version == 4 else socket.AF_INET6
    is_stream = wanted.protocol == "tcp"
    made = socket.socket(family, socket.SOCK_STREAM if is_stream else socket.SOCK_DGRAM)
    try:
        if is_stream:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((str(wanted.address), wanted.port))
    except BaseException:
        made.close()
        raise
    return made


async def read_request(stream: trio.abc.Stream) -> Bind:
    """Greet a client and hear what it wants.  Raises HelperProtocolError."""
    decode_init(await _read(stream, INIT.size))
    await stream.send_all(encode_init())
    command = await _read(stream, 1)
    return decode_bind(command + await _read(stream, size_of(command[0])))


async def _read(stream: trio.abc.Stream, size: int) -> bytes:
    """Exactly so many octets.  Raises HelperProtocolError when they do not come."""
    found = b""
    while len(found) < size:
        data = await stream.receive_some(size - len(found))
        if not data:
            raise HelperProtocolError(f"it hung up {size - len(found)} octets short of a request")
        found += data
    return found

"""The guest's side: takes the channels that the host opens to where they lead, as `vpnkit-forwarder` does."""

from __future__ import annotations

import logging
import socket
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import trio

from portfwd.connect import relay
from portfwd.mux.connection import Connection
from portfwd.mux.udp import Datagram, Datagrams, encode
from portfwd.mux.wire import MuxError, Protocol

if TYPE_CHECKING:
    from portfwd.mux.connection import MuxStream
    from portfwd.mux.wire import Destination

log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 30.0
IDLE_SECONDS: Final = 300.0  # RFC 4787 REQ-5c, of a channel of datagrams
MAX_SENDERS: Final = 256  # of one channel of datagrams; the longest silent one makes place
MAX_DATAGRAM: Final = 65535


async def serve_host(stream: trio.abc.Stream, *, backwards: bool = False, handshake: bool = True) -> None:
    """Serve the host at the other end of `stream` until it ends.  `backwards` if we connected.

    Raises MuxError, and BrokenResourceError when the connection broke.
    """
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:

            def opened(channel: MuxStream) -> None:
                nursery.start_soon(serve_channel, channel)

            await Connection(stream, backwards=backwards, handshake=handshake, on_open=opened).run()
            nursery.cancel_scope.cancel()
    except* (MuxError, trio.BrokenResourceError) as errors:
        found: BaseException = errors
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        assert isinstance(found, Exception)
        failure = found
    if failure is not None:
        raise failure


async def serve_channel(channel: MuxStream) -> None:
    """Take one channel to its destination.  What goes wrong ends the channel and nothing else."""
    where = channel.destination
    try:
        if where.protocol is Protocol.UDP:
            await _Senders(channel, where).run()
            return
        with trio.fail_after(CONNECT_SECONDS):
            if where.protocol is Protocol.UNIX:
                backend = await trio.open_unix_socket(where.path)
            else:
                backend = await trio.open_tcp_stream(str(where.address), where.port)
        await relay(channel, backend)
    except (OSError, trio.TooSlowError, MuxError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        log.info("%s: %s", where, str(error) or type(error).__name__)
    finally:
        channel.abort()


class _Senders:
    """A channel of datagrams: a socket for each address that is said in it.  Today's host says none, and has a
    channel for each client; the original's OCaml side says the client's."""

    def __init__(self, channel: MuxStream, where: Destination) -> None:
        self._channel = channel
        self._where = where
        self._senders: OrderedDict[object, tuple[trio.socket.SocketType, trio.CancelScope]] = OrderedDict()
        self._sending = trio.Lock()

    async def run(self) -> None:
        cutter = Datagrams()
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    with trio.move_on_after(IDLE_SECONDS) as idle:
                        data = await self._channel.receive_some()
                    if idle.cancelled_caught or not data:
                        break
                    for datagram in cutter.feed(data):
                        made = await self._socket(datagram, nursery)
                        await made.send(datagram.payload)
                nursery.cancel_scope.cancel()
        except* (OSError, MuxError, trio.BrokenResourceError, trio.ClosedResourceError) as errors:
            log.info("%s: %s", self._where, errors.exceptions[0])
        finally:
            for made, _ in self._senders.values():
                made.close()

    async def _socket(self, datagram: Datagram, nursery: trio.Nursery) -> trio.socket.SocketType:
        key = (datagram.address, datagram.port, datagram.zone)
        if key in self._senders:
            self._senders.move_to_end(key)
            return self._senders[key][0]
        if len(self._senders) >= MAX_SENDERS:
            _, (oldest, scope) = self._senders.popitem(last=False)
            scope.cancel()
            oldest.close()
        assert self._where.address is not None
        family = socket.AF_INET6 if self._where.address.version == 6 else socket.AF_INET
        made = trio.socket.socket(family, socket.SOCK_DGRAM)
        scope = trio.CancelScope()
        self._senders[key] = made, scope
        await made.connect((str(self._where.address), self._where.port))
        nursery.start_soon(self._answers, made, datagram, scope)
        return made

    async def _answers(self, made: trio.socket.SocketType, asked: Datagram, scope: trio.CancelScope) -> None:
        with scope:
            while True:
                data = await made.recv(MAX_DATAGRAM)
                async with self._sending:
                    await self._channel.send_all(encode(Datagram(data, asked.address, asked.port, asked.zone)))

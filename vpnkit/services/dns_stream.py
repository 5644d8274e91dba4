"""A guest's TCP connection to the DNS service, RFC 7766: queries answered side by side, answers in any order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from vpnkit.services.dns_connections import receive_message

if TYPE_CHECKING:
    from vpnkit.services.dns import DnsService

MAX_STREAMS: Final = 128  # TCP connections of a guest; one more is closed at once
MAX_PIPELINED: Final = 32  # queries of one connection under way; the next is read when one is answered
MAX_STREAM_LOOKUPS: Final = 128  # TCP lookups of all connections; one more is answered SERVFAIL
IDLE_SECONDS: Final = 10.0  # between complete messages on a connection, and for a client to take an answer


class StreamClient:
    """One connection."""

    def __init__(self, service: DnsService, stream: trio.abc.HalfCloseableStream, client_ip: bytes) -> None:
        self._service = service
        self._stream = stream
        self._client_ip = client_ip
        self._sending = trio.Lock()
        self._pipelined = trio.Semaphore(MAX_PIPELINED)

    async def serve(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                await self._read(nursery)
            with trio.move_on_after(IDLE_SECONDS):
                await self._stream.send_eof()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client broke off; what it asked is of no use to anybody

    async def _read(self, nursery: trio.Nursery) -> None:
        received = bytearray()
        while True:
            message = None
            with trio.move_on_after(IDLE_SECONDS) as idle:
                message = await receive_message(self._stream, received)
            if idle.cancelled_caught:
                self._service.own.idle += 1
                nursery.cancel_scope.cancel()
            if message is None:
                return
            await self._pipelined.acquire()
            nursery.start_soon(self._answer, message, nursery.cancel_scope)

    async def _answer(self, message: bytes, connection: trio.CancelScope) -> None:
        try:
            answer = await self._service.answer_stream(message, self._client_ip)
            if answer is None:
                return
            with trio.move_on_after(IDLE_SECONDS) as slow:
                async with self._sending:
                    await self._stream.send_all(len(answer).to_bytes(2, "big") + answer)
            if slow.cancelled_caught:
                connection.cancel()  # half a message may have left
        finally:
            self._pipelined.release()

"""A connection as trio has it: one task reads, one writes, and each channel is a stream.

What is written by a channel waits until the connection has taken it; no channel can fill more than its share of what
waits.  When the connection breaks, so does every channel.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Final

import trio

from portfwd.mux.core import MAX_EXCESS, Changed, Greeted, Mux, Opened
from portfwd.mux.wire import MuxError

if TYPE_CHECKING:
    from collections.abc import Callable

    from portfwd.mux.core import Channel
    from portfwd.mux.wire import Destination

CHUNK: Final = 64 * 1024  # octets of one read
PIECE: Final = 32 * 1024  # octets of one Data frame, so that channels take turns
HIGH_WATER: Final = 256 * 1024  # octets of output, above which no channel adds more
GREETING_SECONDS: Final = 10.0
WRITE_SECONDS: Final = 60.0  # that the peer may take nothing at all, while there is something for him


class MuxStream(trio.abc.HalfCloseableStream):
    """One channel.  The end of what the peer sends is an end also when he closed without saying so, except on a
    channel that we opened: there it means that he could not, or would not, connect."""

    def __init__(self, connection: Connection, channel: Channel) -> None:
        self._connection = connection
        self._channel = channel
        self._changed = trio.Event()
        self._sending = trio.Lock()
        self._receiving = False
        self._closed = False

    @property
    def destination(self) -> Destination:
        return self._channel.destination

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, as the peer's window allows."""
        connection, channel = self._connection, self._channel
        try:
            self._sending.acquire_nowait()
        except trio.WouldBlock:
            raise trio.BusyResourceError("another task is sending on this channel") from None
        try:
            await trio.lowlevel.checkpoint()
            self._check_open()
            view = memoryview(data)
            while view:
                self._check_sendable()
                if channel.room and connection.mux.waiting < HIGH_WATER:
                    piece = view[: min(channel.room, PIECE)]
                    connection.mux.send(channel, piece)
                    connection.wake_writer()
                    view = view[len(piece) :]
                elif channel.room:
                    await connection.wait_drained()
                else:
                    await self._wait_changed()
            self._check_sendable()
        finally:
            self._sending.release()

    async def wait_send_all_might_not_block(self) -> None:
        """Return when there is room, or when sending would fail at once."""
        if self._sending.locked():
            raise trio.BusyResourceError("another task is sending on this channel")
        await self._sending.acquire()
        try:
            self._check_open()
            while not (self._channel.room or self._channel.close_received or self._connection.is_broken):
                self._check_open()
                await self._wait_changed()
            self._check_open()
        finally:
            self._sending.release()

    async def send_eof(self) -> None:
        """Say that nothing more will be sent."""
        if self._sending.locked():
            raise trio.BusyResourceError("another task is sending on this channel")
        await trio.lowlevel.checkpoint()
        self._check_open()
        if self._connection.is_broken:
            raise trio.BrokenResourceError(self._connection.why)
        self._connection.mux.shutdown(self._channel)
        self._connection.wake_writer()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What has come; empty at the end."""
        max_bytes = CHUNK if max_bytes is None else operator.index(max_bytes)
        if max_bytes < 1:
            raise ValueError("max_bytes must be >= 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this channel")
        self._receiving = True
        channel, connection = self._channel, self._connection
        try:
            await trio.lowlevel.checkpoint()
            while True:
                self._check_open()
                if channel.received:
                    data = connection.mux.read(channel, max_bytes)
                    connection.wake()
                    return data
                if channel.was_reset:
                    raise trio.BrokenResourceError(
                        f"{channel.destination}: the forwarder could not connect, or gave up"
                    )
                if channel.is_over:
                    return b""
                if connection.is_broken:
                    raise trio.BrokenResourceError(connection.why)
                await self._wait_changed()
        finally:
            self._receiving = False

    async def aclose(self) -> None:
        """End it in order, as far as what was sent goes."""
        if not self._closed:
            self._connection.mux.shutdown(self._channel)
            self.abort()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """Give it up.  Does not wait.  Idempotent."""
        if not self._closed:
            self._closed = True
            self._connection.forget(self._channel)
            self.changed()

    def changed(self) -> None:
        """Wake whoever waits for something to happen."""
        if not self._changed.is_set():
            self._changed.set()

    async def _wait_changed(self) -> None:
        if self._changed.is_set():
            self._changed = trio.Event()
        await self._changed.wait()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this channel was closed here")

    def _check_sendable(self) -> None:
        self._check_open()
        if self._channel.shutdown_sent:
            raise trio.ClosedResourceError("send_eof was called already")
        if self._connection.is_broken:
            raise trio.BrokenResourceError(self._connection.why)
        if self._channel.close_received:
            raise trio.BrokenResourceError("the other side closed the channel")


class Connection:
    """A connection to a forwarder, or of one.  `run` is its life."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        backwards: bool,
        handshake: bool = True,
        on_open: Callable[[MuxStream], None] | None = None,
    ) -> None:
        """`on_open` gets the channels that the peer opens; without, they are refused.  `backwards`: see Mux."""
        self.mux = Mux(backwards=backwards, handshake=handshake)
        self.is_broken = False
        self.why = "the connection to the forwarder ended"
        self.greeted = trio.Event()
        self._stream = stream
        self._on_open = on_open
        self._streams: dict[int, MuxStream] = {}
        self._to_write = trio.Event()
        self._drained = trio.Event()
        self._slack = trio.Event()
        if handshake:
            self._to_write.set()
        else:
            self.greeted.set()

    def open(self, destination: Destination) -> MuxStream:
        """A channel to `destination`.  Raises TooManyChannels, or BrokenResourceError."""
        if self.is_broken:
            raise trio.BrokenResourceError(self.why)
        made = self._stream_of(self.mux.open(destination))
        self.wake_writer()
        return made

    async def run(self) -> None:
        """Serve until the peer ends the connection.  Raises MuxError, and BrokenResourceError when it broke."""
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._greet_in_time)
                await self._read()
                nursery.cancel_scope.cancel()
        except* trio.ClosedResourceError:
            pass  # somebody took the stream away: an end like another
        except* (MuxError, trio.BrokenResourceError) as errors:
            failure = _first(errors)
            self.why = f"the connection to the forwarder failed: {failure}"
        finally:
            self.is_broken = True
            for stream in list(self._streams.values()):
                stream.changed()
            self._drained.set()
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)
        if failure is not None:
            raise failure

    # For channels

    def wake(self) -> None:
        """A channel was read: windows may have grown, and what was too much may not be any more."""
        if self.mux.excess <= MAX_EXCESS:
            self._slack.set()
        if self.mux.waiting:
            self.wake_writer()

    def wake_writer(self) -> None:
        self._to_write.set()

    async def wait_drained(self) -> None:
        """Return when the connection takes more."""
        await self._drained.wait()

    def forget(self, channel: Channel) -> None:
        self.mux.close(channel)
        self._streams.pop(channel.number, None)
        self.wake()
        self._wake_senders()

    def _wake_senders(self) -> None:
        self._drained.set()
        if not self.is_broken:
            self._drained = trio.Event()

    # Tasks

    async def _greet_in_time(self) -> None:
        with trio.move_on_after(GREETING_SECONDS):
            await self.greeted.wait()
            return
        raise MuxError(f"the other side did not greet within {GREETING_SECONDS:g} s")

    async def _write(self) -> None:
        while True:
            await self._to_write.wait()
            self._to_write = trio.Event()
            data = self.mux.take_output()
            for start in range(0, len(data), CHUNK):
                with trio.move_on_after(WRITE_SECONDS) as scope:
                    await self._stream.send_all(memoryview(data)[start : start + CHUNK])
                if scope.cancelled_caught:
                    raise MuxError(f"the other side took nothing for {WRITE_SECONDS:g} s")
            self._wake_senders()
            if self.mux.waiting:
                self._to_write.set()

    async def _read(self) -> None:
        while data := await self._stream.receive_some(CHUNK):
            for event in self.mux.receive(data):
                if isinstance(event, Changed):
                    if (stream := self._streams.get(event.channel)) is not None:
                        stream.changed()
                elif isinstance(event, Opened):
                    self._opened(self.mux.channels[event.channel])
                elif isinstance(event, Greeted):
                    self.greeted.set()
            if self.mux.waiting:
                self.wake_writer()
            if self.mux.is_stuffed:
                raise MuxError("the other side asks without end and does not read the answers")
            while self.mux.excess > MAX_EXCESS:
                self._slack = trio.Event()
                await self._slack.wait()

    def _opened(self, channel: Channel) -> None:
        if self._on_open is None:
            self.mux.close(channel)
            return
        self.mux.accept(channel)
        self._on_open(self._stream_of(channel))

    def _stream_of(self, channel: Channel) -> MuxStream:
        made = self._streams[channel.number] = MuxStream(self, channel)
        return made


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, Exception)
    return found

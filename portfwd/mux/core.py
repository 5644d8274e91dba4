"""The rules of one connection: channels, their windows and how they end.  No waiting, no sockets.

`receive` takes what came and says what happened; the calls that do something leave octets in `take_output`.

A channel's id is free when Close was sent and received.  Frames for a channel that is unknown are left out with all
their payload: they may be late ones for a channel that was refused.  A peer who sends more than his window is waited
for (`excess`), as older ones ignore windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from portfwd.mux.wire import (
    DEDICATED,
    MAX_GREETING,
    MAX_HEADER,
    Close,
    Data,
    MuxError,
    Open,
    Shutdown,
    Window,
    decode,
    encode,
    greeting,
    greeting_length,
    header_length,
)

if TYPE_CHECKING:
    from portfwd.mux.wire import Destination, Frame

WINDOW: Final = 65536  # octets; the original's
MAX_CHANNELS: Final = 1024  # of one connection, with those that only one side has closed
MAX_CONTROL: Final = 1 << 18  # octets that wait to be sent and are no data: a peer who causes more reads nothing
MAX_EXCESS: Final = 1 << 20  # octets beyond windows that are kept before nothing more is read
MAX_ID: Final = 0xFFFFFFFF


class TooManyChannels(Exception):
    """MAX_CHANNELS are open."""


@dataclass(frozen=True, slots=True)
class Greeted:
    """The handshake is done."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer opened a channel."""

    channel: int
    destination: Destination


@dataclass(frozen=True, slots=True)
class Changed:
    """There is something to read, or more may be written, or one of both has ended."""

    channel: int


Event: TypeAlias = Greeted | Opened | Changed


class Channel:
    """One stream, as far as its octets go."""

    __slots__ = (
        "allowed",
        "close_received",
        "close_sent",
        "consumed",
        "destination",
        "granted",
        "is_ours",
        "number",
        "received",
        "sent",
        "shutdown_received",
        "shutdown_sent",
    )

    def __init__(self, number: int, destination: Destination, *, is_ours: bool) -> None:
        self.number = number
        self.destination = destination
        self.is_ours = is_ours
        self.sent = 0  # octets
        self.allowed = 0  # that the peer lets us send, in all
        self.consumed = 0
        self.granted = 0  # that we let him send, in all
        self.received: bytearray = bytearray()
        self.shutdown_sent = False
        self.shutdown_received = False
        self.close_sent = False
        self.close_received = False

    @property
    def room(self) -> int:
        """Octets that may be sent now."""
        return max(self.allowed - self.sent, 0)

    @property
    def excess(self) -> int:
        return max(len(self.received) - WINDOW, 0)

    @property
    def is_over(self) -> bool:
        """Nothing more comes than what is buffered."""
        return self.shutdown_received or self.close_received

    @property
    def was_reset(self) -> bool:
        """The peer of a channel of ours gave it up without having ended it: he could not connect, say."""
        return self.is_ours and self.close_received and not self.shutdown_received


class Mux:
    """Both ends of a connection are one of these."""

    def __init__(self, *, backwards: bool, handshake: bool = True) -> None:
        """`backwards` is for the side that connected: ids count down from the highest there, so that both may open."""
        self.channels: dict[int, Channel] = {}
        self.refused = 0  # channels of the peer, because there were too many
        self.ignored = 0  # frames for channels that are not there
        self.excess = 0  # octets that came beyond windows
        self.greeted = not handshake
        self._step = -1 if backwards else 1
        self._next = MAX_ID if backwards else 0
        self._in = bytearray()
        self._payload: tuple[Channel | None, int] | None = None  # of the Data frame that is coming
        self._out: list[bytes] = [greeting()] if handshake else []
        self.waiting = len(self._out[0]) if handshake else 0  # octets of output
        self._control = 0  # those that are no data

    # From the peer

    def receive(self, data: bytes | bytearray) -> list[Event]:
        """Take in what came.  Raises MuxError, after which nothing is to be called any more."""
        buffer = self._in
        buffer += data
        events: list[Event] = []
        position = 0
        if not self.greeted:
            length = greeting_length(bytes(buffer[: len(greeting()) + MAX_GREETING]))
            if length is None:
                return events
            position = length
            self.greeted = True
            events.append(Greeted())
        while True:
            if self._payload is not None:
                position = self._take_payload(position, events)
                if self._payload is not None:
                    break
            view = memoryview(buffer)[position : position + MAX_HEADER]
            try:
                length = header_length(view)
                header = bytes(view[:length]) if length is not None else b""
            finally:
                view.release()
            if length is None:
                break
            position += length
            self._frame(decode(header), events)
        del buffer[:position]
        return events

    def _take_payload(self, position: int, events: list[Event]) -> int:
        assert self._payload is not None
        channel, left = self._payload
        count = min(left, len(self._in) - position)
        if channel is not None and count and not channel.close_sent:
            before = channel.excess
            channel.received += self._in[position : position + count]
            self.excess += channel.excess - before
            events.append(Changed(channel.number))
        self._payload = (channel, left - count) if left > count else None
        return position + count

    def _frame(self, frame: Frame, events: list[Event]) -> None:
        if isinstance(frame, Open):
            self._opened(frame, events)
            return
        channel = self.channels.get(frame.channel)
        if isinstance(frame, Data):
            if channel is None or channel.is_over:
                self.ignored += 1
                channel = None
            self._payload = (channel, frame.length)
        elif channel is None or channel.close_received:
            self.ignored += 1
        else:
            if isinstance(frame, Window):
                channel.allowed = max(channel.allowed, frame.sequence)
            elif isinstance(frame, Shutdown):
                channel.shutdown_received = True
            else:
                channel.close_received = True
                self._free(channel)
            events.append(Changed(channel.number))

    def _opened(self, frame: Open, events: list[Event]) -> None:
        if frame.connection == DEDICATED:
            raise MuxError("a dedicated channel, which nobody uses")
        if frame.channel in self.channels:
            raise MuxError(f"channel {frame.channel} is opened, and is open already")
        if len(self.channels) >= MAX_CHANNELS:
            self.refused += 1
            self._send(Close(frame.channel))
            return
        self.channels[frame.channel] = Channel(frame.channel, frame.destination, is_ours=False)
        events.append(Opened(frame.channel, frame.destination))

    # From us

    def open(self, destination: Destination) -> Channel:
        """A channel to `destination`.  Raises TooManyChannels."""
        if len(self.channels) >= MAX_CHANNELS:
            raise TooManyChannels(f"{MAX_CHANNELS} connections to the forwarder are open")
        while self._next in self.channels:
            self._next = (self._next + self._step) & MAX_ID
        channel = Channel(self._next, destination, is_ours=True)
        self._next = (self._next + self._step) & MAX_ID
        self.channels[channel.number] = channel
        self._send(Open(channel.number, destination))
        self._grant(channel)
        return channel

    def accept(self, channel: Channel) -> None:
        """Let the peer send on a channel that he opened."""
        self._grant(channel)

    def send(self, channel: Channel, data: bytes | bytearray | memoryview) -> None:
        """Send `data`, which is no longer than `channel.room`."""
        assert not channel.shutdown_sent
        assert not channel.close_sent
        assert 0 < len(data) <= channel.room
        channel.sent += len(data)
        self._out.append(encode(Data(channel.number, len(data))))
        self._out.append(bytes(data))
        self.waiting += len(self._out[-1]) + len(self._out[-2])

    def read(self, channel: Channel, limit: int) -> bytes:
        """At most `limit` octets of what was received, and the window grows by them."""
        before = channel.excess
        taken = bytes(channel.received[:limit])
        del channel.received[:limit]
        self.excess += channel.excess - before
        channel.consumed += len(taken)
        if channel.granted - channel.consumed < WINDOW // 2 and not (channel.is_over or channel.close_sent):
            self._grant(channel)
        return taken

    def shutdown(self, channel: Channel) -> None:
        """Nothing more will be sent on it.  Idempotent."""
        if not channel.shutdown_sent and not channel.close_sent:
            channel.shutdown_sent = True
            self._send(Shutdown(channel.number))

    def close(self, channel: Channel) -> None:
        """Give it up in both directions, with what was received and not read.  Idempotent."""
        if channel.close_sent:
            return
        channel.close_sent = True
        self.excess -= channel.excess
        channel.received.clear()
        self._send(Close(channel.number))
        self._free(channel)

    def take_output(self) -> bytes:
        """What is to be sent now."""
        taken = b"".join(self._out)
        self._out.clear()
        self.waiting = self._control = 0
        return taken

    def _grant(self, channel: Channel) -> None:
        channel.granted = channel.consumed + WINDOW
        self._send(Window(channel.number, channel.granted))

    def _send(self, frame: Frame) -> None:
        octets = encode(frame)
        self._out.append(octets)
        self.waiting += len(octets)
        self._control += len(octets)

    @property
    def is_stuffed(self) -> bool:
        """The peer makes us answer and does not read the answers."""
        return self._control > MAX_CONTROL

    def _free(self, channel: Channel) -> None:
        if channel.close_sent and channel.close_received:
            self.channels.pop(channel.number, None)

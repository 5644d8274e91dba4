"""What the other side of the multiplexed forwarder protocol says: frames, and the datagrams in a channel."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from portfwd.mux.core import MAX_CHANNELS, MAX_EXCESS, Mux, Opened
from portfwd.mux.udp import Datagram, Datagrams
from portfwd.mux.udp import encode as datagram
from portfwd.mux.wire import (
    MAX_HEADER,
    MAX_PAYLOAD,
    Close,
    Data,
    Destination,
    MuxError,
    Open,
    Protocol,
    Shutdown,
    Window,
    encode,
    greeting,
)
from tests.fuzz.targets.common import timed

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

TCP = Destination(Protocol.TCP, ip_address("127.0.0.1"), 80)
UNIX = Destination(Protocol.UNIX, path="/x")
ONE = datagram(Datagram(b"abc", ip_address("::1"), 5))
SEEDS = [
    b"\x40" + greeting() + encode(Open(1, TCP)) + encode(Window(1, 9)) + encode(Data(1, 3)) + b"abc",
    b"\x01" + encode(Open(1, UNIX)) + encode(Data(1, len(ONE))) + ONE + encode(Shutdown(1)) + encode(Close(1)),
    b"\x07" + encode(Data(7, 3)) + b"abc" + encode(Open(7, TCP)) + encode(Open(8, TCP)) + encode(Close(7)),
    b"\x07" + encode(Window(0, 65536)) + encode(Data(0, 3)) + b"abc" + encode(Close(0)),
]


def one(data: bytes) -> None:
    how = data[0] if data else 0
    mux = Mux(backwards=bool(how & 0x80), handshake=bool(how & 0x40))
    ours = mux.open(TCP)
    cutter = Datagrams()
    piece = (how & 0x3F) + 1
    try:
        for start in range(1, len(data), piece):
            for event in mux.receive(data[start : start + piece]):
                if isinstance(event, Opened):
                    mux.accept(mux.channels[event.channel])
            if ours.room and not (ours.close_received or ours.shutdown_sent):
                mux.send(ours, b"x")
            for channel in list(mux.channels.values()):
                received = mux.read(channel, 100)
                if channel.destination.protocol is Protocol.UNIX:
                    cutter.feed(received)
                if channel.is_over:
                    mux.close(channel)
            assert len(mux.channels) <= MAX_CHANNELS
            assert len(mux._in) < MAX_HEADER
            assert 0 <= mux.excess <= MAX_EXCESS + MAX_PAYLOAD
            assert len(cutter._buffer) < 70_000
    except MuxError:
        pass


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    return timed(one)

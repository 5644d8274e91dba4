"""Ethernet frames with their length before each, over whatever carries octets in order.

A unix or TCP socket, AF_VSOCK, or the two pipes of stdin and stdout: all are plain descriptors here.  One `readv`
takes in as many frames as have come, and they are handed out as views; one `writev` sends a frame.  Of a frame that
the kernel took only partly the rest is kept, and a system task finishes it, so that the stream never breaks off
inside a frame because nobody had more to say.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import trio

from tapdev.link import ETHERNET_HEADER, MAX_FRAME, LinkCapabilities, LinkClosed, LinkStatistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapdev.link import Buffer


@dataclass(frozen=True, slots=True)
class Framing:
    """How the length of a frame is written before it; the length does not count itself."""

    name: str
    size: int  # octets of the length: 1, 2, 4 or 8
    byteorder: Literal["big", "little"]
    max_length: int  # a larger one was never written by a peer of this protocol


QEMU: Final = Framing("qemu", 4, "big", 69632)  # NET_BUFSIZE, QEMU's own limit (passt-slirp-qemu.md 4.1)
VMNET: Final = Framing("vmnet", 2, "little", 65535)  # vpnkit.md 1.1

BUFFER: Final = 256 * 1024  # read at most at once: 128 KiB to 1 MiB measure the same
BATCH: Final = 64  # frames cut at a time, one burst; also bounds the time that a peer's nonsense takes
# Sends frames of 64 KiB a tenth faster than Linux's 208 KiB; smaller frames go as before, and 4 MiB gains no more.
SOCKET_BUFFER: Final = 1024 * 1024

# The kernel is short of memory for a moment and took nothing: the frame is lost as on a wire.
LOST: Final = frozenset({errno.ENOBUFS, errno.ENOMEM})

NOTHING: Final = memoryview(b"")
CLOSED_HERE: Final = "this end of the link was closed"


class StreamLink:
    """A stream as a Link.  Takes over both descriptors, which may be one."""

    gso_type = 0
    gso_size = 0
    checksum_partial = False

    def __init__(self, read_fd: int, write_fd: int, framing: Framing, *, mtu: int, received: bytes = b"") -> None:
        """`received` is what came behind a handshake and was read with it.

        Raises ValueError when a frame of `mtu` does not fit into the framing.
        """
        self._longest = min(framing.max_length, MAX_FRAME)
        if mtu + ETHERNET_HEADER > self._longest:
            most = self._longest - ETHERNET_HEADER
            raise ValueError(f"an MTU of {mtu} does not fit into {framing.name} frames: at most {most}")
        self._length = struct.Struct(
            {"big": ">", "little": "<"}[framing.byteorder] + {1: "B", 2: "H", 4: "I", 8: "Q"}[framing.size]
        )
        # stdin and stdout may be one file description, so both are asked before either is changed.
        self._blocking = {fd: os.get_blocking(fd) for fd in (read_fd, write_fd)}
        for fd in self._blocking:
            os.set_blocking(fd, False)
        self._read_fd = read_fd
        self._write_fd = write_fd
        self.capabilities = LinkCapabilities(mtu=mtu)
        self.statistics = LinkStatistics()
        self._framing = framing
        self._failure: str | None = None

        self._room = framing.size + framing.max_length  # a read with less room than this waits for `release`
        self._size = max(BUFFER, 2 * self._room, len(received))
        self._buffer = memoryview(mmap.mmap(-1, self._size))
        self._start = 0  # of what was not cut into frames yet
        self._end = len(received)
        self._buffer[: self._end] = received
        self._complete = self._has_whole()  # there are more whole frames behind those that were cut
        self._frames: deque[memoryview] = deque()
        self._held = False

        self._unsent = NOTHING  # of the frame that the kernel took partly
        self._stuck = False  # something is unsent, or the link failed or was closed
        self._finishing = False  # the task runs that waits for the kernel to take more
        self._writers = trio.lowlevel.ParkingLot()

    # From the guest

    def receive(self) -> memoryview | None:
        frames = self._frames
        if frames:
            return frames.popleft()
        if not (self._complete or self._read()):
            return None
        self._cut()
        return frames.popleft() if frames else None

    def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        self._held = False

    def _read(self) -> bool:
        """Read behind what is buffered.  False when nothing is there, or no room before `release`."""
        if self._read_fd < 0:
            raise LinkClosed(CLOSED_HERE)
        if not self._held:
            self._rewind()
        if self._size - self._end < self._room:
            return False
        try:
            count = os.readv(self._read_fd, [self._buffer[self._end :]])
        except BlockingIOError:
            if self._failure is not None:
                raise LinkClosed(self._failure) from None
            return False
        except OSError as error:
            raise self._fail(f"{self._framing.name} stream: {error.strerror}") from error
        if count == 0:
            where = "in the middle of a frame" if self._end > self._start else "the stream"
            raise self._fail(f"the other end closed {where}")
        self._end += count
        return True

    def _rewind(self) -> None:
        """Nobody has a view: begin at the front again, with the partial frame that is left, if it needs the room."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._size - self._end < self._room:
            left = self._end - self._start
            self._buffer[:left] = self._buffer[self._start : self._end]
            self._start, self._end = 0, left

    def _has_whole(self) -> bool:
        """Whether the next frame is all there, or its length is nonsense."""
        begin = self._start + self._framing.size
        if begin > self._end:
            return False
        length: int = self._length.unpack_from(self._buffer, self._start)[0]
        return length > self._framing.max_length or begin + length <= self._end

    def _cut(self) -> None:
        """Cut the next whole frames out of the buffer, at most BATCH."""
        unpack, buffer, append = self._length.unpack_from, self._buffer, self._frames.append
        size, longest, end = self._framing.size, self._longest, self._end
        begin = self._start + size  # of a frame
        octets = 0
        for _ in range(BATCH):
            if begin > end:
                break
            (length,) = unpack(buffer, begin - size)
            stop = begin + length
            if ETHERNET_HEADER <= length <= longest:
                if stop > end:
                    break
                append(buffer[begin:stop])
                octets += length
            elif length > self._framing.max_length:
                if not self._frames:  # the next call finds it again
                    raise self._fail(
                        f"a frame of {length} octets: this is no {self._framing.name} stream,"
                        f" whose frames have at most {self._framing.max_length}"
                    )
                break
            elif stop > end:
                break
            else:
                self.statistics.errors += 1
            begin = stop + size
        self._start = begin - size
        self._complete = self._has_whole()
        self.statistics.received_frames += len(self._frames)
        self.statistics.received_bytes += octets

    # To the guest

    def send(
        self,
        parts: Sequence[Buffer],
        checksum_start: int = 0,
        checksum_offset: int = 0,
        gso_type: int = 0,
        gso_size: int = 0,
        header_length: int = 0,
    ) -> bool:
        if self._stuck and not self._flush():
            return False
        length = 0
        for part in parts:
            length += len(part)
        statistics = self.statistics
        if not ETHERNET_HEADER <= length <= self._longest:
            statistics.dropped_frames += 1
            return True
        framed = (self._length.pack(length), *parts)
        try:
            written = os.writev(self._write_fd, framed)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in LOST:
                raise self._fail(f"{self._framing.name} stream: {error.strerror}") from error
            statistics.dropped_frames += 1
            return True
        if written < length + self._framing.size:
            self._unsent = memoryview(b"".join(framed))[written:]
            self._stuck = True
            self._start_finishing()
        statistics.sent_frames += 1
        statistics.sent_bytes += length
        return True

    def _flush(self) -> bool:
        """Send what is left of an earlier frame; whether all of it is gone.  Raises LinkClosed."""
        if self._write_fd < 0:
            raise LinkClosed(CLOSED_HERE)
        if self._failure is not None:
            raise LinkClosed(self._failure)
        try:
            written = os.writev(self._write_fd, [self._unsent])
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in LOST:
                raise self._fail(f"{self._framing.name} stream: {error.strerror}") from error
            return False
        self._unsent = self._unsent[written:] if written < len(self._unsent) else NOTHING
        self._stuck = len(self._unsent) > 0
        return not self._stuck

    def _start_finishing(self) -> None:
        if not self._finishing:
            self._finishing = True
            trio.lowlevel.spawn_system_task(self._finish)

    async def _finish(self) -> None:
        """Wait until the kernel takes more, give it what is unsent, and tell whoever wants to send.

        Only this task ever waits for the descriptor to be writable.
        """
        try:
            while self._write_fd >= 0 and self._failure is None:
                await trio.lowlevel.wait_writable(self._write_fd)
                if not self._unsent or self._flush():
                    break
        except (trio.ClosedResourceError, LinkClosed):
            pass
        except OSError:
            pass  # what cannot be waited for, a file or /dev/null, is always writable
        finally:
            self._finishing = False
            self._writers.unpark_all()

    def _fail(self, reason: str) -> LinkClosed:
        """The exception of a link that broke; every wait ends, and whole frames that came before are still given."""
        if self._failure is None:
            self._failure = reason
            self._stuck = True
            self._unsent = NOTHING
            for fd in self._blocking:
                trio.lowlevel.notify_closing(fd)
        return LinkClosed(reason)

    async def wait_readable(self) -> None:
        if self._frames or self._complete or self._failure is not None or self._read_fd < 0:
            await trio.lowlevel.checkpoint()
            return
        try:
            await trio.lowlevel.wait_readable(self._read_fd)
        except trio.ClosedResourceError:
            pass
        except OSError:
            await trio.lowlevel.checkpoint()  # what cannot be waited for, a file or /dev/null, is always readable

    async def wait_writable(self) -> None:
        if self._failure is not None or self._write_fd < 0:
            await trio.lowlevel.checkpoint()
            return
        self._start_finishing()
        await self._writers.park()

    def close(self) -> None:
        """Give up both descriptors, in the blocking mode that they came in: others may share them."""
        if self._read_fd < 0:
            return
        self._read_fd = self._write_fd = -1
        self._stuck = True
        self._complete = False
        self._unsent = NOTHING
        self._frames.clear()
        for fd, blocking in self._blocking.items():
            trio.lowlevel.notify_closing(fd)
            os.set_blocking(fd, blocking)
            os.close(fd)


def stream_link(sock: socket.socket, framing: Framing, *, mtu: int, received: bytes = b"") -> StreamLink:
    """A connected stream socket as a link.  Takes over `sock`, unless it raises ValueError.

    A unix socket gets large buffers; what may queue is the sender's SO_SNDBUF on Linux, and the receiver's SO_RCVBUF
    counts elsewhere.  TCP has its delay switched off and keeps its buffers, which the kernel fits to the path as long
    as nobody sets them.
    """
    link = StreamLink(sock.fileno(), sock.fileno(), framing, mtu=mtu, received=received)
    try:
        if sock.family == socket.AF_UNIX:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
        elif sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        pass  # it works without, only slower
    sock.detach()
    return link

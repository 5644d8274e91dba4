"""TAP devices as links, with the virtio-net header and every offload the kernel has.

With the header one `readv` or `writev` moves a super-frame of up to 64 KiB, and no TCP or UDP checksum is computed on
either side.  Linux only: this module and `netns` are where such calls live.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import sys
from typing import TYPE_CHECKING, Final

import trio

from tapdev.link import LinkCapabilities, LinkClosed, LinkStatistics
from tapdev.waiting import wait_or_closed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapdev.link import Buffer

# linux/if_tun.h
TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
TUNSETVNETHDRSZ: Final = 0x400454D8
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000

TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04
TUN_F_USO4: Final = 0x20  # USO4 and USO6 only together, from Linux 6.2
TUN_F_USO6: Final = 0x40
# What to ask for, best first: an older kernel refuses a mask with a bit that it does not know.
OFFLOAD_MASKS: Final = (
    TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_USO4 | TUN_F_USO6,
    TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6,
    TUN_F_CSUM,
)

# struct virtio_net_hdr_v1 (virtio 1.2 section 5.1.6), host byte order on a TAP:
#   flags 1 | gso_type 1 | hdr_len 2 | gso_size 2 | csum_start 2 | csum_offset 2 | num_buffers 2
VNET_HEADER: Final = struct.Struct("=BBHHHHH")
NEEDS_CSUM: Final = 1
PLAIN: Final = bytes(VNET_HEADER.size)

SLOT_SIZE: Final = 17 * mmap.PAGESIZE  # a frame of 65549 octets, on pages of its own
SLOTS: Final = 64  # small frames that a burst may hold at once

# The device is down for a moment, or out of memory: the frame is lost as on a wire.
LOST: Final = frozenset({errno.EIO, errno.ENOBUFS, errno.ENOMEM, errno.EINVAL})


def open_tap(name: str, *, vnet_header: bool = True) -> int:
    """A new TAP device `name` in the network namespace of this thread; returns its descriptor.

    The device lives as long as the descriptor.  Raises OSError: EACCES or EPERM without the right to do so, ENOENT
    without the tun driver.
    """
    import fcntl

    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if vnet_header else 0)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("=16sH22x", name.encode(), flags))
    except BaseException:
        os.close(fd)
        raise
    return fd


class TapLink:
    """One TAP descriptor as a Link.  Takes over `fd`."""

    def __init__(self, fd: int, *, mtu: int, vnet_header: bool = True, offload: bool = True) -> None:
        if sys.platform != "linux":
            raise OSError(errno.ENOSYS, "TAP devices need Linux")
        self._fd = fd
        os.set_blocking(fd, False)
        self._vnet_header = vnet_header
        self.capabilities = LinkCapabilities(mtu=mtu, **(_negotiate(fd, offload) if vnet_header else {}))
        self.statistics = LinkStatistics()
        self._memory = mmap.mmap(-1, SLOTS * SLOT_SIZE)  # touched only as far as a burst holds frames
        memory = memoryview(self._memory)
        self._slots = [memory[i * SLOT_SIZE : (i + 1) * SLOT_SIZE] for i in range(SLOTS)]
        self._slot = 0
        self._received = bytearray(VNET_HEADER.size)
        self._sent = bytearray(VNET_HEADER.size)
        self._skip = VNET_HEADER.size if vnet_header else 0
        self._into: list[list[bytearray | memoryview]] = [
            [self._received, slot] if vnet_header else [slot] for slot in self._slots
        ]

    def fileno(self) -> int:
        return self._fd

    def receive(self) -> memoryview | None:
        slot = self._slot
        if slot == SLOTS:
            return None
        try:
            length = os.readv(self._fd, self._into[slot]) - self._skip
        except BlockingIOError:
            return None
        except OSError as error:
            raise LinkClosed(f"TAP device: {error.strerror}") from error
        statistics = self.statistics
        statistics.received_frames += 1
        statistics.received_bytes += length
        return self._slots[slot][:length]

    # The header is looked at only when somebody asks: TCP never does.  Without it, it stays zero.

    @property
    def gso_type(self) -> int:
        return self._received[1] & 0x7F  # bit 7 only marks ECN

    @property
    def gso_size(self) -> int:
        return int(VNET_HEADER.unpack_from(self._received)[3])

    @property
    def checksum_partial(self) -> bool:
        return self._received[0] & NEEDS_CSUM != 0

    def hold(self) -> None:
        self._slot += 1

    def release(self) -> None:
        self._slot = 0

    def send(
        self,
        parts: Sequence[Buffer],
        checksum_start: int = 0,
        checksum_offset: int = 0,
        gso_type: int = 0,
        gso_size: int = 0,
        header_length: int = 0,
    ) -> bool:
        if self._skip:
            header: Buffer = PLAIN
            if checksum_start:
                header = self._sent
                VNET_HEADER.pack_into(
                    header, 0, NEEDS_CSUM, gso_type, header_length, gso_size, checksum_start, checksum_offset, 1
                )
            parts = (header, *parts)
        statistics = self.statistics
        try:
            length = os.writev(self._fd, parts)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in LOST:
                raise LinkClosed(f"TAP device: {error.strerror}") from error
            statistics.dropped_frames += 1
            return True
        statistics.sent_frames += 1
        statistics.sent_bytes += length - self._skip
        return True

    async def wait_readable(self) -> None:
        await wait_or_closed(trio.lowlevel.wait_readable, self._fd)

    async def wait_writable(self) -> None:
        await wait_or_closed(trio.lowlevel.wait_writable, self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            trio.lowlevel.notify_closing(fd)
            os.close(fd)


def _negotiate(fd: int, offload: bool) -> dict[str, bool]:
    """Set the header size and ask for the best offloads; returns the capabilities that the kernel granted."""
    import fcntl

    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("=i", VNET_HEADER.size))
    for mask in OFFLOAD_MASKS if offload else ():
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, mask)
        except OSError:
            continue
        return {
            "checksum": bool(mask & TUN_F_CSUM),
            "tso4": bool(mask & TUN_F_TSO4),
            "tso6": bool(mask & TUN_F_TSO6),
            "uso": bool(mask & TUN_F_USO4),
        }
    fcntl.ioctl(fd, TUNSETOFFLOAD, 0)
    return {}

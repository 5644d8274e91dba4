"""The Internet checksum, RFC 1071.

As 2**16 is 1 modulo 65535, the ones' complement sum of 16-bit words is the whole buffer, read as one big number,
modulo 65535.  CPython reads such a number five times faster than any loop over words, but divides it slowly; so it is
folded to a few digits first, and a buffer beyond an ordinary frame is read in slices.  All in all 2.6 us for 1448
octets and 75 us for 65480; with numpy, where somebody called `enable_fast_sums`, 7 us for 65480.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Buffer: TypeAlias = bytes | bytearray | memoryview

TINY: Final = 512  # octets; to fold a number so short costs more than it saves
ORDINARY: Final = 1536  # octets; the transport part of any ordinary frame; numpy's constant 2 us pay beyond it
SLICE: Final = 4096  # octets; measured best for 8960 and 65480
ADDABLE: Final = 1 << 17  # octets


def _mask(octets: int) -> int:
    return (1 << 8 * octets) - 1


_MASK_2048: Final = _mask(2048)
_MASK_1024: Final = _mask(1024)
_MASK_768: Final = _mask(768)
_MASK_512: Final = _mask(512)
_MASK_384: Final = _mask(384)
_MASK_256: Final = _mask(256)
_MASK_192: Final = _mask(192)


def sum_by_slices(data: Buffer) -> int:
    """A number of at most 257 octets congruent to the sum of `data`, of any length."""
    length = len(data)
    last = length - length % SLICE
    total = int.from_bytes(data[last:], "big")
    if length & 1:
        total <<= 8
    for start in range(0, last, SLICE):
        total += int.from_bytes(data[start : start + SLICE], "big")
    total = (total >> 16384) + (total & _MASK_2048)
    total = (total >> 8192) + (total & _MASK_1024)
    total = (total >> 4096) + (total & _MASK_512)
    return (total >> 2048) + (total & _MASK_256)


_large: Callable[[Buffer], int] = sum_by_slices


def enable_fast_sums() -> bool:
    """Let numpy add large buffers from now on, in the whole process; False when there is no numpy.

    numpy costs 0.1 s and 20 MiB to import, so nobody imports it unasked.
    """
    global _large
    try:
        _large = numpy_sum()
    except ImportError:
        return False
    return True


def numpy_sum() -> Callable[[Buffer], int]:
    """What `enable_fast_sums` enables.  Raises ImportError.

    16-bit words in the host's order are added in 32 bits, where as many as ADDABLE cannot overflow; a sum in the wrong
    order is the right one with its octets swapped (RFC 1071 section 2B), which is 256 times it.
    """
    import numpy as np

    half, word = np.dtype(np.uint16), np.dtype(np.uint32)
    add, view = np.add.reduce, np.frombuffer
    swap = 8 if sys.byteorder == "little" else 0

    def sum_by_words(data: Buffer) -> int:
        length = len(data)
        if length > ADDABLE:
            return sum_by_words(data[:ADDABLE]) + sum_by_words(data[ADDABLE:])
        words = length >> 1
        total = int(add(view(data, half, words), 0, word)) << swap if words else 0
        return total + (data[-1] << 8) if length & 1 else total

    return sum_by_words


def data_sum(data: Buffer) -> int:
    """A short number congruent to the sum of `data` modulo 65535, not reduced: for who adds more to it.

    A trailing odd octet is padded with zero.
    """
    length = len(data)
    if length > ORDINARY:
        return _large(data)
    total = int.from_bytes(data, "big")
    if length & 1:
        total <<= 8
    if length > TINY:
        total = (total >> 6144) + (total & _MASK_768)
        total = (total >> 3072) + (total & _MASK_384)
        total = (total >> 1536) + (total & _MASK_192)
    return total


def ones_sum(data: Buffer) -> int:
    """The ones' complement sum of `data`, congruent modulo 65535; a trailing odd octet is padded with zero."""
    length = len(data)
    if length > TINY:
        return data_sum(data) % 65535
    total = int.from_bytes(data, "big")
    return (total << 8 if length & 1 else total) % 65535


def checksum(total: int) -> int:
    """The checksum field for a sum: folded and complemented.

    A zero comes out as 0xFFFF, its other representation, which RFC 768 demands for UDP.
    """
    return 65535 - total % 65535


def tcp_checksum(total: int) -> int:
    """The same for TCP, where a zero is 0: 0xFFFF passes, but Wireshark reports it as a fault."""
    return -total % 65535


def fold(total: int) -> int:
    """The sum folded to 16 bits and not complemented: a partial checksum, as an offloading link wants it."""
    return total % 65535 or 65535


def is_valid(data: Buffer, pseudo: int = 0) -> bool:
    """Whether `data`, its checksum field included, and the pseudo-header sum add up."""
    return (ones_sum(data) + pseudo) % 65535 == 0

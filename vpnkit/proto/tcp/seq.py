"""Arithmetic of sequence numbers modulo 2**32, RFC 9293 section 3.4.  The one place where they are compared."""

from __future__ import annotations

from typing import Final

MASK: Final = 0xFFFFFFFF
HALF: Final = 0x80000000


def distance(start: int, end: int) -> int:
    """How far `end` lies after `start`; negative when it lies before it."""
    delta = (end - start) & MASK
    return delta - 0x100000000 if delta & HALF else delta


def before(a: int, b: int) -> bool:
    """a < b."""
    return (a - b) & HALF != 0


def after(a: int, b: int) -> bool:
    """a > b."""
    return (b - a) & HALF != 0

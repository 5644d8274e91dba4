"""Waiting for a descriptor that somebody else may close meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def wait_or_closed(wait: Callable[[int], Awaitable[None]], fd: int) -> None:
    """`wait` for `fd`; return also when it is closed, or when it is negative because it was.

    Closing ends a wait: a link's `receive` and `send` say then that it is closed.
    """
    if fd < 0:
        await trio.lowlevel.checkpoint()
        return
    try:
        await wait(fd)
    except trio.ClosedResourceError:
        pass

"""Going through a table that may be long, while the network goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable

AT_ONCE: Final = 100  # records between two checkpoints: 2 ms

Record = TypeVar("Record")


async def gradually(records: Iterable[Record]) -> list[Record]:
    """All of `records`, made with a checkpoint every AT_ONCE."""
    found: list[Record] = []
    for record in records:
        found.append(record)
        if len(found) % AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
    return found

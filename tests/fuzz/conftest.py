"""The guest under attack, who must be served at the end of every test that has him."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fuzz.victim import Victim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import trio
    from trio.testing import MockClock


@pytest.fixture
async def victim(nursery: trio.Nursery, mock_clock: MockClock) -> AsyncIterator[Victim]:
    made = Victim(nursery, mock_clock)
    try:
        yield made
        made.check()
    finally:
        made.close()

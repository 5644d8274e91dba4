"""The guest under attack, who must be served at the end of every test that has him, and the LAN of several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from tests.fuzz.victim import Victim
from tests.fuzz.village import Village

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HERE = Path(__file__).parent


def run_with_a_still_clock(*args: Any, clock: object = None, **named: Any) -> Any:
    return trio.run(*args, clock=MockClock(), **named)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """pytest-trio takes the clock from a test's own arguments; here it belongs to `victim` and `village`."""
    for item in items:
        if item.path.is_relative_to(HERE) and {"victim", "village"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.trio(run=run_with_a_still_clock))


@pytest.fixture
async def victim(nursery: trio.Nursery) -> AsyncIterator[Victim]:
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    made = Victim(nursery, clock)
    try:
        yield made
        made.check()
    finally:
        made.close()


@pytest.fixture
async def village(nursery: trio.Nursery) -> AsyncIterator[Village]:
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    made = Village(nursery, clock)
    try:
        yield made
        made.settle()
        made.check()
    finally:
        made.close()

"""Fixtures of the conformance tests."""

from __future__ import annotations

import pytest

from tests.conformance.script import Script
from tests.conformance.wire import Wire


@pytest.fixture
async def make_wire(nursery):
    """Makes guests at the ends of wires, which all end with the test."""
    made: list[Wire] = []

    def make(**options: object) -> Wire:
        made.append(Wire(nursery, **options))
        return made[-1]

    yield make
    for wire in made:
        wire.close()


@pytest.fixture
async def wire(make_wire):
    """A guest at the end of a wire."""
    return make_wire()


@pytest.fixture
async def make_script(nursery):
    """Makes scripts of TCP connections, each with a guest for itself."""
    made: list[Script] = []

    def make(**options: object) -> Script:
        made.append(Script(nursery, **options))
        return made[-1]

    yield make
    for script in made:
        script.close()


@pytest.fixture
async def script(make_script):
    """A TCP connection, frame by frame, on a clock that the test moves."""
    return make_script()

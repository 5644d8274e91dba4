"""A served tree, and clients of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.vpnkit.control.p9.client import P9Client, Table
from vpnkit.control.p9.ports import PortDirectory
from vpnkit.control.p9.server import serve_stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from vpnkit.control.p9.nodes import Node


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def root(table: Table) -> PortDirectory:
    return PortDirectory(table, (ValueError,))


@pytest.fixture
def connect(root: Node, nursery: trio.Nursery) -> Callable[..., P9Client]:
    """Makes a client that has said nothing yet."""

    def make(**options: bool) -> P9Client:
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(serve_stream, theirs, root)
        return P9Client(ours, **options)

    return make


@pytest.fixture(params=["9P2000", "9P2000.u"])
async def client(request: pytest.FixtureRequest, connect: Callable[..., P9Client]) -> P9Client:
    """One that has attached."""
    return await connect(extended=request.param == "9P2000.u").begin()

"""A watcher of this very namespace."""

from __future__ import annotations

import socket
import sys

import pytest
import trio

from portfwd.auto.sock_diag import open_diag
from portfwd.auto.watch import Watcher

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sock_diag is Linux's")


class Seen:
    retry_at = float("inf")

    def __init__(self):
        self.ports = set()
        self.changed = trio.Event()

    async def listeners_are(self, listeners, addresses):
        self.ports = {listener.port for listener in listeners if listener.protocol == "tcp"}
        self.changed.set()

    async def wait(self, condition):
        with trio.fail_after(5):
            while not condition():
                self.changed = trio.Event()
                await self.changed.wait()


async def test_a_listener_comes_and_goes():
    seen = Seen()
    watcher = Watcher(open_diag(), open_diag())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run, seen, lambda: ["192.168.65.3"])
        with socket.create_server(("127.0.0.1", 0)) as made:
            port = made.getsockname()[1]
            watcher.hint()
            await seen.wait(lambda: port in seen.ports)
            watcher.told()
        await seen.wait(lambda: port not in seen.ports)
        nursery.cancel_scope.cancel()

"""Watching a network namespace that is at hand: every change of its listeners goes to a Follower."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from portfwd.auto.pace import Pace
from portfwd.auto.sock_diag import drain, listeners, watch_ends

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from portfwd.auto.follow import Follower
    from portfwd.auto.sock_diag import Listener

log = logging.getLogger(__name__)


class Watcher:
    """Looks at what listens, when something says that it may have changed and now and then."""

    def __init__(self, diag: socket.socket, ends: socket.socket) -> None:
        """Two sockets as of `open_diag`, which are closed with `run`."""
        self.looks = 0
        self._diag = diag
        self._ends = ends
        self._pace = Pace(trio.current_time(), is_told=False)
        self._hinted = trio.Event()

    def told(self) -> None:
        """From now on `hint` is called whenever somebody begins to listen."""
        self._pace.is_told = True
        self.hint()

    def hint(self) -> None:
        """Something may have changed."""
        self._pace.hint(trio.current_time())
        self._hinted.set()

    async def run(self, follower: Follower, addresses: Callable[[], Sequence[str]]) -> None:
        """Watch until cancelled.  `addresses` are those of the guest on his link.  Raises OSError."""
        with self._diag, self._ends:
            watch_ends(self._ends)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_ends)
                seen: tuple[set[Listener], Sequence[str]] | None = None
                while True:
                    now = trio.current_time()
                    found = listeners(self._diag), addresses()
                    self.looks += 1
                    changed = found != seen
                    self._pace.looked(now, changed=changed)
                    if changed or follower.retry_at <= now:
                        seen = found
                        await follower.listeners_are(*found)
                    await self._wait()

    async def _wait(self) -> None:
        while True:
            now = trio.current_time()
            due = self._pace.due(now)
            if due <= now:
                await trio.lowlevel.checkpoint()
                return
            self._hinted = trio.Event()
            with trio.move_on_after(due - now):
                await self._hinted.wait()

    async def _watch_ends(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._ends)
            drain(self._ends)
            self.hint()
            await trio.sleep(0.05)  # however many end

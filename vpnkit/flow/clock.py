"""The guest's clock: one task that sleeps until the earliest deadline of its queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from vpnkit.proto.deadlines import DeadlineQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from vpnkit.proto.deadlines import Timed


class Deadlines:
    """A DeadlineQueue and the task that serves it.

    `after` is called when some deadlines were served, so that what they produced leaves.  A failing `on_deadline` is
    handed to `failed`, which contains it.
    """

    def __init__(self, after: Callable[[], None], failed: Callable[[Timed, BaseException], None]) -> None:
        self.queue = DeadlineQueue()
        self._after = after
        self._failed = failed
        self._sleep = trio.CancelScope()
        self.wakeups = 0

    def update(self, timed: Timed) -> None:
        """The deadline of `timed` may have become earlier."""
        if self.queue.update(timed):
            self._sleep.deadline = self.queue.next_deadline()

    async def run(self) -> None:
        """Serve deadlines for ever."""
        queue = self.queue
        while True:
            with trio.CancelScope(deadline=queue.next_deadline()) as self._sleep:
                await trio.sleep_forever()
            self.wakeups += 1
            now = trio.current_time()
            due = queue.due(now)
            for timed in due:
                try:
                    timed.on_deadline(now)
                except Exception as error:
                    self._failed(timed, error)  # and it is not queued again: its deadline may still be there
                else:
                    self.queue.update(timed)
            if due:
                self._after()

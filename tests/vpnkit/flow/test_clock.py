from __future__ import annotations

import trio
from trio.testing import MockClock

from vpnkit.flow.clock import Deadlines
from vpnkit.proto.deadlines import NEVER


class Alarm:
    def __init__(self, when: float, *, fails: bool = False) -> None:
        self.queued_at = NEVER
        self.when = when
        self.fails = fails
        self.rang: list[float] = []

    def next_deadline(self) -> float:
        return self.when

    def on_deadline(self, now: float) -> None:
        self.rang.append(now)
        if self.fails:
            raise ZeroDivisionError("as the test says")
        self.when = NEVER


class Clock:
    def __init__(self) -> None:
        self.after = 0
        self.failed: list[object] = []
        self.deadlines = Deadlines(self.count, lambda timed, _error: self.failed.append(timed))

    def count(self) -> None:
        self.after += 1


def run(test):
    """Run `test` with a clock, in a time that jumps ahead when nobody has anything to do."""

    async def main() -> None:
        clock = Clock()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clock.deadlines.run)
            await test(clock, trio.current_time())
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_alarms_ring_in_time():
    async def test(clock, start):
        alarms = [Alarm(start + seconds) for seconds in (5, 1, 3, 3)]
        for alarm in alarms:
            clock.deadlines.update(alarm)
        await trio.sleep(10)
        assert [alarm.rang for alarm in alarms] == [[start + seconds] for seconds in (5, 1, 3, 3)]
        assert clock.after == 3

    run(test)


def test_an_earlier_alarm_wakes_a_sleeping_clock():
    async def test(clock, start):
        clock.deadlines.update(Alarm(start + 100))
        await trio.sleep(1)
        soon = Alarm(start + 2)
        clock.deadlines.update(soon)
        await trio.sleep(2)
        assert soon.rang == [start + 2]

    run(test)


def test_an_alarm_that_fails_rings_once_and_the_others_ring():
    """Its deadline has passed and stays: tried again it would take the whole processor."""

    async def test(clock, start):
        bad, good = Alarm(start + 1, fails=True), Alarm(start + 1)
        for alarm in (bad, good):
            clock.deadlines.update(alarm)
        await trio.sleep(10)
        assert (bad.rang, good.rang) == ([start + 1], [start + 1])
        assert clock.failed == [bad]
        assert clock.deadlines.wakeups == 1

    run(test)


def test_nothing_to_do_is_not_waking_up():
    async def test(clock, _start):
        await trio.sleep(80_000)
        assert clock.deadlines.wakeups == 0

    run(test)

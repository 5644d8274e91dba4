from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vpnkit.proto.deadlines import NEVER, SWEEP_AT, DeadlineQueue


class Alarm:
    def __init__(self, when: float = NEVER) -> None:
        self.queued_at = NEVER
        self.when = when
        self.rang: list[float] = []

    def next_deadline(self) -> float:
        return self.when

    def on_deadline(self, now: float) -> None:
        self.rang.append(now)
        self.when = NEVER


def run(queue: DeadlineQueue, now: float) -> list[Alarm]:
    due = queue.due(now)
    for alarm in due:
        alarm.on_deadline(now)
        queue.update(alarm)
    return due  # type: ignore[return-value]


def test_empty():
    queue = DeadlineQueue()
    assert queue.next_deadline() == NEVER
    assert not queue.due(1e9)


def test_never_is_not_queued():
    queue = DeadlineQueue()
    assert not queue.update(Alarm())
    assert not len(queue)


def test_only_a_new_head_is_news():
    queue = DeadlineQueue()
    assert queue.update(Alarm(5))
    assert not queue.update(Alarm(6))
    assert queue.update(Alarm(4))
    assert queue.next_deadline() == 4


def test_what_ended_does_not_pile_up():
    queue, lasting = DeadlineQueue(), [Alarm(1000 + i) for i in range(100)]
    for alarm in lasting:
        queue.update(alarm)
    for i in range(20 * SWEEP_AT):
        alarm = Alarm(2000 + i)
        queue.update(alarm)
        alarm.when = NEVER
        lasting[i % 100].when -= 0.001
        queue.update(lasting[i % 100])
        assert len(queue) <= SWEEP_AT + 1
    assert len(run(queue, 1e9)) == 100
    assert not len(queue)


def test_many_that_last_are_kept():
    queue, alarms = DeadlineQueue(), [Alarm(i) for i in range(5 * SWEEP_AT)]
    for alarm in alarms:
        queue.update(alarm)
    assert run(queue, 1e9) == alarms


def test_a_sweep_while_the_due_are_taken():
    queue, alarms = DeadlineQueue(), [Alarm(1) for _ in range(2 * SWEEP_AT)]
    for alarm in alarms:
        queue.update(alarm)
        alarm.when = 2 if alarm is not alarms[0] else 1
    assert run(queue, 1) == alarms[:1]
    assert sorted(map(id, run(queue, 2))) == sorted(map(id, alarms[1:]))
    assert not len(queue)


def test_later_costs_nothing_and_rings_once_at_the_right_time():
    queue, alarm = DeadlineQueue(), Alarm(1)
    queue.update(alarm)
    for i in range(100):
        alarm.when = 2 + i
        assert not queue.update(alarm)
    assert len(queue) == 1
    assert not run(queue, 1)
    assert queue.next_deadline() == 101
    assert run(queue, 101) == [alarm]
    assert alarm.rang == [101]
    assert not len(queue)


def test_earlier_rings_once():
    queue, alarm = DeadlineQueue(), Alarm(10)
    queue.update(alarm)
    alarm.when = 5
    assert queue.update(alarm)
    assert run(queue, 5) == [alarm]
    assert not run(queue, 10)


def test_gone_rings_never():
    queue, alarm = DeadlineQueue(), Alarm(1)
    queue.update(alarm)
    alarm.when = NEVER
    assert not run(queue, 1)
    assert not len(queue)


def test_back_and_forth_to_the_same_time_rings_once():
    queue, alarm = DeadlineQueue(), Alarm(10)
    queue.update(alarm)
    alarm.when = 5
    queue.update(alarm)
    alarm.when = 10
    assert not run(queue, 5)
    assert run(queue, 10) == [alarm]
    assert alarm.rang == [10]


@given(st.lists(st.floats(0, 100), max_size=30), st.floats(0, 100))
def test_due_is_what_has_passed_in_order(times, now):
    queue = DeadlineQueue()
    alarms = [Alarm(when) for when in times]
    for alarm in alarms:
        queue.update(alarm)
    assert [alarm.when for alarm in queue.due(now)] == sorted(when for when in times if when <= now)


class Alarms(RuleBasedStateMachine):
    """Whatever moves when: each alarm rings at its time, never before it and never twice."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = DeadlineQueue()
        self.alarms = [Alarm() for _ in range(4)]
        self.now = 0.0

    @rule(which=st.integers(0, 3), after=st.sampled_from([0.5, 1, 2, 5, 60, NEVER]))
    def set(self, which: int, after: float) -> None:
        self.alarms[which].when = self.now + after
        self.queue.update(self.alarms[which])

    @rule(seconds=st.sampled_from([0.1, 0.5, 1, 3, 100]))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        expected = {id(alarm) for alarm in self.alarms if alarm.when <= end}
        rang = []
        while self.queue.next_deadline() <= end:
            self.now = self.queue.next_deadline()
            for alarm in run(self.queue, self.now):
                assert alarm.rang[-1] == self.now
                rang.append(id(alarm))
        self.now = end
        assert sorted(rang) == sorted(expected)

    @invariant()
    def the_head_is_not_late(self) -> None:
        assert self.queue.next_deadline() <= min(alarm.when for alarm in self.alarms)


TestAlarms = Alarms.TestCase

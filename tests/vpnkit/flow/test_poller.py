from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from vpnkit.flow.poller import HANGUP, READABLE, WRITABLE, Poller


class Recorder:
    def __init__(self, then=None) -> None:
        self.events: list[int] = []
        self.failures: list[BaseException] = []
        self.then = then

    def on_ready(self, events: int) -> None:
        self.events.append(events)
        if self.then is not None:
            self.then()

    def on_failure(self, error: BaseException) -> None:
        self.failures.append(error)


@pytest.fixture
def poller():
    made = Poller()
    yield made
    made.close()


@pytest.fixture
def pair():
    a, b = socket.socketpair()
    with a, b:
        a.setblocking(False)
        b.setblocking(False)
        yield a, b


def test_each_edge_is_told_once(poller, pair):
    a, b = pair
    recorder = Recorder()
    poller.register(a.fileno(), recorder)
    assert poller.poll() == 1
    assert recorder.events == [WRITABLE]
    assert poller.poll() == 0
    b.send(b"x")
    poller.poll()
    assert recorder.events[1] & READABLE
    assert poller.poll() == 0
    b.close()
    poller.poll()
    assert recorder.events[2] & HANGUP
    assert recorder.events[2] & READABLE


def test_a_failing_handler_is_told_and_the_others_go_on(poller, pair):
    a, b = pair

    def fail():
        raise ZeroDivisionError("as the test says")

    broken, fine = Recorder(fail), Recorder()
    poller.register(a.fileno(), broken)
    poller.register(b.fileno(), fine)
    poller.poll()
    assert [type(error) for error in broken.failures] == [ZeroDivisionError]
    assert fine.events == [WRITABLE]


def test_unregistered_by_another_handler_of_the_same_batch(poller, pair):
    a, b = pair
    first = Recorder(lambda: [poller.unregister(s.fileno()) for s in pair])
    second = Recorder(lambda: [poller.unregister(s.fileno()) for s in pair])
    poller.register(a.fileno(), first)
    poller.register(b.fileno(), second)
    assert poller.poll() == 2
    assert len(first.events) + len(second.events) == 1
    assert len(poller) == 0
    poller.unregister(a.fileno())  # an unknown one is ignored


async def test_waiting(poller, pair):
    a, b = pair
    recorder = Recorder()
    poller.register(a.fileno(), recorder)
    poller.poll()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(poller.wait)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        b.send(b"x")
    assert poller.poll() == 1


def test_a_reader_is_not_told_that_it_may_write(poller: Poller, pair) -> None:
    a, b = pair
    recorder = Recorder()
    poller.register_reader(a.fileno(), recorder)
    assert poller.poll() == 0
    b.send(b"x")
    poller.poll()
    assert recorder.events == [READABLE]


def test_what_is_closed_next_is_forgotten(poller: Poller) -> None:
    """The same descriptor number may be taken again at once."""
    for _ in range(3):
        a, b = socket.socketpair()
        with b:
            with a:
                recorder = Recorder()
                poller.register_reader(a.fileno(), recorder)
                b.send(b"x")
                poller.closing(a.fileno())
            assert poller.poll() == 0
            assert recorder.events == []
            assert len(poller) == 0

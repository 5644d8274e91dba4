"""Forwards that are as a guest's listeners are."""

from __future__ import annotations

import pytest

from portfwd.auto import follow as module
from portfwd.auto.follow import RETRY_SECONDS, Follower, reached_at
from portfwd.auto.rules import parse_rule
from portfwd.auto.sock_diag import Listener
from portfwd.errors import ForwardError
from portfwd.forward import Forward
from portfwd.spec import parse

ADDRESSES = ["192.168.65.3", "fd65::3"]


class Table:
    """A forward table that listens nowhere."""

    def __init__(self):
        self.forwards = []
        self.busy = set()

    async def expose(self, text):
        [spec] = parse(text)
        if spec.host_port in self.busy:
            raise ForwardError(f"cannot forward {spec}: {spec.host_port} is in use by x (pid 1)")
        self.forwards.append(Forward(spec, []))
        return [self.forwards[-1]]

    async def unexpose(self, text, *, connections=False):
        [spec] = parse(text)
        [gone] = [forward for forward in self.forwards if forward.spec == spec] or [None]
        if gone is None:
            raise ForwardError("is not forwarded")
        self.forwards.remove(gone)
        return [gone]

    def list(self):
        return self.forwards

    @property
    def specs(self):
        return sorted(str(forward.spec) for forward in self.forwards)


def tcp(port, address="0.0.0.0", **more):
    return Listener("tcp", port, address, **more)


@pytest.fixture
def table():
    return Table()


async def test_they_come_and_go(table):
    follower = Follower("x", parse_rule("auto:*,80=8080"), table)
    assert await follower.listeners_are({tcp(80), Listener("udp", 53, "::")}, ADDRESSES)
    assert table.specs == ["53:192.168.65.3:53/udp", "8080:192.168.65.3:80"]
    assert not await follower.listeners_are({tcp(80), Listener("udp", 53, "::")}, ADDRESSES)
    assert await follower.listeners_are({tcp(80)}, ADDRESSES)
    assert table.specs == ["8080:192.168.65.3:80"]
    await follower.listeners_are({tcp(80)}, ["192.168.65.7"])  # he has another address now
    assert table.specs == ["8080:192.168.65.7:80"]
    await follower.close()
    assert table.specs == []


REACHED = {
    tcp(1): "192.168.65.3",
    tcp(2, "::"): "192.168.65.3",
    tcp(3, "::", only6=True): "fd65::3",
    tcp(4, "192.168.65.3"): "192.168.65.3",
    tcp(5, "fd65::3"): "fd65::3",
    tcp(6, "127.0.0.1"): None,
    tcp(7, "::1"): None,
    tcp(8, "172.17.0.1"): None,
}


@pytest.mark.parametrize("listener", REACHED, ids=lambda listener: f"{listener.address}-{listener.only6}")
def test_where_a_listener_is_reached(listener):
    assert reached_at(listener, ADDRESSES) == REACHED[listener]


async def test_two_sockets_of_one_port_are_one_forward(table):
    follower = Follower("x", parse_rule("auto"), table)
    await follower.listeners_are({tcp(80), tcp(80, "::", only6=True), tcp(80, "127.0.0.1")}, ADDRESSES)
    assert table.specs == ["80:192.168.65.3:80"]


async def test_a_busy_port_is_tried_again(table, autojump_clock, caplog):
    follower = Follower("guest 1", parse_rule("auto"), table)
    table.busy = {80}
    await follower.listeners_are({tcp(80), tcp(81)}, ADDRESSES)
    assert table.specs == ["81:192.168.65.3:81"]
    assert "guest 1: port 80 of the guest: cannot forward 80:192.168.65.3:80: 80 is in use by x (pid 1)" in caplog.text
    assert list(follower.problems) == [("tcp", 80)]
    table.busy = set()
    autojump_clock.jump(RETRY_SECONDS / 2)
    await follower.listeners_are({tcp(80), tcp(81)}, ADDRESSES)
    assert len(table.specs) == 1
    autojump_clock.jump(RETRY_SECONDS)
    await follower.listeners_are({tcp(80), tcp(81)}, ADDRESSES)
    assert len(table.specs) == 2
    assert follower.problems == {}


async def test_what_somebody_asked_for_is_left_alone(table):
    await table.expose("8080:80")
    follower = Follower("x", parse_rule("auto"), table)
    await follower.listeners_are({tcp(80)}, ADDRESSES)
    assert table.specs == ["8080:80"]
    await follower.listeners_are(set(), ADDRESSES)
    assert table.specs == ["8080:80"]


async def test_one_that_somebody_else_removed(table):
    follower = Follower("x", parse_rule("auto"), table)
    await follower.listeners_are({tcp(80)}, ADDRESSES)
    await table.unexpose("80:192.168.65.3:80")
    await follower.listeners_are(set(), ADDRESSES)
    assert follower.forwarded == {}


async def test_too_many(table, monkeypatch):
    monkeypatch.setattr(module, "MAX_FORWARDS", 3)
    follower = Follower("x", parse_rule("auto"), table)
    await follower.listeners_are({tcp(port) for port in range(8000, 8010)}, ADDRESSES)
    assert table.specs == [f"{port}:192.168.65.3:{port}" for port in (8000, 8001, 8002)]
    assert follower.left_out == 7


async def test_ports_that_are_not_for_guests(table):
    follower = Follower("x", parse_rule("auto:*,22=2222"), table, least_port=1024)
    await follower.listeners_are({tcp(22), tcp(80)}, ADDRESSES)
    assert table.specs == ["2222:192.168.65.3:22"]
    named = Follower("x", parse_rule("auto:80"), Table(), least_port=1024)
    await named.listeners_are({tcp(80)}, ADDRESSES)
    assert list(named.forwarded) == [("tcp", 80)]
    assert follower.problems == {("tcp", 80): "ports of the host below 1024 are not for guests"}

"""A stream of the operator's into a guest."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from tests.vpnkit.net.scripted_guest import IP_ADDRESS, World, world
from vpnkit.net import ways_in
from vpnkit.net.ways_in import WaysIn


def made_for(inner: World) -> WaysIn:
    return WaysIn(inner.guest.plan, inner.guest.station.lan, [inner.guest], lambda: True)


def pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    near, far = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
    return near, far


async def test_a_guest_that_does_not_answer_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways_in, "TUNNEL_PATIENCE", 0.05)
    async with world() as inner:
        near, far = pair()
        async with far:
            with trio.fail_after(5):
                await made_for(inner).tunnel(near, b"early", IP_ADDRESS, 22)
                assert await far.receive_some() == b""
        assert inner.guest.counters["tcp_call_unanswered"] == 1
        assert not inner.guest.tcp.flows
        assert not inner.guest.calls._waiting


async def test_nobody_there() -> None:
    async with world() as inner:
        near, far = pair()
        ways = made_for(inner)
        async with far:
            with trio.fail_after(5), pytest.raises(OSError, match=r"no guest has 192\.168\.65\.99"):
                await ways.tunnel(near, b"", bytes([192, 168, 65, 99]), 22)
            assert await far.receive_some() == b""
        assert ways.unpolled == 0

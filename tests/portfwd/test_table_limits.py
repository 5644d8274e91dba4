"""What the table refuses, what it ends, and what it leaves behind."""

from __future__ import annotations

import gc
import os
import socket
import sys
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from portfwd import table as table_module
from portfwd.connect import relay_to
from portfwd.spec import Spec, parse
from portfwd.table import ForwardError, ForwardTable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

V4 = "127.0.0.1"


async def echo(stream: trio.SocketStream, _spec: Spec) -> None:
    async for data in stream:
        await stream.send_all(data)


@pytest.fixture
async def forwards(nursery: trio.Nursery) -> AsyncIterator[ForwardTable]:
    yield ForwardTable(echo)
    nursery.cancel_scope.cancel()


async def is_reset(address: str, port: int) -> bool:
    """Whether a new connection is; that may be there before `connect` is back."""
    try:
        client = await trio.open_tcp_stream(address, port)
    except OSError as error:
        return "attempts to connect" in str(error)
    async with client:
        try:
            await client.receive_some()
        except trio.BrokenResourceError:
            return True
    return False


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)


@pytest.mark.parametrize("other", [f"{V4}:P:81", "0.0.0.0:P:80", "P:192.168.65.3:80", f"{V4}:P:80,proxy=v1"])
async def test_a_port_is_forwarded_once(forwards: ForwardTable, nursery: trio.Nursery, other: str) -> None:
    forward = await forwards.expose(Spec(0, 80, host_address=V4), nursery)
    port = forward.spec.host_port
    [spec] = parse(other.replace("P", str(port)))
    with pytest.raises(ForwardError, match=r"is forwarded already(, by 127\.0\.0\.1:\d+:80)?$"):
        await forwards.expose(spec, nursery)
    assert forwards.list() == [forward]


async def test_all_of_a_range_or_nothing(forwards: ForwardTable, nursery: trio.Nursery) -> None:
    with socket.socket() as other:
        other.bind((V4, 0))
        other.listen()
        busy = other.getsockname()[1]
        specs = [Spec(0, 80, host_address=V4), Spec(0, 81, host_address=V4), Spec(busy, 82, host_address=V4)]
        with pytest.raises(ForwardError, match=f"{V4}:{busy} is in use"):
            await forwards.expose_all(specs, nursery)
    assert forwards.list() == []
    assert forwards.listeners == 0
    made = await forwards.expose_all(specs[:2], nursery)
    assert forwards.list() == made
    assert forwards.listeners == 2


async def test_all_of_a_range_is_removed_or_nothing(forwards: ForwardTable, nursery: trio.Nursery) -> None:
    made = await forwards.expose_all([Spec(0, 80, host_address=V4), Spec(0, 81, host_address=V4)], nursery)
    specs = [forward.spec for forward in made]
    with pytest.raises(ForwardError, match="1:1 is not forwarded"):
        await forwards.unexpose_all([specs[0], Spec(1, 1)])
    assert forwards.list() == made
    assert await forwards.unexpose_all(specs) == made
    assert forwards.list() == []


async def test_options_do_not_matter_for_removal(forwards: ForwardTable, nursery: trio.Nursery) -> None:
    [spec] = parse(f"{V4}:0:80,proxy=v2,backlog=7")
    forward = await forwards.expose(spec, nursery)
    assert str(forward.spec) == f"{V4}:{forward.spec.host_port}:80,proxy=v2,backlog=7"
    assert await forwards.unexpose(forward.spec.bare) is forward


async def test_only_allowed_addresses(nursery: trio.Nursery) -> None:
    forwards = ForwardTable(echo, allowed=[ip_network("127.0.0.0/31"), ip_network("::1")])
    await forwards.expose(Spec(0, 80), nursery)
    await forwards.expose(Spec(0, 80, host_address="127.0.0.1"), nursery)
    for refused in ("0.0.0.0", "127.0.0.2", "::"):
        with pytest.raises(ForwardError, match=f"{refused} is not an address that is allowed: 127.0.0.0/31, ::1/128"):
            await forwards.expose(Spec(0, 80, host_address=refused), nursery)
    nursery.cancel_scope.cancel()


async def test_loopback_may_be_forbidden(nursery: trio.Nursery) -> None:
    forwards = ForwardTable(echo, allowed=[ip_network("192.0.2.0/24")])
    with pytest.raises(ForwardError, match=r"127\.0\.0\.1 is not an address that is allowed"):
        await forwards.expose(Spec(0, 80), nursery)


async def test_the_table_is_bounded(
    forwards: ForwardTable, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "MAX_FORWARDS", 2)
    for _ in range(2):
        await forwards.expose(Spec(0, 80, host_address=V4), nursery)
    with pytest.raises(ForwardError, match="there are 2 forwards already"):
        await forwards.expose(Spec(0, 80, host_address=V4), nursery)


async def test_connections_may_go_with_their_forward(forwards: ForwardTable, nursery: trio.Nursery) -> None:
    forward = await forwards.expose(Spec(0, 80, host_address=V4), nursery)
    async with await trio.open_tcp_stream(*forward.addresses[0]) as client:
        await client.send_all(b"x")
        assert await client.receive_some() == b"x"
        await forwards.unexpose(forward.spec, connections=True)
        with pytest.raises(trio.BrokenResourceError):  # a reset, not an orderly end
            await client.receive_some()
    await settled()
    assert forward.connections == 0


async def test_too_many_connections_are_reset_at_once(nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> None:
    forwards = ForwardTable(echo, admit=lambda: forward.connections < 2)
    forward = await forwards.expose(Spec(0, 80, host_address=V4), nursery)
    clients = [await trio.open_tcp_stream(*forward.addresses[0]) for _ in range(2)]
    for client in clients:
        await client.send_all(b"x")
        assert await client.receive_some() == b"x"
    for _ in range(20):
        assert await is_reset(*forward.addresses[0])
    assert (forward.refused, forward.accepted) == (20, 2)
    assert len(caplog.records) == 1
    await clients.pop().aclose()
    await settled()
    async with await trio.open_tcp_stream(*forward.addresses[0]) as again:
        await again.send_all(b"y")
        assert await again.receive_some() == b"y"
    await clients.pop().aclose()
    nursery.cancel_scope.cancel()


async def test_failures_are_not_a_line_each(nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_stream: trio.SocketStream, _spec: Spec) -> None:
        await trio.lowlevel.checkpoint()
        raise OSError("no guest has 192.168.65.3")

    forward = await ForwardTable(fail).expose(Spec(0, 80, host_address=V4), nursery)
    for _ in range(50):
        assert await is_reset(*forward.addresses[0])
    assert forward.failures == 50
    assert len(caplog.records) == 1
    forward._failed._quiet_until = 0  # as after ten seconds
    assert await is_reset(*forward.addresses[0])
    assert caplog.records[-1].getMessage().endswith("192.168.65.3 (and 49 times more in the last while)")
    nursery.cancel_scope.cancel()


async def test_a_dead_client_will_be_noticed(nursery: trio.Nursery) -> None:
    asked = []

    async def look(stream: trio.SocketStream, _spec: Spec) -> None:
        asked.append(stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        await trio.lowlevel.checkpoint()

    forward = await ForwardTable(look).expose(Spec(0, 80, host_address=V4), nursery)
    async with await trio.open_tcp_stream(*forward.addresses[0]) as client:
        assert await client.receive_some() == b""
    assert asked
    assert all(asked)
    nursery.cancel_scope.cancel()


async def test_silence_ends_a_relay_when_it_was_asked_for(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    ends = []

    async def connect(_spec: Spec) -> trio.abc.HalfCloseableStream:
        await trio.lowlevel.checkpoint()
        ours, guest = trio.testing.memory_stream_pair()
        ends.append(guest)
        return ours

    [spec] = parse(f"{V4}:0:80,idle=60")
    stream, client = trio.testing.memory_stream_pair()
    nursery.start_soon(relay_to(connect), stream, spec)
    for _ in range(5):
        await trio.sleep(50)
        await client.send_all(b"x")
        assert await ends[0].receive_some() == b"x"
    await trio.sleep(50)
    await ends[0].send_all(b"y")
    assert await client.receive_some() == b"y"
    began = trio.current_time()
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(await client.receive_some() or b"the end is an abort")
    assert 59 <= trio.current_time() - began <= 61


@pytest.mark.skipif(sys.platform != "linux", reason="counts the descriptors in /proc")
@pytest.mark.parametrize("each", [10, pytest.param(100, marks=pytest.mark.slow)])
async def test_many_connections_and_halves_of_them_leave_nothing(nursery: trio.Nursery, each: int) -> None:
    """The original's TestTCPLeak: two thousand, and five hundred that are half-closed."""

    async def connect(_spec: Spec) -> trio.abc.HalfCloseableStream:
        return await trio.open_tcp_stream(*guest.socket.getsockname())

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send_all(data)

    (guest,) = await trio.open_tcp_listeners(0, host=V4)
    nursery.start_soon(trio.serve_listeners, serve, [guest])
    forward = await ForwardTable(relay_to(connect)).expose(Spec(0, 80, host_address=V4), nursery)
    await settled()
    tasks = trio.lowlevel.current_statistics().tasks_living
    descriptors = len(os.listdir("/proc/self/fd"))

    async def some(count: int, half: bool) -> None:
        for _ in range(count):
            async with await trio.open_tcp_stream(*forward.addresses[0]) as client:
                await client.send_all(b"x")
                if half:
                    await client.send_eof()
                assert await client.receive_some() == b"x"
                if half:
                    assert await client.receive_some() == b""

    async with trio.open_nursery() as clients:
        for _ in range(20):
            clients.start_soon(some, each, False)
            clients.start_soon(some, each // 4, True)
    with trio.fail_after(10):
        while forward.connections:
            await settled()
    gc.collect()
    await settled()
    assert (forward.accepted, forward.failures) == (20 * (each + each // 4), 0)
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert len(os.listdir("/proc/self/fd")) == descriptors
    nursery.cancel_scope.cancel()

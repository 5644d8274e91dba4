from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from portfwd.connect import abort, relay, relay_to
from portfwd.spec import Spec
from portfwd.table import ForwardTable

if TYPE_CHECKING:
    from trio.testing import MemoryReceiveStream, MemorySendStream

    Stapled = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


def wires() -> tuple[Stapled, Stapled, Stapled, Stapled]:
    """client <-> left, right <-> guest: what is relayed is left and right."""
    return (*trio.testing.memory_stream_pair(), *trio.testing.memory_stream_pair())


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        client = await trio.open_tcp_stream(*listener.socket.getsockname())
        return client, await listener.accept()


async def test_an_end_is_carried_over_and_the_other_way_goes_on() -> None:
    client, left, right, guest = wires()
    counts = []

    async def run() -> None:
        counts.append(await relay(left, right))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await client.send_all(b"request")
        await client.send_eof()
        assert await read_all(guest) == b"request"
        for part in (b"a long ", b"answer"):  # after the client's end
            await guest.send_all(part)
        await guest.send_eof()
        assert await read_all(client) == b"a long answer"
    assert counts == [(7, 13)]


@pytest.mark.parametrize("breaks", ["client", "guest"])
async def test_a_side_that_breaks_aborts_the_other(breaks: str) -> None:
    client, left = await tcp_pair()
    right, guest = await tcp_pair()
    broken, other = (client, guest) if breaks == "client" else (guest, client)
    async with client, guest, trio.open_nursery() as nursery:
        nursery.start_soon(relay, left, right)
        await client.send_all(b"x")
        assert await guest.receive_some() == b"x"
        abort(broken)
        with pytest.raises(trio.BrokenResourceError):
            await other.receive_some()


async def test_streams_with_an_abort_of_their_own() -> None:
    class Guest:
        aborted = 0

        async def receive_some(self, _limit: int | None = None) -> bytes:
            await trio.sleep_forever()
            raise AssertionError

        async def send_all(self, _data: bytes) -> None:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError

        async def send_eof(self) -> None: ...

        def abort(self) -> None:
            self.aborted += 1

        async def aclose(self) -> None: ...

    client, left, _, _ = wires()
    guest = Guest()
    await client.send_all(b"x")
    await relay(left, guest)  # type: ignore[arg-type]
    assert guest.aborted == 1


async def test_both_are_closed_when_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    client, left, right, guest = wires()
    with trio.move_on_after(1):
        await relay(left, right)
    assert trio.current_time() == pytest.approx(1)
    with pytest.raises(trio.ClosedResourceError):
        await left.send_all(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await right.send_all(b"x")
    assert await client.receive_some() == await guest.receive_some() == b""


async def test_other_errors_pass_through() -> None:
    client, left, right, _ = wires()

    async def receive_some(_limit: int | None = None) -> bytes:
        raise ValueError("a bug")

    right.receive_some = receive_some  # type: ignore[method-assign]
    with pytest.RaisesGroup(ValueError):
        await relay(left, right)
    assert await client.receive_some() == b""


async def test_back_pressure_is_carried_over() -> None:
    client, left = await tcp_pair()
    right, guest = await tcp_pair()
    async with client, guest, trio.open_nursery() as nursery:
        nursery.start_soon(relay, left, right)
        sent = 0
        with trio.move_on_after(0.1):
            while True:
                await client.send_all(b"x" * 65536)
                sent += 65536
        assert 0 < sent < 64 * 1024 * 1024
        nursery.cancel_scope.cancel()


async def test_a_table_that_relays(nursery: trio.Nursery) -> None:
    asked = []

    async def connect(spec: Spec) -> trio.abc.HalfCloseableStream:
        asked.append(spec)
        ours, guest = trio.testing.memory_stream_pair()

        async def serve() -> None:
            await guest.send_all((await read_all(guest)).upper())
            await guest.send_eof()

        nursery.start_soon(serve)
        return ours

    forward = await ForwardTable(relay_to(connect)).expose(Spec(0, 80), nursery)
    async with await trio.open_tcp_stream(*forward.addresses[0]) as client:
        await client.send_all(b"abc")
        await client.send_eof()
        assert await read_all(client) == b"ABC"
    assert asked == [forward.spec]
    nursery.cancel_scope.cancel()


async def test_a_connector_that_fails_is_counted(nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> None:
    async def connect(_spec: Spec) -> trio.abc.HalfCloseableStream:
        await trio.lowlevel.checkpoint()
        raise ConnectionRefusedError("the guest refused")

    forward = await ForwardTable(relay_to(connect)).expose(Spec(0, 80), nursery)
    async with await trio.open_tcp_stream(*forward.addresses[0]) as client:
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
    assert forward.failures == 1
    assert "the guest refused" in caplog.text
    nursery.cancel_scope.cancel()

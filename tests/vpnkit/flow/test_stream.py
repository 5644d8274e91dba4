from __future__ import annotations

import pytest
import trio
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked

from tests.vpnkit.flow.stream_pair import clogged_stream_pair, stream_pair
from vpnkit.flow.stream import HIGH_WATER
from vpnkit.proto.tcp.state import State


async def test_it_is_a_stream_like_trios_own():
    await check_half_closeable_stream(stream_pair, clogged_stream_pair)


async def test_a_megabyte_both_ways():
    a, b = await stream_pair()
    got = {}

    async def send(stream, octet):
        await stream.send_all(octet * 1_000_000)
        await stream.send_eof()

    async def receive(name, stream):
        data = bytearray()
        async for chunk in stream:
            data += chunk
        got[name] = bytes(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, a, b"a")
        nursery.start_soon(send, b, b"b")
        nursery.start_soon(receive, "a", a)
        nursery.start_soon(receive, "b", b)
    assert got == {"a": b"b" * 1_000_000, "b": b"a" * 1_000_000}
    await a.aclose()
    await b.aclose()
    await wait_all_tasks_blocked()
    assert {s._flow.connection.state for s in (a, b)} <= {State.TIME_WAIT, State.CLOSED}
    assert a._flow.guest.forgotten
    assert b._flow.guest.forgotten


async def test_the_callers_buffer_is_free_again():
    a, b = await stream_pair()
    buffer = bytearray(b"abc")
    await a.send_all(buffer)
    buffer[:] = b"xyz"
    assert await b.receive_some() == b"abc"


async def test_no_more_than_the_high_water_mark_waits():
    a, _ = await clogged_stream_pair()
    assert a._flow.connection.sender.queued <= HIGH_WATER


async def test_abort_is_a_reset():
    a, b = await stream_pair()
    a.abort()
    a.abort()
    await wait_all_tasks_blocked()
    with pytest.raises(trio.BrokenResourceError, match="reset"):
        await b.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await b.send_all(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await a.send_all(b"x")


async def test_closing_with_unread_octets_is_a_reset():
    a, b = await stream_pair()
    await b.send_all(b"unread")
    await wait_all_tasks_blocked()
    await a.aclose()
    await wait_all_tasks_blocked()
    assert b._flow.connection.aborted


async def test_octets_after_the_close_are_answered_by_a_reset():
    a, b = await stream_pair()
    await a.aclose()
    assert await b.receive_some() == b""
    await b.send_all(b"too late")
    await wait_all_tasks_blocked()
    assert b._flow.connection.aborted


async def test_what_came_before_a_reset_can_still_be_read():
    a, b = await stream_pair()
    await a.send_all(b"last words")
    await wait_all_tasks_blocked()
    a.abort()
    await wait_all_tasks_blocked()
    assert await b.receive_some() == b"last words"
    with pytest.raises(trio.BrokenResourceError):
        await b.receive_some()


async def test_a_waiting_reader_hears_of_the_reset():
    a, b = await stream_pair()
    async with trio.open_nursery() as nursery:

        async def read():
            with pytest.raises(trio.BrokenResourceError):
                await b.receive_some()

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        a.abort()


async def test_a_failure_inside_is_a_reset_and_counted():
    a, b = await stream_pair()
    a._flow.on_failure(ZeroDivisionError("as the test says"))
    await wait_all_tasks_blocked()
    assert b._flow.connection.aborted == "reset by the guest"
    assert a._flow.guest.counts == ["internal_error"]

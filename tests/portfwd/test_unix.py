"""Forwards that listen on a unix socket."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from portfwd.connect import relay_to
from portfwd.errors import ForwardError
from portfwd.spec import Spec, parse
from portfwd.table import ForwardTable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


def bind(path: str, backlog: int) -> tuple[socket.socket, Callable[[], None]]:
    if os.path.exists(path):
        raise ForwardError(f"{path} is already served by process 1")
    made = socket.socket(socket.AF_UNIX)
    made.bind(path)
    made.listen(backlog)
    made.setblocking(False)
    return made, lambda: os.unlink(path)


async def shout(stream: trio.SocketStream, spec: Spec) -> None:
    async for data in stream:
        await stream.send_all(data.upper())


@pytest.fixture
async def forwards(nursery: trio.Nursery) -> AsyncIterator[ForwardTable]:
    yield ForwardTable(shout, unix=bind)
    nursery.cancel_scope.cancel()


async def test_a_connection_is_delivered(forwards: ForwardTable, nursery: trio.Nursery, tmp_path: Path) -> None:
    path = tmp_path / "made" / "s"  # its directory is made
    forward = await forwards.expose(Spec(0, 80, host_path=str(path)), nursery)
    assert (forward.addresses, str(forward.spec)) == ([], f"unix:{path}:80")
    async with await trio.open_unix_socket(path) as client:
        await client.send_all(b"abc")
        assert await client.receive_some() == b"ABC"
        assert forward.connections == 1
    await forwards.unexpose(forward.spec)
    assert not path.exists()
    await forwards.expose(forward.spec, nursery)


async def test_the_path_goes_with_the_nursery(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with trio.open_nursery() as nursery:
        await ForwardTable(shout, unix=bind).expose(Spec(0, 80, host_path=str(path)), nursery)
        await trio.testing.wait_all_tasks_blocked()
        assert path.exists()
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_twice(forwards: ForwardTable, nursery: trio.Nursery, tmp_path: Path) -> None:
    path = tmp_path / "s"
    await forwards.expose(Spec(0, 80, host_path=str(path)), nursery)
    with pytest.raises(ForwardError, match=f"^unix:{path}:80 is forwarded already$"):
        await forwards.expose(Spec(0, 80, host_path=str(path)), nursery)
    with pytest.raises(ForwardError, match=f"{path} is forwarded already, by unix:{path}:80$"):
        await forwards.expose(Spec(0, 81, host_path=str(path)), nursery)


async def test_what_stands_in_the_way(forwards: ForwardTable, nursery: trio.Nursery, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    with pytest.raises(ForwardError, match=f"^cannot forward unix:{taken}:80: {taken} is already served by process 1"):
        await forwards.expose(Spec(0, 80, host_path=str(taken)), nursery)
    with pytest.raises(ForwardError, match=f"^cannot forward .*{taken}: (File exists|Not a directory)"):
        await forwards.expose(Spec(0, 80, host_path=str(taken / "s")), nursery)
    with pytest.raises(ForwardError, match="unix sockets are not served here"):
        await ForwardTable(shout).expose(Spec(0, 80, host_path=str(tmp_path / "s")), nursery)
    assert forwards.list() == []


async def test_a_unix_socket_in_the_guest_needs_the_forwarder(
    forwards: ForwardTable, nursery: trio.Nursery, tmp_path: Path
) -> None:
    asked = []

    async def connect(spec: Spec) -> trio.abc.HalfCloseableStream:
        asked.append(spec.guest_path)
        ours, guest = trio.testing.memory_stream_pair()
        await guest.send_all(b"from the guest")
        await guest.send_eof()
        return ours

    [spec] = parse(str(Spec(host_path=str(tmp_path / "s"), guest_path="/run/docker.sock")))
    with pytest.raises(ForwardError, match="needs the forwarder there, and none is connected"):
        await forwards.expose(spec, nursery)
    assert not (tmp_path / "s").exists()
    forwards.connectors["unix"] = connect
    await forwards.expose(spec, nursery)
    async with await trio.open_unix_socket(tmp_path / "s") as client:
        assert await client.receive_some() == b"from the guest"
    assert asked == ["/run/docker.sock"]


async def test_a_reset_is_an_end_there(nursery: trio.Nursery, tmp_path: Path) -> None:
    async def connect(_spec: Spec) -> trio.abc.HalfCloseableStream:
        await trio.lowlevel.checkpoint()
        raise ConnectionRefusedError("the guest refused")

    forward = await ForwardTable(relay_to(connect), unix=bind).expose(
        Spec(0, 80, host_path=str(tmp_path / "s")), nursery
    )
    async with await trio.open_unix_socket(tmp_path / "s") as client:
        try:
            assert await client.receive_some() == b""
        except trio.BrokenResourceError:
            pass  # as other systems have it
    assert forward.failures == 1
    nursery.cancel_scope.cancel()

"""The 9P socket: who may use it, how many, and what a client that does not read costs; and the tree of an instance."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.vpnkit.control.p9.client import P9Client, Refusal
from vpnkit.control.listen import P9_SOCKET, listening
from vpnkit.control.p9 import server
from vpnkit.control.p9.nodes import Text
from vpnkit.control.p9.server import serve_p9
from vpnkit.control.p9.tree import instance_tree, port_tree
from vpnkit.control.paths import ControlError
from vpnkit.net.network import Network
from vpnkit.net.plan import Plan
from vpnkit.wire import p9

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vpnkit.control.p9.ports import PortDirectory


@pytest.fixture
async def path(tmp_path: Path, root: PortDirectory, nursery: trio.Nursery) -> AsyncIterator[Path]:
    place = tmp_path / "p9"
    with listening(place, *P9_SOCKET) as listener:
        nursery.start_soon(serve_p9, listener, root)
        yield place


def mode_of(path: Path) -> int:
    return path.lstat().st_mode & 0o777


async def dial(path: Path) -> P9Client:
    return P9Client(await trio.open_unix_socket(path))


async def test_ours_alone(path: Path) -> None:
    assert await trio.to_thread.run_sync(mode_of, path) == 0o600
    client = await (await dial(path)).begin()
    assert await client.listing() == [".", "..", "README"]
    await client.stream.aclose()
    with (
        pytest.raises(ControlError, match=r"9P socket .* already served .*; choose another --9p"),
        listening(path, *P9_SOCKET),
    ):
        pass


async def test_another_user_is_refused(path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(server, "permitted", lambda stream: False)
    client = await dial(path)
    with pytest.raises((EOFError, trio.BrokenResourceError)):
        await client.begin()
    await client.stream.aclose()
    assert "another user" in caplog.text


async def test_so_many_clients_and_no_more(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    clients = [await (await dial(path)).begin() for _ in range(2)]
    third = await dial(path)
    with pytest.raises((EOFError, trio.BrokenResourceError)):
        await third.begin()
    await third.stream.aclose()
    await clients[0].stream.aclose()
    with trio.fail_after(5):
        while True:
            try:
                again = await dial(path)
                await again.begin()
                break
            except (EOFError, trio.BrokenResourceError):
                await again.stream.aclose()
    for client in (clients[1], again):
        await client.stream.aclose()


async def test_a_client_that_does_not_read_is_not_read_from(path: Path, root: PortDirectory) -> None:
    root.add(Text("big", root, lambda: bytes(60_000)))
    client = await (await dial(path)).begin(65_560)
    other = await (await dial(path)).begin()
    client.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    fid = await client.open("big")
    taken = 0
    with trio.move_on_after(0.3):
        for tag in range(10_000):
            await client.send(tag, p9.Tread(fid, 0, 60_000))
            taken += 1
    assert taken < 5000
    assert await other.listing() == [".", "..", "README", "big"], "others are served meanwhile"
    for _ in range(20):
        assert len((await client.receive())[1].data) == 60_000
    for each in (client, other):
        await each.stream.aclose()


# The tree of an instance


@pytest.fixture
async def network(nursery: trio.Nursery) -> Network:
    made = Network(Plan())
    await nursery.start(made.run)
    return made


async def attached(root: PortDirectory, nursery: trio.Nursery) -> P9Client:
    ours, theirs = trio.testing.memory_stream_pair()
    nursery.start_soon(server.serve_stream, theirs, root)
    return await P9Client(ours).begin()


async def test_the_originals_tree_has_nothing_else(network: Network, nursery: trio.Nursery) -> None:
    client = await attached(port_tree(network), nursery)
    assert await client.listing() == [".", "..", "README"]
    await client.stream.aclose()


async def test_the_state_as_json(network: Network, nursery: trio.Nursery) -> None:
    client = await attached(instance_tree(network), nursery)
    names = ["status.json", "guests.json", "flows.json", "leases.json", "forwards.json"]
    assert await client.listing() == [".", "..", "README", *names]
    assert json.loads(await client.content("status.json"))["gateway"] == "192.168.65.1"
    assert [json.loads(await client.content(name)) for name in names[1:]] == [[], [], [], []]
    readme = (await client.content("README")).decode()
    for name in names:
        assert name in readme
        with pytest.raises(Refusal, match="permission denied"):
            await client.open(name, mode=p9.ORDWR)
        with pytest.raises(Refusal, match="file exists"):
            await client.mkdir(name)
    await client.stream.aclose()


async def test_forwards_of_a_network(network: Network, nursery: trio.Nursery) -> None:
    client = await attached(instance_tree(network), nursery)
    fid, said = await client.forward("x", "tcp:127.0.0.1:0:tcp:192.168.65.3:80")
    port = int(said.split(":")[2])
    assert said == f"OK tcp:127.0.0.1:{port}:tcp:192.168.65.3:80\n"
    [forward] = json.loads(await client.content("forwards.json"))
    assert (forward["host_port"], forward["guest_port"]) == (port, 80)
    _, said = await client.forward("again", f"tcp:127.0.0.1:{port}:tcp:192.168.65.4:80")
    assert said == f"ERROR Bind for 127.0.0.1:{port} failed: port is already allocated\n"
    with socket.create_server(("127.0.0.1", 0)) as busy:
        number = busy.getsockname()[1]
        _, said = await client.forward("busy", f"tcp:127.0.0.1:{number}:tcp:192.168.65.3:80")
        assert said == f"ERROR Bind for 127.0.0.1:{number} failed: port is already allocated\n"
    _, said = await client.forward("strange", "tcp:192.0.2.77:80:tcp:192.168.65.3:80")
    assert said == "ERROR listen tcp 192.0.2.77:80: bind: cannot assign requested address\n"
    with socket.create_connection(("127.0.0.1", port)):
        pass
    await client.clunk(fid)
    assert network.forwards.list() == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    await client.stream.aclose()


async def test_what_somebody_else_took_away_or_made_again_is_left(network: Network, nursery: trio.Nursery) -> None:
    client = await attached(instance_tree(network), nursery)
    fid, said = await client.forward("x", "tcp:127.0.0.1:0:tcp:192.168.65.3:80")
    [forward] = network.forwards.list()
    await network.unexpose(str(forward.spec))
    [other] = await network.expose(said.removeprefix("OK ").strip())
    await client.clunk(fid)
    assert network.forwards.list() == [other]
    await network.unexpose(str(other.spec))
    await client.stream.aclose()

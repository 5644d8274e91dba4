"""pyroute2's 9P client on our tree.

It has no messages for create, remove and flush; those for create are made here of its own fields.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
from pyroute2.plan9 import Qid, Rcreate, Rerror, String, Tcreate, msg_base, msg_tclunk, msg_topen, msg_tstat
from pyroute2.plan9.client import Plan9ClientSocket

from vpnkit.control.p9.server import serve_stream
from vpnkit.control.p9.tree import instance_tree
from vpnkit.net.network import Network
from vpnkit.net.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ORDWR = 2
DMDIR = 0x80000000


class TcreateMessage(msg_base):
    defaults = {"header": {"type": Tcreate}}  # noqa: RUF012 - as its others
    fields = (("fid", "I"), ("name", String), ("perm", "I"), ("mode", "B"))


class RcreateMessage(msg_base):
    defaults = {"header": {"type": Rcreate}}  # noqa: RUF012
    fields = (("qid", Qid), ("iounit", "I"))


class Client(Plan9ClientSocket):  # type: ignore[misc]
    """It, with what it lacks."""

    async def fine(self, message: Any, **fields: object) -> Any:
        """The answer to a request."""
        for name, value in fields.items():
            message[name] = value
        return checked(await self.request(message))

    async def open(self, path: str, mode: int = 0) -> int:
        fid = self.fid_pool.alloc()
        checked(await self.walk(path, newfid=fid, fid=0))
        await self.fine(msg_topen(), fid=fid, mode=mode)
        return int(fid)

    async def content(self, path: str) -> bytes:
        fid, found = await self.open(path), b""
        while data := checked(await self.read(fid, len(found), 4096))["data"]:
            found += bytes(data)
        await self.fine(msg_tclunk(), fid=fid)
        return found


def checked(answer: Any) -> Any:
    assert answer["header"]["type"] != Rerror, answer["ename"]
    return answer


async def with_client(use: Callable[[Client], Awaitable[None]]) -> None:
    """Serve a network's tree to `use`, which runs in an asyncio of its own."""
    ours, theirs = socket.socketpair()

    def talk() -> None:
        async def main() -> None:
            client = Client(use_socket=theirs)
            client.marshal.msg_map[Rcreate] = RcreateMessage
            try:
                await client.start_session()
                await use(client)
            finally:
                client.close()

        asyncio.run(main())

    try:
        async with trio.open_nursery() as nursery:
            network = Network(Plan())
            await nursery.start(network.run)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            nursery.start_soon(serve_stream, stream, instance_tree(network))
            with trio.fail_after(30):
                await trio.to_thread.run_sync(talk)
            nursery.cancel_scope.cancel()
    finally:
        theirs.close()


async def test_it_reads_the_state() -> None:
    async def use(client: Client) -> None:
        assert b"`ctl`" in await client.content("README")
        assert json.loads(await client.content("status.json"))["subnet"] == "192.168.65.0/24"
        stat = await client.fine(msg_tstat(), fid=0)
        assert stat["stat"]["mode"] & DMDIR

    await with_client(use)


async def test_it_makes_a_forward_and_uses_it() -> None:
    async def use(client: Client) -> None:
        ctl = await make(client, "web", b"tcp:127.0.0.1:0:tcp:192.168.65.3:80")
        said = bytes(checked(await client.read(ctl, 0, 100))["data"]).decode()
        assert said.startswith("OK tcp:127.0.0.1:")
        port = int(said.split(":")[2])
        socket.create_connection(("127.0.0.1", port)).close()
        assert (await client.content("web")).decode() == said.removeprefix("OK ")
        [forward] = json.loads(await client.content("forwards.json"))
        assert forward["host_port"] == port
        await client.fine(msg_tclunk(), fid=ctl)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))

    await with_client(use)


async def make(client: Client, name: str, spec: bytes) -> int:
    fid = client.fid_pool.alloc()
    checked(await client.walk("..", newfid=fid, fid=0))  # its walk has at least one name
    await client.fine(TcreateMessage(), fid=fid, name=name, perm=DMDIR | 0o777, mode=0)
    await client.fine(msg_tclunk(), fid=fid)
    ctl = await client.open(f"{name}/ctl", ORDWR)
    checked(await client.write(ctl, spec))
    return ctl

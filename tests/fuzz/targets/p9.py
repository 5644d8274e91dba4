"""A 9P session and its nodes: requests by kind and fid, raw messages in between, the pieces they come in vary.

The first octet is the dialect and the size of the pieces.  Then requests: a kind, a tag, and fields of one octet each;
or, kind 15, a raw body behind a header that fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import outcome

from tests.fuzz.targets.common import Octets, timed
from vpnkit.control.p9.nodes import File, Node
from vpnkit.control.p9.ports import PortDirectory
from vpnkit.errors import WireError
from vpnkit.proto import p9 as session
from vpnkit.proto.p9 import Begin, Call, Cancel, Close, P9Error, Send, Session
from vpnkit.wire import p9

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    import trio
    from trio.testing import MockClock

    from vpnkit.control.p9 import nodes
    from vpnkit.control.p9.ports import Exposed

NAMES = ("README", "x", "ctl", "..", "z", "y", "", "a/b")
SPECS = (b"tcp:127.0.0.1:80:tcp:1.2.3.4:80", b"unix:YQ==:unix:YQ==", b"nonsense", b"udp:[::1]:0:udp:[::1]:1")
# Walk to fid 1, make x there; walk to x/ctl as fid 2, open it, ask, read, end.
MAKE = bytes((4, 1, 0, 0, 1, 2, 2, 1, 1, 128, 0))
CTL = bytes((4, 3, 0, 2, 1, 2, 2, 5, 4, 2, 2))
SEEDS = [
    b"\1" + MAKE,
    b"\1" + MAKE + CTL + bytes((6, 5, 2, 0, 8, 6, 2, 0, 255, 0, 10, 7, 2)),
    b"\0" + MAKE + CTL + bytes((6, 5, 2, 1, 8, 6, 2, 0, 255, 0, 11, 7, 2, 8, 8, 1, 0, 255, 0)),
    b"\1" + bytes((4, 1, 0, 1, 4, 3, 5, 2, 3, 0, 8, 3, 3, 0, 9, 0, 8, 4, 3, 0, 9, 0, 0, 5, 0, 3, 10, 6, 3)),
    b"\1" + bytes((4, 1, 0, 1, 4, 3, 5, 2, 3, 0, 8, 3, 3, 0, 9, 0, 13, 0, 0, 40, 1, 1, 1, 0)),
    b"\1" + bytes((15, 7, 3, 3, 1, 2, 3, 104, 15, 0, 0, 0, 117)),
]


class Table:
    """A forward table without sockets."""

    def __init__(self) -> None:
        self.there: list[Exposed] = []

    async def expose(self, text: str) -> Sequence[Exposed]:
        if text.startswith("unix"):
            raise OSError(1, "no")
        self.there.append(Port(text))
        return self.there[-1:]

    async def unexpose(self, forward: Exposed) -> None:
        self.there.remove(forward)


class Port:
    def __init__(self, text: str) -> None:
        self.host_port = len(text)


class Waits(Exception):
    """It would wait for ever."""


class Hanging(Node):
    """A file whose reads wait for ever."""

    async def open(self, mode: int, client: nodes.Client) -> File:
        return HangingFile()


class HangingFile(File):
    async def read(self, offset: int, count: int) -> bytes:
        raise Waits


def finished(coroutine: Coroutine[Any, Any, tuple[p9.Reply, Node | None]]) -> tuple[p9.Reply, Node | None]:
    """Its result; it stops at no more than a few checkpoints, for nothing here has to be waited for."""
    sent = None
    for _ in range(20):
        try:
            coroutine.send(sent)
        except StopIteration as done:
            found: tuple[p9.Reply, Node | None] = done.value
            return found
        sent = outcome.Value(None)
    raise AssertionError("it waits")


class Client:
    """A session, and its calls run one by one, as far as they go without waiting."""

    def __init__(self, nursery: trio.Nursery, extended: bool) -> None:
        self.tasks = nursery
        self.table = Table()
        self.root = PortDirectory(self.table)
        self.root.add(Hanging("z", self.root))
        self.owned: dict[object, Callable[[], Awaitable[None]]] = {}
        self.held = 0
        self.session: Session[Node] = Session(lambda: self.root, max_msize=8192)
        self.files: dict[object, File] = {}
        self.blocked: list[Call[Node]] = []
        self.answers = 0
        self.open = True
        self.say(p9.NOTAG, p9.Tversion(8192, "9P2000.u" if extended else "9P2000"))
        self.say(1, p9.Tattach(0, p9.NOFID, "", ""))

    @property
    def extended(self) -> bool:
        return self.session.extended

    def reserve(self, octets: int) -> None:
        self.held += octets
        assert self.held >= 0

    def say(self, tag: int, request: p9.Request) -> None:
        try:
            octets = p9.encode(tag, request, extended=self.session.extended)
        except ValueError:
            return
        assert p9.decode(octets, extended=self.session.extended) == (tag, request)
        self.hear(octets)

    def hear(self, octets: bytes) -> None:
        if self.open:
            self.act(self.session.receive(octets))

    def act(self, actions: Sequence[session.Action[Node]]) -> None:
        for action in actions:
            match action:
                case Send(octets):
                    assert len(octets) <= max(self.session.msize, 1024)
                    p9.decode(octets, extended=self.session.extended)
                    self.answers += 1
                case Begin(call):
                    self.run(call)
                case Cancel(call):
                    if call in self.blocked:
                        self.blocked.remove(call)
                        self.act(self.session.finish(call, P9Error("interrupted")))
                case Close():
                    self.open = False

    def run(self, call: Call[Node]) -> None:
        try:
            reply, made = finished(self.answer(call))
        except P9Error as error:
            self.act(self.session.finish(call, error))
        except Waits:
            self.blocked.append(call)
        else:
            self.act(self.session.finish(call, reply, made))

    async def answer(self, call: Call[Node]) -> tuple[p9.Reply, Node | None]:
        fid, node = call.fid, call.fid.node
        match call.request:
            case p9.Topen(mode=mode):
                self.files[fid] = await node.open(mode, self)
                return p9.Ropen(node.qid, 0), None
            case p9.Tcreate(name=name, perm=perm):
                made = await node.create(name, perm, self)
                self.files[fid] = await made.open(p9.OREAD, self)
                return p9.Rcreate(made.qid, 0), made
            case p9.Tread(offset=offset, count=count):
                data = await self.files[fid].read(offset, min(count, self.session.largest_read))
                assert len(data) <= count
                return p9.Rread(data), None
            case p9.Twrite(offset=offset, data=data):
                return p9.Rwrite(await self.files[fid].write(offset, data)), None
            case p9.Tclunk() | p9.Tremove():
                if (file := self.files.pop(fid, None)) is not None:
                    await file.close()
                if isinstance(call.request, p9.Tremove):
                    await node.remove()
                return p9.Rclunk(), None
            case p9.Twstat(stat=stat):
                await node.wstat(stat)
                return p9.Rwstat(), None
            case _:
                return p9.Rstat(node.stat()), None


def one(nursery: trio.Nursery, data: bytes) -> None:
    octets = Octets(data)
    client = Client(nursery, bool(octets.byte() & 1))
    while octets and client.open:
        request(client, octets)
        assert len(client.session.fids) <= session.MAX_FIDS
        assert len(client.root.entries) >= len(client.table.there)


def request(client: Client, octets: Octets) -> None:
    kind, tag, fid = octets.byte() & 15, octets.byte(), octets.byte() & 7
    match kind:
        case 0:
            client.say(tag, p9.Tflush(octets.byte()))
        case 1:
            client.say(tag, p9.Tattach(fid, p9.NOFID, "", ""))
        case 2:
            client.say(tag, p9.Tcreate(fid, NAMES[octets.byte() & 7], octets.byte() << 24, octets.byte()))
        case 3 | 4:
            names = tuple(NAMES[octets.byte() & 7] for _ in range(octets.byte() & 3))
            client.say(tag, p9.Twalk(fid, octets.byte() & 7, names))
        case 5:
            client.say(tag, p9.Topen(fid, octets.byte()))
        case 6:
            client.say(tag, p9.Twrite(fid, 0, SPECS[octets.byte() & 3]))
        case 7:
            client.say(tag, p9.Twrite(fid, 0, octets.block()))
        case 8 | 9:
            client.say(tag, p9.Tread(fid, octets.byte(), octets.byte() << (octets.byte() & 24)))
        case 10:
            client.say(tag, p9.Tclunk(fid))
        case 11:
            client.say(tag, p9.Tremove(fid))
        case 12:
            client.say(tag, p9.Tstat(fid))
        case 13:
            client.say(p9.NOTAG, p9.Tversion(octets.byte() << 8, ("9P2000", "9P2000.u", "9P")[octets.byte() % 3]))
        case 14:
            client.say(tag, p9.Tauth(fid, "", ""))
        case _:
            body = octets.block()
            message = p9.HEADER.pack(7 + len(body), octets.byte(), tag) + body
            try:
                p9.decode(message, extended=client.extended)
            except WireError:
                pass
            client.hear(message)


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    return timed(lambda data: one(nursery, data))

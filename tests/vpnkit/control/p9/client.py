"""A 9P client for tests, and a forward table that only remembers."""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpnkit.wire import p9

if TYPE_CHECKING:
    import trio


class Refusal(Exception):
    """An Rerror."""

    def __init__(self, reply: p9.Rerror) -> None:
        super().__init__(reply.ename)
        self.errno = reply.errno


class P9Client:
    """One at a time with `ask`, or several with `send` and `receive`."""

    def __init__(self, stream: trio.abc.Stream, *, extended: bool = True) -> None:
        self.stream = stream
        self.extended = extended
        self.msize = 8192
        self._received = b""
        self._fids = 0

    async def send(self, tag: int, request: p9.Message) -> None:
        await self.stream.send_all(p9.encode(tag, request, extended=self.extended))

    async def receive(self) -> tuple[int, p9.Message]:
        """The next answer.  EOFError when there is none."""
        while len(self._received) < 4 or len(self._received) < p9.message_size(self._received[:4]):
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError
            self._received += data
        size = p9.message_size(self._received[:4])
        message, self._received = self._received[:size], self._received[size:]
        assert size <= self.msize
        return p9.decode(message, extended=self.extended)

    async def ask(self, request: p9.Message, tag: int = 1) -> p9.Message:
        """The answer to `request`.  Raises Refusal."""
        await self.send(tag, request)
        answered, reply = await self.receive()
        assert answered == tag
        if isinstance(reply, p9.Rerror):
            raise Refusal(reply)
        return reply

    async def begin(self, msize: int = 8192) -> P9Client:
        """Version and attach; fid 0 is the root."""
        reply = await self.ask(p9.Tversion(msize, p9.EXTENDED if self.extended else p9.PLAIN), p9.NOTAG)
        assert isinstance(reply, p9.Rversion)
        self.msize = reply.msize
        await self.ask(p9.Tattach(0, p9.NOFID, "me", ""))
        return self

    async def walk(self, *names: str, fid: int = 0) -> int:
        """A new fid for what is at `names`."""
        self._fids += 1
        new = self._fids
        reply = await self.ask(p9.Twalk(fid, new, names))
        assert isinstance(reply, p9.Rwalk)
        if len(reply.qids) < len(names):
            raise Refusal(p9.Rerror("file not found", errno.ENOENT))
        return new

    async def open(self, *names: str, mode: int = p9.OREAD) -> int:
        fid = await self.walk(*names)
        await self.ask(p9.Topen(fid, mode))
        return fid

    async def read(self, fid: int, offset: int = 0, count: int = 4096) -> bytes:
        reply = await self.ask(p9.Tread(fid, offset, count))
        assert isinstance(reply, p9.Rread)
        return reply.data

    async def write(self, fid: int, data: bytes) -> None:
        assert await self.ask(p9.Twrite(fid, 0, data)) == p9.Rwrite(len(data))

    async def clunk(self, fid: int) -> None:
        await self.ask(p9.Tclunk(fid))

    async def mkdir(self, name: str) -> None:
        fid = await self.walk()
        await self.ask(p9.Tcreate(fid, name, p9.DMDIR | 0o777, p9.OREAD))
        await self.clunk(fid)

    async def content(self, *names: str) -> bytes:
        """All of a file."""
        fid = await self.open(*names)
        found = b""
        while data := await self.read(fid, len(found)):
            found += data
        await self.clunk(fid)
        return found

    async def listing(self, *names: str) -> list[str]:
        """The names in a directory."""
        data, found = await self.content(*names), []
        while data:
            size = struct.unpack_from("<H", data)[0] + 2
            found.append(p9.decode_stat(data[:size], extended=self.extended).name)
            data = data[size:]
        return found

    async def stat(self, *names: str) -> p9.Stat:
        fid = await self.walk(*names)
        reply = await self.ask(p9.Tstat(fid))
        await self.clunk(fid)
        assert isinstance(reply, p9.Rstat)
        return reply.stat

    async def forward(self, name: str, spec: str) -> tuple[int, str]:
        """As Docker's proxy does it: the fid that keeps it, and what is said."""
        await self.mkdir(name)
        fid = await self.open(name, "ctl", mode=p9.ORDWR)
        await self.write(fid, spec.encode())
        return fid, (await self.read(fid)).decode()


@dataclass(eq=False)
class Exposed:
    text: str
    host_port: int


class Table:
    """A forward table without sockets: port 1 is taken, 2 forbidden, and there is no address but 127.0.0.1 and ::1."""

    def __init__(self) -> None:
        self.there: list[Exposed] = []
        self.gate: trio.Event | None = None

    async def expose(self, text: str) -> list[Exposed]:
        if self.gate is not None:
            await self.gate.wait()
        port = int(text.partition(":tcp:")[0].rpartition(":")[2]) if text.startswith("tcp:") else 0
        if port == 1 or any(exposed.text == text for exposed in self.there):
            raise OSError(errno.EADDRINUSE, "in use")
        if port == 2:
            raise ValueError("no") from PermissionError(errno.EACCES, "no")
        if port == 3:
            raise ValueError("it is strange")
        if not text.startswith(("tcp:127.0.0.1:", "tcp:[::1]:", "udp:127.0.0.1:", "unix:")):
            raise OSError(errno.EADDRNOTAVAIL, "not available")
        exposed = Exposed(text, port or 49152)
        self.there.append(exposed)
        return [exposed]

    async def unexpose(self, forward: Exposed) -> None:
        if forward in self.there:
            self.there.remove(forward)

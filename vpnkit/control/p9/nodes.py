"""The files of a tree: what is at a name, and what an open file does.

A Node is shared by all clients.  `open` gives a File, which one fid has; its `read` may wait, and whoever waits may be
cancelled without losing anything.  What is told at once (Text, Directory) is rendered when it is opened, so that a
client reads one state however small its pieces are.

A file that goes on for ever is a Stream: it is given a function that returns an async iterator of octets.
"""

from __future__ import annotations

import itertools
import logging
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

import trio

from vpnkit.proto.p9 import EACCES, EINVAL, EIO, ENOENT, ENOTDIR, P9Error
from vpnkit.wire import p9

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

log = logging.getLogger(__name__)

STAMP: Final = 1146711721  # seconds since 1970: the time of every file, in the original too
READ: Final = 0o444
WRITE: Final = 0o222
SEARCH: Final = 0o111
KEEP_32: Final = 0xFFFFFFFF  # in a Twstat: do not touch, stat(5)
KEEP_64: Final = 0xFFFFFFFFFFFFFFFF


class Client(Protocol):
    """Who asks."""

    tasks: trio.Nursery
    """Is cancelled when the client goes."""
    owned: dict[object, Callable[[], Awaitable[None]]]
    """What is to be called when the client goes, by what it is for."""

    @property
    def extended(self) -> bool:
        """Whether 9P2000.u is spoken."""
        ...

    def reserve(self, octets: int) -> None:
        """Count memory that an open file holds, or, negative, held.  Raises P9Error."""
        ...


class File:
    """An open file of one fid."""

    async def read(self, offset: int, count: int) -> bytes:
        """At most `count` octets; none at the end.  Raises P9Error."""
        raise P9Error("permission denied", EACCES)

    async def write(self, offset: int, data: bytes) -> int:
        """Returns how many octets were taken.  Raises P9Error."""
        raise P9Error("permission denied", EACCES)

    async def close(self) -> None:
        """The fid is gone.  Idempotent."""


class Node:
    """A file or directory at a name.  The parent of the root is the root."""

    kind = p9.QTFILE
    mode = READ

    def __init__(self, name: str, parent: Node | None) -> None:
        self.name = name
        self.parent: Node = parent or self
        self._numbers: itertools.count[int] = parent._numbers if parent else itertools.count()
        self._path = next(self._numbers)

    @property
    def qid(self) -> p9.Qid:
        """Stays the same; version 0 tells clients that keep copies not to."""
        return p9.Qid(self.kind, 0, self._path)

    def length(self) -> int:
        """Octets; 0 where nobody knows before it is opened."""
        return 0

    def stat(self) -> p9.Stat:
        return p9.Stat(
            self.qid,
            self.mode | self.kind << 24,
            self.name,
            length=self.length(),
            atime=STAMP,
            mtime=STAMP,
            uid="uid",
            gid="gid",
            muid="muid",
            n_uid=0,  # any other would have to be a user of the guest: Linux lets nobody write what belongs to none
            n_gid=0,
            n_muid=0,
        )

    def walk(self, name: str) -> Node:
        if name == "..":
            return self.parent
        raise P9Error("not a directory", ENOTDIR)

    async def open(self, mode: int, client: Client) -> File:
        """Open for `mode`.  Raises P9Error."""
        raise P9Error("permission denied", EACCES)

    async def create(self, name: str, perm: int, client: Client) -> Node:
        """Make a file or (DMDIR in `perm`) a directory here.  Raises P9Error."""
        raise P9Error("permission denied", EACCES)

    async def remove(self) -> None:
        """Raises P9Error."""
        raise P9Error("permission denied", EACCES)

    async def wstat(self, stat: p9.Stat) -> None:
        """Change what is not "do not touch".  That nothing is to be changed is fsync, stat(5).  Raises P9Error."""
        kept = (KEEP_32, KEEP_32, KEEP_32, KEEP_64)
        names = (stat.name, stat.gid)
        if (stat.mode, stat.mtime, stat.atime, stat.length) != kept or any(names):
            raise P9Error("permission denied", EACCES)


class Snapshot(File):
    """Octets that do not change any more."""

    def __init__(self, data: bytes, client: Client) -> None:
        client.reserve(len(data))
        self._data = data
        self._client = client

    async def read(self, offset: int, count: int) -> bytes:
        return self._data[offset : offset + count]

    async def close(self) -> None:
        self._client.reserve(-len(self._data))
        self._data = b""


class Records(File):
    """The entries of a directory: whole ones, from any place where one begins, read(5)."""

    def __init__(self, entries: Iterable[bytes], client: Client) -> None:
        self._entries = list(entries)
        sizes = [len(entry) for entry in self._entries]
        self._size = sum(sizes)
        self._index = {offset: index for index, offset in enumerate(itertools.accumulate(sizes, initial=0))}
        client.reserve(self._size)
        self._client = client

    async def read(self, offset: int, count: int) -> bytes:
        if offset not in self._index:
            raise P9Error("Can't seek in a directory", EINVAL)
        out = b""
        for entry in self._entries[self._index[offset] :]:
            if len(out) + len(entry) > count:
                if not out:
                    raise P9Error("count is less than an entry", EINVAL)
                break
            out += entry
        return out

    async def close(self) -> None:
        self._client.reserve(-self._size)
        self._entries, self._index, self._size = [], {0: 0}, 0


class Directory(Node):
    """Children by name.  `children` may be overridden; what it has can come and go."""

    kind = p9.QTDIR
    mode = READ | SEARCH

    def __init__(self, name: str, parent: Node | None) -> None:
        super().__init__(name, parent)
        self._children: dict[str, Node] = {}

    def add(self, node: Node) -> None:
        """Show `node`, whose parent this is."""
        self._children[node.name] = node

    def discard(self, name: str) -> None:
        """Show it no more."""
        self._children.pop(name, None)

    def children(self) -> Iterable[Node]:
        return self._children.values()

    def child(self, name: str) -> Node | None:
        return self._children.get(name)

    def walk(self, name: str) -> Node:
        if name == "..":
            return self.parent
        node = self.child(name)
        if node is None:
            raise P9Error("file not found", ENOENT)
        return node

    async def open(self, mode: int, client: Client) -> File:
        return listing(self, self.children(), client)


class Text(Node):
    """A file that `render` writes whenever it is opened.  `size` is its length if that is always the same."""

    def __init__(self, name: str, parent: Node, render: Callable[[], bytes], size: int = 0) -> None:
        super().__init__(name, parent)
        self._render = render
        self._size = size

    def length(self) -> int:
        return self._size

    async def open(self, mode: int, client: Client) -> File:
        check_read_only(mode)
        return Snapshot(self._render(), client)


class Stream(Node):
    """A file without offsets, whose reads wait for more.  Each open begins an iterator of its own, and ends it."""

    def __init__(self, name: str, parent: Node, begin: Callable[[], AsyncGenerator[bytes, None]]) -> None:
        super().__init__(name, parent)
        self._begin = begin

    async def open(self, mode: int, client: Client) -> File:
        check_read_only(mode)
        return OpenStream(self.name, self._begin(), client)


class OpenStream(File):
    """Hands out what an iterator gives.  One chunk is fetched ahead, no more: who does not read is not sent to.

    The iterator runs in a task of its own, so that a read can be cancelled: a cancelled generator would be at its end.
    """

    def __init__(self, name: str, chunks: AsyncGenerator[bytes, None], client: Client) -> None:
        self._name = name
        self._chunk = b""
        self._at = 0  # what was read of it
        self._turn = trio.Lock()  # of the reads
        self._failed = False
        self._sender, self._chunks = trio.open_memory_channel[bytes](0)
        self._scope = trio.CancelScope()
        client.tasks.start_soon(self._pump, chunks)

    async def _pump(self, chunks: AsyncGenerator[bytes, None]) -> None:
        with self._scope:
            async with self._sender, aclosing(chunks):
                try:
                    async for chunk in chunks:
                        await self._sender.send(chunk)
                except trio.BrokenResourceError:
                    return  # closed
                except Exception:
                    log.exception("9P: %s failed", self._name)
                    self._failed = True

    async def read(self, offset: int, count: int) -> bytes:
        async with self._turn:
            while self._at >= len(self._chunk):
                try:
                    self._chunk, self._at = await self._chunks.receive(), 0
                except trio.EndOfChannel:
                    if self._failed:
                        raise P9Error("the stream failed", EIO) from None
                    return b""
            taken = self._chunk[self._at : self._at + count]
            self._at += len(taken)
            return taken

    async def close(self) -> None:
        self._scope.cancel()
        self._chunks.close()


def listing(node: Node, children: Iterable[Node], client: Client) -> File:
    """`node` opened as the directory of `children`."""
    entries = [replace(node.stat(), name=".", length=0), replace(node.parent.stat(), name="..", length=0)]
    entries += [child.stat() for child in children]
    return Records([entry.encode(extended=client.extended) for entry in entries], client)


def check_read_only(mode: int) -> None:
    """Raises P9Error unless `mode` only reads."""
    if mode & 3 != p9.OREAD or mode & p9.OTRUNC:
        raise P9Error("permission denied", EACCES)

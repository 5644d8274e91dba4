"""VPNkit's port control tree: a directory is made, a port spec is written into its `ctl`, and what came of it is read.

    /README    /NAME/ctl    and, once NAME is forwarded, /NAME as a file that says how

A forward is that of the open file which asked for it: it ends when that file is closed, by a clunk or by the end of
the connection; when NAME or NAME/ctl is removed; and when the client that made NAME goes.  Here we differ from VPNkit,
where any clunk of any fid of `ctl` ends the forward, nothing does when the connection breaks, to remove NAME does
nothing, and a second NAME replaces the first.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

import trio

from vpnkit.control.gvproxy_forwards import errno_of
from vpnkit.control.p9.nodes import KEEP_64, READ, SEARCH, WRITE, Directory, File, Node, Snapshot, Text, listing
from vpnkit.control.p9.requests import FORMS, RequestError, parse
from vpnkit.proto.p9 import EACCES, EEXIST, ENOENT, ENOSPC, P9Error
from vpnkit.wire import p9

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vpnkit.control.p9.nodes import Client

log = logging.getLogger(__name__)

MAX_ENTRIES: Final = 1024
EXPOSE_SECONDS: Final = 10.0
NOTHING_ASKED: Final = "ERROR no request received. Please read the README.\n"

README: Final = f"""\
Forwards of ports on the host
-----------------------------

Each forward that is there is a file with its description; remove the file to end the forward.

For another one, make a directory with a name that is not taken, open the file `ctl` in it, and write one string of
one of these forms, in one piece:

{FORMS}

Then read the same file.  It begins with one of these:

- `OK <description>`: the host listens.  The description is what was asked for, with the port that was chosen where the
  local port was 0.
- `ERROR <message>`: it does not, and the message says why; perhaps the port is taken.

The directory has become a file by then.  Keep `ctl` open: the forward ends when it is closed.
"""


class Forwards(Protocol):
    """The forward table, as far as it is needed here."""

    async def expose(self, text: str) -> Sequence[Exposed]:
        """Listen for the port spec.  Raises an exception whose text, or whose cause, says why not."""
        ...

    async def unexpose(self, forward: Exposed) -> None:
        """Stop, unless somebody else did."""
        ...


class Exposed(Protocol):
    """One forward."""

    @property
    def host_port(self) -> int: ...


class PortDirectory(Directory):
    """The root.  What is added to it stands beside the entries, and their names are not to be had."""

    mode = READ | WRITE | SEARCH

    def __init__(self, forwards: Forwards, errors: tuple[type[Exception], ...] = ()) -> None:
        super().__init__("", None)
        self.forwards = forwards
        self.errors: tuple[type[Exception], ...] = (*errors, OSError)
        self.entries: dict[str, Entry] = {}
        self.refused = 0
        self.about: list[str] = []
        """Paragraphs of the README, about what is added."""
        self.readme = Text("README", self, self._say)
        self.add(self.readme)

    def _say(self) -> bytes:
        return "\n".join([README, *self.about]).encode()

    def children(self) -> Iterable[Node]:
        return [*super().children(), *self.entries.values()]

    def child(self, name: str) -> Node | None:
        return super().child(name) or self.entries.get(name)

    async def create(self, name: str, perm: int, client: Client) -> Node:
        if not perm & p9.DMDIR:
            raise P9Error("permission denied", EACCES)
        if self.child(name) is not None:
            raise P9Error("file exists", EEXIST)
        if len(self.entries) >= MAX_ENTRIES:
            self.refused += 1
            raise P9Error(f"there are {MAX_ENTRIES} entries already", ENOSPC)
        entry = self.entries[name] = Entry(name, self)
        entry.owner = client
        client.owned[entry] = entry.end
        return entry


class Entry(Node):
    """NAME: a directory until it is forwarded, then a file.  It is gone after `end`."""

    def __init__(self, name: str, root: PortDirectory) -> None:
        super().__init__(name, root)
        self._root = root
        self._forwards: Sequence[Exposed] = ()
        self._changing = trio.Lock()
        self.kind = p9.QTDIR
        self.mode = READ | SEARCH
        self.owner: Client | None = None
        self.description = ""
        self.result = ""
        self.ctl = Ctl(self)

    def length(self) -> int:
        return len(self._text())

    def walk(self, name: str) -> Node:
        match name:
            case "..":
                return self.parent
            case "ctl":
                return self.ctl
            case "README":
                return self._root.readme
            case _:
                raise P9Error("file not found", ENOENT)

    async def open(self, mode: int, client: Client) -> File:
        if mode & 3 == p9.OWRITE:
            raise P9Error("permission denied", EACCES)
        if self.description:
            return Snapshot(self._text(), client)
        return listing(self, [self.ctl], client)

    async def remove(self) -> None:
        await self.end()

    async def ask(self, data: bytes) -> None:
        """Forward what `data` says; `result` tells what came of it.  Raises P9Error when something was asked before."""
        async with self._changing:
            if self._root.entries.get(self.name) is not self:
                raise P9Error("file not found", ENOENT)
            if self.result:
                raise P9Error("permission denied", EACCES)
            with trio.move_on_after(EXPOSE_SECONDS, shield=True) as in_time:  # the client may go meanwhile
                self.result = await self._expose(data)
            if in_time.cancelled_caught:
                self.result = f"ERROR it took more than {EXPOSE_SECONDS:g} s\n"

    async def _expose(self, data: bytes) -> str:
        try:
            request = parse(data)
        except RequestError as error:
            return f"ERROR {error}\n"
        try:
            self._forwards = await self._root.forwards.expose(request.text)
        except self._root.errors as error:
            return f"ERROR {request.refusal(error, errno_of(error))}\n"
        self.description = request.with_port(self._forwards[0].host_port)
        self.kind, self.mode = p9.QTFILE, READ
        self._path = next(self._numbers)  # another file than the directory was
        log.info("9P: %s is %s", self.name, self.description)
        return f"OK {self.description}\n"

    async def end(self) -> None:
        """Stop listening, and be gone.  Idempotent."""
        async with self._changing:
            forwards, self._forwards = self._forwards, ()
            for forward in forwards:
                await self._root.forwards.unexpose(forward)
            if self._root.entries.get(self.name) is self:
                del self._root.entries[self.name]
            if self.owner is not None:
                self.owner.owned.pop(self, None)
                self.owner = None

    def _text(self) -> bytes:
        return f"{self.description}\n".encode() if self.description else b""


class Ctl(Node):
    """NAME/ctl."""

    mode = READ | WRITE

    def __init__(self, entry: Entry) -> None:
        super().__init__("ctl", entry)
        self._entry = entry

    def length(self) -> int:
        return len(self._entry.result.encode())

    async def open(self, mode: int, client: Client) -> File:
        return OpenCtl(self._entry, writable=mode & 3 in (p9.OWRITE, p9.ORDWR))

    async def remove(self) -> None:
        await self._entry.end()

    async def wstat(self, stat: p9.Stat) -> None:
        """To be made empty (O_TRUNC), and the times that come with it, change nothing."""
        if stat.length not in (0, KEEP_64) or stat.name or stat.gid or stat.mode != 0xFFFFFFFF:
            raise P9Error("permission denied", EACCES)


class OpenCtl(File):
    """The forward is this file's if it wrote the request."""

    def __init__(self, entry: Entry, *, writable: bool) -> None:
        self._entry = entry
        self._writable = writable
        self._asked = False

    async def read(self, offset: int, count: int) -> bytes:
        return (self._entry.result or NOTHING_ASKED).encode()[offset : offset + count]

    async def write(self, offset: int, data: bytes) -> int:
        await self._entry.ask(data)
        self._asked = True
        return len(data)

    async def close(self) -> None:
        if self._asked or (self._writable and not self._entry.result):
            await self._entry.end()

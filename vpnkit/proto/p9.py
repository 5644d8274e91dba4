"""9P2000 sessions: fids, tags, flushes and resets; what a client may ask, and in which order its requests run.

One Session per connection.  `receive` takes a whole message and `finish` the answer to a Call; both return what is to
be done next, in that order: Send octets, Begin a Call, Cancel one, Close the connection.  The session itself walks;
everything that may wait is a Call: whoever serves runs it and brings the answer, also when it was cancelled.

Each fid has a queue.  Reads, stats and walks to other fids run side by side, everything else alone, in the order of
arrival; so a client may send a write and the read behind it without waiting, and a clunk waits for the write that is
under way.  A clunk cancels the reads of its fid.  A flush cancels a read, withdraws what waits, and is otherwise
answered when what it flushes is (flush(5) allows both).  Tversion does all of this to everything.

At most MAX_CALLS are alive, besides one for each fid that is being released, and at most MAX_FIDS fids; beyond that
requests are refused.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, Protocol, Self, TypeAlias, TypeVar

from vpnkit.errors import VpnkitError, WireError
from vpnkit.wire import p9

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_MSIZE: Final = 64 * 1024 + p9.IO_HEADER  # octets of a message, so that 64 KiB of a file fit
MIN_MSIZE: Final = 1024  # a directory entry with the longest name fits
MAX_FIDS: Final = 1024
MAX_CALLS: Final = 64  # that run or wait, flushed ones included, until they have ended
MAX_NAME: Final = 255  # octets of UTF-8

# Linux's numbers, whatever the host is: they are for the guest
EPERM: Final = 1
ENOENT: Final = 2
EIO: Final = 5
EBADF: Final = 9
EAGAIN: Final = 11
EACCES: Final = 13
EEXIST: Final = 17
ENOTDIR: Final = 20
EISDIR: Final = 21
EINVAL: Final = 22
ENFILE: Final = 23
ENOSPC: Final = 28
ENOSYS: Final = 38
EINTR: Final = 4


class P9Error(VpnkitError):
    """A request is refused.  The client gets the text, and `errno` with 9P2000.u."""

    def __init__(self, text: str, errno: int = EIO) -> None:
        super().__init__(text)
        self.errno = errno


class _Lost(VpnkitError):
    """What follows cannot be understood: Close."""


class Node(Protocol):
    """What a fid can stand for."""

    @property
    def qid(self) -> p9.Qid: ...

    def walk(self, name: str) -> Self:
        """The child of that name, or the parent for "..".  Raises P9Error."""
        ...


NodeT = TypeVar("NodeT", bound=Node)


@dataclass(eq=False, slots=True)
class Fid(Generic[NodeT]):
    """A client's handle.  `mode` is that of its open, None before it."""

    number: int
    node: NodeT
    mode: int | None = None
    running: list[Call[NodeT]] = field(default_factory=list)
    waiting: deque[Call[NodeT]] = field(default_factory=deque)


@dataclass(eq=False, slots=True)
class Call(Generic[NodeT]):
    """A request that may wait.  A Tclunk without a tag releases the fid of a client that did not ask for it."""

    tag: int | None
    request: p9.Request
    fid: Fid[NodeT]
    wanted: bool = True  # somebody gets the answer
    cancelled: bool = False
    flushes: list[int] = field(default_factory=list)  # tags to answer when this is

    @property
    def shared(self) -> bool:
        """Whether others of the same fid may run beside it."""
        match self.request:
            case p9.Tread() | p9.Tstat():
                return True
            case p9.Twalk(fid, newfid):
                return fid != newfid
            case _:
                return False

    @property
    def releases(self) -> bool:
        """Whether it gives up its fid, which nothing can prevent."""
        return isinstance(self.request, p9.Tclunk | p9.Tremove)


@dataclass(frozen=True, slots=True)
class Send:
    """Octets for the client."""

    octets: bytes


@dataclass(frozen=True, slots=True)
class Begin(Generic[NodeT]):
    """Run the call, then `finish` it."""

    call: Call[NodeT]


@dataclass(frozen=True, slots=True)
class Cancel(Generic[NodeT]):
    """The call need not go on; it is to be finished all the same."""

    call: Call[NodeT]


@dataclass(frozen=True, slots=True)
class Close:
    """The client cannot be understood any more; what was to be sent before is its last words."""

    reason: str


Action: TypeAlias = Send | Begin[NodeT] | Cancel[NodeT] | Close


class Session(Generic[NodeT]):
    """One client.  `attach` gives the root; it may raise P9Error."""

    def __init__(self, attach: Callable[[], NodeT], *, max_msize: int = MAX_MSIZE) -> None:
        self.msize = max_msize
        self.extended = False
        self.attached = False
        self.fids: dict[int, Fid[NodeT]] = {}
        self.calls: dict[int, Call[NodeT]] = {}  # by tag, those that are to be answered
        self._alive = 0  # calls that run or wait
        self._attach = attach
        self._max_msize = max_msize
        self._versioned = False
        self._reset: tuple[int, p9.Rversion] | None = None  # what to say when everything of before has ended
        self._flushes: dict[int, int] = {}  # tag of a flush that waits -> tag of what it waits for
        self._out: list[Action[NodeT]] = []

    @property
    def largest_read(self) -> int:
        """Octets of a file that fit into one answer."""
        return self.msize - p9.READ_HEADER

    # What comes in

    def receive(self, data: bytes) -> list[Action[NodeT]]:
        """Take one whole message."""
        try:
            tag = p9.read_tag(data)
            if self._reset is not None:
                raise _Lost("a request before the answer to Tversion")
            try:
                _, request = p9.decode(data, extended=self.extended)
                self._request(tag, request)
            except WireError as error:
                self._error(tag, P9Error(str(error), EINVAL))
            except P9Error as error:
                self._error(tag, error)
        except (_Lost, WireError) as error:
            self._out.append(Close(str(error)))
        return self._drain()

    def finish(self, call: Call[NodeT], reply: p9.Reply | P9Error, node: NodeT | None = None) -> list[Action[NodeT]]:
        """Take the answer to `call`, which has ended.  `node` is what a Tcreate made, and its fid's from now on."""
        fid = call.fid
        fid.running.remove(call)
        self._alive -= 1
        if isinstance(call.request, p9.Topen | p9.Tcreate) and not isinstance(reply, P9Error):
            fid.mode = call.request.mode
            fid.node = node or fid.node
        self._answer(call, reply)
        self._advance(fid)
        if self._reset is not None and self._alive == 0:
            (tag, version), self._reset = self._reset, None
            self._send(tag, version)
        return self._drain()

    # Requests

    def _request(self, tag: int, request: p9.Message) -> None:
        if isinstance(request, p9.Tversion):
            self._version(tag, request)
            return
        if not self._versioned:
            self._error(tag, P9Error("Expected Version message", EINVAL))
            raise _Lost("the first message is not Tversion")
        if tag == p9.NOTAG:
            raise P9Error("no tag", EINVAL)
        if tag in self.calls or tag in self._flushes:
            raise _Lost(f"tag {tag} is in use")
        match request:
            case p9.Tauth():
                raise P9Error("authentication is not required", EINVAL)
            case p9.Tflush(oldtag):
                self._flush(tag, oldtag)
            case p9.Tattach():
                self._attach_fid(tag, request)
            case _ if not self.attached:
                self._error(tag, P9Error("Expected Attach message", EINVAL))
                raise _Lost("the second message is not Tattach")
            case p9.Twalk() | p9.Topen() | p9.Tcreate() | p9.Tread() | p9.Twrite() | p9.Tstat() | p9.Twstat():
                self._submit(tag, request, self._fid(request.fid))
            case p9.Tclunk() | p9.Tremove():
                self._release(tag, request, self._fid(request.fid))
            case _:
                raise P9Error("Function not implemented", ENOSYS)

    def _version(self, tag: int, request: p9.Tversion) -> None:
        """version(5): everything of before is aborted, then the session begins anew."""
        base = request.version.partition(".")[0]
        extended = request.version == p9.EXTENDED
        known = extended or base == p9.PLAIN
        if request.msize < MIN_MSIZE:
            raise P9Error(f"msize {request.msize} is too small: {MIN_MSIZE} is the least", EINVAL)
        calls = [*self.calls.values()]
        for call in calls:  # all of them, before the end of one lets another begin
            call.wanted = False
        for call in calls:
            self._forget(call)
        self._flushes.clear()
        for fid in [*self.fids.values()]:
            self._drop(fid)
            self._enqueue(Call(None, p9.Tclunk(fid.number), fid))
        self.attached = False
        self._versioned = known
        self.extended = extended
        self.msize = min(request.msize, self._max_msize)
        version = p9.EXTENDED if extended else p9.PLAIN if known else p9.UNKNOWN
        reply = p9.Rversion(self.msize, version)
        if self._alive:
            self._reset = (tag, reply)
        else:
            self._send(tag, reply)

    def _attach_fid(self, tag: int, request: p9.Tattach) -> None:
        if request.afid != p9.NOFID:
            raise P9Error("authentication is not required", EINVAL)
        node = self._attach()
        self._new_fid(request.fid, node)
        self.attached = True
        self._send(tag, p9.Rattach(node.qid))

    def _flush(self, tag: int, oldtag: int) -> None:
        call = self.calls.get(self._flushes.get(oldtag, oldtag))  # a flush that waits, waits for a call
        if call is None:
            self._send(tag, p9.Rflush())
        elif not call.releases and (call.shared or call in call.fid.waiting):
            self._forget(call)
            self._send(tag, p9.Rflush())
        elif call.tag is not None and len(self._flushes) < MAX_CALLS:
            call.flushes.append(tag)
            self._flushes[tag] = call.tag
        else:
            raise _Lost("too many flushes")

    # Fids

    def _fid(self, number: int) -> Fid[NodeT]:
        fid = self.fids.get(number)
        if fid is None:
            raise P9Error("fid not found", EBADF)
        return fid

    def _new_fid(self, number: int, node: NodeT) -> Fid[NodeT]:
        if number == p9.NOFID or number in self.fids:
            raise P9Error("fid in use", EINVAL)
        if len(self.fids) >= MAX_FIDS:
            raise P9Error("too many fids", ENFILE)
        fid = self.fids[number] = Fid(number, node)
        return fid

    def _drop(self, fid: Fid[NodeT]) -> None:
        """The fid's number is free; what waits for it is refused, what reads is cancelled."""
        del self.fids[fid.number]
        for call in [*fid.waiting]:
            fid.waiting.remove(call)
            self._alive -= 1
            self._answer(call, P9Error("fid not found", EBADF))
        for call in fid.running:
            self._cancel(call)

    def _release(self, tag: int, request: p9.Request, fid: Fid[NodeT]) -> None:
        self._drop(fid)
        call = Call(tag, request, fid)
        self.calls[tag] = call
        self._enqueue(call)

    # Calls

    def _submit(self, tag: int, request: p9.Request, fid: Fid[NodeT]) -> None:
        if self._alive >= MAX_CALLS:
            raise P9Error("too many requests", EAGAIN)
        call = Call(tag, request, fid)
        self.calls[tag] = call
        self._enqueue(call)

    def _enqueue(self, call: Call[NodeT]) -> None:
        self._alive += 1
        call.fid.waiting.append(call)
        self._advance(call.fid)

    def _advance(self, fid: Fid[NodeT]) -> None:
        """Begin what may begin."""
        while fid.waiting:
            call = fid.waiting[0]
            if fid.running and not (call.shared and all(other.shared for other in fid.running)):
                return
            fid.waiting.popleft()
            try:
                self._check(call)
            except P9Error as error:
                self._alive -= 1
                self._answer(call, error)
                continue
            if isinstance(call.request, p9.Twalk):
                self._alive -= 1
                self._walk(call, call.request)
                continue
            fid.running.append(call)
            self._out.append(Begin(call))

    def _check(self, call: Call[NodeT]) -> None:
        """open(5), read(5): what an open fid is for.  Raises P9Error."""
        fid = call.fid
        directory = fid.node.qid.kind & p9.QTDIR
        match call.request:
            case p9.Topen(mode=mode):
                if fid.mode is not None:
                    raise P9Error("Already open", EINVAL)
                if mode & ~(3 | p9.OTRUNC):
                    raise P9Error(f"mode {mode:#x} is not supported", EINVAL)
                if directory and mode not in (p9.OREAD, p9.OEXEC):
                    raise P9Error("is a directory", EISDIR)
            case p9.Tcreate(name=name):
                if fid.mode is not None:
                    raise P9Error("Already open", EINVAL)
                if not directory:
                    raise P9Error("not a directory", ENOTDIR)
                if name in ("", ".", "..") or "/" in name or len(name.encode()) > MAX_NAME:
                    raise P9Error("bad file name", EINVAL)
            case p9.Tread():
                if fid.mode is None or fid.mode & 3 == p9.OWRITE:
                    raise P9Error("Can't read from unopened fid", EBADF)
            case p9.Twrite():
                if fid.mode is None or fid.mode & 3 not in (p9.OWRITE, p9.ORDWR):
                    raise P9Error("Can't write to unopened fid", EBADF)
            case _:
                pass

    def _walk(self, call: Call[NodeT], request: p9.Twalk) -> None:
        """walk(5): the new fid is there if every name was found, and the first name must be."""
        fid, node = call.fid, call.fid.node
        qids: list[p9.Qid] = []
        try:
            if request.newfid == request.fid:
                if fid.mode is not None:
                    raise P9Error("Can't walk from open fid", EINVAL)
            elif request.newfid in self.fids or request.newfid == p9.NOFID:
                raise P9Error("fid in use", EINVAL)
            for name in request.names:
                try:
                    node = _step(node, name)
                except P9Error:
                    if not qids:
                        raise
                    break
                qids.append(node.qid)
            if len(qids) == len(request.names):
                if request.newfid == request.fid:
                    fid.node = node
                else:
                    self._new_fid(request.newfid, node)
        except P9Error as error:
            self._answer(call, error)
        else:
            self._answer(call, p9.Rwalk(tuple(qids)))

    def _cancel(self, call: Call[NodeT]) -> None:
        if call.shared and not call.cancelled:
            call.cancelled = True
            self._out.append(Cancel(call))

    def _forget(self, call: Call[NodeT]) -> None:
        """Nobody gets the answer to the call.  It is withdrawn if it waits, and cancelled if it can be."""
        call.wanted = False
        if call.tag is not None:
            self.calls.pop(call.tag, None)
        if call in call.fid.waiting and not call.releases:
            call.fid.waiting.remove(call)
            self._alive -= 1
            self._advance(call.fid)
        elif call in call.fid.running:
            self._cancel(call)

    # What goes out

    def _answer(self, call: Call[NodeT], reply: p9.Reply | P9Error) -> None:
        if call.tag is None or not call.wanted:
            return
        self.calls.pop(call.tag, None)
        if isinstance(reply, P9Error):
            self._error(call.tag, reply)
        else:
            self._send(call.tag, reply)
        for tag in call.flushes:
            del self._flushes[tag]
            self._send(tag, p9.Rflush())

    def _error(self, tag: int, error: P9Error) -> None:
        text = str(error)
        while len(text.encode()) > self.msize // 2:
            text = text[: len(text) // 2]
        self._send(tag, p9.Rerror(text, error.errno))

    def _send(self, tag: int, reply: p9.Reply) -> None:
        octets = p9.encode(tag, reply, extended=self.extended)
        if len(octets) > self.msize:
            octets = p9.encode(tag, p9.Rerror("answer is too large", EIO), extended=self.extended)
        self._out.append(Send(octets))

    def _drain(self) -> list[Action[NodeT]]:
        out, self._out = self._out, []
        return out


def _step(node: NodeT, name: str) -> NodeT:
    if name in ("", ".") or "/" in name:
        raise P9Error("file not found", ENOENT)
    return node.walk(name)

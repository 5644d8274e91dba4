"""One 9P client, on any stream: messages in, calls to nodes, answers out.

The tasks of a connection are the reader, the writer, one for each call that has not ended, and what open files need.
All of them end with it, and then its open files are closed and what it owned is given up.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from vpnkit.errors import WireError
from vpnkit.proto.p9 import EBADF, EINTR, EIO, ENFILE, ENOSYS, MAX_MSIZE, Begin, Cancel, Close, P9Error, Send, Session
from vpnkit.wire import p9

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vpnkit.control.p9.nodes import File, Node
    from vpnkit.proto.p9 import Action, Call, Fid

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS: Final = 10.0  # from the connection to the end of Tattach
SEND_SECONDS: Final = 60.0  # for the client to take something; a VM may be paused
CLEAN_UP_SECONDS: Final = 10.0
LAST_WORDS_SECONDS: Final = 1.0
MAX_UNSENT: Final = 256 * 1024  # octets of answers; beyond that no more is read
MAX_HELD: Final = 8 * 1024 * 1024  # octets that open files hold; the one that goes beyond it is the last
CHUNK: Final = 64 * 1024


class Connection:
    """One client; a `nodes.Client`."""

    tasks: trio.Nursery

    def __init__(self, stream: trio.abc.Stream, root: Node, *, max_msize: int = MAX_MSIZE) -> None:
        self.owned: dict[object, Callable[[], Awaitable[None]]] = {}
        self.held = 0  # octets
        self._stream = stream
        self._session: Session[Node] = Session(lambda: root, max_msize=max_msize)
        self._files: dict[Fid[Node], File] = {}
        self._scopes: dict[Call[Node], trio.CancelScope] = {}
        self._unsent = bytearray()
        self._sending = 0  # octets that were taken from it, and are on their way
        self._to_send = trio.Event()
        self._sent = trio.Event()  # something was
        self._closing = False

    @property
    def extended(self) -> bool:
        return self._session.extended

    def reserve(self, octets: int) -> None:
        if octets > 0 and self.held >= MAX_HELD:
            raise P9Error("too much is open", ENFILE)
        self.held += octets

    async def serve(self) -> None:
        """Answer until the client goes or cannot be understood.  Raises BrokenResourceError.  Closes nothing of the
        stream."""
        try:
            async with trio.open_nursery() as nursery:
                self.tasks = nursery
                nursery.start_soon(self._write)
                await self._read()
                with trio.move_on_after(LAST_WORDS_SECONDS):
                    await self._drained(0)
                nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(CLEAN_UP_SECONDS, shield=True) as in_time:
                await self._clean_up()
            if in_time.cancelled_caught:
                log.error("9P: what a client left was not cleaned up in %g s", CLEAN_UP_SECONDS)

    async def _clean_up(self) -> None:
        releases = [file.close for file in self._files.values()]
        for release in [*releases, *self.owned.values()]:
            try:
                await release()
            except Exception:
                log.exception("9P: what a client left could not be released")

    # The stream

    async def _read(self) -> None:
        received = bytearray()
        with trio.CancelScope(deadline=trio.current_time() + HANDSHAKE_SECONDS) as handshake:
            while True:
                while (message := self._take(received)) is not None:
                    self._perform(self._session.receive(message))
                    if self._session.attached:
                        handshake.deadline = trio.current_time() + float("inf")
                    await (
                        trio.lowlevel.checkpoint()
                    )  # what was begun runs before more comes: few calls are alive at once
                    await self._drained(MAX_UNSENT)
                if self._closing:
                    return
                data = await self._stream.receive_some(CHUNK)
                if not data:
                    return
                received += data
        if handshake.cancelled_caught:
            log.info("9P: a client did not attach in %g s", HANDSHAKE_SECONDS)

    def _take(self, received: bytearray) -> bytes | None:
        """The next message if it is there."""
        if len(received) < 4 or self._closing:
            return None
        try:
            size = p9.message_size(received)
        except WireError as error:
            self._close(str(error))
            return None
        if size > self._session.msize:
            self._close(f"9P message of {size} octets; {self._session.msize} is the most")
            return None
        if len(received) < size:
            return None
        message = bytes(received[:size])
        del received[:size]
        return message

    async def _write(self) -> None:
        while True:
            await self._to_send.wait()
            self._to_send = trio.Event()
            octets = bytes(self._unsent)
            self._unsent.clear()
            self._sending = len(octets)
            with trio.move_on_after(SEND_SECONDS) as in_time:
                await self._stream.send_all(octets)
            if in_time.cancelled_caught:
                raise trio.BrokenResourceError("the client does not read")
            self._sending = 0
            self._sent.set()
            self._sent = trio.Event()

    async def _drained(self, most: int) -> None:
        """Wait until no more than `most` octets are to be sent."""
        while len(self._unsent) + self._sending > most:
            await self._sent.wait()

    # What the session wants done

    def _perform(self, actions: list[Action[Node]]) -> None:
        for action in actions:
            match action:
                case Send(octets):
                    self._unsent += octets
                    self._to_send.set()
                case Begin(call):
                    self._scopes[call] = trio.CancelScope()
                    self.tasks.start_soon(self._run, call)
                case Cancel(call):
                    self._scopes[call].cancel()
                case Close(reason):
                    self._close(reason)

    def _close(self, reason: str) -> None:
        log.info("9P: a client is cut off: %s", reason)
        self._closing = True

    async def _run(self, call: Call[Node]) -> None:
        reply: p9.Reply | P9Error = P9Error("interrupted", EINTR)
        made: Node | None = None
        with self._scopes[call]:
            try:
                reply, made = await self._answer(call)
            except P9Error as error:
                reply = error
            except Exception:
                log.exception("9P: %s failed", type(call.request).__name__)
                reply = P9Error("internal error", EIO)
        del self._scopes[call]
        self._perform(self._session.finish(call, reply, made))

    async def _answer(self, call: Call[Node]) -> tuple[p9.Reply, Node | None]:
        fid = call.fid
        node = fid.node
        match call.request:
            case p9.Topen(mode=mode):
                self._files[fid] = await node.open(mode, self)
                return p9.Ropen(node.qid, 0), None
            case p9.Tcreate(name=name, perm=perm, mode=mode):
                made = await node.create(name, perm, self)
                self._files[fid] = await made.open(p9.OREAD if perm & p9.DMDIR else mode, self)
                return p9.Rcreate(made.qid, 0), made
            case p9.Tread(offset=offset, count=count):
                data = await self._file(fid).read(offset, min(count, self._session.largest_read))
                return p9.Rread(data), None
            case p9.Twrite(offset=offset, data=data):
                return p9.Rwrite(await self._file(fid).write(offset, data)), None
            case p9.Tclunk():
                await self._close_file(fid)
                return p9.Rclunk(), None
            case p9.Tremove():
                await self._close_file(fid)
                await node.remove()
                return p9.Rremove(), None
            case p9.Tstat():
                return p9.Rstat(node.stat()), None
            case p9.Twstat(stat=stat):
                await node.wstat(stat)
                return p9.Rwstat(), None
            case _:
                raise P9Error("Function not implemented", ENOSYS)

    def _file(self, fid: Fid[Node]) -> File:
        file = self._files.get(fid)
        if file is None:
            raise P9Error("fid is not open", EBADF)
        return file

    async def _close_file(self, fid: Fid[Node]) -> None:
        if (file := self._files.get(fid)) is not None:
            await file.close()  # if this is cancelled, it is still there to be closed in the end
            self._files.pop(fid, None)

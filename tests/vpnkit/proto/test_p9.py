"""A 9P session against a client that may do anything at any time, and calls that end in any order."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vpnkit.proto import p9 as session
from vpnkit.proto.p9 import Begin, Call, Cancel, Close, P9Error, Send, Session
from vpnkit.wire import p9

EXCLUSIVE = (p9.Topen, p9.Tcreate, p9.Twrite, p9.Twstat, p9.Tclunk, p9.Tremove)
SOME_FIDS = st.integers(0, 5)
SOME_TAGS = st.integers(1, 8)
REPLIES = {
    p9.Topen: p9.Ropen(p9.Qid(0, 0, 1), 0),
    p9.Tcreate: p9.Rcreate(p9.Qid(0, 0, 1), 0),
    p9.Tread: p9.Rread(b"data"),
    p9.Twrite: p9.Rwrite(4),
    p9.Tclunk: p9.Rclunk(),
    p9.Tremove: p9.Rremove(),
    p9.Tstat: p9.Rstat(p9.Stat(p9.Qid(0, 0, 1), 0, "")),
    p9.Twstat: p9.Rwstat(),
}


class Place:
    """A tree that is as deep as one likes: directories `d`, files `f`."""

    def __init__(self, name: str = "d", parent: Place | None = None) -> None:
        self.name = name
        self.parent = parent or self

    @property
    def qid(self) -> p9.Qid:
        return p9.Qid(p9.QTDIR if self.name == "d" else p9.QTFILE, 0, id(self) & 0xFFFF)

    def walk(self, name: str) -> Place:
        if name == "..":
            return self.parent
        if self.name == "d" and name in ("d", "f"):
            return Place(name, self)
        raise P9Error("file not found", session.ENOENT)


class Anything(RuleBasedStateMachine):
    """What is owed to the client is in `owed`: tags of requests, and of flushes with what they flush."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(session, "MAX_FIDS", 5)
        self.patch.setattr(session, "MAX_CALLS", 4)
        self.connect()

    def connect(self) -> None:
        self.session: Session[Place] = Session(Place, max_msize=4096)
        self.running: list[Call[Place]] = []
        self.cancelled: set[int] = set()
        self.owed: dict[int, p9.Message] = {}
        self.resetting = False
        self.closed = False
        self.version(8192)
        self.ask(1, p9.Tattach(0, p9.NOFID, "", ""))

    @precondition(lambda self: self.closed and not self.running)
    @rule()
    def connect_again(self) -> None:
        self.connect()

    def teardown(self) -> None:
        while self.running:
            self.end(0, False)
        if not self.closed:
            assert self.owed == {}, "everything was answered"
            assert not self.session.calls
            assert self.session._alive == 0
        self.patch.undo()

    # What the session says

    def take(self, actions: list[session.Action[Place]]) -> None:
        for action in actions:
            match action:
                case Send(octets):
                    assert len(octets) <= self.session.msize
                    self.heard(*p9.decode(octets, extended=self.session.extended))
                case Begin(call):
                    self.began(call)
                case Cancel(call):
                    assert call in self.running
                    assert isinstance(call.request, p9.Tread | p9.Tstat)
                    assert id(call) not in self.cancelled, "once"
                    self.cancelled.add(id(call))
                case Close():
                    self.closed = True

    def began(self, call: Call[Place]) -> None:
        others = [other for other in self.running if other.fid is call.fid]
        if isinstance(call.request, EXCLUSIVE):
            assert not others, f"{call.request} beside {[other.request for other in others]}"
        else:
            assert not [other for other in others if isinstance(other.request, EXCLUSIVE)]
        if isinstance(call.request, p9.Tread | p9.Twrite):
            assert call.fid.mode is not None
        self.running.append(call)

    def heard(self, tag: int, reply: p9.Message) -> None:
        if isinstance(reply, p9.Rversion):
            assert self.resetting
            assert not self.running, "only when everything of before has ended"
            self.resetting = False
            return
        assert tag in self.owed, f"{reply} to nobody"
        request = self.owed.pop(tag)
        if isinstance(request, p9.Tflush):
            assert isinstance(reply, p9.Rflush)
            self.owed.pop(request.oldtag, None)  # it is not answered any more

    # What the client does

    def ask(self, tag: int, request: p9.Message) -> None:
        self.owed[tag] = request
        self.take(self.session.receive(p9.encode(tag, request, extended=self.session.extended)))

    def free(self, tag: int) -> bool:
        return tag not in self.owed

    def usable(self) -> bool:
        return not self.closed and not self.resetting and self.session.attached

    def request(self, tag: int, request: p9.Message) -> None:
        if self.free(tag):
            self.ask(tag, request)

    @precondition(usable)
    @rule(
        tag=SOME_TAGS, fid=SOME_FIDS, new=SOME_FIDS, names=st.lists(st.sampled_from(["d", "f", "..", "x"]), max_size=3)
    )
    def walk(self, tag: int, fid: int, new: int, names: list[str]) -> None:
        self.request(tag, p9.Twalk(fid, new, tuple(names)))

    @precondition(usable)
    @rule(tag=SOME_TAGS, fid=SOME_FIDS, mode=st.sampled_from([0, 1, 2, 0x10, 0x40]))
    def open(self, tag: int, fid: int, mode: int) -> None:
        self.request(tag, p9.Topen(fid, mode))

    @precondition(usable)
    @rule(tag=SOME_TAGS, fid=SOME_FIDS, name=st.sampled_from(["d", "f", "", "a/b"]))
    def create(self, tag: int, fid: int, name: str) -> None:
        self.request(tag, p9.Tcreate(fid, name, 0, 2))

    @precondition(usable)
    @rule(tag=SOME_TAGS, fid=SOME_FIDS)
    def read(self, tag: int, fid: int) -> None:
        self.request(tag, p9.Tread(fid, 0, 100))

    @precondition(usable)
    @rule(tag=SOME_TAGS, fid=SOME_FIDS)
    def write(self, tag: int, fid: int) -> None:
        self.request(tag, p9.Twrite(fid, 0, b"data"))

    @precondition(usable)
    @rule(tag=SOME_TAGS, fid=SOME_FIDS)
    def stat(self, tag: int, fid: int) -> None:
        self.request(tag, p9.Tstat(fid))

    @precondition(usable)
    @rule(tag=SOME_TAGS, fid=SOME_FIDS, remove=st.booleans())
    def release(self, tag: int, fid: int, remove: bool) -> None:
        sent = self.free(tag)
        self.request(tag, p9.Tremove(fid) if remove else p9.Tclunk(fid))
        if sent:
            assert fid not in self.session.fids

    @precondition(usable)
    @rule(tag=SOME_TAGS, old=SOME_TAGS)
    def flush(self, tag: int, old: int) -> None:
        self.request(tag, p9.Tflush(old))

    @precondition(usable)
    @rule(tag=SOME_TAGS, fid=SOME_FIDS)
    def attach(self, tag: int, fid: int) -> None:
        self.request(tag, p9.Tattach(fid, p9.NOFID, "", ""))

    @precondition(usable)
    @rule(tag=SOME_TAGS, body=st.binary(max_size=12), code=st.sampled_from([c for c in p9.LAYOUTS if c != 100]))
    def noise(self, tag: int, body: bytes, code: int) -> None:
        data = p9.HEADER.pack(7 + len(body), code, tag) + body
        try:
            _, request = p9.decode(data, extended=self.session.extended)
        except Exception:
            request = p9.Tstat(0)
        if self.free(tag):
            self.owed[tag] = request
            self.take(self.session.receive(data))

    @precondition(lambda self: not self.closed and not self.resetting)
    @rule(msize=st.sampled_from([1024, 8192]))
    def version(self, msize: int) -> None:
        self.owed.clear()
        self.resetting = True
        self.take(self.session.receive(p9.encode(p9.NOTAG, p9.Tversion(msize, "9P2000.u"), extended=False)))
        assert self.session.fids == {}

    @precondition(lambda self: not self.closed and not self.resetting and not self.session.attached)
    @rule()
    def attach_again(self) -> None:
        self.request(1, p9.Tattach(0, p9.NOFID, "", ""))

    # What the nodes do

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 50), well=st.booleans())
    def end(self, which: int, well: bool) -> None:
        call = self.running.pop(which % len(self.running))
        self.cancelled.discard(id(call))
        node = Place("f", call.fid.node) if well and isinstance(call.request, p9.Tcreate) else None
        self.take(self.session.finish(call, REPLIES[type(call.request)] if well else P9Error("no"), node))

    # What always holds

    @invariant()
    def bounds(self) -> None:
        assert len(self.session.fids) <= 5
        waiting = sum(len(fid.waiting) for fid in self.session.fids.values())
        ordinary = [call for call in self.running if not isinstance(call.request, p9.Tclunk | p9.Tremove)]
        assert waiting + len(ordinary) <= 4
        assert len(self.session._flushes) <= 4
        assert self.session._alive >= len(self.running)

    @invariant()
    def every_debt_has_a_reason(self) -> None:
        """What is not answered is a call that has not ended, or a flush of one."""
        if self.closed or self.resetting:
            return
        for tag, request in self.owed.items():
            known = self.session._flushes if isinstance(request, p9.Tflush) else self.session.calls
            assert tag in known, request


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def session_of() -> Session[Place]:
    made: Session[Place] = Session(Place)
    made.receive(p9.encode(p9.NOTAG, p9.Tversion(8192, "9P2000"), extended=False))
    made.receive(p9.encode(1, p9.Tattach(0, p9.NOFID, "", ""), extended=False))
    return made


def told(made: Session[Place], tag: int, request: p9.Message) -> list[session.Action[Place]]:
    return made.receive(p9.encode(tag, request, extended=False))


def test_an_error_text_is_cut_to_fit() -> None:
    made = session_of()
    [begin] = told(made, 1, p9.Tstat(0))
    assert isinstance(begin, Begin)
    [send] = made.finish(begin.call, P9Error("x" * 100_000))
    assert isinstance(send, Send)
    assert len(send.octets) < 8192


def test_an_answer_that_does_not_fit_is_an_error() -> None:
    made = session_of()
    [begin] = told(made, 1, p9.Tstat(0))
    assert isinstance(begin, Begin)
    [send] = made.finish(begin.call, p9.Rread(bytes(8192)))
    assert isinstance(send, Send)
    assert p9.decode(send.octets, extended=False) == (1, p9.Rerror("answer is too large"))


def test_a_request_before_the_answer_to_tversion_ends_it() -> None:
    made = session_of()
    [begin] = told(made, 1, p9.Twstat(0, p9.Stat(p9.Qid(0, 0, 0), 0, "")))
    assert isinstance(begin, Begin)
    assert told(made, p9.NOTAG, p9.Tversion(8192, "9P2000")) == []
    [close] = told(made, 2, p9.Tstat(0))
    assert isinstance(close, Close)


def test_tversion_waits_for_what_cannot_be_cancelled() -> None:
    made = session_of()
    [begin] = told(made, 1, p9.Twstat(0, p9.Stat(p9.Qid(0, 0, 0), 0, "")))
    assert isinstance(begin, Begin)
    assert told(made, p9.NOTAG, p9.Tversion(8192, "9P2000")) == []
    [release] = made.finish(begin.call, p9.Rwstat())
    assert isinstance(release, Begin)
    assert isinstance(release.call.request, p9.Tclunk)
    [send] = made.finish(release.call, p9.Rclunk())
    assert isinstance(send, Send)
    assert p9.decode(send.octets, extended=False) == (p9.NOTAG, p9.Rversion(8192, "9P2000"))


def test_tversion_answers_nothing_of_before() -> None:
    """A create waits for a stat, and a read for the create: to withdraw the create must not let the read be refused."""
    made = session_of()
    told(made, 1, p9.Tstat(0))
    assert told(made, 2, p9.Tcreate(0, "d", 0, 0)) == []
    assert told(made, 3, p9.Tread(0, 0, 100)) == []
    [cancel] = told(made, p9.NOTAG, p9.Tversion(8192, "9P2000"))
    assert isinstance(cancel, Cancel)

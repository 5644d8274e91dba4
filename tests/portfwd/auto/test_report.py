"""What agents say, what hosts answer, and what neither would."""

from __future__ import annotations

import json

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from portfwd.auto import host as module
from portfwd.auto.agent import HostGone, place
from portfwd.auto.follow import Follower
from portfwd.auto.host import FIRST_SECONDS, serve_agent
from portfwd.auto.report import (
    MAX_LINE,
    MAX_LISTENERS,
    ReportError,
    decode_answer,
    decode_report,
    encode_answer,
    encode_report,
)
from portfwd.auto.rules import parse_rule
from portfwd.auto.sock_diag import Listener
from tests.portfwd.auto.test_follow import ADDRESSES, Table, tcp

LISTENERS = st.sets(
    st.builds(
        Listener,
        st.sampled_from(["tcp", "udp"]),
        st.integers(1, 65535),
        st.ip_addresses().map(str),
        st.booleans(),
    ),
    max_size=20,
)


@given(LISTENERS)
def test_reports_come_back(listeners):
    assert decode_report(encode_report(listeners)) == listeners


def test_a_report_is_bounded():
    many = {tcp(port, "255.255.255.255", only6=True) for port in range(1, 65536, 7)}
    line = encode_report(many)
    assert len(line) < MAX_LINE
    assert len(decode_report(line)) == MAX_LISTENERS


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"version":2,"listeners":[]}',
        b'{"version":1}',
        b'{"version":1,"listeners":[1]}',
        b'{"version":1,"listeners":[{"protocol":"sctp","port":1,"address":"0.0.0.0"}]}',
        b'{"version":1,"listeners":[{"protocol":"tcp","port":0,"address":"0.0.0.0"}]}',
        b'{"version":1,"listeners":[{"protocol":"tcp","port":true,"address":"0.0.0.0"}]}',
        b'{"version":1,"listeners":[{"protocol":"tcp","port":1.5,"address":"0.0.0.0"}]}',
        b'{"version":1,"listeners":[{"protocol":"tcp","port":1,"address":"x"}]}',
        b'{"version":1,"listeners":[{"protocol":"tcp","port":1,"address":5}]}',
        b'{"version":1,"listeners":[{"protocol":["tcp"],"port":1,"address":"::1%eth0"}]}',
    ],
)
def test_no_report(line):
    with pytest.raises(ReportError):
        decode_report(line)


KEYS = st.sampled_from(["port", "address", "protocol"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=5,
)


@given(VALUES)
def test_any_json(value):
    for said in (value, {"version": 1, "listeners": value}, {"version": 1, "listeners": [value]}):
        try:
            assert all(isinstance(listener, Listener) for listener in decode_report(json.dumps(said).encode()))
        except ReportError:
            pass


def test_answers():
    assert decode_answer(encode_answer(["a"], ["b", "c"])) == (["a"], ["b", "c"])
    for line in (b"{}", b'{"forwards":[1],"problems":[]}', b"HTTP/1.1 400"):
        with pytest.raises(ReportError):
            decode_answer(line)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("10.0.0.1", ("10.0.0.1", 62374)),
        ("10.0.0.1:5", ("10.0.0.1", 5)),
        ("[::1]", ("::1", 62374)),
        ("[::1]:7", ("::1", 7)),
    ],
)
def test_places(text, where):
    assert place(text) == where
    assert issubclass(HostGone, Exception)


class Served:
    def __init__(self):
        self.agent, self.stream = trio.testing.memory_stream_pair()
        self.table = Table()
        self.follower = Follower("x", parse_rule("auto"), self.table, least_port=1024)
        self.failure = None

    async def run(self):
        try:
            await serve_agent(self.stream, self.follower, lambda: ADDRESSES)
        except (ReportError, trio.BrokenResourceError) as error:
            self.failure = error


async def test_reports_become_forwards_until_the_end(autojump_clock):
    served = Served()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.run)
        await served.agent.send_all(encode_report({tcp(8000), tcp(80)}))
        forwards, problems = decode_answer(await served.agent.receive_some())
        assert forwards == served.table.specs == ["8000:192.168.65.3:8000"]
        assert problems == ["tcp 80: ports of the host below 1024 are not for guests"]
        await served.agent.send_all(encode_report({tcp(1)}) + encode_report({tcp(8001)})[:-1])
        await trio.sleep(1)
        assert served.table.specs == []
        await served.agent.send_all(b"\n")
        await trio.sleep(1)
        assert served.table.specs == ["8001:192.168.65.3:8001"]
        await served.agent.send_eof()
    assert served.table.specs == []
    assert served.failure is None


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n", b"x" * (2 * MAX_LINE)])
async def test_nonsense_ends_it(said):
    served = Served()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.run)
        await served.agent.send_all(encode_report({tcp(8000)}))
        await served.agent.receive_some()
        await served.agent.send_all(said)
    assert isinstance(served.failure, ReportError)
    assert served.table.specs == []


async def test_who_reports_nothing(autojump_clock):
    served = Served()
    start = trio.current_time()
    await served.run()
    assert trio.current_time() - start == pytest.approx(FIRST_SECONDS)


async def test_who_takes_no_answer(autojump_clock, monkeypatch):
    monkeypatch.setattr(module, "LEAST_SECONDS", 0.0)
    served = Served()
    ours, served.stream = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.run)
        await ours.send_all(encode_report({tcp(8000)}))
    assert "took no answer" in str(served.failure)
    assert served.table.specs == []

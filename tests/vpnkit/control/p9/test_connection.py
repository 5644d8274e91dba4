"""A client of one connection: the handshake, flushes, streams, limits, and what is no 9P."""

from __future__ import annotations

import gc
import random
import struct
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.vpnkit.control.p9.client import P9Client, Refusal
from vpnkit.control.p9 import connection
from vpnkit.control.p9.nodes import Directory, Stream, Text
from vpnkit.proto import p9 as session
from vpnkit.wire import p9

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from vpnkit.control.p9.ports import PortDirectory

    Connect = Callable[..., P9Client]


class Tap:
    """A stream file's source that can be looked at."""

    def __init__(self) -> None:
        self.send, self._receive = trio.open_memory_channel[bytes](100)
        self.open = 0

    async def begin(self) -> AsyncGenerator[bytes, None]:
        self.open += 1
        try:
            async with self._receive.clone() as chunks:
                async for chunk in chunks:
                    if chunk == b"fail":
                        raise RuntimeError("secret")
                    yield chunk
        finally:
            self.open -= 1


@pytest.fixture
def tap(root: PortDirectory) -> Tap:
    made = Tap()
    capture = Directory("capture", root)
    capture.add(Stream("all", capture, made.begin))
    root.add(capture)
    return made


async def closed(client: P9Client) -> bool:
    with trio.fail_after(5):
        try:
            await client.receive()
        except EOFError:
            return True
    return False


# The handshake


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("9P2000", "9P2000"),
        ("9P2000.u", "9P2000.u"),
        ("9P2000.L", "9P2000"),
        ("9P2001", "unknown"),
        ("9P1999.u", "unknown"),
        ("", "unknown"),
    ],
)
async def test_versions(connect: Connect, asked: str, told: str) -> None:
    client = connect(extended=False)
    assert await client.ask(p9.Tversion(8192, asked), p9.NOTAG) == p9.Rversion(8192, told)
    await client.send(1, p9.Tattach(0, p9.NOFID, "", ""))
    if told == "unknown":
        assert await client.receive() == (1, p9.Rerror("Expected Version message"))


@pytest.mark.parametrize(("asked", "told"), [(1024, 1024), (8192, 8192), (1 << 20, 65560), (0xFFFFFFFF, 65560)])
async def test_message_sizes(connect: Connect, asked: int, told: int) -> None:
    assert (await connect().begin(asked)).msize == told


async def test_a_message_size_that_is_too_small(connect: Connect) -> None:
    client = connect(extended=False)
    with pytest.raises(Refusal, match="1024 is the least"):
        await client.ask(p9.Tversion(1023, "9P2000"), p9.NOTAG)
    await client.begin()


async def test_first_version_then_attach(connect: Connect) -> None:
    client = connect(extended=False)
    with pytest.raises(Refusal, match="Expected Version message"):
        await client.ask(p9.Tattach(0, p9.NOFID, "", ""))
    assert await closed(client)
    client = connect(extended=False)
    await client.ask(p9.Tversion(8192, "9P2000"), p9.NOTAG)
    with pytest.raises(Refusal, match="Expected Attach message"):
        await client.ask(p9.Tstat(0))
    assert await closed(client)


async def test_authentication_is_refused_and_the_client_may_go_on(connect: Connect) -> None:
    client = connect(extended=False)
    await client.ask(p9.Tversion(8192, "9P2000"), p9.NOTAG)
    with pytest.raises(Refusal, match="not required"):
        await client.ask(p9.Tauth(7, "me", ""))
    with pytest.raises(Refusal, match="not required"):
        await client.ask(p9.Tattach(0, 7, "me", ""))
    await client.ask(p9.Tattach(0, p9.NOFID, "me", "whatever"))
    await client.ask(p9.Tattach(500, p9.NOFID, "you", ""))
    with pytest.raises(Refusal, match="fid in use"):
        await client.ask(p9.Tattach(500, p9.NOFID, "you", ""))
    assert await client.listing() == [".", "..", "README"]


async def test_who_does_not_attach_in_time_is_cut_off(connect: Connect, autojump_clock) -> None:
    client = connect(extended=False)
    await client.ask(p9.Tversion(8192, "9P2000"), p9.NOTAG)
    with trio.fail_after(11), pytest.raises(EOFError):
        await client.receive()
    client = await connect().begin()
    await trio.sleep(80_000)
    assert await client.listing() == [".", "..", "README"]


# Files


async def test_small_pieces_are_of_one_state(client: P9Client, root: PortDirectory) -> None:
    states = iter([b"first " * 100, b"second"])
    root.add(Text("state", root, lambda: next(states)))
    fid = await client.open("state")
    pieces = [await client.read(fid, offset, 7) for offset in range(0, 602, 7)]
    assert b"".join(pieces) == b"first " * 100
    assert await client.read(fid, 2**64 - 1) == b""
    assert await client.content("state") == b"second"


async def test_a_directory_in_pieces(client: P9Client) -> None:
    names = [f"entry-{number}" * (number % 5 + 1) for number in range(40)]
    for name in names:
        await client.mkdir(name)
    fid = await client.open()
    found, offset, offsets = b"", 0, []
    while data := await client.read(fid, offset, 300):
        offsets.append(offset)
        found += data
        offset += len(data)
    entries = []
    while found:
        size = struct.unpack_from("<H", found)[0] + 2
        entries.append(p9.decode_stat(found[:size], extended=client.extended).name)
        found = found[size:]
    assert entries == [".", "..", "README", *names]
    assert await client.read(fid, offsets[1], 300), "from any place where an entry begins"
    for wrong in (1, offset + 1):
        with pytest.raises(Refusal, match="Can't seek in a directory"):
            await client.read(fid, wrong, 300)
    with pytest.raises(Refusal, match="less than an entry"):
        await client.read(fid, 0, 10)


async def test_rules_of_opening(client: P9Client) -> None:
    fid = await client.walk("README")
    with pytest.raises(Refusal, match="Can't read from unopened fid"):
        await client.read(fid)
    with pytest.raises(Refusal, match="Can't write to unopened fid"):
        await client.write(fid, b"x")
    await client.ask(p9.Topen(fid, p9.OREAD))
    with pytest.raises(Refusal, match="Already open"):
        await client.ask(p9.Topen(fid, p9.OREAD))
    with pytest.raises(Refusal, match="Can't write to unopened fid"):
        await client.write(fid, b"x")
    with pytest.raises(Refusal, match="Can't walk from open fid"):
        await client.ask(p9.Twalk(fid, fid, ("..",)))
    await client.ask(p9.Twalk(fid, 77, ()))
    with pytest.raises(Refusal, match="is a directory"):
        await client.open(mode=p9.ORDWR)
    with pytest.raises(Refusal, match="not supported"):
        await client.open("README", mode=p9.ORCLOSE)
    await client.open("README", mode=p9.OREAD)


async def test_walks(client: P9Client) -> None:
    await client.mkdir("x")
    assert len((await client.ask(p9.Twalk(0, 50, ("x", "nothing", "ctl")))).qids) == 1
    with pytest.raises(Refusal, match="fid not found"):
        await client.ask(p9.Tstat(50))
    with pytest.raises(Refusal, match="file not found"):
        await client.ask(p9.Twalk(0, 50, ("nothing",)))
    with pytest.raises(Refusal, match="fid in use"):
        await client.ask(p9.Twalk(0, await client.walk(), ()))
    with pytest.raises(Refusal, match="fid not found"):
        await client.ask(p9.Twalk(99, 50, ()))
    await client.ask(p9.Twalk(0, 51, ("x",)))
    assert len((await client.ask(p9.Twalk(51, 51, ("ctl", "nothing")))).qids) == 1
    assert (await client.ask(p9.Tstat(51))).stat.name == "x", "in place only when all were found"
    await client.ask(p9.Twalk(51, 51, ("ctl",)))
    assert (await client.ask(p9.Tstat(51))).stat.name == "ctl"


async def test_a_read_is_never_larger_than_a_message(connect: Connect, root: PortDirectory) -> None:
    root.add(Text("big", root, lambda: bytes(200_000)))
    client = await connect().begin(1024)
    fid = await client.open("big")
    assert len(await client.read(fid, 0, 0xFFFFFFFF)) == 1024 - 11
    assert await client.content("big") == bytes(200_000)


# Streams and flushes


async def test_a_stream(client: P9Client, tap: Tap) -> None:
    fid = await client.open("capture", "all")
    await tap.send.send(b"hello")
    assert await client.read(fid, 0, 3) == b"hel"
    assert await client.read(fid, 0, 100) == b"lo"
    await client.send(7, p9.Tread(fid, 5, 100))
    await client.send(8, p9.Tstat(fid))
    await client.send(9, p9.Twalk(fid, 900, ("..",)))
    assert sorted([(await client.receive())[0] for _ in range(2)]) == [8, 9], "others go on meanwhile"
    await tap.send.send(b"world")
    assert await client.receive() == (7, p9.Rread(b"world"))
    await client.send(7, p9.Tread(fid, 10, 100))
    await trio.testing.wait_all_tasks_blocked()
    await tap.send.aclose()
    assert await client.receive() == (7, p9.Rread(b""))
    assert await client.read(fid) == b""
    await client.clunk(fid)
    await trio.testing.wait_all_tasks_blocked()
    assert tap.open == 0


async def test_a_flushed_read_loses_nothing_and_is_not_answered(client: P9Client, tap: Tap) -> None:
    fid = await client.open("capture", "all")
    for _ in range(3):
        await client.send(7, p9.Tread(fid, 0, 100))
        await trio.testing.wait_all_tasks_blocked()
        assert await client.ask(p9.Tflush(7), 8) == p9.Rflush()
    await client.send(7, p9.Tread(fid, 0, 100))
    await client.send(8, p9.Tflush(7))
    assert await client.receive() == (8, p9.Rflush()), "also at once"
    await tap.send.send(b"kept")
    assert await client.read(fid) == b"kept"


async def test_flushes_of_what_is_not_there(client: P9Client) -> None:
    assert await client.ask(p9.Tflush(99)) == p9.Rflush()
    assert await client.ask(p9.Tflush(1), 1) == p9.Rflush(), "of itself"


async def test_a_write_is_answered_and_then_its_flushes_are(client: P9Client, table) -> None:
    await client.mkdir("x")
    fid = await client.open("x", "ctl", mode=p9.ORDWR)
    table.gate = trio.Event()
    await client.send(1, p9.Twrite(fid, 0, b"tcp:127.0.0.1:80:tcp:1.2.3.4:80"))
    for tag, old in ((2, 1), (3, 1), (4, 3)):
        await client.send(tag, p9.Tflush(old))
    await client.send(5, p9.Tread(fid, 0, 100))
    await client.send(6, p9.Tflush(5))
    assert await client.receive() == (6, p9.Rflush()), "what waits is withdrawn"
    await trio.testing.wait_all_tasks_blocked()
    table.gate.set()
    assert [(await client.receive())[0] for _ in range(4)] == [1, 2, 3, 4]


async def test_a_clunk_ends_the_reads_of_its_fid(client: P9Client, tap: Tap) -> None:
    fid = await client.open("capture", "all")
    await client.send(7, p9.Tread(fid, 0, 100))
    await client.send(8, p9.Tclunk(fid))
    tag, reply = await client.receive()
    assert tag == 7
    assert isinstance(reply, p9.Rerror)
    assert reply.ename == "interrupted"
    assert await client.receive() == (8, p9.Rclunk())
    await trio.testing.wait_all_tasks_blocked()
    assert tap.open == 0


async def test_a_new_version_aborts_everything(client: P9Client, tap: Tap) -> None:
    fid = await client.open("capture", "all")
    await client.send(7, p9.Tread(fid, 0, 100))
    await client.begin()
    with pytest.raises(Refusal, match="fid not found"):
        await client.ask(p9.Tstat(fid))
    await trio.testing.wait_all_tasks_blocked()
    assert tap.open == 0


async def test_a_stream_that_fails_is_an_error_without_details(client: P9Client, tap: Tap, caplog) -> None:
    fid = await client.open("capture", "all")
    await tap.send.send(b"fail")
    with pytest.raises(Refusal, match="the stream failed"):
        await client.read(fid)
    assert "secret" in caplog.text


async def test_a_node_that_fails_is_an_error_without_details(client: P9Client, root: PortDirectory, caplog) -> None:
    def fail() -> bytes:
        raise RuntimeError("secret")

    root.add(Text("broken", root, fail))
    with pytest.raises(Refusal, match="^internal error$") as refusal:  # noqa: RUF043
        await client.open("broken")
    assert "secret" not in str(refusal.value)
    assert "secret" in caplog.text
    assert "broken" in await client.listing()


async def test_streams_end_with_the_connection(connect: Connect, tap: Tap) -> None:
    client = await connect().begin()
    for _ in range(3):
        await client.open("capture", "all")
    await trio.testing.wait_all_tasks_blocked()
    assert tap.open == 3
    await client.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert tap.open == 0


async def test_who_does_not_read_a_stream_is_not_sent_to(client: P9Client, tap: Tap) -> None:
    await client.open("capture", "all")
    for number in range(5):
        tap.send.send_nowait(bytes([number]))
    await trio.testing.wait_all_tasks_blocked()
    assert tap.send.statistics().current_buffer_used == 4, "one was fetched ahead"


# Limits


async def test_fids_are_bounded(client: P9Client, monkeypatch) -> None:
    monkeypatch.setattr(session, "MAX_FIDS", 5)
    for _ in range(4):
        last = await client.walk()
    with pytest.raises(Refusal, match="too many fids"):
        await client.walk()
    await client.clunk(last)
    await client.walk()


async def test_calls_are_bounded_and_clunks_are_not_refused(connect: Connect, tap: Tap) -> None:
    client = await connect().begin()
    fid = await client.open("capture", "all")
    for tag in range(session.MAX_CALLS):
        await client.send(tag, p9.Tread(fid, 0, 1))
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(Refusal, match="too many requests"):
        await client.ask(p9.Tstat(0), 1000)
    await client.send(1001, p9.Tclunk(fid))
    answers = [await client.receive() for _ in range(session.MAX_CALLS + 1)]
    assert answers[-1] == (1001, p9.Rclunk())
    await client.ask(p9.Tstat(0), 1000)


async def test_a_flood_of_reads_and_their_flushes(connect: Connect, tap: Tap) -> None:
    client = await connect().begin()
    fid = await client.open("capture", "all")
    flood = b""
    for _ in range(1000):
        flood += p9.encode(1, p9.Tread(fid, 0, 1), extended=True) + p9.encode(2, p9.Tflush(1), extended=True)
    await client.stream.send_all(flood)
    for _ in range(1000):
        assert await client.receive() == (2, p9.Rflush())
    await client.ask(p9.Tstat(0), 3)


async def test_what_open_files_hold_is_bounded(client: P9Client, root: PortDirectory, monkeypatch) -> None:
    monkeypatch.setattr(connection, "MAX_HELD", 10_000)
    root.add(Text("big", root, lambda: bytes(6000)))
    first = await client.open("big")
    await client.open("big")
    with pytest.raises(Refusal, match="too much is open"):
        await client.open("big")
    with pytest.raises(Refusal, match="too much is open"):
        await client.open()
    await client.clunk(first)
    await client.open("big")


@pytest.mark.parametrize("size", [0, 6, 65_561, 0xFFFFFFFF])
async def test_sizes_that_no_message_has(connect: Connect, size: int) -> None:
    client = await connect().begin(65_560)
    await client.stream.send_all(struct.pack("<I", size))
    assert await closed(client)


async def test_a_message_may_come_in_any_pieces(connect: Connect) -> None:
    client = connect()
    whole = p9.encode(p9.NOTAG, p9.Tversion(8192, "9P2000.u"), extended=True)
    whole += p9.encode(1, p9.Tattach(0, p9.NOFID, "", ""), extended=True)
    whole += b"".join(p9.encode(tag, p9.Twalk(0, tag, ()), extended=True) for tag in range(2, 20))
    for octet in whole:
        await client.stream.send_all(bytes([octet]))
    assert [(await client.receive())[0] for _ in range(20)] == [p9.NOTAG, *range(1, 20)]


@pytest.mark.parametrize(
    "body",
    [
        b"\x6a\1\0",  # Terror
        b"\x79\1\0",  # an answer
        b"\xff\1\0abc",
        b"\x78\1\0",  # a Tclunk without its fid
        b"\x6e\1\0\0\0\0\0\1\0\0\0\x11\0",  # 17 names
    ],
)
async def test_malformed_messages_are_answered(client: P9Client, body: bytes) -> None:
    await client.stream.send_all(struct.pack("<I", len(body) + 4) + body)
    tag, reply = await client.receive()
    assert tag == 1
    assert isinstance(reply, p9.Rerror)
    assert await client.listing() == [".", "..", "README"]


async def test_a_tag_in_use_ends_it(client: P9Client, tap: Tap) -> None:
    fid = await client.open("capture", "all")
    await client.send(7, p9.Tread(fid, 0, 1))
    await client.send(7, p9.Tread(fid, 0, 1))
    assert await closed(client)


async def test_long_names_are_not_cut(client: P9Client) -> None:
    """QEMU #3358: sizes in 16 bits."""
    for length in (256, 4096):
        with pytest.raises(Refusal, match="file not found"):
            await client.walk("n" * length)


async def test_walks_and_clunks_leave_nothing(connect: Connect) -> None:
    """CVE-2016-9105 and others: leaks by repetition."""
    client = await connect().begin()
    burst = b"".join(
        p9.encode(3 * fid, p9.Twalk(0, fid, ("README",)), extended=True)
        + p9.encode(3 * fid + 1, p9.Topen(fid, 0), extended=True)
        + p9.encode(3 * fid + 2, p9.Tclunk(fid), extended=True)
        for fid in range(1, 101)
    )

    async def turn() -> None:
        await client.stream.send_all(burst)
        for _ in range(300):
            await client.receive()

    async def objects() -> int:
        await turn()
        gc.collect()
        return len(gc.get_objects())

    await turn()
    before = await objects()
    for _ in range(10):
        await turn()
    assert await objects() - before < 1000, "less than one for each request"


async def test_noise(connect: Connect) -> None:
    """Valid headers, anything behind them: never an end without a reason, never a failure."""
    rng = random.Random(9)
    client = await connect().begin()
    for _ in range(300):
        body = (
            bytes([rng.choice([*p9.LAYOUTS])])
            + struct.pack("<H", rng.randrange(500))
            + rng.randbytes(rng.randrange(20))
        )
        if body[0] == 100:
            continue
        await client.stream.send_all(struct.pack("<I", len(body) + 4) + body)
        await client.receive()

"""Sources to which guests connect."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import stat
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
import trio
import trio.testing

from tapdev.sources import LinkError, bound_path, listening, open_source, socket_key
from tapdev.sources.bind import BoundSocket
from tapdev.sources.connections import MAX_PENDING
from tapdev.sources.host import Complaints
from tapdev.sources.listening import BACK_OFF, Listener
from tapdev.spec import parse
from tapdev.vmnet import Refused, connect_handshake
from tests.tapdev.guests import NOBODY
from tests.tapdev.source_host import FRAME, PATIENCE, EchoHost, Framed, big, little, running, short_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UUID_A = UUID("d1d9cd61-d0dc-4715-9bb3-4c11da7ad7a5")


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture
def path(directory: Path) -> Path:
    return directory / "x.sock"


async def vmnet(path: Path, uuid: UUID | None = None, wanted: bytes | None = None) -> Framed:
    stream = await trio.open_unix_socket(path)
    try:
        await connect_handshake(stream, uuid, wanted)
    except BaseException:
        await stream.aclose()
        raise
    return Framed(stream, 2, "little")


# QEMU


async def test_qemu_guests_one_after_the_other_and_at_once(path: Path) -> None:
    host = EchoHost()
    async with running(f"qemu:{path}", host):
        for _ in range(2):
            client = await big(path)
            await client.echo()
            await client.aclose()
        await host.until(left=2)
        clients = [await big(path) for _ in range(5)]
        for number, client in enumerate(clients):
            await client.echo(FRAME + bytes([number]))
        for client in clients:
            await client.aclose()
        await host.until(left=7)
    assert sorted(host.joined) == [f"qemu:{path}#{n}" for n in range(1, 8)]
    assert host.registrations == [None] * 7


@pytest.mark.parametrize("kind", ["qemu", "vmnet", "bess", "dgram", "vfkit"])
def test_the_socket_is_ours_alone_and_goes_away(path: Path, kind: str) -> None:
    source = open_source(parse(f"{kind}:{path}"))
    assert stat.S_ISSOCK(path.lstat().st_mode)
    assert path.lstat().st_mode & 0o777 == 0o600
    source.close()
    source.close()
    assert not path.exists()


async def test_everything_is_bound_when_it_is_opened(path: Path) -> None:
    source = open_source(parse(f"qemu:{path}"))
    client = await big(path)
    await client.send(FRAME)
    async with running(source, EchoHost()):
        assert await client.receive() == FRAME
        await client.aclose()


@pytest.mark.parametrize("kind", ["qemu", "vmnet", "bess", "dgram", "vfkit"])
def test_a_live_socket_is_respected(path: Path, kind: str) -> None:
    first = open_source(parse(f"{kind}:{path}"))
    with pytest.raises(LinkError, match=r"x\.sock is already served by (process \d+|another process)$"):
        open_source(parse(f"{kind}:{path}"))
    first.close()
    open_source(parse(f"{kind}:{path}")).close()


@pytest.mark.parametrize("kind", ["qemu", "vmnet", "bess", "dgram", "vfkit"])
def test_a_stale_socket_is_replaced_and_a_file_is_not(path: Path, kind: str) -> None:
    for stale in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_UNIX, stale) as dead:
            dead.bind(str(path))
        open_source(parse(f"{kind}:{path}")).close()
    path.write_text("precious")
    with pytest.raises(LinkError, match="exists and is not a socket"):
        open_source(parse(f"{kind}:{path}"))
    assert path.read_text() == "precious"


@pytest.mark.parametrize("kind", ["qemu", "qemu-connect", "dgram", "vmnet"])
def test_a_path_that_no_socket_can_have(kind: str) -> None:
    with pytest.raises(LinkError, match=r"has 201 octets, at most \d+ fit"):
        open_source(parse(f"{kind}:/{'x' * 200}"))


@pytest.mark.parametrize(
    ("text", "mtu", "limits"),
    [("qemu:/x", 65536, "68 to 65535"), ("vmnet:/x", 65522, "68 to 65521"), ("stdio:", 67, "68 to 65521")],
)
def test_an_mtu_that_the_link_cannot_have(text: str, mtu: int, limits: str) -> None:
    with pytest.raises(LinkError, match=f"MTU {mtu} is out of range for .*: {limits}"):
        open_source(parse(text), mtu=mtu)


@pytest.mark.parametrize(("kind", "mtu"), [("qemu", 65520), ("bess", 1500)])
async def test_the_mtu_is_the_default_of_the_kind_or_what_was_asked_for(path: Path, kind: str, mtu: int) -> None:
    for wanted, expected in ((None, mtu), (9000, 9000)):
        host = EchoHost()
        async with running(open_source(parse(f"{kind}:{path}"), mtu=wanted), host):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if kind == "qemu" else socket.SOCK_SEQPACKET) as peer:
                peer.connect(str(path))
                await host.until(joined=1)
        assert host.links[0].capabilities.mtu == expected


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "[::1]"])
async def test_tcp(address: str) -> None:
    host = EchoHost()
    source = open_source(parse(f"qemu:tcp:{address}:0"))
    ports = [listener._sock.getsockname() for listener in source._listeners]  # type: ignore[attr-defined]
    async with running(source, host):
        for name in ports:
            client = Framed(await trio.open_tcp_stream(name[0], name[1]))
            await client.echo(FRAME * 100)
            await client.aclose()
        await host.until(left=len(ports))


def test_a_tcp_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        text = f"tcp:127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(LinkError, match=f"^{text} cannot be bound: another process has this port"):
            open_source(parse(f"qemu:{text}"))


def test_a_host_that_is_not_ours() -> None:
    with pytest.raises(LinkError, match="cannot be bound: Cannot assign requested address"):
        open_source(parse("qemu:tcp:192.0.2.1:1234"))


# What goes wrong


async def test_one_guests_failure_does_not_end_the_source(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    host = EchoHost()
    host.failure = ValueError("a bug")
    async with running(f"qemu:{path}", host):
        client = await big(path)
        assert await client.ended()
        await client.aclose()
        other = await big(path)
        await other.echo()
        await other.aclose()
    assert f"qemu:{path}#1: serving this guest failed" in caplog.text
    assert "ValueError: a bug" in caplog.text


async def test_connections_beyond_the_limit_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listening, "MAX_CONNECTIONS", 2)
    host = EchoHost()
    async with running(f"qemu:{path}", host):
        first, second = await big(path), await big(path)
        await host.until(joined=2)
        for _ in range(3):
            third = await big(path)
            assert await third.ended()
            await third.aclose()
        await first.aclose()
        await host.until(left=1)
        await second.echo()
        fourth = await big(path)
        await fourth.echo()
        await second.aclose()
        await fourth.aclose()
    lines = [record for record in caplog.records if "a connection was refused: 2 are there" in record.message]
    assert len(lines) == 1, "at most one line per second"


async def test_another_users_connection_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host = EchoHost()
    monkeypatch.setattr(listening, "permitted", lambda _: False)
    async with running(f"qemu:{path}", host):
        client = await big(path)
        assert await client.ended()
        await client.aclose()
    assert "a connection of another user was refused" in caplog.text
    assert host.joined == []


@pytest.mark.root
async def test_another_users_connection_is_refused_also_where_the_mode_would_let_it(path: Path) -> None:
    host = EchoHost()
    async with running(f"qemu:{path}", host):
        os.chmod(path.parent, 0o755)
        os.chmod(path, 0o666)
        os.seteuid(NOBODY)
        try:
            client = await big(path)
        finally:
            os.seteuid(0)
        assert await client.ended()
        await client.aclose()
        ours = await big(path)
        await ours.echo()
        await ours.aclose()
    assert len(host.joined) == 1


class Exhausted(socket.socket):
    """Out of descriptors for the first accepts."""

    attempts = 0

    def accept(self):
        self.attempts += 1
        if self.attempts == 1:
            raise ConnectionAbortedError(errno.ECONNABORTED, "died in the backlog")
        if self.attempts < 20:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


async def test_a_process_without_descriptors_waits_and_says_so_once(
    path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with Exhausted(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(path))
        server.listen()
        client.connect(str(path))
        listener = Listener(BoundSocket(server), Complaints("x"))
        before = trio.current_time()
        (await listener.accept()).close()
        assert server.attempts == 20
        assert trio.current_time() - before == pytest.approx(18 * BACK_OFF)
        listener.close()
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
    assert caplog.text.count("cannot accept: Too many open files") == 1


async def test_complaints_are_few_and_counted(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    complaints = Complaints("x")
    for _ in range(5):
        complaints.say("no")
    await trio.sleep(1)
    complaints.say("again")
    assert [record.message for record in caplog.records] == [
        "x: no",
        "x: again (and 4 more that were not logged)",
    ]


async def test_a_source_that_is_closed_takes_nobody_in_and_ends_with_its_last_guest(path: Path) -> None:
    host = EchoHost()
    source = open_source(parse(f"qemu:{path}"))
    async with running(source, host) as ended:
        client = await big(path)
        await client.echo()
        source.close()
        assert os.listdir(path.parent) == []
        await client.echo()
        await client.aclose()
        with trio.fail_after(PATIENCE):
            await ended.wait()


# BESS


async def test_bess(path: Path) -> None:
    host = EchoHost()
    async with running(f"bess:{path}", host):
        with (
            trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one,
            trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as two,
            trio.fail_after(PATIENCE),
        ):
            for number, peer in enumerate((one, two)):
                await peer.connect(str(path))
                await peer.send(FRAME + bytes([number]))
            for number, peer in enumerate((one, two)):
                assert await peer.recv(65536) == FRAME + bytes([number])
        await host.until(left=2)


# VMN3T


async def test_vmnet_registers_and_joins(path: Path) -> None:
    host = EchoHost()
    async with running(f"vmnet:{path}", host):
        client = await vmnet(path, UUID_A, bytes([192, 168, 65, 9]))
        other = await vmnet(path)
        await client.echo()
        await other.echo()
        await client.aclose()
        await other.aclose()
        await host.until(left=2)
    assert host.asked == [(UUID_A, bytes([192, 168, 65, 9])), (None, None)]
    assert [r and r.ip[3] for r in host.registrations] == [9, 3]
    assert host.links[0].capabilities.mtu == 1500


async def test_the_http_upgrade_on_the_same_socket(path: Path) -> None:
    host = EchoHost()
    async with running(f"vmnet:{path}", host):
        client = await little(path)
        frame = len(FRAME).to_bytes(2, "little") + FRAME
        await client.stream.send_all(b"POST /connect HTTP/1.1\r\nHost: \r\n\r\n" + frame)
        assert await client.receive() == FRAME, "what came with the request is not lost"
        await client.echo()
        await client.aclose()
    assert host.registrations == [None]


async def test_a_client_that_is_refused_is_told_why(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    host = EchoHost()
    host.refusal = "No IP addresses available."
    async with running(f"vmnet:{path}", host):
        with pytest.raises(Refused, match=re.escape("No IP addresses available.")):
            await vmnet(path)
        host.refusal = None
        client = await vmnet(path)
        await client.echo()
        await client.aclose()
    assert "a client was turned away: No IP addresses available." in caplog.text
    assert len(host.joined) == 1


@pytest.mark.parametrize("garbage", [b"", b"VM", b"\0" * 49, b"VMN3T\x15" + bytes(43), b"GET / HTTP/1.0\r\n\r\n"])
async def test_who_speaks_something_else_is_dropped(
    path: Path, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    host = EchoHost()
    async with running(f"vmnet:{path}", host):
        for _ in range(3):
            stream = await trio.open_unix_socket(path)
            await stream.send_all(garbage)
            await stream.send_eof()
            with trio.fail_after(PATIENCE):
                while await stream.receive_some(4096):
                    pass
            await stream.aclose()
        client = await vmnet(path)
        await client.echo()
        await client.aclose()
    assert len(host.joined) == 1
    assert caplog.text.count("a client was turned away") == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_handshake_that_does_not_go_on_makes_place_for_a_newer_one(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = EchoHost()
    async with running(f"vmnet:{path}", host):
        silent = [await trio.open_unix_socket(path) for _ in range(MAX_PENDING)]
        await trio.testing.wait_all_tasks_blocked()
        client = await vmnet(path)
        await client.echo()
        assert await Framed(silent[0]).ended()
        with trio.move_on_after(0) as scope:
            await silent[1].receive_some(1)
        assert scope.cancelled_caught, "only the oldest"
        for stream in (*silent, client):
            await stream.aclose()
    assert f"a client was dropped: {MAX_PENDING} others" in caplog.text


async def test_sixty_four_guests_at_once(path: Path) -> None:
    host = EchoHost()
    async with running(f"vmnet:{path}", host), trio.open_nursery() as nursery:

        async def guest() -> None:
            client = await vmnet(path)
            for number in range(10):
                await client.echo(FRAME + bytes([number]))
            await client.aclose()

        for _ in range(64):
            nursery.start_soon(guest)
    assert len(host.joined) == 64


# Socket activation


@pytest.mark.parametrize("text", ["qemu:{}", "vmnet:{}", "bess:{}", "dgram:{}", "fc-vsock:{}:7", "hyperkit:{}:7"])
def test_an_inherited_socket_is_taken_over_and_its_path_stays(directory: Path, text: str) -> None:
    spec = parse(text.format(directory if text.startswith("hyperkit") else directory / "x"))
    place = bound_path(spec)
    assert place is not None
    kind = {"bess": socket.SOCK_SEQPACKET, "dgram": socket.SOCK_DGRAM}.get(spec.kind, socket.SOCK_STREAM)
    theirs = socket.socket(socket.AF_UNIX, kind)
    theirs.bind(place)
    if kind != socket.SOCK_DGRAM:
        theirs.listen()
    key = socket_key(theirs)
    assert key == place
    fd = theirs.detach()
    source = open_source(spec, inherited={key: fd})
    assert not os.get_inheritable(fd)
    source.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert os.path.exists(place)


async def test_an_inherited_tcp_socket() -> None:
    theirs = socket.create_server(("127.0.0.1", 0))
    key = socket_key(theirs)
    assert key is not None
    host = EchoHost()
    async with running(open_source(parse(f"qemu:{key}"), inherited={key: theirs.fileno()}), host):
        client = Framed(await trio.open_tcp_stream(*theirs.getsockname()))
        await client.echo()
        await client.aclose()
    theirs.detach()


def test_an_inherited_socket_of_the_wrong_type_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        expected = rf"descriptor {theirs.fileno()} must be a listening stream socket; it is a datagram socket"
        with pytest.raises(LinkError, match=expected):
            open_source(parse(f"qemu:{path}"), inherited={str(path): theirs.fileno()})
        theirs.getsockname()
    with pytest.raises(LinkError, match="is no socket"), open(os.devnull) as file:
        open_source(parse(f"qemu:{path}"), inherited={str(path): file.fileno()})


# What stands for vsock


@pytest.mark.parametrize(
    ("text", "name"), [("fc-vsock:{}/v:1024", "v_1024"), ("hyperkit:{}:1024", "00000002.00000400")]
)
async def test_unix_sockets_that_stand_for_a_vsock_port(directory: Path, text: str, name: str) -> None:
    host = EchoHost()
    async with running(text.format(directory), host):
        assert os.listdir(directory) == [name]
        client = await vmnet(directory / name)
        await client.echo()
        await client.aclose()
        await host.until(left=1)
    assert os.listdir(directory) == []

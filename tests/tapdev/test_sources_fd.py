"""Sources of descriptors that were passed on to us: fd:N, PROTOCOL:fd:N and stdio."""

from __future__ import annotations

import os
import pty
import re
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tapdev.sources import LinkError, open_source
from tapdev.sources.stdio import open_stdio
from tapdev.spec import parse
from tapdev.vmnet import connect_handshake
from tests.tapdev.source_host import FRAME, PATIENCE, EchoHost, Framed, big, running, short_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STREAM, SEQPACKET, DGRAM = socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


def listening(path: Path, kind: int = STREAM) -> int:
    """A descriptor that the source is to take over."""
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(path))
    if kind != DGRAM:
        sock.listen()
    return sock.detach()


def pair(kind: int) -> tuple[int, trio.socket.SocketType]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    theirs.setblocking(False)
    return ours.detach(), trio.socket.from_stdlib_socket(theirs)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("prefix", ["", "vmnet:"])
async def test_a_listening_stream_is_vmn3t(directory: Path, prefix: str) -> None:
    host = EchoHost()
    fd = listening(directory / "s")
    async with running(f"{prefix}fd:{fd}", host):
        stream = await trio.open_unix_socket(directory / "s")
        await connect_handshake(stream, None)
        client = Framed(stream, 2, "little")
        await client.echo()
        await client.aclose()
    assert host.links[0].capabilities.mtu == 1500
    assert not is_open(fd)
    assert os.listdir(directory) == ["s"], "whoever bound it unlinks it"


async def test_a_listening_stream_for_qemu(directory: Path) -> None:
    host = EchoHost()
    async with running(f"qemu:fd:{listening(directory / 's')}", host):
        for _ in range(2):
            client = await big(directory / "s")
            await client.echo()
            await client.aclose()
    assert host.links[0].capabilities.mtu == 65520


@pytest.mark.parametrize("prefix", ["", "qemu:"])
async def test_a_connected_stream_is_one_qemu_guest(prefix: str) -> None:
    host = EchoHost()
    fd, theirs = pair(STREAM)
    async with running(f"{prefix}fd:{fd}", host) as ended:
        client = Framed(trio.SocketStream(theirs))
        await client.echo(FRAME * 1000)
        await client.aclose()
        with trio.fail_after(PATIENCE):
            await ended.wait()
    assert host.left == [f"{prefix}fd:{fd}"]


async def test_a_connected_stream_with_a_handshake() -> None:
    host = EchoHost()
    fd, theirs = pair(STREAM)
    async with running(f"vmnet:fd:{fd}", host) as ended:
        stream = trio.SocketStream(theirs)
        await connect_handshake(stream, None)
        client = Framed(stream, 2, "little")
        await client.echo()
        await client.aclose()
        with trio.fail_after(PATIENCE):
            await ended.wait()
    assert host.registrations[0] is not None


@pytest.mark.parametrize("prefix", ["", "bess:"])
async def test_a_listening_seqpacket_socket_is_bess(directory: Path, prefix: str) -> None:
    host = EchoHost()
    async with running(f"{prefix}fd:{listening(directory / 's', SEQPACKET)}", host):
        with trio.socket.socket(socket.AF_UNIX, SEQPACKET) as peer, trio.fail_after(PATIENCE):
            await peer.connect(str(directory / "s"))
            await peer.send(FRAME)
            assert await peer.recv(65536) == FRAME
        await host.until(left=1)


@pytest.mark.parametrize(
    ("prefix", "kind", "mtu"),
    [
        ("", SEQPACKET, 1500),
        ("bess:", SEQPACKET, 1500),
        ("", DGRAM, 65520),
        ("dgram:", DGRAM, 65520),
        ("vfkit:", DGRAM, 1500),
    ],
)
async def test_a_connected_packet_socket_is_one_guest(prefix: str, kind: int, mtu: int) -> None:
    host = EchoHost()
    fd, theirs = pair(kind)
    with theirs:
        async with running(f"{prefix}fd:{fd}", host):
            with trio.fail_after(PATIENCE):
                await theirs.send(FRAME)
                assert await theirs.recv(65536) == FRAME
    assert host.links[0].capabilities.mtu == mtu
    assert not is_open(fd)


@pytest.mark.parametrize("kind", ["vfkit", "dgram"])
async def test_a_bound_datagram_socket(directory: Path, kind: str) -> None:
    host = EchoHost()
    async with running(f"{kind}:fd:{listening(directory / 's', DGRAM)}", host):
        with trio.socket.socket(socket.AF_UNIX, DGRAM) as peer, trio.fail_after(PATIENCE):
            await peer.bind(str(directory / "vm"))
            await peer.sendto(FRAME, str(directory / "s"))
            assert await peer.recv(65536) == FRAME


@contextmanager
def wrong(text: str) -> Iterator[int]:
    """Descriptors that no source can use."""
    with short_directory() as directory:
        if text == "file":
            fd = os.open(directory / "f", os.O_RDWR | os.O_CREAT)
        elif text == "directory":
            fd = os.open(directory, os.O_RDONLY)
        elif text == "pipe":
            fd, other = os.pipe()
            os.close(other)
        elif text == "null":
            fd = os.open(os.devnull, os.O_RDWR)
        elif text == "dgram":
            fd = listening(directory / "s", DGRAM)
        elif text == "seqpacket":
            fd = listening(directory / "s", SEQPACKET)
        elif text == "stream":
            fd = socket.socket(socket.AF_UNIX).detach()
        else:
            fd = socket.socket(socket.AF_UNIX, DGRAM).detach()
        yield fd
        os.close(fd)  # it was left open


@pytest.mark.parametrize(
    ("kind", "prefix", "complaint"),
    [
        ("file", "", "is a regular file; fd needs a TAP device, a listening or connected stream"),
        ("directory", "", "is a directory"),
        ("pipe", "qemu:", "is a pipe; qemu needs a listening or connected stream socket"),
        ("null", "", "is a character device"),
        ("dgram", "", "is an unconnected datagram socket; fd needs"),
        ("dgram", "", "for this one write vfkit:fd:"),
        ("dgram", "vmnet:", "is an unconnected datagram socket; vmnet needs"),
        ("seqpacket", "qemu:", "is a listening seqpacket socket; qemu needs"),
        ("stream", "", "is an unbound stream socket"),
        ("unbound", "dgram:", "is an unbound datagram socket; dgram needs a bound or connected unix datagram socket"),
    ],
)
def test_what_no_source_can_use(kind: str, prefix: str, complaint: str) -> None:
    with wrong(kind) as fd, pytest.raises(LinkError, match=f"^descriptor {fd} .*{re.escape(complaint)[3:]}"):
        open_source(parse(f"{prefix}fd:{fd}"))


def test_a_descriptor_that_is_not_open() -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    os.close(fd)
    for prefix in ("", "qemu:"):
        with pytest.raises(LinkError, match=f"^descriptor {fd} is not open; whoever starts us"):
            open_source(parse(f"{prefix}fd:{fd}"))


@pytest.mark.parametrize("kind", [STREAM, DGRAM, SEQPACKET])
def test_a_source_that_never_ran_gives_its_descriptor_up(kind: int) -> None:
    fd, theirs = pair(kind)
    with theirs:
        source = open_source(parse(f"fd:{fd}"))
        source.close()
        source.close()
        assert not is_open(fd)


# stdio


async def test_stdio_by_pipes_ends_with_its_input() -> None:
    host = EchoHost()
    stdin, theirs_out = os.pipe()
    theirs_in, stdout = os.pipe()
    source = open_stdio(parse("stdio:"), 1500, stdin, stdout)
    client = Framed(
        trio.StapledStream(trio.lowlevel.FdStream(theirs_out), trio.lowlevel.FdStream(theirs_in)), 2, "little"
    )
    async with running(source, host) as ended:
        await client.echo()
        await client.echo(FRAME[:14])
        await client.stream.send_stream.aclose()  # type: ignore[attr-defined]
        with trio.fail_after(PATIENCE):
            await ended.wait()
    await client.aclose()
    assert os.get_blocking(stdin)
    assert os.get_blocking(stdout)
    os.close(stdin)  # still open: the source has duplicates
    os.close(stdout)
    assert host.left == ["stdio:"]


async def test_stdio_by_one_socket() -> None:
    host = EchoHost()
    fd, theirs = pair(STREAM)
    async with running(open_stdio(parse("stdio:"), 1500, fd, fd), host):
        client = Framed(trio.SocketStream(theirs), 2, "little")
        await client.echo()
        os.close(fd)
        await client.aclose()
        await host.until(left=1)


def test_stdio_that_no_frames_can_go_through() -> None:
    spec = parse("stdio:")
    with open(os.devnull, "r+b") as null:
        with pytest.raises(LinkError, match="standard input is no pipe or socket; connect both to the VM"):
            open_stdio(spec, 1500, null.fileno(), null.fileno())
        closed = os.dup(null.fileno())
        os.close(closed)
        with pytest.raises(LinkError, match="standard input is closed"):
            open_stdio(spec, 1500, closed, closed)
    reading, writing = os.pipe()
    controller, terminal = pty.openpty()
    with pytest.raises(LinkError, match="standard output is a terminal"):
        open_stdio(spec, 1500, reading, terminal)
    for fd in (reading, writing, controller, terminal):
        os.close(fd)

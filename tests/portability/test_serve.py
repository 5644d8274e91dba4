"""`vpnkit serve` on what looks like macOS, with guests on every kind of link that a Mac has.

`macos.py` says what is taken away and `sockets.py` what cannot be simulated.  The guests are in this process, which
is on Linux as it is.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.portability.real_guest import BULK, GATEWAY, HOST, SECONDS, datagram, guest_on, qemu, vmnet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="here it is about doing without Linux")

MACOS = [sys.executable, str(Path(__file__).with_name("macos.py"))]
KINDS = ("qemu", "dgram", "vfkit", "vmnet")
WIDE = ("qemu", "dgram")  # their MTU is 65520


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vk-") as name:
        yield Path(name)


@pytest.fixture
def served(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    links = [f"qemu:{place}/qemu", f"dgram:{place}/dgram,{place}/dgram-guest", f"vfkit:{place}/vfkit"]
    links.append(f"vmnet:{place}/vmnet")
    argv = [*MACOS, "vpnkit", "serve", "--control", f"{place}/control"]
    for link in links:
        argv += ["--link", link]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().decode()
            assert line.split()[0] == "ready", process.communicate()[1].decode()
            yield process
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=SECONDS)
            assert (process.returncode, out, err) == (0, b"", b"")
            assert {path.name for path in place.iterdir()} <= {"dgram-guest", "vfkit-guest"}, "ours are unlinked"
        finally:
            process.kill()


def link_to(kind: str, place: Path):
    if kind == "qemu":
        return qemu(place / "qemu")
    if kind == "vmnet":
        return vmnet(place / "vmnet")
    return datagram(place / kind, place / f"{kind}-guest", b"VFKT" if kind == "vfkit" else b"")


@asynccontextmanager
async def host_servers() -> AsyncIterator[tuple[int, int, int]]:
    """Ports on the loopback: bulk over TCP, one that resets, and an echo over UDP."""

    async def bulk(stream: trio.SocketStream) -> None:
        digest = hashlib.sha256()
        size = 0
        async for data in stream:
            digest.update(data)
            size += len(data)
        assert size == BULK
        back = random.Random(size).randbytes(BULK)
        await stream.send_all(digest.digest() + hashlib.sha256(back).digest() + back)

    async def reset(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def echo(sock: trio.socket.SocketType) -> None:
        while True:
            data, address = await sock.recvfrom(65535)
            await sock.sendto(data, address)

    async with trio.open_nursery() as nursery:
        ports = []
        for handler in (bulk, reset):
            serve = partial(trio.serve_tcp, handler, 0, host="127.0.0.1", handler_nursery=nursery)
            (listener,) = await nursery.start(serve)
            ports.append(listener.socket.getsockname()[1])
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            nursery.start_soon(echo, sock)
            yield ports[0], ports[1], sock.getsockname()[1]
            nursery.cancel_scope.cancel()


async def use(kind: str, place: Path, ports: tuple[int, int, int]) -> str:
    """Everything that a guest does; returns the address that he had."""
    bulk, reset, echo = ports
    link, mac = link_to(kind, place)
    async with guest_on(link, mac) as guest:
        await guest.dhcp()
        await guest.arp()
        assert await guest.resolve("host.internal") == HOST
        await guest.ping(GATEWAY)
        if os.geteuid() == 0:  # else this kernel may not let us make the socket that macOS gives to everybody
            await guest.ping(HOST)
        await guest.echo(echo, 1200)
        if kind in WIDE:
            await guest.echo(echo, 20_000)
        await guest.transfer(bulk)

        client = guest.call(free_port())
        await client.closed()
        assert client.reset_sequence is not None, "a refused connection is reset, not silence"

        client = await guest.connect(reset)
        await client.send(b"x")
        await client.until(lambda: client.reset_sequence is not None)
        return guest.address


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize("kind", KINDS)
async def test_guest(kind, served, place):
    async with host_servers() as ports:
        await use(kind, place, ports)


async def test_all_at_once(served, place):
    addresses = []

    async def guest(kind: str) -> None:
        addresses.append(await use(kind, place, ports))

    async with host_servers() as ports, trio.open_nursery() as nursery:
        for kind in KINDS:
            nursery.start_soon(guest, kind)
    assert len(set(addresses)) == len(KINDS)

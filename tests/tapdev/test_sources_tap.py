"""TAP devices as sources: made here, in a namespace that has a name, or adopted.  A packet socket is the guest."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
import subprocess
from itertools import count
from typing import TYPE_CHECKING

import pytest
import trio

from tapdev.netns_tap import netns_path, tun_device
from tapdev.sources import LinkError, open_source
from tapdev.spec import parse
from tapdev.tap import IFF_NO_PI, TUNSETIFF, open_tap
from tests.interop.guest_tools import Namespace
from tests.tapdev.source_host import FRAME, PATIENCE, EchoHost, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

root = pytest.mark.root

ETHERTYPE = 0x88B5
IFF_TUN = 0x0001
NUMBERS = count()


@pytest.fixture
def name() -> str:
    return f"vs{os.getpid() % 100000}x{next(NUMBERS)}"


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace.new()
    yield made
    made.close()


def raw(device: str) -> trio.socket.SocketType:
    """A packet socket on `device` in the namespace of this thread, which is brought up."""
    subprocess.run(["ip", "link", "set", device, "mtu", "9000", "up"], check=True)
    return trio.socket.from_stdlib_socket(
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(ETHERTYPE))
    )


async def echo(sock: trio.socket.SocketType, device: str) -> None:
    await sock.bind((device, ETHERTYPE))
    with sock, trio.fail_after(PATIENCE):
        await sock.send(FRAME)
        while True:
            data, address = await sock.recvfrom(65536)
            if address[2] != socket.PACKET_OUTGOING:
                break
        assert data == FRAME


def devices() -> str:
    return subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout


@root
async def test_a_device_that_we_make(name: str) -> None:
    host = EchoHost()
    async with running(f"tap:{name}", host):
        await host.until(joined=1)
        assert f" {name}: <BROADCAST,MULTICAST> " in devices(), "it is left down"
        await echo(raw(name), name)
        able = host.links[0].capabilities
        assert able.checksum
        assert able.tso4
        assert able.mtu == 65520
    assert name not in devices()
    assert host.left == [f"tap:{name}"]


@root
async def test_a_device_in_a_named_namespace(name: str, namespace: Namespace) -> None:
    host = EchoHost()
    async with running(f"tap:{name}?netns={namespace.path}", host):
        await host.until(joined=1)
        assert "DOWN" in namespace.run("ip", "link", "show", name)
        assert name not in devices(), "it is not in ours"
        with namespace.entered():
            sock = raw(name)
            await sock.bind((name, ETHERTYPE))
        with trio.fail_after(PATIENCE), sock:
            await sock.send(FRAME)
            while (answer := await sock.recvfrom(65536))[1][2] == socket.PACKET_OUTGOING:
                pass
            assert answer[0] == FRAME
    assert name not in namespace.run("ip", "link")


@root
async def test_without_offload(name: str) -> None:
    host = EchoHost()
    async with running(open_source(parse(f"tap:{name}"), offload=False, mtu=1500), host):
        await host.until(joined=1)
        assert not host.links[0].capabilities.checksum
        assert host.links[0].capabilities.mtu == 1500


@root
@pytest.mark.parametrize("vnet_header", [True, False])
async def test_an_adopted_device(name: str, vnet_header: bool) -> None:
    host = EchoHost()
    fd = open_tap(name, vnet_header=vnet_header)
    device = tun_device(fd)
    assert device is not None
    assert (device.name, device.tap, device.vnet_header) == (name, True, vnet_header)
    async with running(f"fd:{fd}", host):
        await host.until(joined=1)
        assert host.links[0].capabilities.checksum is vnet_header
        await echo(raw(name), name)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@root
async def test_a_device_that_is_taken_away_ends_its_source(name: str) -> None:
    host = EchoHost()
    async with running(f"tap:{name}", host) as ended:
        await host.until(joined=1)
        subprocess.run(["ip", "link", "del", name], check=True)  # noqa: ASYNC221
        with trio.fail_after(PATIENCE):
            await ended.wait()


def open_tun(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("=16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


@root
def test_a_device_that_is_no_use(name: str) -> None:
    fd = open_tun(name)
    with pytest.raises(LinkError, match=f"^descriptor {fd} is TUN device {name}, of IP packets"):
        open_source(parse(f"fd:{fd}"))
    os.close(fd)


@root
def test_a_name_that_is_taken(name: str) -> None:
    first = open_source(parse(f"tap:{name}"))
    with pytest.raises(LinkError, match=f"^TAP device {name}: Device or resource busy; another process has it open"):
        open_source(parse(f"tap:{name}"))
    first.close()
    with pytest.raises(LinkError, match="no TAP device"):
        open_source(parse("tap:lo"))


@root
def test_a_source_that_never_ran_leaves_no_device(name: str) -> None:
    source = open_source(parse(f"tap:{name}"))
    assert os.path.exists(f"/sys/class/net/{name}")
    source.close()
    source.close()
    assert not os.path.exists(f"/sys/class/net/{name}")


@root
def test_a_namespace_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ns").touch()
    with pytest.raises(LinkError, match=re.escape(f"network namespace: this is not one ({tmp_path}/ns)")):
        open_source(parse(f"tap:x?netns={tmp_path}/ns"))


def test_a_namespace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match=re.escape(f"network namespace {tmp_path}/ns: No such file or directory")):
        open_source(parse(f"tap:x?netns={tmp_path}/ns"))
    with pytest.raises(LinkError, match="/run/netns/not-there: No such file"):
        open_source(parse("tap:x?netns=not-there"))


def test_names_of_namespaces() -> None:
    assert netns_path("vm") == "/run/netns/vm"
    assert netns_path("./vm") == "./vm"


@pytest.mark.parametrize(
    ("number", "advice"),
    [(1, "ip tuntap add x mode tap user"), (13, "may not open /dev/net/tun"), (2, "modprobe tun"), (99, "$")],
)
def test_advice(number: int, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tapdev.sources.tap.open_tap", fail)
    with pytest.raises(LinkError, match=f"^TAP device x: {os.strerror(number)}.*{advice}"):
        open_source(parse("tap:x"))

"""TapLink against the kernel: a raw packet socket on the device is the far end."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from itertools import count

import pytest
import trio
import trio.testing

from tapdev.link import LinkClosed
from tapdev.tap import OFFLOAD_MASKS, TapLink, open_tap

pytestmark = pytest.mark.root

ETH_P_EXPERIMENT = 0x88B5
FRAME = b"\x02\x50\x00\x00\x00\x01" + b"\xf6\x16\x36\xbc\xf9\xc6" + struct.pack("!H", ETH_P_EXPERIMENT) + b"hello" * 20
NUMBERS = count()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def device():
    """The name of a new device, and its descriptor, which the test owns."""
    name = f"vt{os.getpid() % 100000}x{next(NUMBERS)}"
    fd = open_tap(name)
    ip("link", "set", name, "mtu", "9000", "up")
    return name, fd


@pytest.fixture
def far_end(device):
    name, _ = device
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_EXPERIMENT)) as raw:
        raw.bind((name, ETH_P_EXPERIMENT))
        raw.settimeout(2)
        yield raw


async def test_frames_both_ways(device, far_end):
    link = TapLink(device[1], mtu=9000)
    try:
        far_end.send(FRAME)
        with trio.fail_after(2):
            while True:
                await link.wait_readable()
                frame = link.receive()
                if frame is not None and bytes(frame) == FRAME:
                    break
        assert link.send((FRAME[:14], FRAME[14:]))
        assert far_end.recv(65535) == FRAME
        assert link.statistics.sent_frames == 1
        assert link.statistics.sent_bytes == len(FRAME)
    finally:
        link.close()


async def test_offloads_are_those_of_the_kernel(device):
    link = TapLink(device[1], mtu=9000)
    try:
        assert link.capabilities.checksum
        assert link.capabilities.tso4
    finally:
        link.close()


async def test_an_old_kernel_refuses_what_it_does_not_know(device, monkeypatch):
    monkeypatch.setattr("tapdev.tap.OFFLOAD_MASKS", (0x200, *OFFLOAD_MASKS[1:]))
    link = TapLink(device[1], mtu=9000)
    try:
        assert link.capabilities.tso4
        assert not link.capabilities.uso
    finally:
        link.close()


async def test_without_offload(device):
    link = TapLink(device[1], mtu=9000, offload=False)
    try:
        assert not link.capabilities.checksum
        assert not link.capabilities.tso4
    finally:
        link.close()


async def test_held_frames_survive_until_release(device, far_end):
    link = TapLink(device[1], mtu=9000)
    try:
        held = []
        with trio.fail_after(2):
            for i in range(3):
                far_end.send(FRAME + bytes([i]))
            while len(held) < 3:
                await link.wait_readable()
                while (frame := link.receive()) is not None:
                    if bytes(frame[:100]) == FRAME[:100]:
                        link.hold()
                        held.append(frame)
        assert [frame[-1] for frame in held] == [0, 1, 2]
        link.release()
    finally:
        link.close()


async def test_a_device_that_is_down_loses_frames(device):
    name, fd = device
    link = TapLink(fd, mtu=9000)
    try:
        ip("link", "set", name, "down")
        assert link.send((FRAME,))
        assert link.statistics.dropped_frames == 1
    finally:
        link.close()


async def test_a_device_that_is_deleted_is_a_closed_link(device):
    name, fd = device
    link = TapLink(fd, mtu=9000)
    try:
        while link.receive() is not None:
            pass
        ip("link", "delete", name)
        with pytest.raises(LinkClosed):
            link.receive()
        with pytest.raises(LinkClosed):
            link.send((FRAME,))
    finally:
        link.close()


async def test_closing_ends_a_wait(device):
    link = TapLink(device[1], mtu=9000)
    while link.receive() is not None:
        pass
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.wait_readable)
        await trio.testing.wait_all_tasks_blocked()
        link.close()
        link.close()
    with pytest.raises(LinkClosed):
        link.receive()
    await link.wait_readable()
    await link.wait_writable()

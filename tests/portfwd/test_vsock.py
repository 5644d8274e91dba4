"""Forwards to a vsock port, against a double: few kernels have a vsock loopback."""

from __future__ import annotations

import errno
import os
import socket

import pytest
import trio
import trio.testing

from portfwd import vsock
from portfwd.spec import Spec

LOCAL = 1  # VMADDR_CID_LOCAL


class FakeSocket:
    """An AF_VSOCK socket that ends in a socket pair."""

    outcome: object = None
    made: list[FakeSocket]

    def __init__(self, family: int, kind: int) -> None:
        assert (family, kind) == (40, socket.SOCK_STREAM)
        self.closed = False
        FakeSocket.made.append(self)

    async def connect(self, address: tuple[int, int]) -> None:
        self.address = address
        await trio.lowlevel.checkpoint()
        if isinstance(self.outcome, OSError):
            raise self.outcome
        await trio.sleep_forever()

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        (OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)), "vsock 3:80: Connection reset"),
        (OSError(errno.ENODEV, os.strerror(errno.ENODEV)), "vsock 3:80: No such device"),
        (None, "vsock 3:80 did not answer in 10 s"),
    ],
)
async def test_failures_say_which_port(
    outcome: object, says: str, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeSocket, "made", [], raising=False)
    monkeypatch.setattr(FakeSocket, "outcome", outcome)
    monkeypatch.setattr(vsock, "AF_VSOCK", 40)
    monkeypatch.setattr(trio.socket, "socket", FakeSocket)
    with pytest.raises(OSError, match=says):
        await vsock.connect_vsock(Spec(8080, 80, guest_cid=3))
    assert [(made.address, made.closed) for made in FakeSocket.made] == [((3, 80), True)]


async def test_a_system_without_vsock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock, "AF_VSOCK", None)
    with pytest.raises(OSError, match="this system has no AF_VSOCK"):
        await vsock.connect_vsock(Spec(8080, 80, guest_cid=3))

"""Forwards to a vsock port.  The CID of this machine is that of its loopback, where the kernel has one."""

from __future__ import annotations

import errno
import os
import socket

import pytest
import trio
import trio.testing

from portfwd import vsock
from portfwd.spec import Spec
from portfwd.table import ForwardTable

LOCAL = 1  # VMADDR_CID_LOCAL


def listener() -> socket.socket | None:
    """A vsock listener that can be reached from here, if there can be one."""
    if vsock.AF_VSOCK is None:
        return None
    made = None
    try:
        made = socket.socket(vsock.AF_VSOCK, socket.SOCK_STREAM)
        made.bind((LOCAL, 2**32 - 1))  # any port
        made.listen()
        with socket.socket(vsock.AF_VSOCK, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            probe.connect(made.getsockname())
        made.accept()[0].close()
    except OSError:
        if made is not None:
            made.close()
        return None
    return made


async def test_a_connection_goes_to_the_port(nursery: trio.Nursery) -> None:
    server = listener()
    if server is None:
        pytest.skip("this kernel has no vsock loopback")
    with server:
        server.setblocking(False)
        guest = trio.SocketListener(trio.socket.from_stdlib_socket(server))
        spec = Spec(0, server.getsockname()[1], host_address="127.0.0.1", guest_cid=LOCAL)
        forward = await ForwardTable(None).expose(spec, nursery)  # type: ignore[arg-type]
        async with await trio.open_tcp_stream(*forward.addresses[0]) as client, await guest.accept() as there:
            await client.send_all(b"abc")
            await client.send_eof()
            assert await there.receive_some() == b"abc"
            assert await there.receive_some() == b""
            await there.send_all(b"the answer")
            await there.send_eof()
            assert await client.receive_some() == b"the answer"
    nursery.cancel_scope.cancel()


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

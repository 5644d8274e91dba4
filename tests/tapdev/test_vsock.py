from __future__ import annotations

import errno
import socket

import pytest
import trio
import trio.testing

from tapdev import vsock
from tapdev.sources import LinkError, open_source, socket_key
from tapdev.sources.bind import vsock_text
from tapdev.spec import parse
from tests.tapdev.source_host import EchoHost, running

PORT = 0x564E0000  # and a few more: far from anything that is used


def has_vsock() -> bool:
    try:
        vsock.listen_vsock(None, PORT + 99, backlog=1).close()
    except OSError as error:
        return error.errno not in (errno.EAFNOSUPPORT, errno.ENODEV)
    return True


needs_vsock = pytest.mark.skipif(not has_vsock(), reason="this kernel has no AF_VSOCK")


def test_paths_of_hybrid_vsock() -> None:
    assert vsock.hybrid_path("/run/v.sock", 1024) == "/run/v.sock_1024"
    assert vsock.hyperkit_path("/run/vm", 1024) == "/run/vm/00000002.00000400"
    assert vsock.hyperkit_path("/run/vm", 2**32 - 2) == "/run/vm/00000002.fffffffe"


def test_a_system_without_vsock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock, "AF_VSOCK", None)
    with pytest.raises(LinkError, match=r"^vsock:1024 cannot be bound: this system has no AF_VSOCK"):
        open_source(parse("vsock:1024"))


@pytest.mark.parametrize(
    ("number", "port", "advice"),
    [
        (errno.EAFNOSUPPORT, 1024, "load the kernel module vhost_vsock"),
        (errno.EADDRNOTAVAIL, 1024, "leave the CID out"),
        (errno.EADDRINUSE, 1024, "another process has this port"),
        (errno.EACCES, 1023, "ports below 1024 need root"),
        (errno.EACCES, 1024, "Permission denied$"),
    ],
)
def test_what_would_help(number: int, port: int, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(number, "Permission denied")

    monkeypatch.setattr(vsock, "AF_VSOCK", 40)
    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(LinkError, match=f"^vsock:3:{port} cannot be bound: .*{advice}"):
        open_source(parse(f"vsock:3:{port}"))


@needs_vsock
async def test_a_listening_vsock_source() -> None:
    source = open_source(parse(f"vsock:{PORT}"))
    with pytest.raises(LinkError, match="another process has this port"):
        open_source(parse(f"vsock:{PORT}"))
    async with running(source, EchoHost()):
        await trio.testing.wait_all_tasks_blocked()
    open_source(parse(f"vsock:{PORT}")).close()


@needs_vsock
@pytest.mark.parametrize("text", [f"vsock:{PORT + 1}", f"vsock:2:{PORT + 1}"])
def test_an_inherited_vsock_socket(text: str) -> None:
    theirs = vsock.listen_vsock(None, PORT + 1, backlog=1)
    key = socket_key(theirs)
    assert key == f"vsock:{PORT + 1}"
    open_source(parse(text), inherited={key: theirs.detach()}).close()


@needs_vsock
def test_a_cid_that_is_not_ours() -> None:
    with pytest.raises(LinkError, match="leave the CID out, or give one of this machine's own"):
        open_source(parse(f"vsock:123456:{PORT}"))


def test_the_text_of_an_address() -> None:
    assert vsock_text(None, 5) == "vsock:5"
    assert vsock_text(3, 5) == "vsock:3:5"

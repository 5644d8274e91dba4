"""Both sides: who gets what, and that nobody is left with a descriptor that is not his."""

from __future__ import annotations

import array
import errno
import logging
import os
import socket
import tempfile
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from portfwd.errors import ForwardError
from portfwd.helper import server, wire
from portfwd.helper.client import HelperError, ask, greet
from portfwd.helper.server import Allowed, Helper
from portfwd.helper.wire import Bind
from portfwd.spec import Spec
from portfwd.table import ForwardTable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

ME = frozenset({os.getuid()})
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(type=kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def here(port: int, protocol: str = "tcp", address: str = "127.0.0.1") -> Bind:
    return Bind(protocol, ip_address(address), port)  # type: ignore[arg-type]


def allowed(*ports: int, uids: frozenset[int] = ME, networks: tuple[object, ...] = LOOPBACK) -> Allowed:
    return Allowed(uids, tuple(range(port, port + 1) for port in ports), networks)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "h")


@pytest.fixture
def start(path: str, nursery: trio.Nursery) -> Callable[..., Helper]:
    def begin(what: Allowed) -> Helper:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(path)
        listening.listen()
        helper = Helper(what, lambda sock: (os.getpid(), os.getuid()))
        nursery.start_soon(helper.serve, trio.SocketListener(trio.socket.from_stdlib_socket(listening)))
        return helper

    return begin


@pytest.mark.parametrize(
    ("protocol", "address"), [("tcp", "127.0.0.1"), ("udp", "127.0.0.1"), ("tcp", "::1"), ("udp", "::1")]
)
async def test_a_bound_socket_comes(start: Callable[..., Helper], path: str, protocol: str, address: str) -> None:
    port = free_port(socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    helper = start(allowed(port))
    wanted = here(port, protocol, address)
    try:
        made = await ask(path, wanted)
    except OSError as error:
        if ":" in address and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            pytest.skip("no IPv6 loopback")
        raise
    with made:
        assert made.getsockname()[:2] == (address, port)
        assert not made.get_inheritable()
        if protocol == "tcp":
            assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0
            made.listen()
    await trio.testing.wait_all_tasks_blocked()
    assert helper.bound == 1


async def test_what_is_not_on_the_list(
    start: Callable[..., Helper], path: str, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    helper = start(allowed(port))
    with caplog.at_level(logging.WARNING):
        for wanted in (here(port + 1), here(port, address="0.0.0.0"), here(port, address="192.0.2.1"), here(80)):
            with pytest.raises(PermissionError):
                await ask(path, wanted)
    assert (helper.refused, helper.bound) == (4, 0)
    assert f"127.0.0.1:{port + 1}/tcp is not allowed" in caplog.text
    (await ask(path, here(port))).close()  # the others did no harm


@pytest.mark.parametrize(
    ("networks", "address", "is_permitted"),
    [
        (["0.0.0.0/0"], "0.0.0.0", True),
        (["0.0.0.0"], "0.0.0.0", True),
        (["0.0.0.0/8"], "0.0.0.0", False),
        (["0.0.0.0/0"], "::", False),
        (["::/0"], "::", True),
        (["10.0.0.0/8"], "10.9.8.7", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        ([], "127.0.0.1", False),
    ],
)
def test_addresses(networks: list[str], address: str, is_permitted: bool) -> None:
    rule = allowed(80, networks=tuple(map(ip_network, networks)))
    assert rule.permits(here(80, address=address)) is is_permitted


async def test_errors_of_bind(start: Callable[..., Helper], path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        start(allowed(port, networks=(ip_network("0.0.0.0/0"),)))
        for address, number in (("127.0.0.1", errno.EADDRINUSE), ("192.0.2.1", errno.EADDRNOTAVAIL)):
            with pytest.raises(OSError, match=os.strerror(number)) as caught:
                await ask(path, here(port, address=address))
            assert caught.value.errno == number


async def test_another_user_is_refused(
    start: Callable[..., Helper], path: str, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    helper = start(allowed(port, uids=frozenset({os.getuid() + 1})))
    with caplog.at_level(logging.WARNING), pytest.raises(HelperError, match="hung up: it does not serve this user"):
        await ask(path, here(port))
    assert helper.refused == 1
    assert f"uid {os.getuid()}, which is not allowed" in caplog.text


async def test_a_system_that_does_not_say_who_it_is(start: Callable[..., Helper], path: str) -> None:
    helper = start(allowed(free_port()))
    helper._credentials = lambda sock: None
    with pytest.raises(HelperError):
        await greet(path)


async def test_nobody_is_there(path: str) -> None:
    with pytest.raises(HelperError, match="is not there"):
        await greet(path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(HelperError, match="is not there"):
        await ask(path, here(80))


async def test_a_crowd(
    start: Callable[..., Helper], path: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    port = free_port()
    helper = start(allowed(port))
    silent = [await trio.open_unix_socket(path) for _ in range(2)]
    with pytest.raises(HelperError):
        await greet(path)
    assert helper.refused == 1
    await trio.sleep(server.REQUEST_SECONDS + 1)  # who says nothing does not stay
    await greet(path)
    for stream in silent:
        assert await stream.receive_some() == b""
        await stream.aclose()


async def test_the_clients_of_the_original(start: Callable[..., Helper], path: str) -> None:
    """8 octets (Go), and 41 (OCaml): the padding is no error."""
    port = free_port()
    start(allowed(port))
    for padding in (0, 33):
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(wire.encode_init())
            greeting = b""
            while len(greeting) < 49:
                greeting += await stream.receive_some(49 - len(greeting))
            await stream.send_all(wire.encode_bind(here(port)) + bytes(padding))
            data, ancillary, _, _ = await stream.socket.recvmsg(8, socket.CMSG_SPACE(4))
            assert data == bytes(8)
            [(level, kind, octets)] = ancillary
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            [number] = array.array("i", octets)
            with socket.socket(fileno=number) as made:
                assert made.getsockname() == ("127.0.0.1", port)
            await stream.send_eof()
            assert await stream.receive_some() == b""


async def answering(path: str, nursery: trio.Nursery, answer: Callable[[trio.SocketStream], Awaitable[object]]) -> None:
    """A helper that greets, hears the request and answers something else."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(49)
            await stream.send_all(wire.encode_init())
            await stream.receive_some(100)
            await answer(stream)

    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    nursery.start_soon(trio.serve_listeners, serve, [listener])


def giving(*descriptors: int, result: bytes = bytes(8)) -> Callable[[trio.SocketStream], Awaitable[object]]:
    async def give(stream: trio.SocketStream) -> None:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        await stream.socket.sendmsg([result], [rights] if descriptors else [])

    return give


async def silent(stream: trio.SocketStream) -> None:
    await trio.sleep(3600)


async def hanging_up(stream: trio.SocketStream) -> None:
    await trio.lowlevel.checkpoint()


async def test_another_socket_than_was_asked_for(path: str, nursery: trio.Nursery) -> None:
    with socket.socket() as other, tempfile.TemporaryFile() as file:
        other.bind(("127.0.0.1", 0))
        gifts = [(), (other.fileno(),), (other.fileno(),) * 3, (file.fileno(),), (other.fileno(), file.fileno())]
        for number, gift in enumerate(gifts):
            await answering(f"{path}{number}", nursery, giving(*gift))
            with pytest.raises(HelperError, match=r"is none: it (did not give 127|gave what is no socket)"):
                await ask(f"{path}{number}", here(80))
        # vmnetd sends a descriptor with a refusal, too
        await answering(f"{path}x", nursery, giving(other.fileno(), result=b"\x30" + bytes(7)))
        with pytest.raises(OSError, match="in use"):
            await ask(f"{path}x", here(80))
        await answering(f"{path}y", nursery, giving(other.fileno(), result=b"\0\0"))
        with pytest.raises(HelperError, match="hung up"):
            await ask(f"{path}y", here(80))
    # what the autouse fixture looks for: descriptors that stayed open


async def test_a_helper_that_does_not_answer(path: str, nursery: trio.Nursery, autojump_clock: object) -> None:
    await answering(path, nursery, silent)
    with pytest.raises(HelperError, match="did not answer in 5 s"):
        await ask(path, here(80))


async def test_a_helper_of_old_knows_no_ipv6(path: str, nursery: trio.Nursery) -> None:
    await answering(path, nursery, hanging_up)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its errno is looked at
        await ask(path, here(80, address="::1"))
    assert caught.value.errno == errno.EAFNOSUPPORT


# The forward table


async def deliver(stream: trio.SocketStream, spec: Spec) -> None:
    await stream.send_all(b"hello")


@pytest.fixture
def unprivileged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets that may not be bound by the table, but by the helper."""

    class Socket(socket.socket):
        def bind(self, address: object, /) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    class Module:
        socket = Socket

        def __getattr__(self, name: str) -> object:
            return getattr(socket, name)

    monkeypatch.setattr("portfwd.listen.socket", Module())
    monkeypatch.setattr("portfwd.listen.PRIVILEGED", 65536)


@pytest.mark.usefixtures("unprivileged")
async def test_a_forward_asks_the_helper(start: Callable[..., Helper], path: str, nursery: trio.Nursery) -> None:
    port = free_port()
    helper = start(allowed(port))
    forwards = ForwardTable(deliver, helper=path)
    forward = await forwards.expose(Spec(port, 80), nursery)
    assert {bound for _, bound in forward.addresses} == {port}
    await trio.testing.wait_all_tasks_blocked()
    assert helper.bound == len(forward.addresses)
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        assert await stream.receive_some() == b"hello"


@pytest.mark.usefixtures("unprivileged")
async def test_a_forward_that_gets_no_help(start: Callable[..., Helper], path: str, nursery: trio.Nursery) -> None:
    port = free_port()
    forwards = ForwardTable(deliver, helper=path)
    with pytest.raises(ForwardError, match=rf"ip_unprivileged_port_start\), and the port helper at {path} is not ther"):
        await forwards.expose(Spec(port, 80), nursery)
    start(allowed(port + 1))
    with pytest.raises(ForwardError, match=rf"127.0.0.1:{port} needs privilege, and the port helper at .* does not al"):
        await forwards.expose(Spec(port, 80), nursery)
    with pytest.raises(ForwardError, match="needs privilege; ports from 1024 up do not"):
        await ForwardTable(deliver).expose(Spec(port, 80), nursery)
    assert not forwards.list()


@pytest.mark.usefixtures("unprivileged")
async def test_a_forward_made_while_the_helper_thinks(
    start: Callable[..., Helper], path: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    start(allowed(port))
    forwards = ForwardTable(deliver, helper=path)
    outcomes: list[object] = []

    async def expose() -> None:
        try:
            outcomes.append(await forwards.expose(Spec(port, 80, host_address="127.0.0.1"), nursery))
        except ForwardError as error:
            outcomes.append(str(error))

    async with trio.open_nursery() as both:
        both.start_soon(expose)
        both.start_soon(expose)
    assert len(forwards.list()) == 1
    assert any(isinstance(outcome, str) for outcome in outcomes)

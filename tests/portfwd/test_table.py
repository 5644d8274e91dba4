from __future__ import annotations

import errno
import logging
import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from portfwd import accept
from portfwd.spec import Spec
from portfwd.table import ForwardError, ForwardTable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ANY = Spec(0, 80)


async def shout(stream: trio.SocketStream, spec: Spec) -> None:
    """A guest that says what it was asked for, then whatever it hears in upper case."""
    await stream.send_all(f"{spec.guest_port}:".encode())
    async for data in stream:
        await stream.send_all(data.upper())


async def talk(address: str, port: int, data: bytes = b"abc") -> bytes:
    """The whole answer to `data`."""
    received = b""
    async with await trio.open_tcp_stream(address, port) as stream:
        await stream.send_all(data)
        await stream.send_eof()
        async for chunk in stream:
            received += chunk
    return received


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback")


@pytest.fixture
async def forwards(nursery: trio.Nursery) -> AsyncIterator[ForwardTable]:
    yield ForwardTable(shout)
    nursery.cancel_scope.cancel()


async def test_a_connection_is_delivered(forwards: ForwardTable, nursery: trio.Nursery) -> None:
    forward = await forwards.expose(ANY, nursery)
    assert forward.spec.host_port != 0
    for address, port in forward.addresses:
        assert port == forward.spec.host_port
        assert await talk(address, port) == b"80:ABC"
    assert forwards.list() == [forward]
    assert forward.accepted == len(forward.addresses)
    await trio.testing.wait_all_tasks_blocked()
    assert (forward.connections, forward.failures) == (0, 0)


@needs_ipv6
async def test_without_a_host_address_both_loopbacks_listen_and_nothing_else(
    forwards: ForwardTable, nursery: trio.Nursery
) -> None:
    forward = await forwards.expose(ANY, nursery)
    assert [address for address, _ in forward.addresses] == ["127.0.0.1", "::1"]
    with pytest.raises(OSError, match="attempts to connect"):
        await talk("127.0.0.2", forward.spec.host_port)


async def test_without_ipv6_one_loopback_is_enough(
    forwards: ForwardTable, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.socket.bind

    def bind(self: socket.socket, address: tuple[str, int]) -> None:
        if address[0] == "::1":
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        real(self, address)

    monkeypatch.setattr(socket.socket, "bind", bind)
    forward = await forwards.expose(ANY, nursery)
    assert forward.addresses == [("127.0.0.1", forward.spec.host_port)]


@needs_ipv6
async def test_a_port_is_chosen_that_is_free_on_both(
    forwards: ForwardTable, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.socket.bind
    refused = []

    def bind(self: socket.socket, address: tuple[str, int]) -> None:
        if address[0] == "::1" and len(refused) < 3:
            refused.append(address[1])
            raise OSError(errno.EADDRINUSE, "Address already in use")
        real(self, address)

    monkeypatch.setattr(socket.socket, "bind", bind)
    forward = await forwards.expose(ANY, nursery)
    assert len(refused) == 3
    assert len(forward.addresses) == 2
    assert len({port for _, port in forward.addresses}) == 1


@pytest.mark.parametrize("address", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
async def test_a_host_address_is_the_only_one(forwards: ForwardTable, nursery: trio.Nursery, address: str) -> None:
    forward = await forwards.expose(Spec(0, 80, host_address=address), nursery)
    assert forward.addresses == [(address, forward.spec.host_port)]
    assert await talk(address, forward.spec.host_port) == b"80:ABC"


@needs_ipv6
async def test_any_ipv6_address_leaves_ipv4_alone(forwards: ForwardTable, nursery: trio.Nursery) -> None:
    forward = await forwards.expose(Spec(0, 80, host_address="::"), nursery)
    assert await talk("::1", forward.spec.host_port) == b"80:ABC"
    with socket.socket() as other:
        other.bind(("127.0.0.1", forward.spec.host_port))


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", pytest.param("::", marks=needs_ipv6)])
async def test_a_busy_port_is_an_error_that_says_who_has_it(
    forwards: ForwardTable, nursery: trio.Nursery, bound: str
) -> None:
    with socket.socket(socket.AF_INET6 if ":" in bound else socket.AF_INET) as other:
        other.bind((bound, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ForwardError) as raised:
            await forwards.expose(Spec(port, 80), nursery)
    assert f"cannot forward {port}:80: 127.0.0.1:{port} is in use by " in str(raised.value)
    assert f"(pid {os.getpid()})" in str(raised.value)
    assert forwards.list() == []


@needs_ipv6
async def test_nothing_listens_when_one_address_is_busy(forwards: ForwardTable, nursery: trio.Nursery) -> None:
    with socket.socket(socket.AF_INET6) as other:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind(("::1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ForwardError, match=rf"\[::1\]:{port} is in use by .*\(pid {os.getpid()}\)"):
            await forwards.expose(Spec(port, 80), nursery)
        with pytest.raises(OSError, match="attempts to connect"):
            await talk("127.0.0.1", port)


async def test_other_errors(forwards: ForwardTable, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ForwardError, match=r"192\.0\.2\.1 is not an address of this host"):
        await forwards.expose(Spec(0, 80, host_address="192.0.2.1"), nursery)
    with pytest.raises(ForwardError, match="udp is not served here"):
        await forwards.expose(Spec(0, 53, "udp"), nursery)

    def denied(self: socket.socket, address: tuple[str, int]) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", denied)
    with pytest.raises(ForwardError, match=r"127\.0\.0\.1:80 needs privilege; ports from 1024 up do not"):
        await forwards.expose(Spec(80, 80), nursery)


async def test_a_forward_is_made_once(forwards: ForwardTable, nursery: trio.Nursery) -> None:
    forward = await forwards.expose(ANY, nursery)
    with pytest.raises(ForwardError, match="forwarded already"):
        await forwards.expose(forward.spec, nursery)
    other = await forwards.expose(ANY, nursery)  # 0 is another port each time
    assert other.spec.host_port != forward.spec.host_port


async def test_unexpose_stops_accepting_and_leaves_connections(forwards: ForwardTable, nursery: trio.Nursery) -> None:
    forward = await forwards.expose(ANY, nursery)
    address, port = forward.addresses[0]
    async with await trio.open_tcp_stream(address, port) as stream:
        assert await stream.receive_some() == b"80:"
        assert forward.connections == 1
        await forwards.unexpose(forward.spec)
        assert forwards.list() == []
        with pytest.raises(OSError, match="attempts to connect"):
            await talk(address, port)
        await stream.send_all(b"still")
        assert await stream.receive_some() == b"STILL"
    again = await forwards.expose(forward.spec, nursery)  # SO_REUSEADDR: at once
    assert await talk(address, port) == b"80:ABC"
    assert again.spec == forward.spec


async def test_unexpose_of_what_is_not_there(forwards: ForwardTable, nursery: trio.Nursery) -> None:
    with pytest.raises(ForwardError, match="8080:80 is not forwarded; nothing is"):
        await forwards.unexpose(Spec(8080, 80))
    forward = await forwards.expose(ANY, nursery)
    with pytest.raises(ForwardError, match=f"8080:80 is not forwarded; {forward.spec}"):
        await forwards.unexpose(Spec(8080, 80))


async def test_a_failure_is_the_connections_own(nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> None:
    async def fail_first(stream: trio.SocketStream, spec: Spec) -> None:
        if forward.accepted == 1:
            raise OSError("no guest has an address")
        await shout(stream, spec)

    forwards = ForwardTable(fail_first)
    forward = await forwards.expose(ANY, nursery)
    address, port = forward.addresses[0]
    async with await trio.open_tcp_stream(address, port) as stream:
        with pytest.raises(trio.BrokenResourceError):  # a reset, not an orderly end
            await stream.receive_some()
    assert await talk(address, port) == b"80:ABC"
    await trio.testing.wait_all_tasks_blocked()
    assert (forward.failures, forward.connections, forward.accepted) == (1, 0, 2)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == [f"forward {forward.spec}: a connection failed: no guest has an address"]
    nursery.cancel_scope.cancel()


async def test_a_deliver_may_take_the_descriptor_over(nursery: trio.Nursery) -> None:
    async def take(stream: trio.SocketStream, spec: Spec) -> None:
        with socket.socket(fileno=stream.socket.detach()) as taken:
            taken.send(b"mine")
        raise OSError("and then it failed")

    forward = await ForwardTable(take).expose(ANY, nursery)
    assert await talk(*forward.addresses[0], b"") == b"mine"
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("number", sorted(accept.CAPACITY_ERRNOS))
async def test_running_out_of_descriptors_neither_ends_nor_spins(
    number: int,
    forwards: ForwardTable,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts = 0
    real = trio.SocketListener.accept

    async def failing(listener: trio.SocketListener) -> trio.SocketStream:
        nonlocal attempts
        attempts += 1
        if attempts <= 150:
            await trio.lowlevel.checkpoint()
            raise OSError(number, os.strerror(number))
        return await real(listener)

    monkeypatch.setattr(trio.SocketListener, "accept", failing)
    forward = await forwards.expose(Spec(0, 80, host_address="127.0.0.1"), nursery)
    await trio.sleep(30)
    assert await talk("127.0.0.1", forward.spec.host_port) == b"80:ABC"
    assert attempts <= 153
    complaints = [record for record in caplog.records if "cannot accept" in record.getMessage()]
    assert len(complaints) == 2  # in fifteen seconds


async def test_connections_that_died_in_the_backlog_are_passed_over(
    forwards: ForwardTable, nursery: trio.Nursery
) -> None:
    forward = await forwards.expose(Spec(0, 80, host_address="127.0.0.1"), nursery)
    for _ in range(20):
        with socket.socket() as client:
            client.connect(("127.0.0.1", forward.spec.host_port))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    assert await talk("127.0.0.1", forward.spec.host_port) == b"80:ABC"


async def test_an_acceptor_raises_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(_listener: trio.SocketListener) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EFAULT, "Bad address")

    monkeypatch.setattr(trio.SocketListener, "accept", failing)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    acceptor = accept.Acceptor(listener, "x")
    with pytest.raises(OSError, match="Bad address"):
        await acceptor.accept()
    acceptor.close()
    acceptor.close()


async def test_the_listeners_go_with_their_nursery() -> None:
    forwards = ForwardTable(shout)
    async with trio.open_nursery() as nursery:
        forward = await forwards.expose(ANY, nursery)
        nursery.cancel_scope.cancel()
    with pytest.raises(OSError, match="attempts to connect"):
        await talk(*forward.addresses[0])

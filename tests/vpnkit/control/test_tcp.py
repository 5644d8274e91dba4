"""The control API over TCP, with real sockets."""

from __future__ import annotations

import socket

import pytest
import trio

from tests.vpnkit.control.reporter import FixedOperator
from vpnkit.control.instance import instance_router
from vpnkit.control.paths import ControlError
from vpnkit.control.tcp import listening_tcp, place_of, serve_tcp
from vpnkit.control.token import TcpControl

TOKEN = "abcdefghijklmnop"


async def ask(listener: trio.SocketListener, *headers: str) -> bytes:
    host, port = listener.socket.getsockname()[:2]
    async with await trio.open_tcp_stream(host, port) as stream:
        lines = ["GET /v1/status HTTP/1.1", f"Host: {place_of(listener)}", "Connection: close", *headers, "", ""]
        await stream.send_all("\r\n".join(lines).encode())
        received = b""
        async for data in stream:
            received += data
    return received


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_who_knows_the_token_is_answered(host: str, nursery: trio.Nursery) -> None:
    if host == "::1" and not _has_ipv6():
        pytest.skip("this machine has no ::1")
    where = TcpControl(host, 0, TOKEN)
    with listening_tcp(where) as listener, trio.fail_after(10):
        nursery.start_soon(serve_tcp, listener, instance_router(FixedOperator()), where)
        assert (await ask(listener)).startswith(b"HTTP/1.1 401 ")
        assert (await ask(listener, f"Authorization: Bearer {TOKEN}")).startswith(b"HTTP/1.1 200 ")
        nursery.cancel_scope.cancel()


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_a_port_that_somebody_has() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ControlError, match=f"cannot listen for control on 127.0.0.1:{port}: Address already in use"),
            listening_tcp(TcpControl("127.0.0.1", port, TOKEN)),
        ):
            pass


async def test_beyond_the_loopback_there_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with listening_tcp(TcpControl("0.0.0.0", 0, TOKEN)):
        assert "cross the network unencrypted" in caplog.text
        assert TOKEN not in caplog.text

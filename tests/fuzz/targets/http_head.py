"""Heads of requests at the proxy: what passes is read by h11 as one request, which leads to one host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11

from tests.fuzz.targets.common import timed
from vpnkit.errors import WireError
from vpnkit.proto.http_headers import absolute, parse_target, request_fields, tokens, upgrade_of
from vpnkit.proto.http_proxy import Destination
from vpnkit.wire import http_head

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

SEEDS = [
    b"GET http://a.example:8080/x?y HTTP/1.1\r\nHost: b\r\nConnection: X, Upgrade\r\nUpgrade: ws\r\nX: y\r\n\r\n",
    b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\nProxy-Authorization: Basic eA==\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: [::1]:80\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n",
    b"OPTIONS * HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello",
    b"GET / HTTP/1.1\nHost: a\r\n b\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
]
CALLED = Destination("203.0.113.7", 80)


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    def one(data: bytes) -> None:
        try:
            end = http_head.find_end(data)
            if not end:
                return
            http_head.check(data[:end])
            connection = h11.Connection(h11.SERVER, max_incomplete_event_size=http_head.MAX_HEAD)
            connection.receive_data(data[:end])
            request = connection.next_event()
            assert isinstance(request, h11.Request)
            assert connection.trailing_data[0] == b""
            fields = list(request.headers.raw_items())
            host = next((value for name, value in fields if name.lower() == b"host"), None)
            target = parse_target(request.method, request.target, host, to=CALLED)
        except (WireError, h11.RemoteProtocolError):
            return
        if request.method != b"CONNECT":
            assert target.destination.port == CALLED.port
        upgrade = upgrade_of(fields, request.http_version)
        sent = request_fields(fields, target.destination, b"1.1 us", None, upgrade)
        assert not tokens(sent, b"proxy-authorization")
        again = h11.Connection(h11.CLIENT)
        path = absolute(target) if target.path else target.destination.authority.encode()
        wire = again.send(h11.Request(method=request.method, target=path, headers=sent))
        assert wire is not None
        http_head.check(wire)

    return timed(one)

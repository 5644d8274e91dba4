"""A connection to an intercepted port of TLS: its ClientHello says a name, by which the rules apply and proxies ask.

What does not begin with a ClientHello, or names nobody, goes to the address that the guest called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from portfwd.connect import abort, relay
from vpnkit.errors import WireError
from vpnkit.proto.http_proxy import Destination, host_of
from vpnkit.services.http_proxy.exchange import TUNNEL_IDLE_SECONDS, ask_for_tunnel
from vpnkit.services.http_proxy.opening import Refusal
from vpnkit.services.http_proxy.peer import Server
from vpnkit.wire import tls_hello

if TYPE_CHECKING:
    from vpnkit.flow.host import Address
    from vpnkit.proto.http_proxy import ProxyConfig
    from vpnkit.services.http_proxy.opening import Opener

HELLO_SECONDS: Final = 3.0  # then the server is thought to speak first
MAX_READS: Final = 64  # in which a ClientHello has to come
ANSWER_SECONDS: Final = 30.0  # for the proxy to agree


async def serve(
    stream: trio.abc.HalfCloseableStream,
    to: Destination,
    aim: Address,
    config: ProxyConfig,
    opener: Opener,
    name: str,
) -> None:
    """Relay until both ends have finished.  Raises Refusal, which nobody can tell the guest, with the stream reset."""
    said, host = await _hello(stream)
    known_as = {to.host} if host is None else {to.host, host}
    wanted = to if host is None else Destination(host, to.port)
    server: Server | None = None
    try:
        if not config.allows(wanted.host):
            raise Refusal(403, config.refusal(wanted.host))
        proxy = config.upstream(True, *known_as)
        if proxy is None:
            server = Server(await opener.origin(wanted, None if config.file.allow_enabled else aim))
        else:
            server = Server(await opener.upstream(proxy, wanted))
            if proxy.scheme != "socks5":
                refused = None
                with trio.move_on_after(ANSWER_SECONDS) as in_time:
                    refused = await ask_for_tunnel(server, proxy, wanted, name.encode())
                if in_time.cancelled_caught:
                    raise Refusal(504, f"proxy {proxy.host}:{proxy.port} does not answer")
                if refused is not None:
                    raise Refusal(
                        502, f"proxy {proxy.host}:{proxy.port} says {refused.status_code} to {wanted.authority}"
                    )
        behind = server.h11.trailing_data[0]
        if behind:
            await stream.send_all(behind)
    except BaseException:
        abort(stream)
        if server is not None:
            await trio.aclose_forcefully(server.stream)
        raise
    await relay(stream, server.stream, first=said, idle=TUNNEL_IDLE_SECONDS)


async def _hello(stream: trio.abc.HalfCloseableStream) -> tuple[bytes, str | None]:
    """What the guest said so far, and the name in it."""
    said = bytearray()
    with trio.move_on_after(HELLO_SECONDS):
        for _ in range(MAX_READS):
            data = await stream.receive_some(65536)
            if not data:
                break
            said += data
            try:
                hello = tls_hello.decode(said)
                if hello is not None:
                    return bytes(said), None if hello.name is None else host_of(hello.name)
            except WireError:
                break
    return bytes(said), None

"""The client's side of SOCKS5, RFC 1928 and RFC 1929: CONNECT, with a name or an address."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from vpnkit.errors import WireError

if TYPE_CHECKING:
    import trio

    from vpnkit.proto.http_proxy import Destination, Upstream

VERSION: Final = 5
NO_AUTHENTICATION: Final = 0
USER_AND_PASSWORD: Final = 2
CONNECT: Final = 1
ADDRESS_OCTETS: Final = {1: 4, 4: 16}
NAME: Final = 3
REPLIES: Final = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "TTL expired",
    7: "command not supported",
    8: "address type not supported",
}


async def connect(stream: trio.abc.Stream, proxy: Upstream, destination: Destination) -> None:
    """Ask the proxy at the other end of `stream` for `destination`.  Raises WireError when it will not, or speaks
    something else; what trio raises passes through."""
    methods = bytes((NO_AUTHENTICATION,)) if proxy.user is None else bytes((NO_AUTHENTICATION, USER_AND_PASSWORD))
    await stream.send_all(bytes((VERSION, len(methods))) + methods)
    version, method = await _exactly(stream, 2)
    if version != VERSION or method not in methods:
        raise WireError("SOCKS5 proxy: it wants another way of authentication")
    if method == USER_AND_PASSWORD:
        user = proxy.user or b""
        await stream.send_all(b"\1" + _short(user) + _short(proxy.password))
        if (await _exactly(stream, 2))[1] != 0:
            raise WireError("SOCKS5 proxy: user or password are wrong")
    request = bytes((VERSION, CONNECT, 0)) + _address(destination.host) + destination.port.to_bytes(2, "big")
    await stream.send_all(request)
    version, reply, _, kind = await _exactly(stream, 4)
    if version != VERSION or reply != 0:
        raise WireError(f"SOCKS5 proxy: {REPLIES.get(reply, 'it failed')}")
    if kind == NAME:
        octets = (await _exactly(stream, 1))[0]
    elif kind in ADDRESS_OCTETS:
        octets = ADDRESS_OCTETS[kind]
    else:
        raise WireError("SOCKS5 proxy: unknown kind of address")
    await _exactly(stream, octets + 2)


def _short(data: bytes) -> bytes:
    return bytes((len(data),)) + data


def _address(host: str) -> bytes:
    try:
        packed = ip_address(host).packed
    except ValueError:
        return bytes((NAME,)) + _short(host.encode())
    return bytes((1 if len(packed) == 4 else 4,)) + packed


async def _exactly(stream: trio.abc.Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = await stream.receive_some(count - len(data))
        if not part:
            raise WireError("SOCKS5 proxy: it closed the connection")
        data += part
    return data

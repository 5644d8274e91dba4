"""Streams to origin servers and to proxies: how they are opened, and within which time."""

from __future__ import annotations

import ssl
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Protocol

import trio

from vpnkit.errors import WireError
from vpnkit.flow.host import failure, family_of
from vpnkit.services.http_proxy import socks5

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vpnkit.flow.host import Address, HostSockets
    from vpnkit.proto.http_proxy import Destination, Upstream

CONNECT_SECONDS: Final = 10.0  # for one address
OPEN_SECONDS: Final = 30.0  # for all of them, names, TLS and SOCKS included
MAX_ADDRESSES: Final = 8  # of one name


class Environment(Protocol):
    """What the proxy needs of the network that one guest is in."""

    host: HostSockets

    def aim(self, address: str, port: int) -> Address | None:
        """Where a guest's connection to `address` really goes; None when he may not have it."""
        ...

    async def resolve(self, name: str) -> Sequence[str]:
        """The addresses that the guest would be told."""
        ...

    async def resolve_upstream(self, name: str) -> Sequence[str]:
        """Those of a proxy, as the host's programs see them."""
        ...

    def admit(self) -> bool:
        """Whether the guest may have one more host socket."""
        ...


class Refusal(Exception):
    """The guest is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class TlsStream(trio.abc.HalfCloseableStream):
    """TLS to a proxy.  It has no half-close: what the guest has finished to say, the proxy is not told."""

    def __init__(self, inner: trio.SSLStream[trio.SocketStream]) -> None:
        self._inner = inner

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._inner.receive_some(max_bytes))

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._inner)


class Opener:
    """Opens streams for one guest's connection."""

    def __init__(self, environment: Environment, tls: Callable[[], ssl.SSLContext]) -> None:
        self._environment = environment
        self._tls = tls

    async def origin(self, destination: Destination, address: Address | None = None) -> trio.abc.HalfCloseableStream:
        """To an origin server; `address` is where the guest's own connection went, which stays as it is.

        Raises Refusal.
        """
        with trio.move_on_after(OPEN_SECONDS):
            if address is not None:
                return await self._first([address], str(destination.authority))
            addresses = await self._origin_addresses(destination)
            return await self._first(addresses, destination.authority)
        raise Refusal(504, f"{destination.authority} does not answer. Do you need an HTTP proxy?")

    async def upstream(self, proxy: Upstream, destination: Destination | None) -> trio.abc.HalfCloseableStream:
        """To `proxy`; a SOCKS5 one has connected to `destination` then.  Raises Refusal."""
        name = f"{proxy.host}:{proxy.port}"
        with trio.move_on_after(OPEN_SECONDS):
            addresses = await self._environment.resolve_upstream(proxy.host)
            if not addresses:
                raise Refusal(503, f"Failed to lookup host: {proxy.host}")
            found = [(address, proxy.port) for address in addresses[:MAX_ADDRESSES]]
            stream = await self._first(found, f"HTTP proxy {name}")
            done = False
            try:
                if proxy.scheme == "https":
                    inner = trio.SSLStream(stream, self._tls(), server_hostname=proxy.host, https_compatible=True)
                    await inner.do_handshake()
                    done = True
                    return TlsStream(inner)
                if proxy.scheme == "socks5" and destination is not None:
                    await socks5.connect(stream, proxy, destination)
                done = True
                return stream
            except (WireError, trio.BrokenResourceError, ssl.SSLError, ssl.CertificateError) as error:
                why = error.__cause__ if isinstance(error, trio.BrokenResourceError) else error
                raise Refusal(502, f"proxy {name}: {why or 'it broke off'}") from error
            finally:
                if not done:
                    await trio.aclose_forcefully(stream)
        raise Refusal(504, f"proxy {name} does not answer")

    async def _origin_addresses(self, destination: Destination) -> list[Address]:
        host = destination.host
        try:
            addresses: Sequence[str] = [str(ip_address(host))]
        except ValueError:
            addresses = await self._environment.resolve(host)
            if not addresses:
                raise Refusal(503, f"Failed to lookup host: {host}") from None
        aims = [self._environment.aim(address, destination.port) for address in addresses[:MAX_ADDRESSES]]
        allowed = [aim for aim in aims if aim is not None]
        if not allowed:
            raise Refusal(403, f"{destination.authority} is not for guests")
        return allowed

    async def _first(self, addresses: Sequence[Address], name: str) -> trio.SocketStream:
        """The first that answers."""
        why = "nothing to connect to"
        for address in addresses:
            if not self._environment.admit():
                raise Refusal(503, "too many connections")
            try:
                made = trio.socket.from_stdlib_socket(self._environment.host.tcp_socket(family_of(address[0])))
            except OSError as error:
                raise Refusal(503, f"unable to connect to {name}: {error.strerror}") from None
            try:
                with trio.move_on_after(CONNECT_SECONDS):
                    await made.connect(address)
                    return trio.SocketStream(made)
                why = "no answer"
            except OSError as error:
                why = failure(error.errno or 0).name.lower().replace("_", " ")
            except BaseException:
                made.close()
                raise
            made.close()
        raise Refusal(503, f"unable to connect to {name}: {why}. Do you need an HTTP proxy?")

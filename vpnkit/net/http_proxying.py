"""What the HTTP proxy is told of the network: which connections are its, whose they are, and where they may go.

A guest reaches through the proxy what it reaches without it: every address goes through the policy, names are those of
its DNS, and `localhost` is the host alias.
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from vpnkit.errors import ConfigError, WireError
from vpnkit.net.guest import Guest
from vpnkit.net.policy import LOOPBACK, LOOPBACK6, Host, Protocol, target
from vpnkit.net.tcp import parts
from vpnkit.services.http_proxy.service import HttpProxyService
from vpnkit.wire import dns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vpnkit.flow.host import Address
    from vpnkit.flow.stream import GuestStream
    from vpnkit.net.network import NetworkOptions
    from vpnkit.net.plan import Plan
    from vpnkit.proto.http_proxy import ProxyConfig

LOCAL_NAME: Final = "localhost"
RECURSION_DESIRED: Final = 0x0100
TYPES: Final = (dns.A, dns.AAAA)


class HttpProxying:
    """The proxy of one network.  Raises ConfigError."""

    def __init__(self, plan: Plan, options: NetworkOptions) -> None:
        self._plan = plan
        self.host_names = frozenset(name.lower() for name in (*plan.host_names, *options.extra_host_names, LOCAL_NAME))
        wanted = options.http_proxy
        file = wanted if isinstance(wanted, Path) else None
        config = None if isinstance(wanted, Path) else wanted
        self.service = HttpProxyService(config, file, check=self._check)

    def _check(self, config: ProxyConfig) -> None:
        gateway = {name.lower() for name in self._plan.gateway_names}
        gateway |= {str(ip) for ip in (self._plan.gateway_ip, self._plan.gateway6) if ip is not None}
        for proxy in (config.http, config.https):
            if proxy is not None and proxy.host in gateway:
                raise ConfigError(f"proxy {proxy.host}:{proxy.port} is the gateway, which is this proxy itself")

    def is_configured(self) -> bool:
        return self.service.config() is not None

    def intercepts(self, aim: Host) -> bool:
        """Whether a guest's connection to `aim` is taken.  The host's own loopback never is."""
        return aim.address not in (LOOPBACK, LOOPBACK6) and self.service.intercepts(aim.port)

    async def serve(self, stream: GuestStream, source: bytes) -> None:
        """A connection to the proxy's ports, or one that is intercepted."""
        assert isinstance(stream.guest, Guest)
        environment = GuestEnvironment(self, self._plan, stream.guest, source)
        _, called, ports = parts(stream.key)
        port = int.from_bytes(ports[2:], "big")
        aim = environment.aim(str(ip_address(called)), port)
        await self.service.serve(stream, source, (called, port), aim, environment)


class GuestEnvironment:
    """What one guest may reach, for the services."""

    def __init__(self, proxying: HttpProxying, plan: Plan, guest: Guest, source: bytes) -> None:
        self.host = guest.host
        self._proxying = proxying
        self._plan = plan
        self._guest = guest
        self._source = source

    def aim(self, address: str, port: int) -> Address | None:
        found = target(Protocol.TCP, ip_address(address).packed, port, self._plan, nat64=self._guest.nat64)
        return (found.address, found.port) if isinstance(found, Host) else None

    def admit(self) -> bool:
        return self._guest.admit()

    async def resolve(self, name: str) -> Sequence[str]:
        if name in self._proxying.host_names:
            return [str(ip) for ip in (self._plan.host_ip, self._plan.host6) if ip is not None]
        answers: dict[int, list[str]] = {}

        async def ask(rdtype: int) -> None:
            answers[rdtype] = await self._ask(name, rdtype)

        async with trio.open_nursery() as nursery:
            for rdtype in TYPES:
                nursery.start_soon(ask, rdtype)
        return [address for rdtype in TYPES for address in answers[rdtype]]

    async def _ask(self, name: str, rdtype: int) -> list[str]:
        """The guest's own DNS: its names, zones and servers."""
        service = self._guest.gateway.dns
        if service is None:
            return []
        try:
            question = dns.encode_name(name) + dns.QUESTION.pack(rdtype, dns.IN)
            query = dns.HEADER.pack(0, RECURSION_DESIRED, 1, 0, 0, 0) + question
            answer = await service.answer_stream(query, self._source) or b""
            _, records = dns.records(answer)
        except (WireError, ValueError):
            return []
        found = [answer[record.data : record.end] for record in records if record.rtype == rdtype]
        return [str(ip_address(data)) for data in found if len(data) in (4, 16)]

    async def resolve_upstream(self, name: str) -> Sequence[str]:
        """The host alias and its names are the host's loopback, as for guests."""
        if name in self._proxying.host_names or name == str(self._plan.host):
            return [LOOPBACK, LOOPBACK6]
        try:
            found = await trio.socket.getaddrinfo(name, None, type=trio.socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return []
        return list(dict.fromkeys(str(sockaddr[0]) for _, _, _, _, sockaddr in found))

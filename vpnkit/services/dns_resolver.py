"""What the guests of one network share when they resolve names: who answers what, the cache, and how servers do."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

import trio

from vpnkit.proto.dns_cache import Cache
from vpnkit.proto.dns_upstreams import Choice, Routes, Upstreams
from vpnkit.proto.dns_zones import Zones
from vpnkit.services.dns_connections import Connections
from vpnkit.services.dns_host import HostResolver, is_for_host
from vpnkit.services.followed import CHECK_SECONDS
from vpnkit.services.hosts import Hosts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vpnkit.proto.dns import Dice
    from vpnkit.proto.dns_names import LocalNames
    from vpnkit.proto.dns_upstreams import Server
    from vpnkit.wire.dns import Query

NO_HOSTS: Final = Hosts(())


class Resolver:
    """`routes` says who is asked about what, and `fallback` who is asked what the operating system cannot be.
    `refresh` brings `names` up to date, and says whether they changed.

    `run` must run for servers that are asked over TCP, TLS or by the operating system.
    """

    def __init__(
        self,
        names: LocalNames,
        routes: Callable[[], Routes],
        rng: Dice,
        *,
        refresh: Callable[[], bool] = lambda: False,
        hosts: Hosts = NO_HOSTS,
        fallback: Callable[[], Sequence[Server]] = tuple,
        nat64: bytes | None = None,
        log_queries: bool = False,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        host: HostResolver | None = None,
        cache: Cache | None = None,
    ) -> None:
        self.names = names
        self.hosts = hosts
        self.cache = Cache() if cache is None else cache
        self.zones = Zones(self.cache.forget_variants)
        self.upstreams = Upstreams()
        self.connections = Connections(rng, tls)
        self.host = host
        self.nat64 = nat64  # the first 12 octets of the prefix, RFC 6147; None: no AAAA records are made
        self.log_queries = log_queries
        self.look_at = float("-inf")  # when files are worth a look
        self.generation = 0  # an answer to what was asked before this changed is not kept
        self._routes_now = routes
        self._fallback = fallback
        self._refresh = refresh
        self._routes = Routes()
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the connections and threads until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.connections.run)
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    @property
    def nursery(self) -> trio.Nursery | None:
        """Where questions that wait are asked; None while `run` does not run."""
        return self._nursery

    def look(self, now: float) -> None:
        """Take note of what changed: servers, hosts files.  The caller sees to it that it is not called too often."""
        self.look_at = now + CHECK_SECONDS
        routes = self._routes_now()
        if routes is not self._routes:
            if routes != self._routes:
                self.names_changed(flush=True)
            self._routes = routes
        if self.hosts.look() | self._refresh():
            self.names_changed()

    def routes(self) -> Routes:
        """Who is asked about what, as of now."""
        return self._routes_now()

    def names_changed(self, *, flush: bool = False) -> None:
        """Something else than before may be the answer to a query; with `flush` also of those who are asked."""
        if flush:
            self.cache.flush()
            self.generation += 1
        else:
            self.cache.forget_variants()

    def answer(self, query: Query, client_ip: bytes) -> bytes | None:
        """The answer to the client at `client_ip` of what is known here, or None."""
        found = self.names.answer(query, client_ip)
        if found is None and self.zones:
            found = self.zones.answer(query)
        if found is None and self.hosts:
            found = self.hosts.names.answer(query, client_ip)
        return found

    def choose(self, query: Query, now: float) -> Choice:
        """Whom to ask."""
        servers: Sequence[Server] = self._routes.servers(query.name)
        if self._routes.has_host and not is_for_host(query) and any(server.kind == "host" for server in servers):
            others = [server for server in servers if server.kind != "host"]
            servers = others or self._fallback()
        return self.upstreams.choose(servers, now, racing=self._routes.racing)

    async def ask(self, server: Server, query: Query, message: bytes) -> bytes:
        """Ask a server over TCP or TLS, or the operating system; the response under the id of `message`.

        Raises ConnectionEnded.
        """
        if server.kind != "host":
            return await self.connections.exchange(server, query, message)
        if self.host is None:
            self.host = HostResolver()
        return message[:2] + (await self.host.answer(query))[2:]

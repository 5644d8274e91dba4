"""Whom to ask: servers, the names that each is for, and how they have been doing.

The order in which the operator wrote servers down is a preference that speed does not overrule: the first may know
names that the second does not.  What is measured decides how long to wait for a server, which ones are asked last
because they are silent, and when two are asked at once: when the first was silent just now, when it is slow and another
one might not be, when a silent one is given another chance, and when all are silent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Kind: TypeAlias = Literal["dns", "tls", "host"]

MAX_SERVERS: Final = 3  # asked about one question; what glibc takes from resolv.conf
MAX_RACING: Final = 8  # the same, where all are asked at once
MAX_HEALTHS: Final = 256  # servers that are remembered; the one heard of least recently is forgotten
ATTEMPT_SECONDS: Final = 1.0  # of silence before the next server is asked
MIN_ATTEMPT_SECONDS: Final = 0.4  # the same, for one that always was much faster
SLOW_SECONDS: Final = 0.25  # a server slower than this is not asked alone, if another may be faster
FIRST_RETRY_SECONDS: Final = 1.0  # until a silent server is asked again, beside one that answers; doubles
MAX_RETRY_SECONDS: Final = 30.0
LOST_AFTER: Final = 2  # lookups in a row without an answer
SUSPECT_SECONDS: Final = 3.0  # that a server which was silent once keeps its place, beside another one


class Server(NamedTuple):
    """Somebody who answers questions."""

    address: str  # literal; empty for the operating system's resolver
    port: int = 53
    kind: Kind = "dns"
    tls_name: str = ""  # what the certificate must say; empty: the address
    order: int = 0  # where servers race: an answer of a lower one is preferred
    timeout: float = 5.0  # seconds, where servers race: who is silent longer is not waited for

    def __str__(self) -> str:
        if self.kind == "host":
            return "host"
        text = f"{self.address}#{self.port}"
        if self.kind == "tls":
            return f"tls:{text}" if not self.tls_name else f"tls:{text}#{self.tls_name}"
        return text


class Routes:
    """Which servers are for which names.  Zones are names as on the wire, lower-cased; the longest that fits counts.

    `racing` says that all servers of a name are asked at once, and a negative answer waits for the others': what the
    original does with the file of its --dns.
    """

    def __init__(
        self,
        servers: Sequence[Server] = (),
        zones: Mapping[bytes, Sequence[Server]] | None = None,
        *,
        racing: bool = False,
    ) -> None:
        self.default = tuple(servers)
        self.zones = {zone: tuple(of_zone) for zone, of_zone in (zones or {}).items()}
        self.racing = racing
        every = [*self.default, *(server for of_zone in self.zones.values() for server in of_zone)]
        self.has_host = any(server.kind == "host" for server in every)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Routes):
            return NotImplemented
        return (self.default, self.zones, self.racing) == (other.default, other.zones, other.racing)

    def servers(self, name: bytes) -> tuple[Server, ...]:
        """The servers for `name`, as on the wire and lower-cased."""
        zones = self.zones
        if zones:
            i = 0
            while length := name[i]:
                found = zones.get(name[i:])
                if found is not None:
                    return found
                i += 1 + length
        return self.default


@dataclass(slots=True)
class Health:
    """What is known of one server.  Seconds."""

    srtt: float = 0.0  # smoothed as RFC 6298 does; 0.0: never measured
    variation: float = 0.0
    failures: int = 0  # lookups in a row without an answer,
    failing_since: float = 0.0  # and since when
    retry_at: float = 0.0  # when a failing one may be given another chance
    answered: int = 0
    failed: int = 0

    def is_bad(self, now: float) -> bool:
        """Whether others are asked before it."""
        return self.failures >= LOST_AFTER or (self.failures > 0 and now >= self.failing_since + SUSPECT_SECONDS)

    def patience(self) -> float:
        """How long its silence is worth waiting for before another server is asked too."""
        if not self.srtt or self.failures:
            return ATTEMPT_SECONDS
        return min(max(self.srtt + 4 * self.variation, MIN_ATTEMPT_SECONDS), ATTEMPT_SECONDS)


class Choice(NamedTuple):
    """Whom to ask about one question, in this order."""

    servers: tuple[Server, ...]
    at_once: int  # so many of the first of them
    awaited: int  # where servers race: so many of the first are worth waiting for
    racing: bool
    hopeless: bool  # none of them has answered lately
    is_single: bool = False  # there is one server, who answers and is asked by datagrams: nearly always


class Upstreams:
    """The health of all servers, and the choice among those that are for a name."""

    def __init__(self) -> None:
        self._healths: dict[Server, Health] = {}
        # the last one looked up, for to hash a server costs more than all the rest
        self._server: Server | None = None
        self._health = Health()
        # the last choice without a choice
        self._servers: Sequence[Server] = ()
        self._choice = Choice((), 0, 0, racing=False, hopeless=False)

    def health(self, server: Server) -> Health:
        if server is self._server:
            return self._health
        known = self._healths.get(server)
        if known is None:
            if len(self._healths) >= MAX_HEALTHS:
                del self._healths[next(iter(self._healths))]
            known = self._healths[server] = Health()
        self._server, self._health = server, known
        return known

    def all(self) -> dict[Server, Health]:
        """Everybody who was asked, and how he does."""
        return dict(self._healths)

    def choose(self, servers: Sequence[Server], now: float, *, racing: bool = False) -> Choice:
        """Whom to ask among `servers`.  A failing one that is given another chance by this is not given one again
        before its time comes."""
        if len(servers) == 1 and not self.health(servers[0]).failures:  # nearly always
            if servers is not self._servers or racing is not self._choice.racing:
                is_single = not racing and servers[0].kind == "dns"
                self._choice = Choice(tuple(servers), 1, 1, racing, hopeless=False, is_single=is_single)
                self._servers = self._choice.servers
            return self._choice
        limit = MAX_RACING if racing else MAX_SERVERS
        good: list[Server] = []
        bad: list[Server] = []
        hopeless = True
        for server in servers:
            health = self.health(server)
            (bad if health.is_bad(now) else good).append(server)
            hopeless = hopeless and health.failures >= LOST_AFTER
        hopeless = hopeless and bool(servers)
        if racing:
            every = (*good, *bad)[:limit]
            return Choice(every, len(every), len(good[:limit]) or len(every), racing, hopeless)
        if not good:
            every = tuple(bad[:limit])
            return Choice(every, len(every), len(every), racing, hopeless)
        first = good[:1]
        if len(good) > 1 and (self.health(good[0]).failures or self._is_slow(good[0], good[1])):
            first.append(good[1])
        for server in bad:
            health = self.health(server)
            if health.retry_at <= now:
                health.retry_at = now + ATTEMPT_SECONDS  # not by every question until it has answered
                first.append(server)
                break
        rest = [server for server in (*good, *bad) if server not in first]
        return Choice((*first, *rest)[:limit], min(len(first), limit), 1, racing, hopeless)

    def _is_slow(self, server: Server, other: Server) -> bool:
        time = self.health(server).srtt
        return time > SLOW_SECONDS and self.health(other).srtt < time / 2

    def patience(self, server: Server) -> float:
        return (self._health if server is self._server else self.health(server)).patience()

    def answered(self, server: Server, seconds: float) -> None:
        """It gave an answer to what was asked, after so long."""
        health = self._health if server is self._server else self.health(server)
        health.answered += 1
        health.failures = 0
        if health.srtt:
            health.variation += (abs(seconds - health.srtt) - health.variation) / 4
            health.srtt += (seconds - health.srtt) / 8
        else:
            health.srtt, health.variation = max(seconds, 1e-6), seconds / 2

    def failed(self, server: Server, now: float) -> None:
        """It was silent for its time, or nobody is there."""
        health = self.health(server)
        health.failed += 1
        health.failures += 1
        if health.failures == 1:
            health.failing_since = now
        health.retry_at = now + min(FIRST_RETRY_SECONDS * 2 ** min(health.failures - 1, 10), MAX_RETRY_SECONDS)

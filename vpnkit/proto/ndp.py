"""Neighbour discovery as a router does it, RFC 4861 and 4862: what is advertised and when, and which question is ours.

We answer for our own addresses only.  A guest's probe for an address of his own must stay unanswered, or he takes it
for a duplicate (RFC 4862 section 5.4); a probe for one of ours is how he finds out that it is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from vpnkit.proto.deadlines import NEVER
from vpnkit.wire import ipv6
from vpnkit.wire.ndp import NeighborAdvertisement, NeighborSolicitation, PrefixInformation, RouterAdvertisement

if TYPE_CHECKING:
    from collections.abc import Callable, Container

# RFC 4861 sections 6.2.1 and 10; seconds
MAX_RTR_ADV_INTERVAL: Final = 600.0
MIN_RTR_ADV_INTERVAL: Final = 200.0
MAX_INITIAL_RTR_ADVERT_INTERVAL: Final = 16.0
MAX_INITIAL_RTR_ADVERTISEMENTS: Final = 3
MAX_FINAL_RTR_ADVERTISEMENTS: Final = 3
MIN_DELAY_BETWEEN_RAS: Final = 3.0
MAX_RA_DELAY_TIME: Final = 0.5
ROUTER_LIFETIME: Final = int(3 * MAX_RTR_ADV_INTERVAL)
DNS_LIFETIME: Final = int(3 * MAX_RTR_ADV_INTERVAL)  # RFC 8106 section 5.1

# RFC 9096 section 4: a guest that lost its network does not believe in it for a month
PREFERRED: Final = 2700
VALID: Final = 5400


@dataclass(frozen=True)
class RouterConfig:
    """What the router tells.  Addresses are 16 octets; `mtu` is in octets, at least 1280."""

    mac: bytes
    prefix: bytes  # a /64
    mtu: int
    dns: tuple[bytes, ...] = ()
    search: tuple[str, ...] = ()
    managed: bool = True  # addresses by DHCPv6 too, and
    other: bool = True  # all else that it tells


def advertisement(config: RouterConfig, *, offered: bool, default_router: bool) -> RouterAdvertisement:
    """What is true now.  Not `offered`: all of it is taken back (section 6.2.5).

    The addresses stay valid for a while, as RFC 4862 section 5.5.3 keeps them anyway, and so does the way to us: what
    began goes on, but nothing begins any more (RFC 9096).
    """
    return RouterAdvertisement(
        ROUTER_LIFETIME if offered and default_router else 0,
        config.mac,
        managed=config.managed and offered,
        other=config.other and offered,
        mtu=config.mtu,
        prefixes=(PrefixInformation(config.prefix, 64, VALID, PREFERRED if offered else 0),),
        dns=config.dns,
        dns_lifetime=DNS_LIFETIME if offered else 0,
        search=config.search,
        search_lifetime=DNS_LIFETIME if offered else 0,
    )


def answer(
    question: NeighborSolicitation, source: bytes, ours: Container[bytes], our_mac: bytes
) -> tuple[NeighborAdvertisement, bytes] | None:
    """What to say to a solicitation from `source`, and to which address; None for one that is not about us."""
    if question.target not in ours:
        return None
    solicited = source != ipv6.UNSPECIFIED
    told = NeighborAdvertisement(question.target, our_mac, router=True, solicited=solicited, override=True)
    return told, source if solicited else ipv6.ALL_NODES


class To(NamedTuple):
    """Who asked for an advertisement."""

    address: bytes
    mac: bytes


class Advertiser:
    """When the router of one link speaks, section 6.2.

    A guest that asks is answered alone, unless all are told anyway or several ask at once.  Before anything was offered
    there is nothing to say; what was taken back is said a few times, and to who asks later.  `uniform(a, b)` throws the
    dice.  Seconds.
    """

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._uniform = uniform
        self._spoke = False  # something was offered on this link
        self._offered = False
        self._quick = 0  # advertisements to all that are still to be sent with short pauses
        self._told_all = -NEVER  # when
        self._all_at = NEVER
        self._one: To | None = None
        self._one_at = NEVER

    def change(self, now: float, *, offered: bool) -> None:
        """What is advertised is another thing now, or is withdrawn: all are told."""
        self._offered = offered
        self._spoke = self._spoke or offered
        if self._spoke:
            self._quick = MAX_INITIAL_RTR_ADVERTISEMENTS if offered else MAX_FINAL_RTR_ADVERTISEMENTS
            self._tell_all(now + self._uniform(0, MAX_RA_DELAY_TIME))

    def solicited(self, who: To, now: float) -> None:
        """A router solicitation came.  Who has no address yet is answered with the others."""
        if not self._spoke:
            return
        at = now + self._uniform(0, MAX_RA_DELAY_TIME)
        if self._all_at <= at or self._one == who:
            return
        if who.address == ipv6.UNSPECIFIED or self._one is not None:
            self._one, self._one_at = None, NEVER
            self._tell_all(at)
        else:
            self._one, self._one_at = who, at

    def _tell_all(self, at: float) -> None:
        self._all_at = min(self._all_at, max(at, self._told_all + MIN_DELAY_BETWEEN_RAS))

    def next_deadline(self) -> float:
        return min(self._all_at, self._one_at)

    def due(self, now: float) -> list[To | None]:
        """Whom to tell at `now`; None is everybody."""
        found: list[To | None] = []
        if self._one_at <= now:
            found.append(self._one)
            self._one, self._one_at = None, NEVER
        if self._all_at <= now:
            found.append(None)
            self._told_all = now
            self._all_at = now + self._pause()
        return found

    def _pause(self) -> float:
        self._quick = max(self._quick - 1, 0)
        if self._quick:
            return self._uniform(MIN_DELAY_BETWEEN_RAS, MAX_INITIAL_RTR_ADVERT_INTERVAL)
        return self._uniform(MIN_RTR_ADV_INTERVAL, MAX_RTR_ADV_INTERVAL) if self._offered else NEVER

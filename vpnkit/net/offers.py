"""Who has this?  Asked on the LAN before DHCP offers an address that a guest may have by his own configuration.

RFC 2131 section 3.1 (2) and RFC 5227.  Only where there is another guest of whom no IPv4 address is known; everybody
else's are in the LAN's table, and DHCP looks there.  So where all guests use DHCP hardly any offer waits.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from tapdev.link import LinkClosed

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from vpnkit.net.guest import Guest
    from vpnkit.services.dhcp import DhcpAnswer, DhcpService

log = logging.getLogger(__name__)

MAX_WAITING: Final = 16  # offers to one guest; further ones are made unasked
MAX_SILENT: Final = 16  # guests of whom no address is known; when there are more, they all start at once and use DHCP
MAX_TRIES: Final = 4  # addresses that somebody has; the next is offered unasked
PROBE_SECONDS: Final = 0.1  # for an answer: no link of ours is longer than this machine


class Offers:
    """The offers that one guest waits for."""

    def __init__(self, guest: Guest, dhcp: DhcpService, nursery: trio.Nursery) -> None:
        self._guest = guest
        self._dhcp = dhcp
        self._nursery = nursery
        self._waiting = 0

    def should_wait(self, answer: DhcpAnswer) -> bool:
        """Whether `answer` is an offer of what a silent guest may have."""
        if answer.offered is None or self._waiting >= MAX_WAITING:
            return False
        station = self._guest.station
        silent = sum(other.ip is None for other in station.lan.stations if other is not station)
        return 0 < silent <= MAX_SILENT

    def wait(
        self, answer: DhcpAnswer, again: Callable[[], DhcpAnswer | None], send: Callable[[DhcpAnswer], None]
    ) -> None:
        """Send `answer`, or what `again` answers instead, when nobody says that he has what it offers."""
        self._waiting += 1
        self._nursery.start_soon(self._wait, answer, again, send)

    async def _wait(
        self, answer: DhcpAnswer, again: Callable[[], DhcpAnswer | None], send: Callable[[DhcpAnswer], None]
    ) -> None:
        try:
            offer = await self._free(answer, again)
            if offer is not None:
                send(offer)
        except LinkClosed:
            pass  # the guest's own task sees it too
        except Exception:  # the containment boundary of one offer
            self._guest.count("internal_error")
            log.exception("guest %d: internal error in an offer", self._guest.number)
        finally:
            self._waiting -= 1

    async def _free(self, offer: DhcpAnswer | None, again: Callable[[], DhcpAnswer | None]) -> DhcpAnswer | None:
        guest = self._guest
        for _ in range(MAX_TRIES):
            if offer is None or offer.offered is None:
                break
            holder = await guest.station.lan.probe(offer.offered, PROBE_SECONDS)
            if holder is None or holder.mac == offer.client_mac:
                break
            guest.count("dhcp_conflict")
            self._dhcp.server.mark(offer.offered, guest.now())
            offer = again()
        return offer

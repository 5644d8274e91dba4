"""Whether guests are offered IPv6: as the operator says, and by default while the host has it.

Who told a guest that there is IPv6 must take it back when the host has it no longer; else the guest tries in vain
before it falls back to IPv4.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from vpnkit.net.plan import LEAST_MTU6

if TYPE_CHECKING:
    from collections.abc import Callable

    from vpnkit.flow.host import HostSockets
    from vpnkit.net.plan import Plan

log = logging.getLogger(__name__)

CHECK_SECONDS: Final = 5.0  # between two looks at the host's routes, while somebody listens


class Reachability:
    """What is offered on one network.  `offer` is a key of IPV6_OFFERS."""

    def __init__(self, plan: Plan, host: HostSockets, offer: str = "auto") -> None:
        self._offer = offer if plan.prefix6 is not None and plan.mtu >= LEAST_MTU6 else "off"
        self._host = host
        self._listeners: dict[Callable[[], None], None] = {}
        self._somebody = trio.Event()
        self._world = self._offer == "auto" and host.has_ipv6()

    @property
    def offered(self) -> bool:
        """Whether guests may have IPv6 addresses."""
        return self._offer in ("on", "local") or self._world

    @property
    def default_router(self) -> bool:
        """Whether there is a way out of the LAN."""
        return self._offer == "on" or self._world

    def listen(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever one of the two became another, until `forget`."""
        self._listeners[changed] = None
        self._somebody.set()

    def forget(self, changed: Callable[[], None]) -> None:
        """Idempotent."""
        self._listeners.pop(changed, None)
        if not self._listeners:
            self._somebody = trio.Event()

    def check(self) -> None:
        """Look at the host now."""
        world = self._offer == "auto" and self._host.has_ipv6()
        if world is self._world:
            return
        self._world = world
        log.info("the host %s; guests are told", "has IPv6 now" if world else "has IPv6 no longer")
        for changed in list(self._listeners):
            changed()

    async def watch(self) -> None:
        """Look now and then while there are guests, for ever."""
        if self._offer != "auto":
            await trio.sleep_forever()
        while True:
            await self._somebody.wait()
            self.check()
            await trio.sleep(CHECK_SECONDS)

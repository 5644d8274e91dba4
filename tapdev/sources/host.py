"""What a source of guests and the owner of the LAN know of each other."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from uuid import UUID

    from tapdev.link import Link
    from tapdev.spec import LinkSpec
    from tapdev.vmnet import Registration

log = logging.getLogger(__name__)

COMPLAINT_INTERVAL: Final = 1.0  # seconds between two lines about what others do wrong


class LinkError(Exception):
    """A way in that cannot be had, or that broke for good.  One line: what is wrong, and what would be right."""


class Host(Protocol):
    """Whoever owns the LAN."""

    def register(self, uuid: UUID | None, wanted: bytes | None) -> Registration:
        """The addresses for a VMN3T client: `wanted` is an IPv4 address or None.  Raises Refused."""
        ...

    async def join(self, link: Link, name: str, registration: Registration | None = None) -> None:
        """Serve a guest until its link is closed; closes the link.  Never raises for what a guest does."""
        ...


class Source(Protocol):
    """A way in, open from the moment it was made."""

    @property
    def spec(self) -> LinkSpec: ...

    async def run(self, host: Host) -> None:
        """Serve whoever comes, for ever; one guest's end never ends it.

        Returns only when nobody can come any more: the one guest of an adopted descriptor or of stdio left, or the
        source was closed.  Raises LinkError.
        """
        ...

    def close(self) -> None:
        """Give up every descriptor, and unlink the paths that this source made.  Idempotent."""
        ...


class Complaints:
    """Warnings about strangers: at most one in `interval` seconds, and how many were left out."""

    def __init__(self, name: str, interval: float = COMPLAINT_INTERVAL) -> None:
        self.name = name
        self._interval = interval
        self._quiet_until = -float("inf")
        self._left_out = 0

    def say(self, message: str) -> None:
        now = trio.current_time()
        if now < self._quiet_until:
            self._left_out += 1
            return
        more = f" (and {self._left_out} more that were not logged)" if self._left_out else ""
        log.warning("%s: %s%s", self.name, message, more)
        self._quiet_until = now + self._interval
        self._left_out = 0


async def contained(serving: Awaitable[None], name: str) -> None:
    """Await one guest's service; its failure is logged and ends here."""
    try:
        await serving
    except Exception:
        log.exception("%s: serving this guest failed", name)


async def serve_link(host: Host, link: Link, name: str, registration: Registration | None = None) -> None:
    """Let `link` join; it is closed afterwards, whatever happens."""
    log.info("%s: connected", name)
    try:
        await host.join(link, name, registration)
    finally:
        link.close()
    log.info("%s: gone", name)

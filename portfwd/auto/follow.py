"""Keeping the forwards of one guest as his listeners are."""

from __future__ import annotations

import logging
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Protocol

import trio

from portfwd.complaints import Complaints
from portfwd.errors import ForwardError
from portfwd.spec import Spec, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from portfwd.auto.rules import Rule
    from portfwd.auto.sock_diag import Listener
    from portfwd.forward import Forward

log = logging.getLogger(__name__)

MAX_FORWARDS: Final = 256  # of one guest by themselves; the highest ports of the others are left out
RETRY_SECONDS: Final = 5.0  # until a port of the host that was busy is tried again


class Exposer(Protocol):
    """Who has the forward table."""

    async def expose(self, text: str) -> Sequence[Forward]: ...

    async def unexpose(self, text: str, *, connections: bool = False) -> Sequence[Forward]: ...

    def list(self) -> Sequence[Forward]: ...


class Follower:
    """The forwards that one guest has because he listens.  One task at a time calls."""

    def __init__(self, name: str, rule: Rule, exposer: Exposer, *, least_port: int = 1) -> None:
        """`name` is the guest's, for people; no port of the host below `least_port` is taken, unless the
        rule names it."""
        self.name = name
        self.rule = rule
        self.forwarded: dict[tuple[str, int], Spec] = {}  # by protocol and port of the guest
        self.problems: dict[tuple[str, int], str] = {}  # why others are not
        self.left_out = 0  # listeners, because there are MAX_FORWARDS
        self._exposer = exposer
        self._least_port = least_port
        self._failed_at: dict[Spec, float] = {}
        self._complaints = Complaints(log)

    async def listeners_are(self, listeners: Iterable[Listener], addresses: Sequence[str]) -> bool:
        """Make and unmake forwards so that they are those of `listeners` at the guest's `addresses`; whether any
        was."""
        listeners = set(listeners)
        there = {(listener.protocol, listener.port) for listener in listeners}
        self.problems = {key: why for key, why in self.problems.items() if key in there}
        wanted = self._wanted(listeners, addresses)
        changed = False
        for key in [key for key, spec in self.forwarded.items() if wanted.get(key) != spec]:
            await self._remove(key)
            changed = True
        self._failed_at = {spec: at for spec, at in self._failed_at.items() if spec in wanted.values()}
        for key, spec in sorted(wanted.items()):
            if key not in self.forwarded:
                changed |= await self._add(key, spec)
        return changed

    @property
    def retry_at(self) -> float:
        """When `listeners_are` is to be called again though nothing changed; infinite if never."""
        return min(self._failed_at.values(), default=float("inf")) + RETRY_SECONDS

    async def close(self) -> None:
        """Unmake them all."""
        for key in list(self.forwarded):
            await self._remove(key)

    def _wanted(self, listeners: Iterable[Listener], addresses: Sequence[str]) -> dict[tuple[str, int], Spec]:
        ours = {spec.bare for spec in self.forwarded.values()}
        others = [forward.spec for forward in self._exposer.list() if forward.spec.bare not in ours]
        wanted: dict[tuple[str, int], Spec] = {}
        for listener in sorted(listeners):
            key = listener.protocol, listener.port
            host_port = self.rule.host_port(*key)
            address = reached_at(listener, addresses)
            if host_port is None or address is None or (key in wanted and ":" in address):
                continue
            if host_port < self._least_port and not self.rule.names(*key):
                self.problems[key] = f"ports of the host below {self._least_port} are not for guests"
                continue
            if any(_leads_to(spec, key, addresses) for spec in others):
                continue  # it has a forward that somebody asked for
            wanted[key] = Spec(
                host_port,
                listener.port,
                "udp" if listener.protocol == "udp" else "tcp",
                self.rule.host_address,
                address,
            )
        self.left_out = max(len(wanted) - MAX_FORWARDS, 0)
        if self.left_out:
            self._complaints.warning("%s: %d listeners are not forwarded: too many", self.name, self.left_out)
            wanted = dict(sorted(wanted.items(), key=lambda item: item[0][1])[:MAX_FORWARDS])
        return wanted

    async def _add(self, key: tuple[str, int], spec: Spec) -> bool:
        now = trio.current_time()
        if self._failed_at.get(spec, -float("inf")) + RETRY_SECONDS > now:
            return False
        try:
            [forward] = await self._exposer.expose(str(spec))
        except (ForwardError, SpecError) as error:
            self._failed_at[spec] = now
            if self.problems.get(key) != str(error):
                self.problems[key] = str(error)
                self._complaints.warning("%s: port %d of the guest: %s", self.name, key[1], error)
            return False
        self.problems.pop(key, None)
        self._failed_at.pop(spec, None)
        self.forwarded[key] = replace(forward.spec)
        log.info("%s: %s is forwarded", self.name, forward.spec)
        return True

    async def _remove(self, key: tuple[str, int]) -> None:
        spec = self.forwarded.pop(key)
        try:
            await self._exposer.unexpose(str(spec))
            log.info("%s: %s is not forwarded any more", self.name, spec)
        except ForwardError:
            pass  # somebody else removed it


def reached_at(listener: Listener, addresses: Sequence[str]) -> str | None:
    """The first of the guest's `addresses` at which a listener can be reached over his link."""
    bound = ip_address(listener.address)
    for text in addresses:
        address = ip_address(text)
        if bound.is_unspecified:
            if address.version == bound.version or (bound.version == 6 and not listener.only6):
                return text
        elif bound == address:
            return text
    return None


def _leads_to(spec: Spec, key: tuple[str, int], addresses: Sequence[str]) -> bool:
    if spec.target != "net" or (spec.protocol, spec.guest_port) != key or spec.host_path is not None:
        return False
    return spec.guest_address is None or spec.guest_address in addresses

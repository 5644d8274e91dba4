"""What a network remembers between its runs: DHCP bindings and the addresses of VMN3T clients.

It is written SAVE_SECONDS after the first change that is not written, and at the end.  So a change may be lost when we
are killed; then the client, who remembers too, gets what he asks for, as nobody else has it.
"""

from __future__ import annotations

import logging
import math
import time
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final
from uuid import UUID

import trio

from tapdev.vmnet import Registration
from vpnkit.errors import ConfigError
from vpnkit.proto.leases import BOUND, FOREVER, RELEASED, Lease
from vpnkit.services.state_file import SavedIdentity, SavedLease, State

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from vpnkit.net.identities import Identities
    from vpnkit.proto.dhcp import DhcpServer
    from vpnkit.services.state_file import StateFile

log = logging.getLogger(__name__)

SAVE_SECONDS: Final = 1.0  # so that a hundred guests that come at once are written once

_STATES: Final[dict[str, Literal["bound", "released"]]] = {BOUND: "bound", RELEASED: "released"}


class Memory:
    """One network's, in one file.  Raises ConfigError when what the file says cannot be."""

    def __init__(
        self, file: StateFile, dhcp: DhcpServer, identities: Identities, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` is the wall clock, in seconds."""
        self._file = file
        self._dhcp = dhcp
        self._identities = identities
        self._clock = clock
        self._changed = trio.Event()
        self.failures = 0  # times that it could not be written
        try:
            state = file.load()
            self._leases = [_lease(saved) for saved in state.leases]
            known = {UUID(saved.uuid): _registration(saved) for saved in state.identities}
        except ConfigError:
            file.close()
            raise
        except ValueError as error:
            file.close()
            raise ConfigError(f"--state {file.path} is broken: {error}.  Mend it, or move it away.") from None
        identities.restore(known, state.identity_numbers)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Restore what was remembered, and then write down what changes, until cancelled."""
        offset = trio.current_time() - self._clock()
        restored = self._dhcp.restore(
            Lease(saved.ip, saved.mac, saved.client_id, saved.hostname, saved.expires_at + offset, saved.state)
            for saved in self._leases
        )
        if restored < len(self._leases):
            log.warning("%s: %d leases do not fit this network", self._file.path, len(self._leases) - restored)
        self._dhcp.on_changed = self._identities.on_changed = lambda: self._changed.set()
        task_status.started()
        try:
            while True:
                await self._changed.wait()
                await trio.sleep(SAVE_SECONDS)
                self._changed = trio.Event()
                await trio.to_thread.run_sync(self._save, self._state())
        finally:
            self._dhcp.on_changed = self._identities.on_changed = lambda: None
            self._save(self._state())
            self._file.close()

    def _state(self) -> State:
        offset = self._clock() - trio.current_time()
        leases = [
            SavedLease(
                ip=str(IPv4Address(lease.ip)),
                mac=lease.mac.hex(":"),
                client_id=lease.client_id.hex(),
                hostname=lease.hostname,
                expires=None if lease.expires_at == FOREVER else lease.expires_at + offset,
                state=_STATES[lease.state],
            )
            for lease in self._dhcp.leases()
            if lease.state in _STATES
        ]
        known, numbers = self._identities.remembered()
        identities = [
            SavedIdentity(str(uuid), registration.mac.hex(":"), str(IPv4Address(registration.ip)))
            for uuid, registration in known.items()
        ]
        return State(leases=leases, identities=identities, identity_numbers=numbers)

    def _save(self, state: State) -> None:
        try:
            self._file.save(state)
        except OSError as error:
            self.failures += 1
            log.error("%s: leases are not kept: %s", self._file.path, error.strerror)


def _mac(text: str) -> bytes:
    octets = bytes.fromhex(text.replace(":", ""))
    if len(octets) != 6:
        raise ValueError(f"{text!r} is not a MAC address")
    return octets


def _lease(saved: SavedLease) -> Lease:
    """Raises ValueError."""
    expires = FOREVER if saved.expires is None else saved.expires
    if math.isnan(expires):
        raise ValueError("a lease that ends at no time")
    return Lease(
        IPv4Address(saved.ip).packed,
        _mac(saved.mac),
        bytes.fromhex(saved.client_id),
        saved.hostname,
        expires,
        saved.state,
    )


def _registration(saved: SavedIdentity) -> Registration:
    """Raises ValueError."""
    return Registration(_mac(saved.mac), IPv4Address(saved.ip).packed)

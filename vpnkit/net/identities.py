"""Which MAC and IP address a VMN3T client has: by its UUID, for as long as we live, or longer with a state file.

The rules and the texts are the original VPNKit's: a UUID keeps its addresses, a new one gets the next MAC address and
the first free IP address, or the one that it asks for.
"""

from __future__ import annotations

import uuid as uuids
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

from tapdev.vmnet import Refused, Registration
from vpnkit.net.plan import guest_mac

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vpnkit.proto.dhcp import DhcpServer

MAX_IDENTITIES: Final = 1024  # the oldest that is not connected makes place


class Identities:
    """The UUIDs that were seen.  Addresses are kept in the DHCP server, as reservations."""

    def __init__(self, dhcp: DhcpServer, is_connected: Callable[[bytes], bool]) -> None:
        """`is_connected` says whether a guest with that MAC address is here."""
        self._dhcp = dhcp
        self._is_connected = is_connected
        self._known: dict[uuids.UUID, Registration] = {}
        self._numbers = 0
        self.on_changed: Callable[[], None] = lambda: None  # `remembered` is another than before

    def remembered(self) -> tuple[dict[uuids.UUID, Registration], int]:
        """Who was seen, and how many MAC addresses were given so far."""
        return dict(self._known), self._numbers

    def restore(self, known: Mapping[uuids.UUID, Registration], numbers: int) -> None:
        """Remember who was seen by another run; those whose address is not of this network are strangers."""
        self._numbers = max(self._numbers, numbers)
        for uuid, registration in known.items():
            free = self._dhcp.in_pool(registration.ip) and self._dhcp.may_use(registration.ip, registration.mac)
            if free and len(self._known) < MAX_IDENTITIES:
                self._dhcp.reserve(registration.mac, registration.ip)
                self._known[uuid] = registration

    def register(self, uuid: uuids.UUID | None, wanted: bytes | None, now: float) -> Registration:
        """The addresses of `uuid`, known or new; None is a client without one, new every time.

        `wanted` is the IPv4 address that it must be, if any.  Raises Refused with the text that the client is told.
        """
        known = None if uuid is None else self._known.get(uuid)
        if known is not None:
            if wanted is not None and wanted != known.ip:
                raise Refused("UUID already assigned to a different IP than the IP requested by the client")
            return known
        self._numbers += 1  # also when it fails: MAC addresses are not given twice
        mac = guest_mac(self._numbers)
        if wanted is None:
            ip = self._dhcp.free_address(mac, now)
            if ip is None:
                raise Refused("No IP addresses available.")
        else:
            ip = wanted
            if not self._dhcp.in_pool(ip):
                raise Refused("Preferred IP address out of range.")
            if not self._dhcp.is_available(ip, mac, now):
                raise Refused(f"Preferred IP address {IPv4Address(ip)} already used.")
        if len(self._known) >= MAX_IDENTITIES:
            self._forget_one()
        made = Registration(mac, ip)
        self._dhcp.reserve(mac, ip)
        self._known[uuid or uuids.UUID(bytes=b"NUL " + bytes(6) + mac)] = made
        self.on_changed()
        return made

    def _forget_one(self) -> None:
        for uuid, registration in self._known.items():
            if not self._is_connected(registration.mac):
                self._dhcp.unreserve(registration.mac)
                del self._known[uuid]
                return
        raise Refused("No IP addresses available.")

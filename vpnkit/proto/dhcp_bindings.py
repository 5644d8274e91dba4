"""Who has which address, for DHCP of IPv4: bindings, reservations, and addresses that were seen in wrong hands.

A binding outlives its lease: the address is kept for its client until the pool has no other, so that an address is as
stable as the pool is large.  Addresses are handed out from the first one up: people expect the first guest there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vpnkit.errors import ConfigError
from vpnkit.proto.leases import BOUND, EXPIRED, FOREVER, INFINITE, OFFERED, RELEASED, STATIC, Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vpnkit.proto.dhcp_options import DhcpConfig

MAX_BINDINGS: Final = 1024  # clients remembered; more than a LAN of ours has guests
MAX_DECLINED: Final = 32  # addresses somebody else was seen to use; the oldest is tried again first
DECLINE_SECONDS: Final = 600.0


@dataclass(slots=True)
class Binding:
    key: bytes
    ip: bytes
    mac: bytes
    client_id: bytes
    hostname: str
    state: str
    expires_at: float

    def active(self, now: float) -> bool:
        return self.state in (OFFERED, BOUND, STATIC) and now < self.expires_at


class Bindings:
    """The bindings of one LAN.  Raises ConfigError when the pool of `config` is none."""

    def __init__(self, config: DhcpConfig) -> None:
        self._first = int.from_bytes(config.first, "big")
        self._last = int.from_bytes(config.last, "big")
        if self._first > self._last:
            raise ConfigError("the DHCP pool is empty")
        if not 1 <= config.lease <= INFINITE:
            raise ConfigError(f"lease time {config.lease} is out of range: 1 to {INFINITE} seconds")
        self._excluded = config.excluded | {config.server_ip}
        self._bindings: dict[bytes, Binding] = {}  # by client
        self._by_ip: dict[bytes, Binding] = {}
        self._reserved: dict[bytes, bytes] = {}  # MAC to address
        self._reserved_ips: dict[bytes, bytes] = {}  # and back
        self._names: dict[bytes, str] = {}  # of reservations: MAC to host name
        self._declined: dict[bytes, float] = {}  # address to the end of its mark, oldest first
        self.evicted = 0  # bindings that made room for another client
        self.recycled = 0  # declined addresses given again before their time
        # What the LAN knows: whether somebody other than the MAC uses the address; and what it wants to know.
        self.is_taken: Callable[[bytes, bytes], bool] = lambda ip, mac: False
        self.is_used: Callable[[bytes], bool] = lambda ip: True  # by a guest that is here
        self.on_released: Callable[[bytes], None] = lambda ip: None
        self.on_changed: Callable[[], None] = lambda: None  # what `restore` would take is another than before

    def declined(self) -> int:
        """How many addresses are marked."""
        return len(self._declined)

    def get(self, key: bytes) -> Binding | None:
        """The binding of a client."""
        return self._bindings.get(key)

    def key(self, mac: bytes, client_id: bytes) -> bytes:
        """A client's identity.  A MAC address is 6 octets and option 61 gets a prefix, so they never collide.

        An option 61 that is the MAC address (udhcpc's) says nothing new: an initramfs that sends it and the dhclient
        that follows without it are one guest, and want one address.
        """
        if not client_id or client_id == b"\1" + mac or mac in self._reserved:
            return mac
        return b"client " + client_id

    def name(self, mac: bytes) -> str:
        """The host name that the operator gave to `mac`; empty when he gave none."""
        return self._names.get(mac, "")

    # What the operator and the links do

    def reserve(self, mac: bytes, ip: bytes, name: str = "") -> None:
        """Keep `ip` for `mac`, inside the pool or not.  Whoever has it now is told so when he renews.

        `name` is the host name that the client shall have.
        """
        self.unreserve(mac)
        owner = self._reserved_ips.get(ip)
        if owner is not None:
            self.unreserve(owner)
        self._reserved[mac] = ip
        self._names[mac] = name
        self._reserved_ips[ip] = mac
        holder = self._by_ip.get(ip)
        if holder is not None and holder.mac != mac:
            self.forget(holder)

    def unreserve(self, mac: bytes) -> None:
        """Undo `reserve`; a lease that came of it goes on until it ends.  An unknown `mac` is ignored."""
        ip = self._reserved.pop(mac, None)
        if ip is not None:
            del self._reserved_ips[ip]
            self._names.pop(mac, None)

    def assign(self, mac: bytes, ip: bytes, hostname: str, now: float) -> None:
        """Note that `mac` has `ip` without asking us (it was configured so): an infinite lease and a reservation."""
        self.reserve(mac, ip)
        binding = self.bind(mac, b"", mac, ip, now)
        binding.hostname = hostname
        binding.state = STATIC
        binding.expires_at = FOREVER
        self.on_changed()

    def may_use(self, ip: bytes, mac: bytes) -> bool:
        """Whether no other MAC address than `mac` has a reservation for `ip`."""
        return self._reserved_ips.get(ip, mac) == mac

    def address_of(self, mac: bytes) -> bytes | None:
        """The address that `mac` has by reservation or by a binding, ended or not; None when he is new."""
        reserved = self._reserved.get(mac)
        if reserved is not None:
            return reserved
        return next((b.ip for b in self._bindings.values() if b.mac == mac and b.state != OFFERED), None)

    def free_address(self, mac: bytes, now: float) -> bytes | None:
        """An address that `mac` can be given: the first that nobody ever had, else whose lease ended first."""
        for number in range(self._first, self._last + 1):  # ends after as many steps as the tables have entries
            ip = number.to_bytes(4, "big")
            if ip not in self._by_ip and self.is_available(ip, mac, now):
                return ip
        ended = [b for b in self._bindings.values() if not b.active(now) and self.is_available(b.ip, mac, now)]
        return min(ended, key=lambda b: b.expires_at).ip if ended else None

    def is_available(self, ip: bytes, mac: bytes, now: float) -> bool:
        """Whether `ip` can be reserved for `mac`."""
        return self.is_free(ip, now) and not self.is_taken(ip, mac)

    def in_pool(self, ip: bytes) -> bool:
        return self._first <= int.from_bytes(ip, "big") <= self._last and ip not in self._excluded

    def restore(self, leases: Iterable[Lease]) -> int:
        """Remember `leases` of another run, as far as they fit this pool.  Returns how many do."""
        restored = 0
        for lease in leases:
            mine = self._reserved_ips.get(lease.ip)
            if lease.ip in self._by_ip or len(self._bindings) >= MAX_BINDINGS:
                continue
            if mine not in (None, lease.mac) or (mine is None and not self.in_pool(lease.ip)):
                continue
            key = self.key(lease.mac, lease.client_id)
            if key not in self._bindings:
                binding = Binding(
                    key, lease.ip, lease.mac, lease.client_id, lease.hostname, lease.state, lease.expires_at
                )
                self._bindings[key] = self._by_ip[lease.ip] = binding
                restored += 1
        return restored

    def leases(self, now: float | None = None) -> list[Lease]:
        """The bindings in the order of their addresses; with `now`, those whose time is over are EXPIRED."""
        return [
            Lease(
                binding.ip,
                binding.mac,
                binding.client_id,
                binding.hostname,
                binding.expires_at,
                EXPIRED if now is not None and binding.state != RELEASED and not binding.active(now) else binding.state,
            )
            for _, binding in sorted(self._by_ip.items())
        ]

    # Who has which address

    def choose(self, mac: bytes, key: bytes, wanted: bytes | None, now: float) -> bytes | None:
        """The address to offer, RFC 2131 section 4.3.1; None when the pool has none."""
        mine = self.expected(mac, key, now)
        if mine is not None:
            return mine
        if wanted is not None and self.is_available(wanted, mac, now):
            return wanted
        return self.free_address(mac, now) or self._least_useful(mac, now)

    def mark(self, ip: bytes, now: float) -> None:
        """Somebody was seen to use `ip` who did not get it from us: nobody is given it for DECLINE_SECONDS."""
        holder = self._by_ip.get(ip)
        if holder is not None:
            self.forget(holder)
        self._declined.pop(ip, None)
        while len(self._declined) >= MAX_DECLINED:
            self._recycle()
        self._declined[ip] = now + DECLINE_SECONDS
        self.on_changed()

    def expected(self, mac: bytes, key: bytes, now: float) -> bytes | None:
        """The address that this client has, had, or will have by reservation; None when he is new."""
        reserved = self._reserved.get(mac)
        if reserved is not None and not self._is_declined(reserved, now):
            return reserved
        known = self._bindings.get(key)
        if known is None or self._reserved_ips.get(known.ip, mac) != mac or self.is_taken(known.ip, mac):
            return None
        return known.ip

    def _least_useful(self, mac: bytes, now: float) -> bytes | None:
        """An address that is not free but can be had: a declined one, else the oldest mere offer, else one leased to
        a client that is not here, or a guest could lease the whole pool to clients that he made up."""
        for ip in self._declined:
            if self._is_ours_to_give(ip) and not self.is_taken(ip, mac):
                self._recycle(ip)
                return ip
        ours = [b for b in self._bindings.values() if self._is_ours_to_give(b.ip) and not self.is_taken(b.ip, mac)]
        least = [b for b in ours if b.state == OFFERED] or [
            b for b in ours if b.state == BOUND and not self.is_used(b.ip)
        ]
        return min(least, key=lambda b: b.expires_at).ip if least else None

    def _is_ours_to_give(self, ip: bytes) -> bool:
        if not self._first <= int.from_bytes(ip, "big") <= self._last:
            return False
        return ip not in self._excluded and ip not in self._reserved_ips

    def is_free(self, ip: bytes, now: float) -> bool:
        """Whether any client may be given `ip`."""
        if not self._is_ours_to_give(ip) or self._is_declined(ip, now):
            return False
        holder = self._by_ip.get(ip)
        return holder is None or not holder.active(now)

    def _is_declined(self, ip: bytes, now: float) -> bool:
        until = self._declined.get(ip)
        if until is None:
            return False
        if now < until:
            return True
        del self._declined[ip]
        return False

    def _recycle(self, ip: bytes | None = None) -> None:
        del self._declined[next(iter(self._declined)) if ip is None else ip]
        self.recycled += 1

    def bind(self, key: bytes, client_id: bytes, mac: bytes, ip: bytes, now: float) -> Binding:
        """The binding of `key` to `ip`, new or known; whoever had either before has it no longer."""
        known = self._bindings.get(key)
        if known is not None and known.ip == ip:
            known.mac = mac
            known.client_id = client_id
            return known
        if known is not None:
            self.forget(known)
        holder = self._by_ip.get(ip)
        if holder is not None:
            self.forget(holder)
            self.evicted += 1
        elif len(self._bindings) >= MAX_BINDINGS:
            # An active one goes only when all are: 1024 clients on one link is somebody inventing addresses.
            self.forget(min(self._bindings.values(), key=lambda b: (b.active(now), b.state == STATIC, b.expires_at)))
            self.evicted += 1
        binding = Binding(key, ip, mac, client_id, "", OFFERED, now)
        self._bindings[key] = binding
        self._by_ip[ip] = binding
        return binding

    def forget(self, binding: Binding) -> None:
        del self._bindings[binding.key]
        del self._by_ip[binding.ip]

"""The rules of a DHCP server, RFC 2131, for a LAN where we are the only one and always there.

A message and the time go in; a reply, or the reason why there is none, comes out.  Three decisions follow from being
the only server:

- We are authoritative.  A client that asks to go on with an address we do not remember gets it, if nobody else has it
  (we were restarted, he was not), and a NAK otherwise, so that he starts again at once instead of timing out.
- A binding outlives its lease: the address is kept for its client until the pool has no other, so that an address is
  as stable as the pool is large.  Addresses are handed out from the first one up: people expect the first guest there.
- What clients need to work (mask, router, name server, MTU) is sent whether they ask for it or not; the VMN3T client
  sends no parameter list at all.

A client is its option 61, or else its MAC address (RFC 2131 section 4.2); a MAC address with a reservation is itself,
whatever it claims in option 61.  Deliberately absent: relays (giaddr), BOOTP without option 53, rapid commit, and the
client's maximum message size (option 57): replies always fit the 576 octets that everybody must take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vpnkit.errors import ConfigError
from vpnkit.proto.dhcp_options import DhcpConfig, Told
from vpnkit.wire import dhcp
from vpnkit.wire.dhcp import ANY, DhcpMessage

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BINDINGS: Final = 1024  # clients remembered; more than a LAN of ours has guests
MAX_DECLINED: Final = 32  # addresses somebody else was seen to use; the oldest is tried again first
OFFER_SECONDS: Final = 60.0  # how long an offer keeps its address from others
DECLINE_SECONDS: Final = 600.0
MINIMUM_LEASE: Final = 60  # seconds; shorter wishes are answered with this
INFINITE: Final = 0xFFFFFFFF  # seconds, in options 51, 58 and 59
FOREVER: Final = float("inf")

BROADCAST_MAC: Final = b"\xff" * 6
BROADCAST_IP: Final = b"\xff" * 4

OFFERED: Final = "offered"
BOUND: Final = "bound"
RELEASED: Final = "released"
EXPIRED: Final = "expired"
STATIC: Final = "static"

_HOST_NAME_OCTETS: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")


@dataclass(frozen=True)
class Drop:
    """No reply, and why; reasons are few, so that they can be counted."""

    reason: str


@dataclass(frozen=True)
class DhcpReply:
    """A message for the client's port 68, and where it goes; `broadcast` says that both addresses are broadcast."""

    message: DhcpMessage
    destination_ip: bytes
    destination_mac: bytes
    broadcast: bool


@dataclass(frozen=True)
class Lease:
    """A binding, for the operator.  `expires_at` is in seconds of the clock that `now` came from."""

    ip: bytes
    mac: bytes
    client_id: bytes  # option 61; empty when the client sent none
    hostname: str
    expires_at: float
    state: str  # offered, bound, released, expired, static


@dataclass(frozen=True)
class DhcpStatistics:
    bindings: int
    declined: int  # addresses marked now
    evicted: int  # bindings that made room for another client
    recycled: int  # declined addresses given again before their time
    exhausted: int  # DISCOVERs for which there was no address
    shortened: int  # replies that had no room for all options


@dataclass(slots=True)
class _Binding:
    key: bytes
    ip: bytes
    mac: bytes
    client_id: bytes
    hostname: str
    state: str
    expires_at: float

    def active(self, now: float) -> bool:
        return self.state in (OFFERED, BOUND, STATIC) and now < self.expires_at


class DhcpServer:
    """The bindings of one LAN.  Raises ConfigError when `config` cannot be told to anybody."""

    def __init__(self, config: DhcpConfig) -> None:
        self.config = config
        self._first = int.from_bytes(config.first, "big")
        self._last = int.from_bytes(config.last, "big")
        self._mask = int.from_bytes(config.mask, "big")
        self._server = int.from_bytes(config.server_ip, "big")
        if self._first > self._last:
            raise ConfigError("the DHCP pool is empty")
        if not 1 <= config.lease <= INFINITE:
            raise ConfigError(f"lease time {config.lease} is out of range: 1 to {INFINITE} seconds")
        self._excluded = config.excluded | {config.server_ip}
        self._told = Told(config)
        self._bindings: dict[bytes, _Binding] = {}  # by client
        self._by_ip: dict[bytes, _Binding] = {}
        self._reserved: dict[bytes, bytes] = {}  # MAC to address
        self._reserved_ips: dict[bytes, bytes] = {}  # and back
        self._declined: dict[bytes, float] = {}  # address to the end of its mark, oldest first
        self._evicted = self._recycled = self._exhausted = 0
        # What the LAN knows: whether somebody other than the MAC uses the address; and what it wants to know.
        self.is_taken: Callable[[bytes, bytes], bool] = lambda ip, mac: False
        self.is_used: Callable[[bytes], bool] = lambda ip: True  # by a guest that is here
        self.on_released: Callable[[bytes], None] = lambda ip: None

    # What the operator and the links do

    def reserve(self, mac: bytes, ip: bytes) -> None:
        """Keep `ip` for `mac`, inside the pool or not.  Whoever has it now is told so when he renews."""
        self.unreserve(mac)
        owner = self._reserved_ips.get(ip)
        if owner is not None:
            del self._reserved[owner]
        self._reserved[mac] = ip
        self._reserved_ips[ip] = mac
        holder = self._by_ip.get(ip)
        if holder is not None and holder.mac != mac:
            self._forget(holder)

    def unreserve(self, mac: bytes) -> None:
        """Undo `reserve`; a lease that came of it goes on until it ends.  An unknown `mac` is ignored."""
        ip = self._reserved.pop(mac, None)
        if ip is not None:
            del self._reserved_ips[ip]

    def assign(self, mac: bytes, ip: bytes, hostname: str, now: float) -> None:
        """Note that `mac` has `ip` without asking us (it was configured so): an infinite lease and a reservation."""
        self.reserve(mac, ip)
        binding = self._bind(mac, b"", mac, ip, now)
        binding.hostname = hostname
        binding.state = STATIC
        binding.expires_at = FOREVER

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
        return self._is_free(ip, now) and not self.is_taken(ip, mac)

    def in_pool(self, ip: bytes) -> bool:
        return self._first <= int.from_bytes(ip, "big") <= self._last and ip not in self._excluded

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

    def statistics(self) -> DhcpStatistics:
        return DhcpStatistics(
            bindings=len(self._bindings),
            declined=len(self._declined),
            evicted=self._evicted,
            recycled=self._recycled,
            exhausted=self._exhausted,
            shortened=self._told.shortened,
        )

    # What clients say

    def receive(self, message: DhcpMessage, now: float) -> DhcpReply | Drop:
        """Answer one message from a client."""
        mac = message.chaddr
        if message.op != dhcp.BOOTREQUEST:
            return Drop("not a request")
        if message.giaddr != ANY:
            return Drop("relayed")
        if mac[0] & 1 or mac == bytes(6) or mac == self.config.server_mac:
            return Drop("not a station's address")
        for code in (dhcp.REQUESTED_ADDRESS, dhcp.SERVER_ID, dhcp.LEASE_TIME):
            if len(message.options.get(code, ANY)) != 4:
                return Drop("malformed option")
        kind = message.kind
        if kind == dhcp.DISCOVER:
            return self._discover(message, now)
        if kind == dhcp.REQUEST:
            return self._request(message, now)
        if kind == dhcp.INFORM:
            return self._inform(message)
        if kind == dhcp.RELEASE:
            return self._release(message, now)
        if kind == dhcp.DECLINE:
            return self._decline(message, now)
        return Drop("no message type" if kind == 0 else "unknown message type")

    def _discover(self, message: DhcpMessage, now: float) -> DhcpReply | Drop:
        key = self._key(message)
        ip = self._choose(message, key, now)
        if ip is None:
            self._exhausted += 1
            return Drop("no address left")
        known = self._bindings.get(key)
        if known is not None and known.ip == ip and known.active(now) and known.state != OFFERED:
            binding = known  # his lease stands while he asks again
        else:
            binding = self._bind(key, message.options.get(dhcp.CLIENT_ID, b""), message.chaddr, ip, now)
            binding.state = OFFERED
            binding.expires_at = now + OFFER_SECONDS
        self._describe(binding, message)
        return self._grant(dhcp.OFFER, message, ip)

    def _request(self, message: DhcpMessage, now: float) -> DhcpReply | Drop:
        key = self._key(message)
        known = self._bindings.get(key)
        server = message.options.get(dhcp.SERVER_ID)
        if server is not None and server != self.config.server_ip:
            if known is not None and known.state == OFFERED:
                known.expires_at = now  # he chose another server's offer
            return Drop("for another server")
        # SELECTING and INIT-REBOOT name the address in option 50, RENEWING and REBINDING in ciaddr
        wanted = message.options.get(dhcp.REQUESTED_ADDRESS, message.ciaddr)
        if wanted == ANY:
            return Drop("no address requested")
        mine = self._expected(message.chaddr, key, now)
        unavailable = wanted != mine if mine is not None else not self._is_free(wanted, now)
        if unavailable or self.is_taken(wanted, message.chaddr):
            return self._refuse(message, "address not available")
        binding = self._bind(key, message.options.get(dhcp.CLIENT_ID, b""), message.chaddr, wanted, now)
        if binding.state != STATIC:
            lease = self._lease(message)
            binding.state = BOUND
            binding.expires_at = FOREVER if lease == INFINITE else now + lease
        self._describe(binding, message)
        return self._grant(dhcp.ACK, message, wanted)

    def _inform(self, message: DhcpMessage) -> DhcpReply | Drop:
        if not self._in_subnet(message.ciaddr):
            return Drop("informed of an address elsewhere")
        reply = self._reply(dhcp.ACK, message)
        reply.ciaddr = message.ciaddr
        self._told.tell(reply.options, message.options.get(dhcp.PARAMETER_LIST, b""))
        return DhcpReply(reply, message.ciaddr, message.chaddr, broadcast=False)

    def _release(self, message: DhcpMessage, now: float) -> Drop:
        binding = self._owned(message, message.ciaddr)
        if binding is None:
            return Drop("not the owner")
        if binding.state != STATIC:
            binding.state = RELEASED
            binding.expires_at = now
            self.on_released(binding.ip)
        return Drop("released")

    def _decline(self, message: DhcpMessage, now: float) -> Drop:
        ip = message.options.get(dhcp.REQUESTED_ADDRESS, message.ciaddr)
        binding = self._owned(message, ip)
        if binding is None or message.options.get(dhcp.SERVER_ID, self.config.server_ip) != self.config.server_ip:
            return Drop("not the owner")
        self._forget(binding)
        self._declined.pop(ip, None)
        while len(self._declined) >= MAX_DECLINED:
            self._recycle()
        self._declined[ip] = now + DECLINE_SECONDS
        return Drop("declined")

    # Who has which address

    def _key(self, message: DhcpMessage) -> bytes:
        """The client's identity.  A MAC address is 6 octets and option 61 gets a prefix, so they never collide.

        An option 61 that is the MAC address (udhcpc's) says nothing new: an initramfs that sends it and the dhclient
        that follows without it are one guest, and want one address.
        """
        client_id = message.options.get(dhcp.CLIENT_ID)
        if not client_id or client_id == b"\1" + message.chaddr or message.chaddr in self._reserved:
            return message.chaddr
        return b"client " + client_id

    def _owned(self, message: DhcpMessage, ip: bytes) -> _Binding | None:
        binding = self._bindings.get(self._key(message))
        if binding is None or binding.ip != ip or binding.mac != message.chaddr:
            return None
        return binding

    def _expected(self, mac: bytes, key: bytes, now: float) -> bytes | None:
        """The address that this client has, had, or will have by reservation; None when he is new."""
        reserved = self._reserved.get(mac)
        if reserved is not None and not self._is_declined(reserved, now):
            return reserved
        known = self._bindings.get(key)
        if known is None or self._reserved_ips.get(known.ip, mac) != mac or self.is_taken(known.ip, mac):
            return None
        return known.ip

    def _choose(self, message: DhcpMessage, key: bytes, now: float) -> bytes | None:
        """The address to offer, RFC 2131 section 4.3.1; None when the pool has none."""
        mine = self._expected(message.chaddr, key, now)
        if mine is not None:
            return mine
        mac = message.chaddr
        wanted = message.options.get(dhcp.REQUESTED_ADDRESS)
        if wanted is not None and self.is_available(wanted, mac, now):
            return wanted
        return self.free_address(mac, now) or self._least_useful(mac, now)

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

    def _is_free(self, ip: bytes, now: float) -> bool:
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
        self._recycled += 1

    def _bind(self, key: bytes, client_id: bytes, mac: bytes, ip: bytes, now: float) -> _Binding:
        """The binding of `key` to `ip`, new or known; whoever had either before has it no longer."""
        known = self._bindings.get(key)
        if known is not None and known.ip == ip:
            known.mac = mac
            known.client_id = client_id
            return known
        if known is not None:
            self._forget(known)
        holder = self._by_ip.get(ip)
        if holder is not None:
            self._forget(holder)
            self._evicted += 1
        elif len(self._bindings) >= MAX_BINDINGS:
            # An active one goes only when all are: 1024 clients on one link is somebody inventing addresses.
            self._forget(min(self._bindings.values(), key=lambda b: (b.active(now), b.state == STATIC, b.expires_at)))
            self._evicted += 1
        binding = _Binding(key, ip, mac, client_id, "", OFFERED, now)
        self._bindings[key] = binding
        self._by_ip[ip] = binding
        return binding

    def _forget(self, binding: _Binding) -> None:
        del self._bindings[binding.key]
        del self._by_ip[binding.ip]

    def _describe(self, binding: _Binding, message: DhcpMessage) -> None:
        name = message.options.get(dhcp.HOST_NAME)
        if name:
            binding.hostname = bytes(octet for octet in name[:255] if octet in _HOST_NAME_OCTETS).decode("ascii")

    def _in_subnet(self, ip: bytes) -> bool:
        number = int.from_bytes(ip, "big")
        return number & self._mask == self._server & self._mask and 0 < number & ~self._mask < ~self._mask & 0xFFFFFFFF

    # What we say

    def _lease(self, message: DhcpMessage) -> int:
        """Seconds; what the client wishes, but not more than configured."""
        wish = message.options.get(dhcp.LEASE_TIME)
        if wish is None:
            return self.config.lease
        return min(max(int.from_bytes(wish, "big"), MINIMUM_LEASE), self.config.lease)

    def _reply(self, kind: int, message: DhcpMessage) -> DhcpMessage:
        options = {dhcp.MESSAGE_TYPE: bytes((kind,)), dhcp.SERVER_ID: self.config.server_ip}
        return DhcpMessage(
            op=dhcp.BOOTREPLY,
            xid=message.xid,
            chaddr=message.chaddr,
            flags=message.flags,
            options=options,
        )

    def _grant(self, kind: int, message: DhcpMessage, ip: bytes) -> DhcpReply:
        reply = self._reply(kind, message)
        reply.yiaddr = ip
        reply.siaddr = self.config.server_ip
        if kind == dhcp.ACK:
            reply.ciaddr = message.ciaddr
        lease = self._lease(message)
        reply.options[dhcp.LEASE_TIME] = lease.to_bytes(4, "big")
        if lease != INFINITE:
            reply.options[dhcp.RENEWAL_TIME] = (lease // 2).to_bytes(4, "big")
            reply.options[dhcp.REBINDING_TIME] = (lease * 7 // 8).to_bytes(4, "big")
        self._told.tell(reply.options, message.options.get(dhcp.PARAMETER_LIST, b""))
        # RFC 2131 section 4.1
        if message.ciaddr != ANY:
            return DhcpReply(reply, message.ciaddr, message.chaddr, broadcast=False)
        if message.flags & dhcp.BROADCAST_FLAG:
            return DhcpReply(reply, BROADCAST_IP, BROADCAST_MAC, broadcast=True)
        return DhcpReply(reply, ip, message.chaddr, broadcast=False)

    def _refuse(self, message: DhcpMessage, why: str) -> DhcpReply:
        reply = self._reply(dhcp.NAK, message)
        reply.options[dhcp.MESSAGE] = why.encode("ascii")
        return DhcpReply(reply, BROADCAST_IP, BROADCAST_MAC, broadcast=True)

"""The rules of a DHCPv6 server, RFC 8415, for a LAN where we are the only one and always there.

A message and the time go in; a reply, or the reason why there is none, comes out.

An address is made of a hash of the client (its DUID and the IAID), so that it is the same after a restart, without a
file.  Its interface identifier is between FIRST_ID and LAST_ID: none that is made of a MAC address is so small (those
have ff:fe in the middle), and a random one is with a chance of 2**-48.  So nothing is promised by an Advertise, and no
table grows of it.  As in DHCP for IPv4, a client that goes on with an address we do not remember gets it if nobody
else has it, and a binding outlives its lease.

There are no temporary addresses and no prefixes to delegate, no relays, no unicast (section 21.12), no Reconfigure and
no authentication.  The last two are obsolete in practice, and the others mean nothing on this LAN.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2s
from typing import TYPE_CHECKING, Final, TypeAlias

from vpnkit.errors import ConfigError
from vpnkit.proto.leases import BOUND, EXPIRED, FOREVER, INFINITE, RELEASED, Drop, Lease, printable_name
from vpnkit.wire import dhcpv6
from vpnkit.wire.dhcp import encode_domains
from vpnkit.wire.dhcpv6 import Association, Dhcpv6Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FIRST_ID: Final = 0x10000  # interface identifiers that are given: PREFIX::1:0
LAST_ID: Final = 0x1FFFF  # to PREFIX::1:ffff
MAX_BINDINGS: Final = 1024  # addresses remembered
MAX_DECLINED: Final = 64  # addresses somebody else was seen to use; the oldest is tried again first
MAX_ASSOCIATIONS: Final = 8  # of one message; what is behind them is not answered
MAX_WISHES: Final = 2  # addresses of one association; the others are not spoken about
MAX_PROBES: Final = 4096  # addresses that are tried for a new client: more than guests have claimed, unless they attack
DECLINE_SECONDS: Final = 600.0
RETRY: Final = (60).to_bytes(4, "big")  # SOL_MAX_RT and INF_MAX_RT: the least of section 21.24, for when we come back
NTP_ADDRESS: Final = 1  # the suboption with a server's address, RFC 5908 section 4.1
MAX_REPLY: Final = 1232  # octets: what fits into the least MTU of IPv6

Key: TypeAlias = tuple[bytes, bytes, bytes]  # DUID, IAID, and the MAC address where two clients have the same two

# Section 16: what a message must carry.  A client's DUID is in all of them but an Information-request.
_WITH_SERVER_ID: Final = frozenset({dhcpv6.REQUEST, dhcpv6.RENEW, dhcpv6.RELEASE, dhcpv6.DECLINE})
_WITHOUT_SERVER_ID: Final = frozenset({dhcpv6.SOLICIT, dhcpv6.CONFIRM, dhcpv6.REBIND})
_FOR_CLIENTS: Final = frozenset({dhcpv6.ADVERTISE, dhcpv6.REPLY, dhcpv6.RECONFIGURE})


@dataclass(frozen=True)
class Dhcpv6Config:
    """What the server tells.  Addresses are 16 octets, `prefix` the first 8 of them; `lease` is in seconds."""

    prefix: bytes
    server_mac: bytes
    dns: tuple[bytes, ...] = ()
    search: tuple[str, ...] = ()
    ntp: tuple[bytes, ...] = ()
    lease: int = 86400


@dataclass(frozen=True)
class Dhcpv6Reply:
    """A message for the client's port 546, and the addresses that are his from now on."""

    message: Dhcpv6Message
    assigned: tuple[bytes, ...] = ()


@dataclass(slots=True)
class _Binding:
    key: Key
    ip: bytes
    mac: bytes
    hostname: str
    state: str
    expires_at: float

    def active(self, now: float) -> bool:
        return self.state == BOUND and now < self.expires_at


class Dhcpv6Server:
    """The bindings of one LAN.  Raises ConfigError when `config` cannot be told to anybody."""

    def __init__(self, config: Dhcpv6Config) -> None:
        if not 1 <= config.lease <= INFINITE:
            raise ConfigError(f"lease time {config.lease} is out of range: 1 to {INFINITE} seconds")
        self.config = config
        self.duid = dhcpv6.DUID_LL + config.server_mac
        self._told = _told(config)
        self._bindings: dict[Key, _Binding] = {}
        self._by_ip: dict[bytes, _Binding] = {}
        self._declined: dict[bytes, float] = {}  # address to the end of its mark, oldest first
        self.evicted = 0  # bindings that made room for another client
        self.exhausted = 0  # questions for which there was no address
        self.shortened = 0  # replies that had no room for all options
        # What the LAN knows: whether somebody other than the MAC uses the address; and what it wants to know.
        self.is_taken: Callable[[bytes, bytes], bool] = lambda ip, mac: False
        self.is_used: Callable[[bytes], bool] = lambda ip: False  # by a guest that is here
        self.on_released: Callable[[bytes], None] = lambda ip: None

    def rename(self, search: tuple[str, ...]) -> None:
        """Tell another search list from now on.  Raises ConfigError, and tells the old one."""
        config = replace(self.config, search=search)
        self._told = _told(config)
        self.config = config

    def addresses_of(self, mac: bytes) -> list[bytes]:
        """The addresses that `mac` was given and did not give back, their time over or not."""
        return [b.ip for b in self._bindings.values() if b.mac == mac and b.state == BOUND]

    def leases(self, now: float) -> list[Lease]:
        """The bindings in the order of their addresses; those whose time is over are EXPIRED."""
        return [
            Lease(
                binding.ip,
                binding.mac,
                binding.key[0],
                binding.hostname,
                binding.expires_at,
                EXPIRED if binding.state == BOUND and not binding.active(now) else binding.state,
            )
            for _, binding in sorted(self._by_ip.items())
        ]

    def declined(self) -> int:
        """How many addresses are marked."""
        return len(self._declined)

    # What clients say

    def receive(self, message: Dhcpv6Message, mac: bytes, now: float, *, multicast: bool) -> Dhcpv6Reply | Drop:
        """Answer one message of the client that has `mac`; `multicast` says that it was sent to all servers."""
        kind = message.kind
        server = message.get(dhcpv6.SERVERID)
        duid = message.get(dhcpv6.CLIENTID)
        if kind in _FOR_CLIENTS:
            return Drop("not for a server")
        if kind == dhcpv6.INFORMATION_REQUEST:
            if message.associations or not multicast:  # section 16.12 and 18.4
                return Drop("unexpected option" if multicast else "unicast")
            if server not in (None, self.duid):
                return Drop("for another server")
            return Dhcpv6Reply(self._configure(self._start(dhcpv6.REPLY, message), message))
        if kind not in _WITH_SERVER_ID and kind not in _WITHOUT_SERVER_ID:
            return Drop("unknown message type")
        if duid is None:
            return Drop("no client identifier")
        if kind in _WITHOUT_SERVER_ID:
            if server is not None:
                return Drop("unexpected option")
            if not multicast:
                return Drop("unicast")
        elif server is None:
            return Drop("no server identifier")
        elif server != self.duid:
            return Drop("for another server")
        elif not multicast:
            status = dhcpv6.encode_status(dhcpv6.USE_MULTICAST, "unicast was not allowed")
            return Dhcpv6Reply(self._start(dhcpv6.REPLY, message, status))
        if kind == dhcpv6.CONFIRM:
            return self._confirm(message)
        if kind in (dhcpv6.RELEASE, dhcpv6.DECLINE):
            return self._give_back(message, duid, mac, now)
        return self._assign(message, duid, mac, now)

    def _assign(self, message: Dhcpv6Message, duid: bytes, mac: bytes, now: float) -> Dhcpv6Reply:
        """Solicit, Request, Renew and Rebind: sections 18.3.1, 18.3.2, 18.3.4 and 18.3.5."""
        rapid = message.kind == dhcpv6.SOLICIT and message.get(dhcpv6.RAPID_COMMIT) is not None
        commits = message.kind != dhcpv6.SOLICIT or rapid
        assigned: list[bytes] = []
        answers: list[tuple[int, bytes]] = []
        for asked in message.associations[:MAX_ASSOCIATIONS]:
            known = self._bindings.get(self._key(duid, asked.iaid, mac))
            if asked.code != dhcpv6.IA_NA:
                answers.append(_nothing_for(asked, message.kind))
            elif message.kind == dhcpv6.REQUEST and not all(map(self._on_link, asked.addresses)):
                answers.append(_refused(asked, dhcpv6.NOT_ON_LINK, "not an address of this link"))
            else:
                ip = self._choose(asked, duid, mac, known, now)
                if ip is None:
                    self.exhausted += 1
                    code = dhcpv6.NO_BINDING if message.kind in (dhcpv6.RENEW, dhcpv6.REBIND) else dhcpv6.NO_ADDRS_AVAIL
                    answers.append(_refused(asked, code, "no address left"))
                    continue
                if commits:
                    self._bind(self._key(duid, asked.iaid, mac), ip, mac, message, now)
                    assigned.append(ip)
                ended = asked.addresses if message.kind in (dhcpv6.RENEW, dhcpv6.REBIND) else ()
                answers.append(self._grant(asked, ip, ended))
        kind = dhcpv6.REPLY if commits else dhcpv6.ADVERTISE
        reply = self._configure(self._start(kind, message, *answers), message)
        if rapid:
            reply.options.append((dhcpv6.RAPID_COMMIT, b""))
        elif not commits:
            reply.options.append((dhcpv6.PREFERENCE, b"\xff"))  # there is no other: nobody need wait for one
        return Dhcpv6Reply(reply, tuple(assigned))

    def _confirm(self, message: Dhcpv6Message) -> Dhcpv6Reply | Drop:
        """Section 18.3.3."""
        addresses = [address for asked in message.associations for address in asked.addresses]
        if not addresses:
            return Drop("nothing to confirm")
        if all(map(self._on_link, addresses)):
            status = dhcpv6.encode_status(dhcpv6.SUCCESS, "these are on the link")
        else:
            status = dhcpv6.encode_status(dhcpv6.NOT_ON_LINK, "not addresses of this link")
        return Dhcpv6Reply(self._start(dhcpv6.REPLY, message, status))

    def _give_back(self, message: Dhcpv6Message, duid: bytes, mac: bytes, now: float) -> Dhcpv6Reply:
        """Release and Decline: sections 18.3.7 and 18.3.8.  Only in his own name."""
        unknown: list[tuple[int, bytes]] = []
        for asked in message.associations[:MAX_ASSOCIATIONS]:
            binding = self._bindings.get(self._key(duid, asked.iaid, mac)) if asked.code == dhcpv6.IA_NA else None
            if binding is None or binding.mac != mac:
                unknown.append(_refused(asked, dhcpv6.NO_BINDING, "no such binding"))
            elif binding.ip in asked.addresses:
                if message.kind == dhcpv6.DECLINE:
                    self._forget(binding)
                    self._mark(binding.ip, now)
                else:
                    binding.state = RELEASED
                    binding.expires_at = now
                self.on_released(binding.ip)
        status = dhcpv6.encode_status(dhcpv6.SUCCESS, "noted")
        return Dhcpv6Reply(self._start(dhcpv6.REPLY, message, status, *unknown))

    # Who has which address

    def _key(self, duid: bytes, iaid: bytes, mac: bytes) -> Key:
        """The client's identity.  Copies of a disk image have one DUID: who comes second is told apart by his MAC
        address for as long as the first is here."""
        key = (duid, iaid, mac)
        if key in self._bindings:
            return key
        known = self._bindings.get((duid, iaid, b""))
        if known is not None and known.mac != mac and self.is_taken(known.ip, mac):
            return key
        return duid, iaid, b""

    def _choose(self, asked: Association, duid: bytes, mac: bytes, known: _Binding | None, now: float) -> bytes | None:
        """The client's address: what he has, else what he wishes, else what the hash says or one behind it."""
        if known is not None and self._is_available(known.ip, known, mac, now):
            return known.ip
        for ip in asked.addresses[:MAX_WISHES]:
            if self._in_range(ip) and self._is_available(ip, known, mac, now):
                return ip
        digest = blake2s(len(duid).to_bytes(2, "big") + duid + asked.iaid, digest_size=8).digest()
        start = int.from_bytes(digest, "big")
        for step in range(MAX_PROBES):
            number = FIRST_ID + (start + step) % (LAST_ID - FIRST_ID + 1)
            ip = self.config.prefix + number.to_bytes(8, "big")
            if self._is_available(ip, known, mac, now):
                return ip
        return None

    def _is_available(self, ip: bytes, known: _Binding | None, mac: bytes, now: float) -> bool:
        holder = self._by_ip.get(ip)
        if holder is not None and holder is not known:
            return False
        until = self._declined.get(ip)
        if until is not None:
            if now < until:
                return False
            del self._declined[ip]
        return not self.is_taken(ip, mac)

    def _on_link(self, ip: bytes) -> bool:
        return ip[:8] == self.config.prefix

    def _in_range(self, ip: bytes) -> bool:
        return self._on_link(ip) and FIRST_ID <= int.from_bytes(ip[8:], "big") <= LAST_ID

    def _bind(self, key: Key, ip: bytes, mac: bytes, message: Dhcpv6Message, now: float) -> None:
        binding = self._bindings.get(key)
        if binding is not None and binding.ip != ip:
            self._forget(binding)
            binding = None
        if binding is None:
            if len(self._bindings) >= MAX_BINDINGS:
                # One that is in use goes only when all are: this is somebody inventing clients.
                oldest = min(self._bindings.values(), key=lambda b: (self.is_used(b.ip), b.active(now), b.expires_at))
                self._forget(oldest)
                self.evicted += 1
            binding = self._bindings[key] = self._by_ip[ip] = _Binding(key, ip, mac, "", BOUND, now)
        binding.mac = mac
        binding.state = BOUND
        binding.expires_at = FOREVER if self.config.lease == INFINITE else now + self.config.lease
        name = message.get(dhcpv6.CLIENT_FQDN)
        if name:
            binding.hostname = printable_name(dhcpv6.host_name(name))

    def _forget(self, binding: _Binding) -> None:
        del self._bindings[binding.key]
        del self._by_ip[binding.ip]

    def _mark(self, ip: bytes, now: float) -> None:
        self._declined.pop(ip, None)
        if len(self._declined) >= MAX_DECLINED:
            del self._declined[next(iter(self._declined))]
        self._declined[ip] = now + DECLINE_SECONDS

    # What we say

    def _grant(self, asked: Association, ip: bytes, had: Iterable[bytes]) -> tuple[int, bytes]:
        """`ip` for as long as a lease is, and what he `had` besides no longer (section 18.3.4)."""
        lease = self.config.lease
        told = [dhcpv6.encode_address(ip, lease, lease)]
        told += [dhcpv6.encode_address(other, 0, 0) for other in tuple(had)[:MAX_WISHES] if other != ip]
        endless = lease == INFINITE
        t1, t2 = (INFINITE, INFINITE) if endless else (lease // 2, lease * 4 // 5)
        return dhcpv6.encode_association(asked.code, asked.iaid, told, t1, t2)

    def _start(self, kind: int, message: Dhcpv6Message, *options: tuple[int, bytes]) -> Dhcpv6Message:
        reply = Dhcpv6Message(kind, message.transaction, [(dhcpv6.SERVERID, self.duid)])
        duid = message.get(dhcpv6.CLIENTID)
        if duid is not None:
            reply.options.append((dhcpv6.CLIENTID, duid))
        reply.options += options
        return reply

    def _configure(self, reply: Dhcpv6Message, message: Dhcpv6Message) -> Dhcpv6Message:
        """Add what everybody should know, asked for or not, and what only those are told who ask."""
        room = MAX_REPLY - len(reply.encode()) - 8  # for an option of the caller
        limits = [(code, RETRY) for code in (dhcpv6.SOL_MAX_RT, dhcpv6.INF_MAX_RT) if message.requests(code)]
        times = [
            (dhcpv6.NTP_SERVER, dhcpv6.encode_options([(NTP_ADDRESS, server)]))  # each in an option of its own
            for server in self.config.ntp
            if message.requests(dhcpv6.NTP_SERVER)
        ]
        for code, value in self._told + limits + times:
            room -= 4 + len(value)
            if room < 0:
                self.shortened += 1
                break
            reply.options.append((code, value))
        return reply


def _told(config: Dhcpv6Config) -> list[tuple[int, bytes]]:
    """The options that are the same for everybody.  Raises ConfigError."""
    try:
        search = encode_domains(config.search)
    except ValueError as error:
        raise ConfigError(f"domain or search list: {error}") from None
    told = [(dhcpv6.DNS_SERVERS, b"".join(config.dns)), (dhcpv6.DOMAIN_LIST, search)]
    return [(code, value) for code, value in told if value]


def _refused(asked: Association, code: int, text: str) -> tuple[int, bytes]:
    return dhcpv6.encode_association(asked.code, asked.iaid, [dhcpv6.encode_status(code, text)])


def _nothing_for(asked: Association, kind: int) -> tuple[int, bytes]:
    """The answer to an association of which there are none here."""
    if kind in (dhcpv6.RENEW, dhcpv6.REBIND):
        return _refused(asked, dhcpv6.NO_BINDING, "no such binding")
    if asked.code == dhcpv6.IA_PD:
        return _refused(asked, dhcpv6.NO_PREFIX_AVAIL, "no prefixes here")
    return _refused(asked, dhcpv6.NO_ADDRS_AVAIL, "no temporary addresses here")

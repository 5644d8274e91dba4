"""The rules of a DHCP server, RFC 2131, for a LAN where we are the only one and always there.

A message and the time go in; a reply, or the reason why there is none, comes out.  Two decisions follow from being
the only server:

- We are authoritative.  A client that asks to go on with an address we do not remember gets it, if nobody else has it
  (we were restarted, he was not), and a NAK otherwise, so that he starts again at once instead of timing out.
- What clients need to work (mask, router, name server, MTU) is sent whether they ask for it or not; the VMN3T client
  sends no parameter list at all.

A client is its option 61, or else its MAC address (RFC 2131 section 4.2); a MAC address with a reservation is itself,
whatever it claims in option 61.  Deliberately absent: relays (giaddr), BOOTP without option 53, rapid commit, and the
client's maximum message size (option 57): replies always fit the 576 octets that everybody must take.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from vpnkit.proto.dhcp_bindings import Bindings
from vpnkit.proto.dhcp_options import Told
from vpnkit.proto.leases import BOUND, FOREVER, INFINITE, OFFERED, RELEASED, STATIC, Drop, printable_name
from vpnkit.wire import dhcp
from vpnkit.wire.dhcp import ANY, DhcpMessage

if TYPE_CHECKING:
    from vpnkit.proto.dhcp_bindings import Binding
    from vpnkit.proto.dhcp_options import DhcpConfig

OFFER_SECONDS: Final = 60.0  # how long an offer keeps its address from others
MINIMUM_LEASE: Final = 60  # seconds; shorter wishes are answered with this
LONGEST_CLIENT_ID: Final = 255  # octets: one option; it is echoed

BROADCAST_MAC: Final = b"\xff" * 6
BROADCAST_IP: Final = b"\xff" * 4


@dataclass(frozen=True)
class DhcpReply:
    """A message for the client's port 68, and where it goes; `broadcast` says that both addresses are broadcast.

    `fresh` is an offered address that the client did not have before: somebody may use it whom we never heard.
    """

    message: DhcpMessage
    destination_ip: bytes
    destination_mac: bytes
    broadcast: bool
    fresh: bool = False


@dataclass(frozen=True)
class DhcpStatistics:
    bindings: int
    declined: int  # addresses marked now
    evicted: int  # bindings that made room for another client
    recycled: int  # declined addresses given again before their time
    exhausted: int  # DISCOVERs for which there was no address
    shortened: int  # replies that had no room for all options


class DhcpServer(Bindings):
    """The server of one LAN.  Raises ConfigError when `config` cannot be told to anybody."""

    def __init__(self, config: DhcpConfig) -> None:
        super().__init__(config)
        self.config = config
        self._mask = int.from_bytes(config.mask, "big")
        self._server = int.from_bytes(config.server_ip, "big")
        self._told = Told(config)
        self._exhausted = 0

    def rename(self, domain: str, search: tuple[str, ...]) -> None:
        """Tell another domain and search list from now on.  Raises ConfigError, and tells the old ones."""
        config = replace(self.config, domain=domain, search=search)
        told = Told(config)
        told.shortened = self._told.shortened
        self.config, self._told = config, told

    def statistics(self) -> DhcpStatistics:
        return DhcpStatistics(
            bindings=len(self._bindings),
            declined=self.declined(),
            evicted=self.evicted,
            recycled=self.recycled,
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
        if len(message.options.get(dhcp.CLIENT_ID, b"")) > LONGEST_CLIENT_ID:
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
        ip = self.choose(message.chaddr, key, message.options.get(dhcp.REQUESTED_ADDRESS), now)
        if ip is None:
            self._exhausted += 1
            return Drop("no address left")
        known = self.get(key)
        fresh = known is None or known.ip != ip or known.state == OFFERED
        if known is not None and known.ip == ip and known.active(now) and known.state != OFFERED:
            binding = known  # his lease stands while he asks again
        else:
            binding = self.bind(key, message.options.get(dhcp.CLIENT_ID, b""), message.chaddr, ip, now)
            binding.state = OFFERED
            binding.expires_at = now + OFFER_SECONDS
        self._describe(binding, message)
        return replace(self._grant(dhcp.OFFER, message, ip), fresh=fresh)

    def _request(self, message: DhcpMessage, now: float) -> DhcpReply | Drop:
        key = self._key(message)
        known = self.get(key)
        server = message.options.get(dhcp.SERVER_ID)
        if server is not None and server != self.config.server_ip:
            if known is not None and known.state == OFFERED:
                known.expires_at = now  # he chose another server's offer
            return Drop("for another server")
        # SELECTING and INIT-REBOOT name the address in option 50, RENEWING and REBINDING in ciaddr
        wanted = message.options.get(dhcp.REQUESTED_ADDRESS, message.ciaddr)
        if wanted == ANY:
            return Drop("no address requested")
        mine = self.expected(message.chaddr, key, now)
        unavailable = wanted != mine if mine is not None else not self.is_free(wanted, now)
        if unavailable or self.is_taken(wanted, message.chaddr):
            return self._refuse(message, "address not available")
        binding = self.bind(key, message.options.get(dhcp.CLIENT_ID, b""), message.chaddr, wanted, now)
        if binding.state != STATIC:
            lease = self._lease(message)
            binding.state = BOUND
            binding.expires_at = FOREVER if lease == INFINITE else now + lease
        self._describe(binding, message)
        self.on_changed()
        return self._grant(dhcp.ACK, message, wanted)

    def _inform(self, message: DhcpMessage) -> DhcpReply | Drop:
        if not self._in_subnet(message.ciaddr):
            return Drop("informed of an address elsewhere")
        reply = self._reply(dhcp.ACK, message)
        reply.ciaddr = message.ciaddr
        reply.siaddr, reply.file = self._told.boot()
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
            self.on_changed()
        return Drop("released")

    def _decline(self, message: DhcpMessage, now: float) -> Drop:
        ip = message.options.get(dhcp.REQUESTED_ADDRESS, message.ciaddr)
        binding = self._owned(message, ip)
        if binding is None or message.options.get(dhcp.SERVER_ID, self.config.server_ip) != self.config.server_ip:
            return Drop("not the owner")
        self.mark(ip, now)
        return Drop("declined")

    # Who it is

    def _key(self, message: DhcpMessage) -> bytes:
        return self.key(message.chaddr, message.options.get(dhcp.CLIENT_ID, b""))

    def _owned(self, message: DhcpMessage, ip: bytes) -> Binding | None:
        binding = self.get(self._key(message))
        if binding is None or binding.ip != ip or binding.mac != message.chaddr:
            return None
        return binding

    def _describe(self, binding: Binding, message: DhcpMessage) -> None:
        said = printable_name(message.options.get(dhcp.HOST_NAME, b""))
        binding.hostname = self.name(message.chaddr) or said or binding.hostname

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
        client_id = message.options.get(dhcp.CLIENT_ID)
        if client_id:  # RFC 6842
            options[dhcp.CLIENT_ID] = client_id
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
        reply.siaddr, reply.file = self._told.boot()
        if kind == dhcp.ACK:
            reply.ciaddr = message.ciaddr
        lease = self._lease(message)
        reply.options[dhcp.LEASE_TIME] = lease.to_bytes(4, "big")
        if lease != INFINITE:
            reply.options[dhcp.RENEWAL_TIME] = (lease // 2).to_bytes(4, "big")
            reply.options[dhcp.REBINDING_TIME] = (lease * 7 // 8).to_bytes(4, "big")
        asked = message.options.get(dhcp.PARAMETER_LIST, b"")
        name = self.name(message.chaddr)
        if name and (dhcp.HOST_NAME in asked or not asked):
            reply.options[dhcp.HOST_NAME] = name.encode("ascii")
        self._told.tell(reply.options, asked)
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

"""The router of one guest's link: it advertises itself, and answers who asks for our IPv6 addresses.

What a guest says about himself is believed when he may say it (Station.owns); what he says about routers never.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vpnkit.net.plan import LEAST_MTU6
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.ndp import Advertiser, RouterConfig, To, advertisement, answer
from vpnkit.wire import ethernet, icmpv6, ipv6, ndp
from vpnkit.wire.ndp import NeighborAdvertisement, NeighborSolicitation

if TYPE_CHECKING:
    from vpnkit.net.guest import Guest
    from vpnkit.wire.ipv6 import Ipv6Packet


class Neighbours:
    """Neighbour discovery with one guest.

    What is dropped is counted: `rogue_router`, his router advertisements and redirects; `spoofed_nd`, what says that
    he has an address of ours, a neighbour's or another MAC; `bad_source`, an address that no guest has; `nd_hop_limit`;
    `nd_fragment` (RFC 6980).
    """

    def __init__(self, guest: Guest) -> None:
        self.queued_at = NEVER
        self._guest = guest
        self._config = _config(guest)
        self._advertiser = Advertiser(guest.random.uniform)
        guest.ipv6.listen(self._changed)
        self._changed()

    # What he says

    def message(self, packet: Ipv6Packet, source_mac: bytes, now: float) -> None:
        """An ICMPv6 message of types 133 to 137 that reached us.  Raises WireError for what RFC 4861 discards."""
        guest = self._guest
        kind = packet.payload[0] if packet.payload else 0
        if packet.fragmented:
            guest.count("nd_fragment")
        elif kind in (icmpv6.ROUTER_ADVERTISEMENT, icmpv6.REDIRECT):
            guest.count("rogue_router")
        elif packet.ttl != ndp.HOP_LIMIT:
            guest.count("nd_hop_limit")
        else:
            heard = ndp.decode(packet)
            if isinstance(heard, NeighborAdvertisement):
                self._told(heard, packet.source, source_mac)
            elif packet.source != ipv6.UNSPECIFIED and not self._may_say(heard.source_mac, packet.source, source_mac):
                pass
            elif isinstance(heard, NeighborSolicitation):
                self._asked(heard, packet.source, source_mac)
            else:
                self._advertiser.solicited(To(packet.source, source_mac), now)
                guest.update_deadline(self)

    def _may_say(self, told_mac: bytes, address: bytes, mac: bytes) -> bool:
        """Whether `address` is his, of the MAC that sent the frame and says so; from then on it is."""
        guest = self._guest
        if address not in guest.ours and not guest.station.lan.is_station_address(address):
            guest.count("bad_source")
            return False
        if (told_mac and told_mac != mac) or not guest.station.owns(address, mac):
            guest.count("spoofed_nd")
            return False
        return True

    def _told(self, told: NeighborAdvertisement, source: bytes, mac: bytes) -> None:
        """He has an address.  Section 7.2.5: without the override flag, what we know already stays."""
        known = self._guest.station.addresses.get(told.target)
        if known is not None and known != mac and not told.override:
            return
        if self._may_say(told.target_mac, told.target, mac) and source != told.target:
            self._may_say(told.target_mac, source, mac)

    def _asked(self, question: NeighborSolicitation, source: bytes, mac: bytes) -> None:
        guest = self._guest
        reply = answer(question, source, guest.ours, guest.plan.server_mac)
        if reply is not None:
            told, to = reply
            self._send(question.target, to, mac, told.encode(question.target, to))

    # What we say

    def _changed(self) -> None:
        if self._config is not None:
            self._advertiser.change(self._guest.now(), offered=self._guest.ipv6.offered)
            self._guest.update_deadline(self)

    def next_deadline(self) -> float:
        return self._advertiser.next_deadline()

    def on_deadline(self, now: float) -> None:
        for to in self._advertiser.due(now):
            self._advertise(to)

    def _advertise(self, to: To | None) -> None:
        assert self._config is not None
        guest = self._guest
        said = advertisement(self._config, offered=guest.ipv6.offered, default_router=guest.ipv6.default_router)
        address, mac = to or (ipv6.ALL_NODES, b"")
        source = guest.plan.link_local
        self._send(source, address, mac, said.encode(source, address))

    def _send(self, source: bytes, destination: bytes, mac: bytes, message: bytes) -> None:
        """`message` to the MAC address, or to everybody whom a multicast address means."""
        group = destination[0] == 0xFF
        header = ethernet.HEADER.pack(
            ipv6.multicast_mac(destination) if group else mac, self._guest.plan.server_mac, ethernet.ETHERTYPE_IPV6
        )
        ip = ipv6.encode_header(source, destination, ipv6.ICMPV6, len(message), ttl=ndp.HOP_LIMIT)
        self._guest.out.frame((header, ip, message))

    def close(self) -> None:
        """Idempotent.  What was told stays with the guest: whoever serves him next tells him the same."""
        self._guest.ipv6.forget(self._changed)


def _config(guest: Guest) -> RouterConfig | None:
    """What is true for this link; None when it carries no IPv6."""
    plan = guest.plan
    mtu = min(plan.mtu, guest.link.capabilities.mtu)
    if plan.prefix6 is None or plan.gateway6 is None or mtu < LEAST_MTU6:
        return None
    search = dict.fromkeys(name for name in (plan.domain, *plan.search) if name)
    return RouterConfig(
        plan.server_mac, plan.prefix6.network_address.packed, mtu, (plan.gateway6.packed,), tuple(search)
    )

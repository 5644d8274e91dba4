"""I11: what the router and the neighbours of the guest say by ICMPv6 is true, and said as RFC 4861 has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.sim.packets import Packet, address, need
from tests.sim.packets6 import (
    ALL_NODES,
    DNS,
    ECHO_REPLY,
    MTU,
    NEIGHBOUR_ADVERTISEMENT,
    NEIGHBOUR_SOLICITATION,
    PREFIX,
    ROUTER_ADVERTISEMENT,
    SOURCE_MAC,
    TARGET_MAC,
    UNSPECIFIED,
    group_mac,
    options,
    own_address,
    solicited,
)

if TYPE_CHECKING:
    from collections.abc import Callable

LATE: Final = 12.0  # seconds in which a change at the host must have come to the guest
ERRORS: Final = frozenset({(1, 0), (1, 1), (1, 3), (1, 4), (2, 0), (3, 0), (3, 1), (4, 0), (4, 1), (4, 2)})


class Routes:
    """Whether the host had IPv6, and when.  Seconds of the clock without its jumps, in which nothing could happen."""

    def __init__(self, now: Callable[[], float], *, has: bool) -> None:
        self._now = now
        self._jumped = 0.0
        self.has = has
        self._changes: list[tuple[float, bool]] = [(float("-inf"), has)]

    def now(self) -> float:
        return self._now() - self._jumped

    def jump(self, seconds: float) -> None:
        self._jumped += seconds

    def change(self) -> None:
        self.has = not self.has
        self._changes.append((self.now(), self.has))

    @property
    def changed_lately(self) -> bool:
        return len(self.lately()) > 1

    def lately(self) -> set[bool]:
        """What was so at some moment of the last seconds."""
        since = self.now() - LATE
        found = {has for when, has in self._changes if when >= since}
        return found | {[has for when, has in self._changes if when < since][-1]}


class RouterChecker:
    """Every ICMPv6 message that the network sends, one by one."""

    def __init__(self, prefix: bytes, server_mac: bytes, *, mtu: int, offer: str, routes: Routes) -> None:
        """`offer` is how the network was told to offer IPv6; `prefix` has 16 octets."""
        self._server_mac = server_mac
        self._mtu = mtu
        self._offer = offer
        self._routes = routes
        self._prefix = prefix
        self.gateway = prefix[:15] + b"\1"
        self.link_local = own_address(address("fe80::"), server_mac)
        self.ours = {self.gateway, prefix[:15] + b"\2", self.link_local}

    def offered(self, has: bool) -> bool:
        return self._offer in ("on", "local") or (self._offer == "auto" and has)

    def default_router(self, has: bool) -> bool:
        return self._offer == "on" or (self._offer == "auto" and has)

    def sent(self, packet: Packet) -> None:
        """Raises Bad."""
        kind, group = packet.kind, packet.destination[0] == 0xFF
        need(not group or packet.destination_mac == group_mac(packet.destination), "a group's MAC address")
        need(group or not packet.destination_mac[0] & 1, "to one address of many stations")
        need(not group or 133 <= kind <= 136, f"ICMPv6 {kind} to a group")
        if kind == ROUTER_ADVERTISEMENT:
            self._advertised(packet)
        elif kind == NEIGHBOUR_ADVERTISEMENT:
            self._is_neighbour(packet)
            target = packet.payload[4:20]
            need(target in self.ours, "an advertisement for an address that is not the network's")
            need(options(packet.payload[20:]).get(TARGET_MAC) == self._server_mac, "the MAC address of a neighbour")
            need(bool(packet.payload[0] & 0x80), "no router flag")
            need(bool(packet.payload[0] & 0x40) != group, "the solicited flag")
            need(not group or packet.destination == ALL_NODES, "a defence that not all hear")
        elif kind == NEIGHBOUR_SOLICITATION:
            self._is_neighbour(packet)
            target = packet.payload[4:20]
            need(packet.destination in (target, solicited(target)), "who is asked")
            need(target not in self.ours, "a question for an address that is the network's")
            need(options(packet.payload[20:]).get(SOURCE_MAC) == self._server_mac, "the MAC address of who asks")
        elif kind != ECHO_REPLY:
            need((kind, packet.code) in ERRORS, f"ICMPv6 type {kind} code {packet.code}")
            need(packet.destination != UNSPECIFIED, "an error to nobody")

    def _is_neighbour(self, packet: Packet) -> None:
        need(packet.ttl == 255, f"hop limit {packet.ttl} of a neighbour")
        need(packet.code == 0, f"code {packet.code} of a neighbour")
        need(packet.source in self.ours, "a neighbour that is not there")

    def _advertised(self, packet: Packet) -> None:
        self._is_neighbour(packet)
        need(packet.source == self.link_local, "a router that has no link-local address")
        lifetime = int.from_bytes(packet.payload[2:4], "big")
        said = options(packet.payload[12:])
        need(said.get(SOURCE_MAC) == self._server_mac, "the router's MAC address")
        need(MTU in said and PREFIX in said, "what is advertised")
        need(int.from_bytes(said[MTU][2:6], "big") == self._mtu, "the link's MTU")
        prefix = said[PREFIX]
        valid, preferred = int.from_bytes(prefix[2:6], "big"), int.from_bytes(prefix[6:10], "big")
        need(prefix[0] == 64 and prefix[14:30] == self._prefix, "the prefix")
        need(preferred <= valid, "an address that is preferred for longer than it is valid")
        told = (lifetime > 0, preferred > 0)
        possible = {(self.default_router(has), self.offered(has)) for has in self._routes.lately()}
        need(told in possible, f"I11: a router for {lifetime} s, a prefix for {preferred} s, which is not true")
        dns = said.get(DNS, b"")
        need((int.from_bytes(dns[2:6], "big") > 0) == told[1], "how long there is DNS")
        need(dns[6:22] == self.gateway, "who answers DNS")

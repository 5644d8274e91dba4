"""A LAN of honest and hostile guests by IPv6: who has an address keeps it, and nobody else is the router (B2, B14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from tests.fuzz import frames, frames6
from tests.fuzz.frames6 import ALL_NODES, GATEWAY, HOST, REMOTE, ROUTER, UNSPECIFIED, packed
from tests.fuzz.test_stateful_guest import SLOW, Quarrel, run_machine

if TYPE_CHECKING:
    from tests.fuzz.village import Villager

EVERYDAY = settings(max_examples=15, stateful_step_count=30, deadline=None)
THOROUGH = settings(max_examples=200, stateful_step_count=60, deadline=None)
ANNA6, BERTA6 = packed("fd65:7670:6e6b::a"), packed("fd65:7670:6e6b::b")
WHOSE = st.sampled_from([ANNA6, BERTA6, GATEWAY, HOST, ROUTER, UNSPECIFIED, REMOTE, None, None])
TO = st.sampled_from([ANNA6, BERTA6, ALL_NODES, GATEWAY, frames6.ALL_ROUTERS, frames6.solicited(ANNA6)])


class Quarrel6(Quarrel):
    """What `Quarrel` does goes on as well."""

    def __init__(self) -> None:
        super().__init__()
        for villager, address in ((self.anna, ANNA6), (self.berta, BERTA6)):
            villager.says(frames6.ether(self._solicitation(villager, address), src=villager.mac))
            villager.hears()

    @staticmethod
    def _solicitation(villager: Villager, source: bytes) -> bytes:
        to = frames6.solicited(GATEWAY)
        body = bytes(4) + GATEWAY + frames6.option(1, villager.mac)
        return frames.ipv6(frames6.icmp_message(135, 0, body, src=source, dst=to), 58, src=source, dst=to)

    @rule(
        who=st.integers(0, 5),
        kind=st.integers(133, 137),
        source=WHOSE,
        to=TO,
        about=WHOSE,
        number=st.integers(0, 40),
        told=st.integers(0, 8),
        mac=st.integers(0, 8),
        hops=st.sampled_from([255, 255, 64]),
        chain=st.sampled_from([b"", b"", b"\x3a\0\x05\x02\0\0\x01\0", b"\x3a\0\0\x01\0\0\0\x09"]),
    )
    def rogue_is_a_neighbour(self, who, kind, source, to, about, number, told, mac, hops, chain):
        if not self.rogues:
            return
        rogue = self.rogues[who % len(self.rogues)]
        own = packed(f"fd65:7670:6e6b::1{number:02x}")
        source, about = source or own, about or own
        rest = {133: b"", 134: bytes(8)}.get(kind, about) + (bytes(16) if kind == 137 else b"")
        body = b"\x60\0\0\0" + rest + frames6.option(1 + (kind & 1 ^ 1), self._mac(told, rogue))
        message = chain + frames6.icmp_message(kind, 0, body, src=source, dst=to)
        following = 58 if not chain else 0 if chain[2] else 44
        packet = frames.ipv6(message, following, src=source, dst=to, hops=hops)
        dst = b"\x33\x33" + to[12:] if to[0] == 0xFF else self._mac(mac, rogue)
        rogue.says(frames.ether(packet, dst=dst, src=rogue.mac, kind=0x86DD))
        self.village.settle()

    @rule(
        who=st.integers(0, 5),
        source=WHOSE,
        to=st.sampled_from([ANNA6, BERTA6, ALL_NODES]),
        port=st.sampled_from([9, 547]),
    )
    def rogue_sends_as(self, who, source, to, port):
        if not self.rogues:
            return
        rogue = self.rogues[who % len(self.rogues)]
        source = source or packed("fd65:7670:6e6b::99")
        datagram = frames.udp_datagram(b"rogue", sport=port, dport=546 if port == 547 else 9, src=source, dst=to)
        packet = frames.ipv6(datagram, 17, src=source, dst=to)
        dst = b"\x33\x33" + to[12:] if to[0] == 0xFF else (self.anna if to == ANNA6 else self.berta).mac
        rogue.says(frames.ether(packet, dst=dst, src=rogue.mac, kind=0x86DD))
        self.village.settle()

    @invariant()
    def honest_ones_lose_nothing(self):
        self._check6(self.anna.hears())
        lan = self.village.lan
        assert lan.holder(ANNA6).station is self.anna.guest.station
        assert lan.holder(BERTA6).station is self.berta.guest.station
        assert lan.holder(GATEWAY) is None
        word = b"by IPv6 %d" % self.words
        datagram = frames.udp_datagram(word, src=BERTA6, dst=ANNA6)
        self.berta.says(
            self.berta.ether(frames.ipv6(datagram, 17, src=BERTA6, dst=ANNA6), dst=self.anna.mac, kind=0x86DD)
        )
        heard = self.anna.hears()
        assert any(frame[62:] == word and frame[6:12] == self.berta.mac for frame in heard)
        self._check6(heard)
        super().honest_ones_lose_nothing()

    def _check6(self, heard: list[bytes]) -> None:
        """What Anna hears of others is not forged, and tells her of no router."""
        for frame in heard:
            if frame[12:14] != b"\x86\xdd" or frame[6:12] in (frames.SERVER_MAC, self.berta.mac):
                continue
            assert frame[22:38] not in (ANNA6, BERTA6, GATEWAY, HOST, ROUTER), "another's address"
            if frame[20] == 58:
                assert frame[54] not in (134, 137), "a router that is none"
                assert frame[54] != 136 or frame[62:78] not in (BERTA6, GATEWAY, HOST, ROUTER), "a forged neighbour"
            assert frame[20] != 17 or frame[54:56] != b"\x02\x23", "a DHCPv6 server that is none"


@pytest.mark.parametrize("how", [EVERYDAY, pytest.param(THOROUGH, marks=SLOW)], ids=["everyday", "thorough"])
def test_honest_and_hostile_guests_by_ipv6(how):
    run_machine(Quarrel6, how)

"""Fragments, on their way through a guest; the rules are in tests/vpnkit/proto/test_reassembly.py."""

from __future__ import annotations

import random

import pytest
import trio
from scapy.layers.inet import ICMP, IP, UDP, IPerror, UDPerror, fragment
from scapy.layers.l2 import Ether
from trio.testing import MockClock

from tests.vpnkit.net.fake_host import (
    DONT,
    GUEST,
    SERVER,
    fake_world,
    notes,
)
from tests.vpnkit.net.scripted_guest import GATEWAY, MAC, checksums_hold, world
from tests.vpnkit.net.still_guest import StillGuest
from vpnkit.net.plan import SERVER_MAC
from vpnkit.proto.reassembly import TIMEOUT


def still(scenario) -> None:
    """`scenario(still_guest, clock)` with a clock of its own."""
    clock = MockClock()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            made = StillGuest(nursery, verify_checksums=False)
            try:
                scenario(made, clock)
            finally:
                made.close()
                nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)


def frames(packet: IP, size: int = 1480) -> list[bytes]:
    return [bytes(Ether(src=MAC, dst=SERVER_MAC) / part) for part in fragment(packet, size)]


class TestFragments:
    @pytest.mark.parametrize("order", [1, -1])
    async def test_a_datagram(self, order):
        async with fake_world() as (w, host):
            data = random.Random(2).randbytes(5000)
            for frame in frames(IP(src=GUEST, dst=SERVER, id=7, ttl=9) / UDP(sport=5000, dport=53) / data)[::order]:
                w.scripted.send(frame)
            assert await notes(host, 3) == [("ttl", 8), ("discover", DONT), ("send", data)]
            assert w.guest.counters["fragment_reassembled"] == 1

    async def test_its_checksum_is_verified_always_rfc4963(self):
        async with fake_world() as (w, host):
            for frame in frames(IP(src=GUEST, dst=SERVER, id=7) / UDP(sport=5000, dport=53, chksum=77) / bytes(5000)):
                w.scripted.send(frame)
            await w.scripted.silence()
            assert w.guest.counters["malformed"] == 1
            assert not host.made

    async def test_an_echo(self):
        async with world() as w:
            data = random.Random(3).randbytes(4000)
            for frame in frames(IP(src=GUEST, dst=GATEWAY, id=9) / ICMP(id=5) / data):
                w.scripted.send(frame)
            parts = [(await w.scripted.frame(IP))[IP] for _ in range(3)]
            assert len({part.id for part in parts}) == 1
            assert b"".join(bytes(part.payload) for part in parts)[8:] == data

    async def test_identifications_differ_rfc6864(self):
        async with world() as w:
            seen = set()
            for i in range(20):
                for frame in frames(IP(src=GUEST, dst=GATEWAY, id=i) / ICMP(id=5) / bytes(2000)):
                    w.scripted.send(frame)
                seen.add(((await w.scripted.frame(IP))[IP].id, (await w.scripted.frame(IP))[IP].id))
            assert len(seen) == 20
            assert all(one == other for one, other in seen)

    async def test_others_addresses_and_broadcasts(self):
        async with fake_world() as (w, host):
            for source, destination in (("10.0.0.1", SERVER), (GUEST, "255.255.255.255")):
                for frame in frames(IP(src=source, dst=destination, id=9) / UDP(sport=5000, dport=53) / bytes(3000)):
                    w.scripted.send(frame)
            await w.scripted.silence()
            assert not host.made
            assert not len(w.guest.intake._reassembler)

    def test_time_exceeded(self):
        def scenario(made: StillGuest, clock: MockClock) -> None:
            first, _, last = frames(IP(src=GUEST, dst=SERVER, id=7) / UDP(sport=5000, dport=53) / bytes(3000))
            _, other, _ = frames(IP(src=GUEST, dst=SERVER, id=8) / UDP(sport=5000, dport=53) / bytes(3000))
            assert made.feed(first, last, other) == []
            clock.jump(TIMEOUT + 0.1)
            made.deadlines()
            (error,) = made.output()
            read = Ether(error)
            assert (read[IP].src, read[ICMP].type, read[ICMP].code) == (GATEWAY, 11, 1)
            assert (read[IPerror].id, read[IPerror].flags, read[UDPerror].sport) == (7, "MF", 5000)
            assert checksums_hold(error)
            assert made.guest.counters["fragment_timeout"] == 2
            clock.jump(1000)
            made.deadlines()
            assert made.output() == []
            assert not len(made.guest.intake._reassembler)

        still(scenario)

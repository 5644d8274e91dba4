"""Sixty-four guests at once, and two hundred one after the other: each is served, and nothing of them is left."""

from __future__ import annotations

import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.interop.guest_tools import Namespace, Server, echo, wait_for
from tests.interop.link_guests import WAYS, LinkGuest, exchange, no_flow_is_left, serving

pytestmark = [pytest.mark.program("cc"), pytest.mark.program("udhcpc")]

MANY = 64
TURNS = 200
MEBIBYTE = 1 << 20
STARTERS = 4  # at once; more would only wait for the processors


def identity(way):
    """Arguments for link_peer that make it somebody."""
    return (str(uuid.uuid4()),) if way.kind == "vmnet" else ()


def threads(instance):
    return len(os.listdir(f"/proc/{instance.process.pid}/task"))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["qemu", pytest.param("vmnet", marks=pytest.mark.slow)])
def test_sixty_four_at_once(lab, peer_program, lease_script, kind):
    way = WAYS[kind]
    with serving(lab.host, [way.url]) as instance, Server(lab.host.listen(), echo) as server, ExitStack() as stack:

        def come(_):
            guest = LinkGuest(peer_program, instance, way, *identity(way))
            stack.callback(guest.close)
            guest.dhcp(lease_script, timeout=60)
            return guest

        def transfer(guest, seed):
            with guest.connect(server.port) as connection:
                exchange(connection, MEBIBYTE, seed)

        first = come(None)
        transfer(first, 0)
        no_flow_is_left(instance)
        descriptors = instance.vpnkit.descriptors()

        with ThreadPoolExecutor(STARTERS) as pool:
            guests = [first, *pool.map(come, range(MANY - 1))]
        assert len({guest.ip for guest in guests}) == MANY
        reports = instance.ask("guests")
        assert {report["ip"]: report["mac"] for report in reports} == {guest.ip: guest.mac for guest in guests}
        with ThreadPoolExecutor(MANY) as pool:
            for done in [pool.submit(transfer, guest, seed) for seed, guest in enumerate(guests)]:
                done.result()
        assert server.failures == []
        assert threads(instance) <= 4

        for guest in guests[1:]:
            guest.close()
        wait_for(lambda: len(instance.ask("guests")) == 1, "one guest is left")
        no_flow_is_left(instance)
        [report] = instance.ask("guests")
        assert (report["ip"], report["mac"]) == (first.ip, first.mac)
        assert len(instance.ask("leases")) == MANY
        wait_for(lambda: instance.vpnkit.descriptors() <= descriptors, f"{descriptors} descriptors, as with one guest")
        transfer(first, MANY)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["qemu", "vmnet", "vfkit"])
def test_two_hundred_in_turn(lab, peer_program, lease_script, kind):
    way = WAYS[kind]
    namespace = Namespace.new()
    sizes = []
    with (
        serving(lab.host, [way.url.replace("{n}", "1")]) as instance,
        Server(lab.host.listen(), echo) as server,
    ):
        descriptors = instance.vpnkit.descriptors()
        for turn in range(TURNS):
            guest = LinkGuest(peer_program, instance, way, *identity(way), namespace=namespace)
            try:
                guest.dhcp(lease_script)
                with guest.connect(server.port) as connection:
                    exchange(connection, 65536, turn)
            finally:
                guest.close()
            if way.shared:  # who cannot come twice is told of the end by the next one
                wait_for(lambda: not instance.ask("guests"), "he is gone")
            sizes.append(instance.vpnkit.rss())
        assert server.failures == []
        if way.shared:
            no_flow_is_left(instance)
            wait_for(lambda: instance.vpnkit.descriptors() <= descriptors, f"{descriptors} descriptors, as with none")
        growth = (sizes[-1] - sizes[TURNS // 4]) / (TURNS * 3 // 4)
        assert growth < 30_000, f"{growth:.0f} octets of memory for each guest that was: {sizes[:: TURNS // 10]}"
    namespace.close()

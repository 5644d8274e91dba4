"""Two VMs on links of different kinds: bulk at once, and what they have to say to each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network

import pytest

from tests.interop.guest_tools import GUEST
from tests.vm.machine import Machine, boot_together
from tests.vm.tools import MACS, MEBIBYTE, Cables, Serve, download, give, lease, upload

BULK = 256  # MiB


def transfer(machine, web, sums, mebibytes):
    download(machine, web.port, mebibytes)
    upload(machine, web.port, sums, mebibytes)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("kinds", "mebibytes"),
    [
        pytest.param(("stream", "tap"), 16, id="stream-and-tap"),
        *(
            pytest.param(kinds, BULK, marks=pytest.mark.slow, id="{}-and-{}-bulk".format(*kinds))
            for kinds in [
                ("stream", "tap"),
                ("stream-server", "dgram"),
                ("tcp", "stream"),
                ("socket", "tcp-server"),
            ]
        ),
    ],
)
def test_pair(lab, image, web, sums, kinds, mebibytes):
    with Cables(lab.host) as cables:
        cabled = [cables.new(kind) for kind in kinds]
        with (
            Serve(lab.host, cables.directory, [cable.link for cable in cabled]) as serve,
            Machine(image, cabled[0].netdev, mac=MACS[0], namespace=cabled[0].namespace) as first,
            Machine(image, cabled[1].netdev, mac=MACS[1], namespace=cabled[1].namespace) as second,
            ThreadPoolExecutor(2) as pool,
        ):
            machines = (first, second)
            boot_together(machines)
            addresses = [lease(machine)["address"] for machine in machines]
            assert len(set(addresses)) == 2
            assert GUEST in addresses
            assert all(ip_address(address) in ip_network("192.168.65.0/24") for address in addresses)

            for done in [pool.submit(transfer, machine, web, sums, mebibytes) for machine in machines]:
                done.result()

            for machine, other in zip(machines, reversed(addresses), strict=True):
                for size in (56, 8972, 65000):
                    output = machine.check(f"ping -c2 -A -W5 -s {size} {other}")
                    assert output.count(f"{size + 8} bytes from {other}") == 2, output
            give(first, second, addresses[1], web.port, 16)
            give(second, first, addresses[0], web.port, 16)

            guests = {guest["mac"]: guest for guest in serve.report("guests")}
            assert set(guests) == set(MACS)
            for mac, address in zip(MACS, addresses, strict=True):
                assert guests[mac]["ip"] == address
                assert guests[mac]["bytes_to_host"] > mebibytes * MEBIBYTE
                assert guests[mac]["bytes_to_guest"] > mebibytes * MEBIBYTE

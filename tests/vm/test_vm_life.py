"""VMs that reboot, die and come back, and a vpnkit that does."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from tests.interop.guest_tools import ALIAS, GATEWAY, GUEST, wait_for
from tests.vm.machine import Machine
from tests.vm.tools import KINDS, MACS, Cables, Serve, download, lease, reaches

NOTICED = ("stream", "stream-server", "tcp", "tcp-server", "socket")  # whose end is an end of file


def kinds(*wanted, everyday=()):
    return [pytest.param(kind, marks=[] if kind in everyday else [pytest.mark.slow]) for kind in wanted]


@contextmanager
def site(lab, image, kind):
    """The cable, vpnkit and a VM that is booting."""
    with Cables(lab.host) as cables:
        cable = cables.new(kind)
        with (
            Serve(lab.host, cables.directory, [cable.link]) as serve,
            Machine(image, cable.netdev, mac=MACS[0], namespace=cable.namespace) as machine,
        ):
            yield cable, serve, machine.booted()


@pytest.mark.parametrize("kind", kinds(*KINDS, everyday=("stream",)))
def test_reboot(lab, image, web, kind):
    """The same VM has the same address again, and nothing of its old connections is in the way."""
    with site(lab, image, kind) as (_, serve, machine):
        first = lease(machine)
        assert first["address"] == GUEST
        machine.check(f"wget -q -O /dev/null http://{ALIAS}:{web.port}/bytes/999999999 >/dev/null 2>&1 &")
        wait_for(lambda: any(flow["bytes_to_guest"] > 1 << 20 for flow in serve.report("flows")), "bulk is under way")
        machine.reboot()
        assert lease(machine) == first
        download(machine, web.port, 1)
        assert [guest["ip"] for guest in serve.report("guests")] == [GUEST]


@pytest.mark.parametrize("kind", kinds(*KINDS, everyday=("stream-server",)))
def test_vpnkit_killed_and_started_again(lab, image, web, kind):
    with site(lab, image, kind) as (cable, serve, machine):
        first = lease(machine)
        serve.kill()
        assert machine.run(f"ping -c1 -W1 {GATEWAY}")[0] == 1
        serve.start()
        if not cable.reconnects:
            machine.kill()
            machine.restart()
            machine.booted()
            assert lease(machine) == first
        reaches(machine, GATEWAY)
        download(machine, web.port, 1)  # with the address of before
        assert lease(machine) == first
        download(machine, web.port, 1)


@pytest.mark.parametrize("kind", kinds(*NOTICED))
def test_machine_killed_and_started_again(lab, image, web, kind):
    with site(lab, image, kind) as (_, serve, machine):
        first = lease(machine)
        machine.check(f"sleep 600 | nc {ALIAS} {web.port} >/dev/null 2>&1 &")
        wait_for(lambda: bool(serve.report("flows")), "a connection")
        assert serve.macs() == {MACS[0]}
        machine.kill()
        wait_for(lambda: not serve.report("guests"), "the guest is gone")
        assert serve.report("flows") == []
        machine.restart()
        machine.booted()
        assert lease(machine) == first
        download(machine, web.port, 1)
        assert serve.macs() == {MACS[0]}

"""Leases as desktops use them, with other people's clients: they live, outlive us, and are the operator's to give."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from contextlib import contextmanager

import pytest

from tests.interop.guest_tools import GATEWAY, Directory, wait_for
from tests.interop.link_guests import TAP, WAYS, LinkGuest, serving

QEMU = WAYS["qemu"]
MACS = [f"52:54:00:00:01:{n:02x}" for n in range(4)]

# What udhcpc calls: every reason is a line, and the address is used
REPORT = """#!/bin/sh
echo $1 address=$ip host=$hostname boot=$boot_file server=$siaddr domain=$domain search=$(echo $search | tr ' ' ,)
[ "$1" = bound ] || exit 0
ip address replace $ip/$mask dev $interface
"""

DHCLIENT = """#!/bin/sh
echo $reason address=$new_ip_address mtu=$new_interface_mtu domain=$new_domain_name
case $reason in BOUND|REBOOT) ip address replace $new_ip_address/24 dev $interface;; esac
"""


@pytest.fixture
def directory():
    with Directory() as path:
        yield path


@pytest.fixture
def report(directory):
    script = directory / "report"
    script.write_text(REPORT)
    script.chmod(0o755)
    return str(script)


@contextmanager
def guest(program, instance, mac: str):
    made = LinkGuest(program, instance, QEMU, mac=mac)
    try:
        yield made
    finally:
        made.close()


def said(text: str, reason: str) -> list[dict[str, str]]:
    return [dict(word.split("=", 1) for word in line.split()[1:]) for line in text.splitlines() if reason in line]


def udhcpc(one: LinkGuest, report: str, *words: str) -> dict[str, str]:
    argv = ["udhcpc", "-f", "-n", "-q", "-t", "8", "-T", "1", "-i", TAP, "-s", report, *words]
    [bound] = said(one.run(*argv), "bound")
    return bound


def state_of(instance, mac: str) -> str:
    return next(lease["state"] for lease in instance.ask("leases") if lease["mac"] == mac and "." in lease["ip"])


@pytest.mark.program("udhcpc")
@pytest.mark.parametrize("ending", [pytest.param("in order", marks=pytest.mark.slow), "killed"])
def test_everybody_has_his_address_again_after_a_restart(lab, peer_program, report, directory, ending):
    state = directory / "state"
    given = {}
    with serving(lab.host, [QEMU.url], "--state", str(state)) as instance:
        for mac in MACS[:2]:
            with guest(peer_program, instance, mac) as one:
                given[mac] = udhcpc(one, report)["address"]
        if ending == "killed":
            wait_for(
                lambda: state.exists() and len(json.loads(state.read_text())["leases"]) == 2, "the leases are written"
            )
            before = state.read_text()
            instance.process.send_signal(signal.SIGKILL)
            instance.process.wait(10)
            instance.close = instance.kill
            assert state.read_text() == before
    with serving(lab.host, [QEMU.url], "--state", str(state)) as instance:
        for mac in MACS[2::-1]:  # somebody new first
            with guest(peer_program, instance, mac) as one:
                address = udhcpc(one, report)["address"]
                assert address == given.get(mac, address)
                assert address not in [other for owner, other in given.items() if owner != mac]


@pytest.mark.program("udhcpc")
def test_what_the_operator_says(lab, peer_program, report, directory):
    settings = directory / "dhcp.json"
    settings.write_text('{"domainName": "corp.example", "searchDomains": ["a.example", "b.example"]}')
    options = ["--lease", f"{MACS[0]}=192.168.65.77,db", "--boot-file", "http://192.168.65.2/boot.ipxe"]
    options += ["--next-server", "192.168.65.2", "--dhcp-json", str(settings)]
    with serving(lab.host, [QEMU.url], *options) as instance, guest(peer_program, instance, MACS[0]) as one:
        asked = ["-O", "hostname", "-O", "bootfile", "-O", "domain", "-O", "search"]
        bound = udhcpc(one, report, *asked)
        assert bound["address"] == "192.168.65.77"
        assert (bound["host"], bound["domain"]) == ("db", "corp.example")
        assert bound["search"] == "a.example,b.example"
        assert (bound["boot"], bound["server"]) == ("http://192.168.65.2/boot.ipxe", "192.168.65.2")
        assert one.run("ping", "-c1", "-W2", GATEWAY)


@pytest.mark.program("udhcpc")
def test_udhcpc_renews_and_releases(lab, peer_program, report):
    with serving(lab.host, [QEMU.url]) as instance, guest(peer_program, instance, MACS[0]) as one:
        with one.namespace.entered():
            client = subprocess.Popen(
                ["udhcpc", "-f", "-n", "-t", "8", "-T", "1", "-i", TAP, "-s", report],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        ending = threading.Timer(30, client.kill)
        ending.start()
        try:
            for line in client.stdout:
                if line.startswith("bound"):
                    client.send_signal(signal.SIGUSR1)
                elif line.startswith("renew"):
                    assert state_of(instance, one.mac) == "bound"
                    client.send_signal(signal.SIGUSR2)
                    wait_for(lambda: state_of(instance, one.mac) == "released", "the lease is released")
                    break
            else:
                raise AssertionError("it was not renewed")
        finally:
            ending.cancel()
            client.kill()
            client.communicate()


@pytest.mark.program("dhclient")
def test_dhclient_reboots_and_releases(lab, peer_program, directory):
    script = directory / "script"
    script.write_text(DHCLIENT)
    script.chmod(0o755)
    (directory / "conf").write_text("request subnet-mask, routers, interface-mtu, domain-name;\n")
    client = f"dhclient -1 -cf {directory}/conf -pf {directory}/pid -lf {directory}/leases -sf {script}"
    with serving(lab.host, [QEMU.url]) as instance, guest(peer_program, instance, MACS[0]) as one:
        printed = one.run("sh", "-ec", f"{client} {TAP}; {client} -x {TAP}; {client} {TAP}")
        [bound], [rebooted] = said(printed, "BOUND"), said(printed, "REBOOT")
        assert bound == rebooted
        assert bound["mtu"] == str(QEMU.mtu)
        assert state_of(instance, one.mac) == "bound"
        one.run("sh", "-ec", f"{client} -r {TAP}")
        wait_for(lambda: state_of(instance, one.mac) == "released", "the lease is released")


@pytest.mark.program("dhcpcd", "ping")
def test_dhcpcd(lab, peer_program):
    script = (
        "mount -t tmpfs none /run; mount -t tmpfs none /var/lib/dhcpcd;"
        "printf 'duid\\noption interface_mtu\\nnohook resolv.conf\\n' > /run/conf;"
        f"dhcpcd -4 -A -B -1 -q -t 15 -f /run/conf {TAP};"
        f"ip -4 -o address show {TAP}; ip link show {TAP}; ip route; ping -c1 -W2 {GATEWAY}"
    )
    with serving(lab.host, [QEMU.url]) as instance, guest(peer_program, instance, MACS[0]) as one:
        printed = one.run("unshare", "-m", "sh", "-ec", script)
        assert "inet 192.168.65.3/24" in printed
        assert f"mtu {QEMU.mtu}" in printed
        assert f"default via {GATEWAY}" in printed
        assert "1 received" in printed
        [lease] = instance.ask("leases")[:1]
        assert lease["client_id"].startswith("ff")  # RFC 4361: and its echo was accepted


@pytest.mark.program("udhcpc")
def test_the_address_of_a_silent_guest_is_not_offered(lab, peer_program, report):
    with (
        serving(lab.host, [QEMU.url]) as instance,
        guest(peer_program, instance, MACS[0]) as static,
        guest(peer_program, instance, MACS[1]) as one,
    ):
        static.namespace.run("sysctl", "-qw", f"net.ipv6.conf.{TAP}.disable_ipv6=1")
        static.configure("192.168.65.3")
        assert udhcpc(one, report)["address"] == "192.168.65.4"
        assert instance.counter("dhcp_conflict") == 1

"""Other people's DHCPv6 clients in a guest of `vpnkit run`."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.interop.guest_tools import Directory, vpnkit_run
from tests.tapdev.guests import environment

GATEWAY6 = "fd65:7670:6e6b::1"
GIVEN = r"fd65:7670:6e6b::1:[0-9a-f]{1,4}"
NETWORKD = "/lib/systemd/systemd-networkd"

# The kernel's own link-local address is there, and nothing else
READY = (
    "while ip -6 address show dev tap0 | grep -q tentative; do sleep 0.05; done;"
    "ip -6 address flush dev tap0 scope global;"
)


@pytest.fixture
def directory():
    with Directory() as path:
        yield path


@pytest.fixture
def run(lab, directory):
    """A shell script in a guest that is offered IPv6, and its standard output."""

    def vpnkit(script, *options, timeout=40):
        control = ("--control", str(directory / "control"))
        words = ("--ipv6", "on", "--search", "vm.example", *control, *options, "--", "sh", "-ec", READY + script)
        with lab.host.entered():
            done = subprocess.run(
                vpnkit_run("root", *words),
                capture_output=True,
                text=True,
                timeout=timeout,
                env=environment(),
                cwd="/",
            )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return vpnkit


@pytest.fixture
def dhclient(directory):
    """The beginning of a command, and what its script prints: a line for each reason."""
    script = directory / "script"
    script.write_text(
        "#!/bin/sh\n"
        "echo $reason address=$new_ip6_address dns=$new_dhcp6_name_servers search=$new_dhcp6_domain_search\n"
        "[ $reason != BOUND6 ] || ip -6 address add $new_ip6_address/128 dev $interface nodad\n"
    )
    script.chmod(0o755)
    return f"dhclient -6 -cf /dev/null -pf {directory}/pid -lf {directory}/leases -sf {script}"


def lines(text, reason):
    return [dict(word.split("=", 1) for word in line.split()[1:]) for line in text.splitlines() if reason in line]


@pytest.mark.program("dhclient", "ping")
def test_dhclient(run, dhclient, directory):
    leases = f"{sys.executable} -m vpnkit leases --control {directory}/control --json"
    printed = run(
        f"{dhclient} -1 tap0; ip -6 route add {GATEWAY6} dev tap0; ping -6 -c1 -W2 {GATEWAY6};"
        f"echo; {leases} | tr -d '\\n'; echo; {dhclient} -r tap0; echo; {leases} | tr -d '\\n'; echo;"
        f"{dhclient} -1 tap0; {dhclient} -x tap0"
    )
    first, second = lines(printed, "BOUND6")
    assert re.fullmatch(GIVEN, first["address"])
    assert first == second == {"address": first["address"], "dns": GATEWAY6, "search": "vm.example."}
    assert "1 received" in printed
    bound, released = (json.loads(line) for line in printed.splitlines() if line.startswith("["))
    assert [lease["state"] for lease in bound if lease["ip"] == first["address"]] == ["bound"]
    assert [lease["state"] for lease in released if lease["ip"] == first["address"]] == ["released"]


@pytest.mark.program("dhclient")
def test_dhclient_without_addresses(run, dhclient):
    printed = run(f"{dhclient} -S -1 tap0; {dhclient} -x tap0")
    assert lines(printed, "RENEW6") == [{"address": "", "dns": GATEWAY6, "search": "vm.example."}]


@pytest.mark.slow
@pytest.mark.program("dhclient")
def test_the_same_address_from_another_instance(run, dhclient, directory):
    """Nothing is kept but the client's identifier."""
    duid = 'default-duid "\\\\000\\\\003\\\\000\\\\001\\\\002P\\\\000\\\\000\\\\000\\\\001";'
    script = f"printf '{duid}' > {directory}/leases; {dhclient} -1 tap0; {dhclient} -x tap0"
    [first] = lines(run(script), "BOUND6")
    [second] = lines(run(script), "BOUND6")
    assert first == second


@pytest.mark.program("dhclient")
def test_where_ipv6_is_not_offered(run, dhclient, directory):
    printed = run(f"timeout 3 {dhclient} -1 -d tap0 || echo no answer; echo", "--ipv6", "off")
    assert "no answer" in printed
    assert "BOUND6" not in printed


@pytest.mark.program("dhcpcd", "ping")
def test_dhcpcd(run):
    printed = run(
        "mount -t tmpfs none /run; mount -t tmpfs none /var/lib/dhcpcd;"
        "printf 'noipv6rs\\nia_na 1\\nnohook resolv.conf\\n' > /run/conf;"
        f"dhcpcd -6 -B -1 -q -t 10 -f /run/conf tap0; ip -6 address show dev tap0; ping -6 -c1 -W2 {GATEWAY6}"
    )
    assert re.search(f"inet6 {GIVEN}/128", printed)
    assert "1 received" in printed


@pytest.mark.program("systemctl", "ping")
def test_systemd_networkd(run):
    """As the router advertises it: addresses by SLAAC and by DHCPv6, the latter with Rapid Commit."""
    printed = run(
        "mount -t tmpfs none /run/systemd; mount -t tmpfs none /etc/systemd/network;"
        "printf '[Match]\\nName=tap0\\n[Network]\\nDHCP=ipv6\\nIPv6AcceptRA=yes\\nLinkLocalAddressing=ipv6\\n'"
        " > /etc/systemd/network/tap.network;"
        "mkdir -p /run/systemd/netif; chown -R systemd-network /run/systemd/netif /run/systemd;"
        "mount -o remount,ro,bind /sys;"
        f"{NETWORKD} >/dev/null 2>&1 & networkd=$!;"
        "for i in $(seq 200); do ip -6 address show dev tap0 | grep -v tentative | grep -q ::1: && break;"
        " sleep 0.05; done;"
        "ip -6 address show dev tap0; cat /run/systemd/netif/links/*;"
        f"ping -6 -c1 -W2 {GATEWAY6}; kill $networkd"
    )
    assert re.search(f"inet6 {GIVEN}/128", printed)
    assert f"DNS={GATEWAY6}" in printed
    assert "1 received" in printed

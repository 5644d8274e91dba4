"""Everything that a VM wants of its network, over each kind of link."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass

import pytest

from tests.interop.guest_tools import ALIAS, BLOCK, GATEWAY, GUEST, REMOTE, digest_of, received
from tests.vm.machine import Machine
from tests.vm.tools import (
    JUMBO,
    KINDS,
    MACS,
    Cable,
    Cables,
    FileServer,
    Serve,
    download,
    lease,
    listening,
    upload,
)

EVERYDAY = [("dgram", JUMBO), ("tap", JUMBO), ("stream-server", 1500)]  # and stream with test_vm_pairs
ALL = [(kind, mtu) for kind in KINDS for mtu in (JUMBO, 1500)]
SSH = 2222  # of the host's loopback, forwarded to port 22 of the VM


@dataclass
class Site:
    cable: Cable
    mtu: int
    serve: Serve
    machine: Machine
    leased: dict[str, str]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(one, marks=[] if one in EVERYDAY else [pytest.mark.slow], id=f"{one[0]}-{one[1]}") for one in ALL
    ],
)
def site(request, lab, image, names):
    """A VM that has got its address."""
    kind, mtu = request.param
    options = ["-p", f"{SSH}:22", "--dns", f"{REMOTE}#{names.port}"]
    if mtu != JUMBO:
        options += ["--mtu", str(mtu)]
    with Cables(lab.host) as cables:
        cable = cables.new(kind)
        with (
            Serve(lab.host, cables.directory, [cable.link], *options) as serve,
            Machine(image, cable.netdev, mac=MACS[0], namespace=cable.namespace) as machine,
        ):
            machine.booted()
            yield Site(cable, mtu, serve, machine, lease(machine))


def test_lease(site):
    assert site.leased == {
        "address": GUEST,
        "mask": "255.255.255.0",
        "router": GATEWAY,
        "dns": GATEWAY,
        "mtu": str(site.mtu),
        "server": GATEWAY,
    }
    output = site.machine.check(
        "cat /sys/class/net/eth0/mtu; ip route; ip -4 -o address show eth0; cat /etc/resolv.conf"
    )
    assert output.splitlines()[0] == str(site.mtu)
    assert f"default via {GATEWAY} dev eth0" in output
    assert f"inet {GUEST}/24" in output
    assert f"nameserver {GATEWAY}" in output


def test_report(site):
    [guest] = site.serve.report("guests")
    assert guest["mac"] == MACS[0]
    assert guest["ip"] == GUEST
    assert guest["mtu"] == site.mtu
    assert guest["link"].startswith(site.cable.link.split(",")[0])
    assert f"link={site.cable.link}" in site.serve.ready


def test_names(site):
    for name, address in [("host.internal", ALIAS), ("GATEWAY.docker.internal", GATEWAY), ("vm.internal", GUEST)]:
        assert f"Address: {address}\n" in site.machine.check(f"nslookup -type=a {name}")
    assert "Address: 203.0.113.77\n" in site.machine.check("nslookup -type=a any.example")
    status, output = site.machine.run("nslookup missing.example")
    assert status == 1
    assert "NXDOMAIN" in output


def test_page_by_name(site, web):
    # A static program of glibc asks the name server of /etc/resolv.conf like any other.
    assert site.machine.check(f"wget -q -O - http://host.internal:{web.port}/page") == "a page of the host\n"


def test_refused(site, lab):
    with lab.host.listen() as closed:
        port = closed.getsockname()[1]
    status, output = site.machine.run(f"nc -w 5 {ALIAS} {port}")
    assert status == 1
    assert "Connection refused" in output


def test_download(site, web):
    download(site.machine, web.port, 16)


def test_upload(site, web, sums):
    upload(site.machine, web.port, sums, 16)


def test_answer_after_the_end(site, sums):
    """What the host says when the VM has said all it has to say."""
    output = site.machine.check(f"printf all | nc {ALIAS} {sums.port}")
    assert output == digest_of(iter([b"all"]))


def test_from_the_host_through_a_forward(site, lab):
    """`nc -e cat` gives back what it gets, until the end."""
    site.machine.check("nc -ll -p 22 -e cat >/dev/null 2>&1 &")
    listening(site.machine, 22)
    with lab.host.connect("127.0.0.1", SSH) as connection:

        def send():
            connection.sendall(BLOCK)
            connection.shutdown(1)

        sender = threading.Thread(target=send)
        sender.start()
        digest = digest_of(received(connection))
        sender.join()
    assert digest == digest_of(iter([BLOCK]))


@pytest.mark.parametrize("size", [512, 1428, 8192, 65464])
def test_udp(site, lab, size):
    """TFTP of a few blocks each way, in fragments where the MTU is small."""
    data = random.Random(size).randbytes(3 * size + 100)
    with FileServer(lab.host, {"data": data}) as server:
        output = site.machine.check(
            f"tftp -b {size} -g -r data -l data {ALIAS} {server.port} && sha256sum data &&"
            f"tftp -b {size} -p -l data -r back {ALIAS} {server.port}"
        )
        assert output.split()[0] == digest_of(iter([data]))
        assert server.files["back"] == data


@pytest.mark.parametrize("size", [0, 56, 1472, 1473, 8972, 65000])
def test_ping_of_our_own(site, size):
    output = site.machine.check(f"ping -c2 -A -W5 -s {size} {GATEWAY}; ping -c1 -W5 -s {size} {ALIAS}")
    assert output.count(" 0% packet loss") == 2, output
    assert output.count(f"{size + 8} bytes from {GATEWAY}") == 2, output


def test_ping_of_the_remote_host(site):
    assert " 0% packet loss" in site.machine.check(f"ping -c2 -A -W5 -s 1400 {REMOTE}")
    # The first of these may be answered by what the way to the host carries: 1500 octets.
    assert f"3008 bytes from {REMOTE}" in site.machine.check(f"ping -c3 -A -W5 -s 3000 {REMOTE}")

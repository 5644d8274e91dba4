"""A VM with IPv6 and nothing else: Debian's kernel makes its addresses, busybox uses them, dhclient asks for others."""

from __future__ import annotations

import io
import random
import re
import subprocess
import tarfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.interop.guest_tools import BLOCK, REMOTE, Directory, Lab, digest_of, received
from tests.interop.lab6 import ALIAS6, FAR6, GATEWAY6, REMOTE6, Lab6
from tests.interop.servers import NameServer, WebServer
from tests.vm.machine import Machine
from tests.vm.tools import JUMBO, MACS, Cables, Digests, FileServer, Serve, download, lease, listening, upload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.interop.guest_tools import Namespace
    from tests.vm.image import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.program("dhclient", "rdisc6")]

FORWARD = 2222  # of the host's loopback, to port 22 of the VM, whatever its address
MEBIBYTES = 64
PROGRAMS = ("/usr/sbin/dhclient", "/usr/bin/rdisc6")
MAPPED = "64:ff9b::cb00:714d"  # 203.0.113.77, which the name server has for every name

# What dhclient calls: the address and the name server become the VM's.
SCRIPT = """#!/bin/sh
[ $reason = BOUND6 ] || exit 0
: > /etc/resolv.conf
for server in $new_dhcp6_name_servers; do echo nameserver $server >> /etc/resolv.conf; done
ip -6 address add $new_ip6_address/128 dev $interface
"""


def programs() -> bytes:
    """PROGRAMS with the libraries that they need, as a tar file for /."""
    files = {program: f"bin/{Path(program).name}" for program in PROGRAMS}
    for program in PROGRAMS:
        told = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        files |= {library: library[1:] for library in re.findall(r"(/\S+) \(0x", told)}
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", dereference=True) as archive:
        for file, name in files.items():
            archive.add(file, name)
        script = tarfile.TarInfo("bin/become")
        script.size, script.mode = len(SCRIPT), 0o755
        archive.addfile(script, io.BytesIO(SCRIPT.encode()))
    return made.getvalue()


@pytest.fixture(scope="module")
def lab6():
    made = Lab6()
    yield made
    made.close()


@pytest.fixture(scope="module")
def files6(lab6):
    """A web server on the host's ::1."""
    with Directory() as path:
        (path / "page").write_text("a page of the host\n")
        (path / "block").write_bytes(BLOCK)
        (path / "programs").write_bytes(programs())
        with WebServer(lab6.host, path, "::1") as server:
            yield server


@pytest.fixture(scope="module")
def names4(lab6):
    with NameServer(lab6.remote, REMOTE) as server:
        yield server


@dataclass
class Site:
    serve: Serve
    machine: Machine


@contextmanager
def booted(host: Namespace, image: Image, kind: str, *options: str) -> Iterator[Site]:
    with Cables(host) as cables:
        cable = cables.new(kind)
        with (
            Serve(host, cables.directory, [cable.link], *options) as serve,
            Machine(image, cable.netdev, mac=MACS[0], namespace=cable.namespace) as machine,
        ):
            machine.booted()
            yield Site(serve, machine)


def global_addresses(machine: Machine) -> list[str]:
    """Those that may be used."""
    told = machine.check("ip -6 -o address show dev eth0 scope global")
    return [line.split()[3].partition("/")[0] for line in told.splitlines() if "tentative" not in line]


def find_router(machine: Machine, port: int) -> str:
    """Go up, and wait for an address; then what a router says is the VM's resolv.conf."""
    machine.check("ip link set eth0 up")
    machine.check(
        "until ip -6 -o address show dev eth0 scope global | grep -v tentative | grep -q .; do usleep 50000; done"
    )
    machine.check(f"wget -q -O - http://[{ALIAS6}]:{port}/programs | tar -x -C /")
    heard = machine.check("rdisc6 -1 -r 3 -w 4000 eth0")
    servers = re.findall(r"Recursive DNS server +: (\S+)", heard)
    machine.check(f"for server in {' '.join(servers)}; do echo nameserver $server; done > /etc/resolv.conf")
    return heard


@pytest.fixture(scope="module", params=["tap", "stream-server"])
def site(request, lab6, image, files6, names4):
    """A VM without IPv4: over a TAP device with every offload and a link of 64 KiB, over a stream with neither."""
    options = ("--nat64", "--dns", f"{REMOTE}#{names4.port}", "-p", f"{FORWARD}:22")
    with booted(lab6.host, image, request.param, *options) as made:
        if request.param == "tap":
            made.machine.check(f"ip link set eth0 mtu {JUMBO}")
        find_router(made.machine, files6.port)
        yield made


def test_its_addresses_and_its_way_out(site):
    machine = site.machine
    [address] = global_addresses(machine)
    assert address == "fd65:7670:6e6b:0:5054:ff:fe76:6b03"
    assert "default via fe80::f416:36ff:febc:f9c6 dev eth0" in machine.check("ip -6 route")
    assert "inet " not in machine.check("ip address show dev eth0")
    assert machine.check("cat /etc/resolv.conf") == f"nameserver {GATEWAY6}\n"
    [guest] = site.serve.report("guests")
    assert guest["ip"] is None
    assert address in guest["addresses"]


def test_names_and_pages(site, files6):
    assert f"Address: {ALIAS6}\n" in site.machine.check("nslookup -type=aaaa host.internal")
    page = f"http://host.internal:{files6.port}/page"
    assert site.machine.check(f"wget -q -O - {page}") == "a page of the host\n"


@pytest.mark.parametrize("address", [GATEWAY6, ALIAS6, REMOTE6, FAR6])
@pytest.mark.parametrize("size", [56, 1452, 8000])
def test_ping(site, address, size):
    """The first to somebody far may be answered by what the way takes."""
    output = site.machine.check(f"ping6 -c3 -A -W5 -s {size} {address}")
    assert f"{size + 8} bytes from {address}" in output


def test_64_mebibytes_each_way(site, lab6, files6):
    download(site.machine, files6.port, MEBIBYTES, address=ALIAS6)
    with Digests(lab6.host, "::1") as sums:
        upload(site.machine, files6.port, sums, MEBIBYTES, address=ALIAS6)


@pytest.mark.parametrize("size", [512, 8192, 65464])
def test_datagrams(site, lab6, size):
    """TFTP of a few blocks each way, in fragments where the MTU is small."""
    data = random.Random(size).randbytes(3 * size + 100)
    with FileServer(lab6.host, {"data": data}, "::1") as server:
        output = site.machine.check(
            f"tftp -b {size} -g -r data -l data {ALIAS6} {server.port} && sha256sum data &&"
            f"tftp -b {size} -p -l data -r back {ALIAS6} {server.port}"
        )
        assert output.split()[0] == digest_of(iter([data]))
        assert server.files["back"] == data


def test_traceroute(site):
    output = site.machine.check(f"traceroute6 -n -q1 -w3 -m5 {FAR6}")
    assert re.findall(r"^ *\d+ +([0-9a-f:]+) ", output, re.MULTILINE) == [GATEWAY6, REMOTE6, FAR6], output


def test_refused_and_unreachable_at_once(site):
    for address, reason in ((ALIAS6, "refused"), (REMOTE6, "refused"), ("2001:db8:77::1", "nreachable|No route")):
        status, output = site.machine.run(f"nc -w 20 {address} 9")
        assert status == 1
        assert re.search(reason, output), output


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_from_the_host_through_a_forward(site, lab6, address):
    site.machine.check("netstat -ltn | grep -q ':22 ' || nc -ll -p 22 -e cat >/dev/null 2>&1 &")
    listening(site.machine, 22)
    with lab6.host.connect(address, FORWARD) as connection:

        def send():
            connection.sendall(BLOCK)
            connection.shutdown(1)

        sender = threading.Thread(target=send)
        sender.start()
        digest = digest_of(received(connection))
        sender.join()
    assert digest == digest_of(iter([BLOCK]))


def test_nat64(site):
    """A name that has IPv4 only has an address, and the host that it is for is asked."""
    assert f"Address: {MAPPED}\n" in site.machine.check("nslookup -type=aaaa four.example")
    assert "bytes from 64:ff9b::c633:6402" in site.machine.check(f"ping6 -c1 -W5 64:ff9b::{REMOTE}")


def test_an_address_by_dhcpv6(site):
    machine = site.machine
    before = global_addresses(machine)
    machine.check(": > /etc/resolv.conf; : > leases")
    words = "-cf /dev/null -pf pid -lf leases -sf /bin/become"
    machine.check(f"mkdir -p /var/lib/dhcp; dhclient -6 -1 {words} eth0 2>&1", timeout=60)
    try:
        machine.check("while ip -6 -o address show dev eth0 | grep -q tentative; do usleep 50000; done")
        [address] = set(global_addresses(machine)) - set(before)
        assert re.fullmatch(r"fd65:7670:6e6b::1:[0-9a-f]{1,4}", address)
        assert machine.check("cat /etc/resolv.conf") == f"nameserver {GATEWAY6}\n"
        assert [each["state"] for each in site.serve.report("leases") if each["ip"] == address] == ["bound"]
        machine.check(f"ping6 -c1 -W5 -I {address} {FAR6}")
    finally:
        machine.check(f"dhclient -6 -x {words} eth0")


def test_a_vm_on_a_host_without_ipv6(image):
    """It has IPv4, is told of nothing else, and what a name has of IPv6 costs it no time."""
    lab = Lab()
    try:
        with (
            Directory() as path,
            WebServer(lab.host, path) as web,
            booted(lab.host, image, "stream-server") as made,
        ):
            (path / "page").write_text("a page of the host\n")
            lease(made.machine)
            assert made.machine.check(f"wget -q -O - http://host.internal:{web.port}/page") == "a page of the host\n"
            assert global_addresses(made.machine) == []
            assert made.machine.check("ip -6 route show default") == ""
            status, output = made.machine.run(f"nc -w 20 {REMOTE6} 80")
            assert status == 1
            assert "nreachable" in output
    finally:
        lab.close()

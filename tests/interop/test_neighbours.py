"""Two guests on different links: they reach each other as on a switch, and neither can pretend to be the other."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from tests.interop.guest_tools import ALIAS, GATEWAY, GATEWAY_MAC, Server, echo, stream, wait_for
from tests.interop.link_guests import (
    FORWARD,
    INSIDE,
    TAP,
    WAYS,
    Instance,
    LinkGuest,
    download,
    exchange,
    no_flow_is_left,
    serving,
    upload,
)
from tests.interop.servers import WebServer

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.program("cc"), pytest.mark.program("udhcpc"), pytest.mark.program("curl")]

SIZE = 32 << 20
BROADCAST = "ff:ff:ff:ff:ff:ff"
OUR_LINK_LOCAL = "fe80::f416:36ff:febc:f9c6"

PAIRS = [
    ("qemu", "vmnet"),
    ("krun-qemu", "qemu"),
    ("krun-vfkit", "bess"),
    ("dgram", "stdio"),
]
SLOW_PAIRS = [
    ("qemu", "qemu"),
    ("vmnet", "vmnet"),
    ("vfkit", "vfkit"),
    ("bess", "dgram"),
    ("krun-qemu", "vmnet"),
    ("krun-qemu", "krun-vfkit"),
    ("krun-vfkit", "qemu-connect"),
    ("stdio", "vfkit-hello"),
    ("gvforwarder", "qemu-tcp"),
]


class Pair(NamedTuple):
    instance: Instance
    a: LinkGuest
    b: LinkGuest


@contextmanager
def paired(lab, program, script, first: str, second: str, *options: str) -> Iterator[Pair]:
    ways = [WAYS[first], WAYS[second]]
    urls = dict.fromkeys(way.url.replace("{n}", str(number)) for number, way in enumerate(ways, 1))
    with serving(lab.host, urls, *options) as instance, ExitStack() as stack:
        guests = []
        for number, way in enumerate(ways, 1):
            guests.append(LinkGuest(program, instance, way, number=number))
            stack.callback(guests[-1].close)
            guests[-1].dhcp(script)
        yield Pair(instance, *guests)


def identify(names):
    return " and ".join(names)


@pytest.fixture(
    scope="module",
    params=[*PAIRS, *(pytest.param(pair, marks=pytest.mark.slow) for pair in SLOW_PAIRS)],
    ids=lambda names: identify(names),
)
def pair(lab, peer_program, lease_script, request):
    with paired(lab, peer_program, lease_script, *request.param) as made:
        yield made


@pytest.mark.program("ping")
def test_ping(pair):
    for one, other in ((pair.a, pair.b), (pair.b, pair.a)):
        done = one.run("sh", "-ec", f"ping -c1 -W5 {other.ip}; ping -c1 -W5 -s 1472 -M do {other.ip}; ip neighbour")
        assert done.count(" 0% packet loss") == 2
        assert f"{other.ip} dev {TAP} lladdr {other.mac}" in done


def test_udp(pair):
    with pair.a.datagrams() as client, pair.b.datagrams(9000) as server:
        for size in (0, 1, 1472):
            data = next(stream(size), b"")
            client.sendto(data, (pair.b.ip, 9000))
            received, source = server.recvfrom(65535)
            assert (received, source[0]) == (data, pair.a.ip)
            server.sendto(received, source)
            assert client.recv(65535) == data


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(b"x", id="of anything"),
        pytest.param(b"\0C", id="of port 67"),
    ],
)
def test_udp_in_fragments(pair, pattern):
    smallest = min(pair.a.way.mtu, pair.b.way.mtu)
    for guest in (pair.a, pair.b):
        guest.run("ip", "link", "set", TAP, "mtu", str(smallest))
    data = pattern * (9000 // len(pattern))
    try:
        with pair.a.datagrams() as client, pair.b.datagrams(9000) as server:
            client.sendto(data, (pair.b.ip, 9000))
            received, source = server.recvfrom(65535)
            assert received == data
            server.sendto(received, source)
            assert client.recv(65535) == data
    finally:
        for guest in (pair.a, pair.b):
            guest.run("ip", "link", "set", TAP, "mtu", str(guest.way.mtu))


def test_multicast_dns(pair):
    group = socket.inet_aton("224.0.0.251")
    with pair.a.datagrams() as speaker, pair.b.datagrams(5353) as listener:
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + socket.inet_aton(pair.b.ip))
        speaker.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(pair.a.ip))
        speaker.sendto(b"who is there", ("224.0.0.251", 5353))
        received, source = listener.recvfrom(2048)
        assert (received, source[0]) == (b"who is there", pair.a.ip)


@pytest.mark.program("sha256sum")
def test_transfers_with_each_other_and_with_the_host(pair, web, payload, served_files):
    _, a, b = pair
    with WebServer(b.namespace, served_files, b.ip) as neighbour, ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(download, a, neighbour.port, SIZE, b.ip),
            pool.submit(upload, a, neighbour.port, payload, b.ip),
            pool.submit(download, b, web.port, SIZE),
            pool.submit(upload, a, web.port, payload),
        ]
        for job in jobs:
            job.result()
    no_flow_is_left(pair.instance)


def link_local(guest: LinkGuest) -> str:
    """Its IPv6 address, empty as long as duplicates of it are looked for."""
    words = guest.run("ip", "-6", "-o", "address", "show", "dev", TAP, "-tentative").split()
    return next((word.partition("/")[0] for word in words if word.startswith("fe80:")), "")


@pytest.mark.program("ping")
def test_ping_by_ipv6(pair):
    for guest in (pair.a, pair.b):
        wait_for(lambda guest=guest: link_local(guest), "duplicate address detection has ended")
    assert " 0% packet loss" in pair.a.run("ping", "-6", "-c1", "-W5", f"{link_local(pair.b)}%{TAP}")


@pytest.mark.program("ping")
def test_ping_by_ipv6_that_is_larger_than_the_other_link(pair):
    """The first one is lost and its sender told the MTU; his kernel sends the others in fragments."""
    larger, smaller = sorted((pair.a, pair.b), key=lambda guest: -guest.way.mtu)
    for guest in (larger, smaller):
        wait_for(lambda guest=guest: link_local(guest), "duplicate address detection has ended")
    there = link_local(smaller)
    said = larger.run("sh", "-c", f"ping -6 -c5 -i0.2 -W5 -s 4000 {there}%{TAP}; true")
    route = larger.run("ip", "-6", "route", "get", there, "oif", TAP)
    larger.run("ip", "-6", "route", "flush", "cache")
    if larger.way.mtu > smaller.way.mtu:
        assert f"icmp_seq=1 Packet too big: mtu={smaller.way.mtu}" in said
        assert " 100% packet loss" not in said
        assert f" mtu {smaller.way.mtu} " in route
    else:
        assert " 0% packet loss" in said


# A guest that pretends


@pytest.fixture(scope="module")
def spied(lab, peer_program, lease_script):
    with paired(lab, peer_program, lease_script, "qemu", "vmnet", "-p", f"{FORWARD}:192.168.65.4:{INSIDE}") as made:
        made.a.run("ping", "-c1", "-W5", made.b.ip)
        yield made


@contextmanager
def undisturbed(lab, pair: Pair) -> Iterator[None]:
    """What the second guest has with the gateway, with the host and with the first works before, during and after."""
    instance, a, b = pair
    with Server(b.listen(INSIDE), echo) as server, lab.host.socket(socket.SOCK_DGRAM) as host, b.datagrams() as client:
        host.bind(("127.0.0.1", 0))
        host.settimeout(5)
        with lab.host.connect("127.0.0.1", FORWARD) as established:
            client.sendto(b"before", (ALIAS, host.getsockname()[1]))
            received, mapping = host.recvfrom(100)
            assert received == b"before"
            yield
            host.sendto(b"after", mapping)
            assert client.recv(100) == b"after"
            exchange(established, 100_000, seed=1)
        with lab.host.connect("127.0.0.1", FORWARD) as fresh:
            exchange(fresh, 100_000, seed=2)
        assert server.failures == []
    b.run("ping", "-c1", "-W5", GATEWAY)
    seen = b.run("ip", "neighbour", "show", "dev", TAP)
    assert f"{GATEWAY} lladdr {GATEWAY_MAC}" in seen
    assert f"{a.ip} lladdr {a.mac}" in seen
    assert {report["ip"]: report["mac"] for report in instance.ask("guests")} == {a.ip: a.mac, b.ip: b.mac}


@contextmanager
def counted(instance: Instance, name: str, count: int) -> Iterator[None]:
    before = instance.counter(name)
    yield
    wait_for(lambda: instance.counter(name) >= before + count, f"{count} {name} are counted")


@contextmanager
def nothing_of(pair: Pair, what: bytes) -> Iterator[None]:
    """No frame with `what` in it reaches the second guest."""
    with pair.b.packets() as frames:
        yield
        with pair.a.datagrams() as last:  # comes behind all the others
            last.sendto(b"the last", (pair.b.ip, 9))
        while b"the last" not in (frame := frames.recv(65535)):
            assert what not in frame


def forged_arp(a: LinkGuest, b: LinkGuest):
    for ip in (b.ip, GATEWAY, ALIAS):
        for operation in (1, 2):
            for target in (BROADCAST, b.mac, GATEWAY_MAC):
                yield Ether(src=a.mac, dst=target) / ARP(op=operation, hwsrc=a.mac, psrc=ip, hwdst=b.mac, pdst=b.ip)


def test_forged_arp(lab, spied):
    instance, a, b = spied
    forged = [bytes(frame) for frame in forged_arp(a, b)]
    with undisturbed(lab, spied), counted(instance, "spoofed_arp", len(forged)), a.packets() as raw:
        for frame in forged:
            raw.send(frame)


def test_forged_neighbour_advertisement(lab, spied):
    instance, a, b = spied
    wait_for(lambda: link_local(a), "duplicate address detection has ended")
    source = link_local(a)
    to_b = Ether(src=a.mac, dst=b.mac) / IPv6(src=source, dst="ff02::1")
    forged = [
        to_b / ICMPv6ND_NA(tgt=OUR_LINK_LOCAL, O=1) / ICMPv6NDOptDstLLAddr(lladdr=a.mac),
        to_b / ICMPv6ND_NA(tgt=source, O=1) / ICMPv6NDOptDstLLAddr(lladdr=b.mac),
    ]
    with (
        undisturbed(lab, spied),
        counted(instance, "spoofed_nd", len(forged)),
        nothing_of(spied, socket.inet_pton(socket.AF_INET6, OUR_LINK_LOCAL)),
        a.packets() as raw,
    ):
        for frame in forged:
            raw.send(bytes(frame))


def test_forged_mac(lab, spied):
    instance, a, b = spied
    forged = [
        Ether(src=b.mac, dst=GATEWAY_MAC) / IP(src=a.ip, dst=GATEWAY) / ICMP(),
        Ether(src=b.mac, dst=BROADCAST) / ARP(op=1, hwsrc=b.mac, psrc=b.ip, pdst=GATEWAY),
        Ether(src=GATEWAY_MAC, dst=b.mac) / IP(src=a.ip, dst=b.ip) / UDP(dport=9) / Raw(b"from the gateway"),
    ]
    with (
        undisturbed(lab, spied),
        counted(instance, "spoofed_mac", len(forged)),
        nothing_of(spied, b"from the gateway"),
        a.packets() as raw,
    ):
        for frame in forged:
            raw.send(bytes(frame))


@pytest.mark.program("ping")
def test_a_kernel_that_has_the_others_address(lab, spied):
    instance, a, b = spied
    a.run("ip", "address", "add", f"{b.ip}/32", "dev", TAP)
    try:
        with undisturbed(lab, spied), counted(instance, "spoofed_ip", 2):
            done = a.run("sh", "-c", f"ping -c2 -i0.2 -W1 -I {b.ip} {GATEWAY}; exit 0")
            assert "100% packet loss" in done
    finally:
        a.run("ip", "address", "del", f"{b.ip}/32", "dev", TAP)
    assert '"spoofed_ip":' in instance.command("status", "--json")


@pytest.mark.program("ping")
def test_a_kernel_that_has_the_others_mac(lab, spied):
    instance, a, b = spied
    mac = a.mac
    a.run("ip", "link", "set", TAP, "address", b.mac)
    try:
        with counted(instance, "spoofed_mac", 2):
            assert "100% packet loss" in a.run("sh", "-c", f"ping -c2 -i0.2 -W1 {GATEWAY}; exit 0")
            assert " 0% packet loss" in b.run("ping", "-c1", "-W5", GATEWAY)
    finally:
        a.run("ip", "link", "set", TAP, "address", mac)
    with undisturbed(lab, spied):
        assert " 0% packet loss" in a.run("ping", "-c1", "-W5", b.ip)


@pytest.mark.program("ping")
def test_isolated_guests(lab, peer_program, lease_script, web):
    with paired(lab, peer_program, lease_script, "qemu", "vmnet", "--isolate") as pair:
        instance, a, b = pair
        for one, other in ((a, b), (b, a)):
            assert "100% packet loss" in one.run("sh", "-c", f"ping -c1 -W1 {other.ip}; exit 0")
            one.run("ip", "neighbour", "replace", other.ip, "lladdr", other.mac, "dev", TAP)
            with counted(instance, "isolated", 1):
                assert "100% packet loss" in one.run("sh", "-c", f"ping -c1 -W1 {other.ip}; exit 0")
            download(one, web.port, 1 << 20)

"""Every kind of link with a guest that has this kernel's network stack: what a VM's user does first."""

from __future__ import annotations

import hashlib
import socket
from typing import NamedTuple

import pytest

from tests.interop.guest_tools import (
    ALIAS,
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    REMOTE,
    Server,
    echo,
    stream,
)
from tests.interop.link_guests import (
    FORWARD,
    INSIDE,
    WAYS,
    Instance,
    LinkGuest,
    download,
    exchange,
    no_flow_is_left,
    serving,
    upload,
)

pytestmark = [pytest.mark.program("cc"), pytest.mark.program("udhcpc"), pytest.mark.program("curl")]

EVERYDAY = ("qemu", "qemu-connect", "vmnet", "vfkit-hello", "dgram", "bess", "stdio", "krun-qemu", "krun-vfkit")


class Joined(NamedTuple):
    instance: Instance
    guest: LinkGuest
    lease: dict[str, str]


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.slow) for name in WAYS],
)
def joined(lab, peer_program, lease_script, names, request):
    way = WAYS[request.param]
    options = ["-p", f"{FORWARD}:{INSIDE}", "--dns", f"{REMOTE}#{names.port}"]
    with serving(lab.host, [way.url.replace("{n}", "1")], *options) as instance:
        guest = LinkGuest(peer_program, instance, way)
        try:
            yield Joined(instance, guest, guest.dhcp(lease_script))
        finally:
            guest.close()


def test_dhcp(joined):
    instance, guest, lease = joined
    assert lease == {
        "address": GUEST,
        "mask": "24",
        "router": GATEWAY,
        "dns": GATEWAY,
        "mtu": str(guest.way.mtu),
    }
    [report] = instance.ask("guests")
    assert (report["ip"], report["mac"], report["mtu"]) == (GUEST, guest.mac, guest.way.mtu)
    if guest.way.kind == "vmnet":
        assert (guest.mac, guest.told_mtu) == ("02:50:00:00:00:01", 1500)


@pytest.mark.program("ping")
def test_ping(joined):
    guest = joined.guest
    full = guest.way.mtu - 28
    done = guest.run("sh", "-ec", f"ping -c1 -W5 {GATEWAY}; ping -c1 -W5 -s {full} {GATEWAY}; ip neighbour")
    assert done.count(" 0% packet loss") == 2
    assert f"{GATEWAY} dev tap0 lladdr {GATEWAY_MAC}" in done


@pytest.mark.program("dig")
def test_dig(joined):
    done = joined.guest.run(
        "sh", "-ec", f"dig +short @{GATEWAY} any.example; dig +short +tcp @{GATEWAY} vm.internal; "
        f"dig @{GATEWAY} +bufsize=4096 +ignore TXT big.example"
    )  # fmt: skip
    assert done.splitlines()[:2] == ["203.0.113.77", GUEST]
    assert "(UDP)" in done
    assert done.count("x" * 97) == 30


def test_udp_echo(lab, joined):
    guest = joined.guest
    with lab.host.socket(socket.SOCK_DGRAM) as server, guest.datagrams() as client:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        for size in (0, 1, guest.way.mtu - 28):
            data = next(stream(size), b"")
            client.sendto(data, (ALIAS, server.getsockname()[1]))
            received, source = server.recvfrom(65535)
            assert received == data
            server.sendto(received, source)
            assert client.recv(65535) == data
        largest = 32000 if guest.way.kind == "stdio" else 65507  # a pipe holds 64 KiB
        for size in (1473, 9000, largest):  # to the guest in fragments, where the link is narrower
            data = next(stream(size))
            server.sendto(data, source)
            assert client.recv(65535) == data


def test_forward_into_the_guest(lab, joined):
    with Server(joined.guest.listen(INSIDE), echo) as server:
        with lab.host.connect("127.0.0.1", FORWARD) as connection:
            connection.settimeout(30)
            exchange(connection, 3 << 20, seed=1)
        assert server.failures == []


@pytest.mark.program("sha256sum")
def test_download_and_upload(joined, web, payload):
    instance, guest, _ = joined
    download(guest, web.port, payload.stat().st_size)
    before = instance.ask("status")["frames_to_host"]
    upload(guest, web.port, payload)
    frames = instance.ask("status")["frames_to_host"] - before
    no_flow_is_left(instance)
    if "-k" in guest.way.flags:
        assert frames < payload.stat().st_size / 1448 / 2, "the guest did not use its offloads"


@pytest.mark.slow
@pytest.mark.program("sha256sum")
def test_256_mebibytes_each_way(joined, web, payload):
    download(joined.guest, web.port, 256 << 20)
    upload(joined.guest, web.port, payload, copies=8)
    no_flow_is_left(joined.instance)


@pytest.mark.program("busybox")
def test_wget(joined, web):
    done = joined.guest.run("sh", "-ec", f"busybox wget -qO- http://{ALIAS}:{web.port}/bytes/100000 | sha256sum")
    assert done.split()[0] == hashlib.sha256(b"".join(stream(100000))).hexdigest()

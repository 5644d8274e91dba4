"""Guests with the network stack of this kernel that have IPv6, and some that have nothing else; the host has both.

One comes by QEMU's framing, where no checksum and no cut of a segment is left to anybody, and has no IPv4; one is
`vpnkit run`'s, whose TAP device can do all that the kernel knows.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys

import pytest

from tests.interop.guest_tools import (
    ALIAS,
    GUEST,
    Directory,
    Server,
    digest_of,
    echo,
    receive_exactly,
    received,
    running,
    stream,
    vpnkit_run,
    wait_for,
)
from tests.interop.lab6 import ALIAS6, FAR6, GATEWAY6, GUEST6, HOST6, PREFIX6, REMOTE6, Lab6, guest6
from tests.interop.link_guests import TAP, download, exchange, serving, upload
from tests.interop.servers import WebServer
from tests.tapdev.guests import environment

pytestmark = [pytest.mark.program("cc", "curl", "ping", "rdisc6")]

MEBIBYTES = 64
FORWARDS = {
    "8080:80": "[::1]:8080",  # to the first guest, whatever it has
    "127.0.0.1:8081:80": "127.0.0.1:8081",
    f"[{HOST6}]:8082:80": f"[{HOST6}]:8082",
}


@pytest.fixture(scope="module")
def lab6():
    made = Lab6()
    yield made
    made.close()


@pytest.fixture(scope="module")
def files(served_files):
    (served_files / "page").write_text("a page of the host\n")
    return served_files


@pytest.fixture(scope="module")
def web6(lab6, files):
    with WebServer(lab6.host, files, "::1") as server:
        yield server


@pytest.fixture(scope="module")
def instance(lab6):
    with serving(lab6.host, ["qemu:{d}/qemu"], *(word for text in FORWARDS for word in ("-p", text))) as made:
        yield made


@pytest.fixture(scope="module")
def only6(instance, peer_program):
    """A guest that has made its address, and asks who the router says."""
    with guest6(peer_program, instance) as made:
        made.wait_address()
        made.resolve_by_rdnss()
        yield made


@pytest.fixture(scope="module")
def inside(lab6):
    with running(lab6.host) as made:
        yield made


@pytest.fixture(scope="module", params=["only6", "inside"])
def either(request):
    return request.getfixturevalue(request.param)


# Addresses and names


def test_it_has_no_ipv4_and_the_gateway_resolves(only6):
    assert only6.namespace.run("ip", "-4", "address", "show", "dev", TAP) == ""
    assert only6.resolv_conf.read_text() == f"nameserver {GATEWAY6}\n"
    assert only6.has_default_route()


@pytest.mark.program("dig")
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_names_of_ours_by_ipv6(only6, transport):
    ask = ("dig", "+short", transport, "AAAA")
    assert only6.run(*ask, "host.internal").stdout == f"{ALIAS6}\n"
    assert only6.run(*ask, "gateway.internal", f"@{GATEWAY6}").stdout == f"{GATEWAY6}\n"
    assert only6.run(*ask, "vm.internal").stdout.split() == only6.addresses()
    assert only6.run("dig", "+short", transport, "-x", ALIAS6).stdout == "host.internal.\n"


def test_a_page_of_the_hosts_loopback_by_name(only6, web6):
    assert only6.run("curl", "-sSf", f"http://host.internal:{web6.port}/page").stdout == "a page of the host\n"


@pytest.mark.program("dhclient")
def test_a_guest_that_uses_dhcpv6_only(lab6, web6, peer_program):
    """Its address and its name server are DHCPv6's (option 23), and routers tell it nothing."""
    with (
        serving(lab6.host, ["qemu:{d}/qemu"]) as instance,
        guest6(peer_program, instance) as guest,
    ):
        guest.namespace.set(f"conf/{TAP}/autoconf", 0, "ipv6")
        guest.namespace.run("ip", "-6", "address", "flush", "dev", TAP, "scope", "global")
        wait_for(lambda: bool(guest.addresses("link")), "it has an address to ask from")
        script, leases = (guest.resolv_conf.with_name(name) for name in ("script", "leases"))
        script.write_text(
            "#!/bin/sh\n[ $reason = BOUND6 ] || exit 0\n"
            f"for server in $new_dhcp6_name_servers; do echo nameserver $server; done > {guest.resolv_conf}\n"
            "ip -6 address add $new_ip6_address/128 dev $interface nodad\n"
        )
        script.chmod(0o755)
        words = ("-cf", "/dev/null", "-pf", f"{script}.pid", "-lf", str(leases), "-sf", str(script))
        guest.run("dhclient", "-6", "-1", *words, TAP)
        try:
            [address] = guest.addresses()
            assert re.fullmatch(r"fd65:7670:6e6b::1:[0-9a-f]{1,4}", address)
            assert guest.resolv_conf.read_text() == f"nameserver {GATEWAY6}\n"
            page = f"http://host.internal:{web6.port}/page"
            assert guest.run("curl", "-sSf", page).stdout == "a page of the host\n"
            [lease] = instance.ask("leases")
            assert (lease["ip"], lease["state"], lease["mac"]) == (address, "bound", guest.link.mac)
            assert address in instance.command("leases")
        finally:
            guest.run("dhclient", "-6", "-x", *words, TAP)


# Ping, TCP and UDP


@pytest.mark.parametrize("address", [GATEWAY6, ALIAS6, REMOTE6, FAR6])
@pytest.mark.parametrize("size", ["56", "20000"])
def test_ping(either, address, size):
    done = either.namespace.run("ping", "-6", "-c5", "-i0.05", "-W5", "-s", size, address)
    if address in (GATEWAY6, ALIAS6) or size == "56":
        assert "5 received" in done
    else:  # the first are answered by what the way takes, once for each narrower link: the guest cuts the others
        assert re.search("[345] received", done), done


def test_64_mebibytes_each_way(either, web6, payload):
    guest, address = either.namespace, f"[{ALIAS6}]"
    download(guest, web6.port, MEBIBYTES << 20, address)
    upload(guest, web6.port, payload, address, copies=(MEBIBYTES << 20) // payload.stat().st_size)


def test_both_ways_at_once_to_another_host(lab6, either):
    with Server(lab6.remote.listen(REMOTE6), echo) as server, either.namespace.connect(REMOTE6, server.port) as client:
        exchange(client, (8 << 20) + 77, seed=6)
    assert server.failures == []


@pytest.mark.slow
@pytest.mark.program("iperf3")
@pytest.mark.parametrize(
    "way", [(), ("-R",), ("-u", "-b", "20M", "-l", "1400"), ("-u", "-b", "20M", "-l", "1400", "-R")], ids=" ".join
)
def test_iperf3(lab6, either, way):
    with lab6.remote.entered():
        server = subprocess.Popen(["iperf3", "-6", "-s", "-1"], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: ":5201 " in lab6.remote.run("ss", "-Hltn"), "iperf3 listens")
        done = either.namespace.run("iperf3", "-6", "-J", "-c", REMOTE6, "-t", "1", *way)
    finally:
        server.kill()
        server.wait()
    assert json.loads(done)["end"]["sum_received"]["bytes"] > 1 << 18


def datagram_socket(namespace, address="::", port=0):
    made = namespace.socket(socket.SOCK_DGRAM, socket.AF_INET6)
    made.settimeout(5)
    made.bind((address, port))
    return made


@pytest.mark.parametrize("size", [0, 1400, 1500, 9000, 65000])
@pytest.mark.parametrize("address", [ALIAS6, REMOTE6])
def test_datagrams_of_any_size_both_ways(lab6, either, address, size):
    """Larger ones than the link's MTU come in fragments, and larger than the host's are cut there."""
    data = b"".join(stream(size))
    place = (lab6.host, "::1") if address == ALIAS6 else (lab6.remote, REMOTE6)
    with datagram_socket(*place) as server, datagram_socket(either.namespace) as client:
        for attempt in range(2):  # the first may be lost to the Packet Too Big that tells the guest to cut it
            client.sendto(data, (address, server.getsockname()[1]))
            server.settimeout(1 if attempt == 0 and size > 1400 else 5)
            try:
                got, peer = server.recvfrom(65536)
                break
            except TimeoutError:
                assert attempt == 0
        assert got == data
        server.sendto(data[::-1], peer)
        back, source = client.recvfrom(65536)
        assert back == data[::-1]
        assert source[:2] == (address, server.getsockname()[1])


def test_a_closed_port_is_refused_at_once(either):
    for address in (ALIAS6, GATEWAY6, REMOTE6):
        with pytest.raises(ConnectionRefusedError):
            either.namespace.connect(address, 9)


def test_nobody_there(lab6, either):
    """The network says that there is no way, and the guest hears it at once."""
    with pytest.raises(OSError, match=r"unreachable|No route"):
        either.namespace.connect("2001:db8:77::1", 80)
    assert "Destination unreachable" in either.namespace.run("sh", "-c", "ping -6 -c1 -W5 2001:db8:77::1 || true")


# Ways in


@pytest.fixture(scope="module")
def web_inside(only6, files):
    """At port 80 of the guest that has no IPv4."""
    with WebServer(only6.namespace, files, "::", 80) as server:
        yield server


def fetch(namespace, place):
    return namespace.run("curl", "-sSf", f"http://{place}/page")


@pytest.mark.usefixtures("web_inside")
@pytest.mark.parametrize("place", FORWARDS.values())
def test_a_forward_to_the_guest_that_has_only_ipv6(lab6, place):
    assert fetch(lab6.host, place) == "a page of the host\n"


@pytest.mark.usefixtures("web_inside")
def test_another_host_comes_by_ipv6(lab6):
    assert fetch(lab6.remote, f"[{HOST6}]:8082") == "a page of the host\n"


@pytest.mark.usefixtures("web_inside")
@pytest.mark.parametrize(("scope", "listening"), [("global", "127.0.0.1:8090"), ("link", "[::1]:8090")])
def test_a_forward_to_an_ipv6_address(lab6, instance, only6, scope, listening):
    [address, *_] = only6.addresses(scope)
    spec = f"{listening}:[{address}]:80"
    assert instance.command("expose", spec) == f"{spec}\n"
    try:
        assert fetch(lab6.host, listening) == "a page of the host\n"
        assert f"[{address}]:80" in instance.command("ports")
    finally:
        instance.command("unexpose", spec)


def test_who_calls_is_the_alias_or_the_client(lab6, instance, only6):
    for text, namespace, caller in (
        ("[::1]:8091:7001", lab6.host, ALIAS6),
        (f"[{HOST6}]:8091:7001,source=client", lab6.remote, REMOTE6),
    ):
        instance.command("expose", text)
        address = text.split("]")[0].strip("[")
        seen = []
        with (
            Server(only6.namespace.listen("::", 7001), lambda made, seen=seen: seen.append(made.getpeername()[0])),
            namespace.connect(address, 8091) as client,
        ):
            assert client.recv(1) == b""
        assert seen == [caller]
        instance.command("unexpose", text)


def test_a_forward_of_datagrams_by_ipv6(lab6, instance, only6):
    instance.command("expose", "[::1]:8092:7002/udp")
    data = b"".join(stream(20000))
    with datagram_socket(only6.namespace, "::", 7002) as server, datagram_socket(lab6.host) as client:
        client.connect(("::1", 8092))
        for payload in (b"small", data):
            client.send(payload)
            got, peer = server.recvfrom(65536)
            assert (got, peer[0]) == (payload, ALIAS6)
            server.sendto(payload[::-1], peer)
            assert client.recv(65536) == payload[::-1]
    instance.command("unexpose", "[::1]:8092:7002/udp")


# What the operator sees


def test_status_flows_and_guests(lab6, instance, only6):
    status = instance.ask("status")
    assert (status["prefix6"], status["gateway6"], status["host6"]) == (PREFIX6, GATEWAY6, ALIAS6)
    assert f"ipv6 {PREFIX6}, gateway {GATEWAY6}, host {ALIAS6}\n" in re.sub(" +", " ", instance.command("status"))
    [address] = only6.addresses()
    with (
        Server(lab6.remote.listen(REMOTE6), echo) as server,
        only6.namespace.connect(REMOTE6, server.port) as client,
    ):
        place = f"[{REMOTE6}]:{server.port}"
        [flow] = [flow for flow in instance.ask("flows") if flow["remote"] == place]
        assert flow["guest"] == f"[{address}]:{client.getsockname()[1]}"
        assert flow["host"] == place
        assert (flow["protocol"], flow["direction"], flow["state"]) == ("tcp", "out", "ESTABLISHED")
        assert place in instance.command("flows")
    [guest] = instance.ask("guests")
    assert guest["ip"] is None
    assert {address, *only6.addresses("link")} == set(guest["addresses"])
    assert f" {address} " in instance.command("guests")


def test_the_control_api_and_the_guests_api_by_ipv6(lab6, peer_program, files):
    """An instance answers at [::1] on the host, and at port 80 of the gateway's IPv6 address; a guest that has no IPv4
    gets its forward."""
    with lab6.host.listen("::1") as probe:
        port = probe.getsockname()[1]
    with Directory() as directory:
        token = directory / "token"
        options = ("--gateway-api", "--control-tcp", f"[::1]:{port}", "--control-token-file", str(token))
        with (
            serving(lab6.host, ["qemu:{d}/qemu"], *options) as instance,
            guest6(peer_program, instance) as guest,
            WebServer(guest.namespace, files, "::", 80),
        ):
            body = json.dumps({"local": "[::1]:8093", "remote": f"[{guest.wait_address()}]:80"})
            expose = f"http://[{GATEWAY6}]/services/forwarder/expose"
            guest.run("curl", "-sSf", "-X", "POST", "-d", body, expose)
            assert fetch(lab6.host, "[::1]:8093") == "a page of the host\n"
            header = f"Authorization: Bearer {token.read_text().strip()}"
            guests = lab6.host.run("curl", "-sSf", "-H", header, f"http://[::1]:{port}/v1/guests")
            assert guest.addresses()[0] in json.loads(guests)[0]["addresses"]
            tunnel = f"POST /tunnel?ip={guest.addresses()[0]}&port=80 HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n"
            with lab6.host.connect("::1", port) as made:
                made.sendall(tunnel.encode())
                assert receive_exactly(made, 2) == b"OK"
                made.sendall(b"GET /page HTTP/1.0\r\n\r\n")
                assert b"".join(received(made)).endswith(b"a page of the host\n")


# vpnkit run


def test_run_gives_an_address_and_a_way_out(lab6, inside):
    assert f"inet6 {GUEST6}/64" in inside.run("ip", "-6", "address", "show", "dev", "tap0").stdout
    route = inside.run("ip", "-6", "route", "show", "default").stdout
    assert f"via {GATEWAY6}" in route
    [guest] = json.loads(
        subprocess.run(
            [sys.executable, "-m", "vpnkit", "guests", "--json"],
            capture_output=True,
            check=True,
            env=environment(XDG_RUNTIME_DIR=str(inside.directory.path)),
        ).stdout
    )
    assert guest["ip"] == GUEST
    assert GUEST6 in guest["addresses"]


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_run_curl_by_ipv6(lab6, web6, user):
    words = ("--ipv6", "on", "--", "curl", "-sSf", "-6", f"http://host.internal:{web6.port}/page")
    with lab6.host.entered():
        done = subprocess.run(
            vpnkit_run(user, *words), capture_output=True, text=True, timeout=30, env=environment(), cwd="/"
        )
    assert (done.returncode, done.stdout) == (0, "a page of the host\n"), done.stderr


def test_a_guest_of_both_has_both(lab6, inside, web6):
    """The alias is this host's loopback of the family by which it is called."""
    with (
        Server(lab6.host.listen("127.0.0.1"), lambda made: made.sendall(b"by IPv4")) as server,
        inside.connect(server.port, ALIAS) as client,
    ):
        assert client.recv(100) == b"by IPv4"
    done = inside.run("sh", "-c", f"curl -sSf http://[{ALIAS6}]:{web6.port}/bytes/1000 | sha256sum")
    assert done.stdout.split()[0] == digest_of(stream(1000))

"""The IPv6 way to a host behind a router, as a guest's kernel and programs find it out: hop limit, path MTU, ICMPv6.

guest - (gateway) host - 2001:db8:1::2 remote, a router - far, with a smaller MTU on the last link.
"""

from __future__ import annotations

import errno
import re
import select
import socket
import struct

import pytest

from tests.interop.guest_tools import Server, echo, running, stream
from tests.interop.lab6 import ALIAS6, FAR6, FAR_MTU, GATEWAY6, REMOTE6, Lab6, guest6
from tests.interop.link_guests import exchange, serving

pytestmark = [pytest.mark.program("cc")]

PATIENCE = 5.0  # seconds, for what takes milliseconds
HEADERS = 48  # octets of IPv6 and UDP
UPLINK_MTU = 1380

IPV6_MTU_DISCOVER, IPV6_MTU, IPV6_RECVERR, IPV6_DONTFRAG, MSG_ERRQUEUE = 23, 24, 25, 62, 0x2000
PMTUDISC_DONT, PMTUDISC_DO, PMTUDISC_PROBE = 0, 2, 3
UNREACHABLE, TOO_BIG, TIME_EXCEEDED, PARAMETER_PROBLEM = 1, 2, 3, 4


@pytest.fixture(scope="module")
def lab6():
    made = Lab6()
    yield made
    made.close()


@pytest.fixture(scope="module")
def inside(lab6):
    """`vpnkit run`'s, with a link that carries 65520 octets and cuts segments itself."""
    with running(lab6.host) as made:
        yield made.namespace


@pytest.fixture(scope="module")
def narrow(lab6, peer_program):
    """One without IPv4, on a link of 1500 octets without any offload."""
    with serving(lab6.host, ["qemu:{d}/qemu"], "--mtu", "1500") as instance, guest6(peer_program, instance) as made:
        made.wait_address()
        yield made.namespace


@pytest.fixture(scope="module", params=["inside", "narrow"])
def guest(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def _nothing_is_known(lab6, guest):
    lab6.forget_paths(guest)


@pytest.fixture
def small_uplink(lab6):
    lab6.host.run("ip", "link", "set", "uplink", "mtu", str(UPLINK_MTU))
    yield
    lab6.host.run("ip", "link", "set", "uplink", "mtu", "1500")


@pytest.fixture(params=["ping socket", "raw socket"])
def pinging(lab6, request):
    """A host that allows ping sockets, and one that does not."""
    lab6.host.set("ping_group_range", "0 2147483647" if request.param == "ping socket" else "1 0")
    yield
    lab6.host.set("ping_group_range", "1 0")


def udp_socket(namespace, **options):
    made = namespace.socket(socket.SOCK_DGRAM, socket.AF_INET6)
    made.settimeout(PATIENCE)
    made.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    numbers = {"discover": IPV6_MTU_DISCOVER, "hops": socket.IPV6_UNICAST_HOPS}
    for name, value in options.items():
        made.setsockopt(socket.IPPROTO_IPV6, numbers[name], value)
    return made


def bound(namespace, address):
    made = namespace.socket(socket.SOCK_DGRAM, socket.AF_INET6)
    made.settimeout(PATIENCE)
    made.bind((address, 0))
    return made


def error_of(made):
    """(errno, ICMPv6 type, code, info, offender, payload) of the next error in the queue."""
    poller = select.poll()
    poller.register(made, select.POLLERR)
    assert poller.poll(PATIENCE * 1000), "no error"
    data, ancillary, _, _ = made.recvmsg(2000, 512, MSG_ERRQUEUE)
    [value] = [each[2] for each in ancillary if each[1] == IPV6_RECVERR]
    number, _, kind, code, _, info, _ = struct.unpack_from("=IBBBBII", value)
    return errno.errorcode[number], kind, code, info, socket.inet_ntop(socket.AF_INET6, value[24:40]), data


# Hop limits

ROUTE = [GATEWAY6, REMOTE6, FAR6]


def hops_told(text):
    """Who answered, line by line, of traceroute's and tracepath's output."""
    return re.findall(r"^ *\d+\??:? +([0-9a-f:]+) ", text, re.MULTILINE)


@pytest.mark.program("traceroute")
@pytest.mark.parametrize("way", ["-U", "-I", "-T"])
def test_traceroute(guest, way):
    """By UDP, by ICMPv6 and by TCP: every router is seen, and the host itself."""
    done = guest.run("traceroute", "-6", "-n", "-q1", "-N1", "-w3", way, FAR6, timeout=20)
    assert hops_told(done) == ROUTE


@pytest.mark.program("ping")
@pytest.mark.usefixtures("pinging")
@pytest.mark.parametrize(("hops", "who"), list(enumerate(ROUTE, 1)))
def test_ping_with_few_hops(guest, hops, who):
    done = guest.run("sh", "-c", f"ping -6 -n -c1 -W5 -t {hops} {FAR6} || true")
    assert re.search(r"(?:From|bytes from) ([0-9a-f:]+)[ :]", done)[1].rstrip(":") == who, done


def test_a_datagram_that_expires_is_quoted_as_it_was(guest):
    for hops, who in ((1, GATEWAY6), (2, REMOTE6)):
        with udp_socket(guest, hops=hops) as made:
            made.sendto(b"traceroute's payload", (FAR6, 33434))
            told = error_of(made)
            assert told[:3] == ("EHOSTUNREACH", TIME_EXCEEDED, 0)
            assert told[4:] == (who, b"traceroute's payload")


def test_a_port_that_nobody_has(guest):
    with udp_socket(guest) as made:
        made.sendto(b"is it you?", (FAR6, 33434))
        told = error_of(made)
        assert told[:3] == ("ECONNREFUSED", UNREACHABLE, 4)
        assert told[4:] == (FAR6, b"is it you?")


def test_a_connection_that_expires(guest):
    with guest.socket(family=socket.AF_INET6) as made:
        made.settimeout(PATIENCE)
        made.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 2)
        with pytest.raises(OSError, match="No route to host"):
            made.connect((FAR6, 81))
        told = error_of(made)
        assert (told[1], told[2], told[4]) == (TIME_EXCEEDED, 0, REMOTE6)


def test_our_own_addresses_are_no_hop_away(lab6, guest):
    with bound(lab6.host, "::1") as server, udp_socket(guest, hops=1) as made:
        made.sendto(b"near", (ALIAS6, server.getsockname()[1]))
        assert server.recv(100) == b"near"


# Path MTU


@pytest.mark.parametrize("discover", [PMTUDISC_DO, PMTUDISC_PROBE])
def test_a_router_says_packet_too_big_about_a_datagram(lab6, guest, discover):
    with bound(lab6.far, FAR6) as server, udp_socket(guest, discover=discover) as made:
        made.sendto(bytes(1452), server.getsockname())
        assert error_of(made)[:5] == ("EMSGSIZE", TOO_BIG, 0, FAR_MTU, REMOTE6)
        made.sendto(bytes(FAR_MTU - HEADERS), server.getsockname())
        assert len(server.recv(2000)) == FAR_MTU - HEADERS


@pytest.mark.usefixtures("small_uplink")
def test_the_hosts_own_link_is_too_small(lab6, guest):
    with bound(lab6.remote, REMOTE6) as server, udp_socket(guest, discover=PMTUDISC_DO) as made:
        made.sendto(bytes(1452), server.getsockname())
        assert error_of(made)[:5] == ("EMSGSIZE", TOO_BIG, 0, UPLINK_MTU, GATEWAY6)
        made.sendto(bytes(UPLINK_MTU - HEADERS), server.getsockname())
        assert len(server.recv(2000)) == UPLINK_MTU - HEADERS


@pytest.mark.parametrize("size", [FAR_MTU - HEADERS + 1, 4000, 65000])
def test_the_guest_cuts_once_it_was_told(lab6, guest, size):
    """IPv6 is cut by who sent it only: the first datagram is lost, and those after it arrive."""
    data = b"".join(stream(size))
    with bound(lab6.far, FAR6) as server, udp_socket(guest, discover=PMTUDISC_DONT) as made:
        server.settimeout(0.3)
        for _ in range(10):
            try:
                made.sendto(data, server.getsockname())
                got = server.recv(65536)
                break
            except (OSError, TimeoutError):  # EMSGSIZE of the one before
                continue
        assert got == data


@pytest.mark.program("tracepath")
def test_tracepath(guest):
    said = guest.run("tracepath", "-6", "-n", FAR6)
    assert re.search(rf"Resume: pmtu {FAR_MTU} hops 3", said), said
    assert f"pmtu {FAR_MTU}" in said
    for hop, who in enumerate(ROUTE, 1):
        assert re.search(rf"^ *{hop}: +{who} ", said, re.MULTILINE), said


@pytest.mark.program("ping")
@pytest.mark.usefixtures("pinging")
def test_ping_finds_the_path_mtu(lab6, guest):
    """A first time the router says it, afterwards the host that knows it."""
    for _ in range(2):
        done = guest.run("sh", "-c", f"ping -6 -n -c1 -W5 -s 1440 -M do {FAR6} || true")
        assert re.search(rf"mtu ?[=:] ?{FAR_MTU}", done), done
        guest.run("ip", "-6", "route", "flush", "cache")
    done = guest.run("ping", "-6", "-c3", "-i0.05", "-W5", "-s", "1440", "-M", "dont", FAR6)
    assert re.search("[23] received", done), done


def test_tcp_over_a_smaller_path(lab6, guest):
    """The host's kernel sends what the path takes, whatever the guest's link carries."""
    with Server(lab6.far.listen(FAR6), echo) as server, guest.connect(FAR6, server.port) as client:
        exchange(client, 4 << 20, seed=8)
    assert server.failures == []


@pytest.mark.usefixtures("small_uplink")
def test_tcp_over_a_smaller_link_of_the_host(lab6, guest):
    with Server(lab6.remote.listen(REMOTE6), echo) as server, guest.connect(REMOTE6, server.port) as client:
        exchange(client, 4 << 20, seed=9)
    assert server.failures == []


# DSCP


def test_the_dscp_goes_on_and_ecn_does_not(lab6, guest):
    with bound(lab6.far, FAR6) as server, udp_socket(guest) as made:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        for mine, wanted in ((0, 0), (0xB8, 0xB8), (0xBA, 0xB8), (2, 0), (0, 0)):
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, mine)
            made.sendto(b"x", server.getsockname())
            [(_, _, heard)] = server.recvmsg(100, 100)[1]
            assert struct.unpack("=i", heard) == (wanted,)

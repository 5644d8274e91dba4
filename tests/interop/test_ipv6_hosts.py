"""What guests have of IPv6 on hosts that have less: only IPv4, only IPv6, or IPv6 now and then; and NAT64.

Nobody waits: what is not there is either not told of or refused at once.
"""

from __future__ import annotations

import re
import socket
import time
from contextlib import ExitStack

import dns.message
import dns.rdatatype
import dns.rrset
import pytest

from tests.interop.guest_tools import ALIAS, HOST, REMOTE, Lab, Server, echo, running, wait_for
from tests.interop.lab6 import ALIAS6, FAR6, GATEWAY6, REMOTE6, Lab6, guest6
from tests.interop.link_guests import TAP, exchange, serving
from tests.interop.servers import NameServer, WebServer

pytestmark = [pytest.mark.program("cc", "curl", "ping", "rdisc6")]

SECONDS = 15.0  # for what is looked at every few seconds, and then made and probed by the guest
AT_ONCE = 5.0  # seconds: on a busy machine; who waits for a time-out waits much longer
GLOBAL = "2001:db8:65::/64"  # a prefix by which guests prefer IPv6 (RFC 6724: a ULA comes after IPv4)
NAT64 = "64:ff9b::"
IPV6_RECVERR = 25  # linux/in6.h


class Names(NameServer):
    """both.example has a page by IPv4 and an AAAA record, four.example has IPv4 only."""

    def _answer(self, query: bytes, transport: str) -> bytes:
        message = dns.message.from_wire(query)
        question = message.question[0]
        name = question.name.to_text().lower()
        records = {
            ("both.example.", dns.rdatatype.A): REMOTE,
            ("both.example.", dns.rdatatype.AAAA): REMOTE6,
            ("four.example.", dns.rdatatype.A): REMOTE,
        }
        if name not in ("both.example.", "four.example."):
            return super()._answer(query, transport)
        self.asked.append(transport)
        response = dns.message.make_response(message)
        found = records.get((name, question.rdtype))
        if found:
            response.answer.append(dns.rrset.from_text(question.name, 60, "IN", question.rdtype, found))
        return response.to_wire()


class Site:
    """A lab with a name server and a web server, of IPv4, on its remote host."""

    def __init__(self, lab: Lab, files) -> None:
        (files / "page").write_text("a page\n")
        self.lab = lab
        self.names = Names(lab.remote, REMOTE)
        self.web = WebServer(lab.remote, files, REMOTE)

    @property
    def dns(self) -> tuple[str, str]:
        return "--dns", f"{REMOTE}#{self.names.port}"

    def page(self, name: str) -> str:
        return f"http://{name}:{self.web.port}/page"

    def __enter__(self):
        self.names.__enter__()
        self.web.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.web.__exit__()
        self.names.__exit__()
        self.lab.close()


@pytest.fixture(scope="module")
def only4(served_files):
    """A host that has IPv4 only."""
    with Site(Lab(), served_files) as made:
        yield made


@pytest.fixture(scope="module")
def both(served_files):
    with Site(Lab6(), served_files) as made:
        yield made


def took(action) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def curl(guest, url: str, *options: str) -> tuple[str, float]:
    """The page, and how long curl says it took to connect."""
    done = guest.run("curl", "-sSf", *options, "-w", "\n%{time_connect}", url).stdout
    body, _, seconds = done.rpartition("\n")
    return body, float(seconds)


# A host that has IPv4 only


@pytest.fixture(scope="module")
def on_only4(only4):
    with running(only4.lab.host, "root", *only4.dns) as made:
        yield made


def test_nothing_is_told_of_ipv6_where_the_host_has_none(on_only4):
    assert "fd65" not in on_only4.run("ip", "-6", "address").stdout
    assert on_only4.run("ip", "-6", "route", "show", "default").stdout == ""
    assert "from" not in on_only4.namespace.run("sh", "-c", f"rdisc6 -1 -r1 -w1000 {TAP} || true")


@pytest.mark.program("dig")
def test_our_names_have_no_aaaa_there(on_only4):
    assert on_only4.run("dig", "+short", "AAAA", "host.internal").stdout == ""
    assert on_only4.run("dig", "+short", "A", "host.internal").stdout == f"{ALIAS}\n"
    assert on_only4.run("dig", "+short", "AAAA", "both.example").stdout == f"{REMOTE6}\n"  # a name of others


def test_a_name_of_both_families_connects_without_a_wait(only4, on_only4):
    """curl would give IPv6 ten seconds before it tries IPv4."""
    body, seconds = curl(on_only4, only4.page("both.example"), "--happy-eyeballs-timeout-ms", "10000")
    assert body == "a page\n"
    assert seconds < AT_ONCE


def test_ipv6_fails_at_once_there(on_only4):
    def connect():
        with pytest.raises(OSError, match=r"unreachable"):
            on_only4.namespace.connect(REMOTE6, 80)

    assert took(connect) < AT_ONCE


@pytest.fixture(scope="module")
def promised(only4):
    """A guest that is told of IPv6 which the host has not, and prefers it."""
    with running(only4.lab.host, "root", "--ipv6", "on", "--ipv6-prefix", GLOBAL, *only4.dns) as made:
        yield made


@pytest.mark.parametrize("program", ["curl", "one address after the other"])
def test_happy_eyeballs_of_a_guest_that_was_promised_too_much(only4, promised, program):
    """IPv6 is tried first, and refused at once, so IPv4 comes at once, with a program that tries both and one that
    does not."""
    if program == "curl":
        done = promised.run(
            "curl",
            "-sSfv",
            "--happy-eyeballs-timeout-ms",
            "10000",
            "-w",
            "\n%{time_connect}",
            only4.page("both.example"),
        )
        assert re.search(rf"Trying \[?{re.escape(REMOTE6)}\]?:", done.stderr), done.stderr
        body, _, seconds = done.stdout.rpartition("\n")
        assert (body, float(seconds) < AT_ONCE) == ("a page\n", True)
    else:
        script = (
            "import socket, time; began = time.monotonic();"
            f"made = socket.create_connection(('both.example', {only4.web.port}), 10);"
            "print(made.getpeername()[0], time.monotonic() - began)"
        )
        peer, seconds = promised.run("/usr/bin/python3", "-c", script).stdout.split()
        assert peer == REMOTE
        assert float(seconds) < AT_ONCE


def test_what_it_is_told_of_ipv6_that_is_not_there(promised):
    done = promised.run("ping", "-6", "-c1", "-W5", REMOTE6, check=False)
    assert "Destination unreachable" in done.stdout
    with promised.namespace.socket(socket.SOCK_DGRAM, socket.AF_INET6) as made:
        made.settimeout(5)
        made.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)  # else Linux keeps "no route" to itself
        made.connect((REMOTE6, 9))
        made.send(b"x")
        with pytest.raises(OSError, match=r"unreachable"):
            made.recv(1)


# A host that has IPv6 only


def test_a_host_without_ipv4(served_files):
    """IPv4 connects fail at once, IPv6 works, and so does the host's own loopback by both."""
    lab = Lab6(ipv4=False)
    try:
        with running(lab.host) as guest, Server(lab.far.listen(FAR6), echo) as server:
            with guest.namespace.connect(FAR6, server.port) as client:
                exchange(client, 1 << 20, seed=1)

            def connect():
                with pytest.raises(OSError, match=r"unreachable"):
                    guest.namespace.connect(REMOTE, 80)

            assert took(connect) < AT_ONCE
            assert "Unreachable" in guest.run("ping", "-c1", "-W5", REMOTE, check=False).stdout
            assert "1 received" in guest.run("ping", "-6", "-c1", "-W5", FAR6).stdout
            for address, alias in (("127.0.0.1", ALIAS), ("::1", ALIAS6)):
                with Server(lab.host.listen(address), echo) as near, guest.connect(near.port, alias) as client:
                    exchange(client, 1 << 16, seed=2)
    finally:
        lab.close()


# --ipv6 local


def test_local_addresses_without_a_way_out(only4, peer_program):
    """The LAN and this host by IPv6, nothing else, so that nobody tries."""
    with (
        serving(only4.lab.host, ["qemu:{d}/qemu"], "--ipv6", "local") as instance,
        guest6(peer_program, instance) as guest,
        Server(only4.lab.host.listen("::1"), echo) as server,
    ):
        address = guest.wait_address()
        assert address.startswith("fd65:7670:6e6b:")
        assert not guest.has_default_route()
        assert "Router lifetime           :            0 " in guest.run("rdisc6", "-1", "-w", "4000", TAP).stdout
        assert guest.resolve_by_rdnss() == f"nameserver {GATEWAY6}\n"
        assert "1 received" in guest.run("ping", "-6", "-c1", "-W5", GATEWAY6).stdout
        with guest.namespace.connect(ALIAS6, server.port) as client:
            exchange(client, 1 << 20, seed=3)
        with pytest.raises(OSError, match=r"unreachable"):
            guest.namespace.connect(REMOTE6, 80)


# A host that gains and loses IPv6


@pytest.mark.slow
@pytest.mark.program("dig")
def test_a_guest_sees_ipv6_come_and_go(peer_program):
    """Addresses, the way out and our AAAA records come with the host's IPv6; the last two go with it."""
    lab = Lab6()
    try:
        with ExitStack() as stack:
            with lab.without_ipv6():
                instance = stack.enter_context(serving(lab.host, ["qemu:{d}/qemu"]))
                guest = stack.enter_context(guest6(peer_program, instance))
                assert "from" not in guest.run("rdisc6", "-1", "-r1", "-w1000", TAP, check=False).stdout
                assert guest.addresses() == []
                assert instance.ask("status")["prefix6"] is None
            guest.wait_address(SECONDS)
            wait_for(guest.has_default_route, "it has a way out")
            ask = ("dig", "+short", "AAAA", "host.internal", f"@{GATEWAY6}")
            assert guest.run(*ask).stdout == f"{ALIAS6}\n"
            near = stack.enter_context(Server(lab.host.listen("::1"), echo))
            far = stack.enter_context(Server(lab.far.listen(FAR6), echo))
            with guest.namespace.connect(ALIAS6, near.port) as old:
                with guest.namespace.connect(FAR6, far.port) as client:
                    exchange(client, 1 << 16, seed=4)
                with lab.without_ipv6():
                    wait_for(lambda: not guest.has_default_route(), "it has no way out", SECONDS)
                    with pytest.raises(OSError, match=r"unreachable"):
                        guest.namespace.connect(FAR6, far.port)
                    assert guest.run(*ask).stdout == ""
                    exchange(old, 1 << 16, seed=5)  # what began goes on
                wait_for(guest.has_default_route, "it has a way out again", SECONDS)
                with guest.namespace.connect(FAR6, far.port) as client:
                    exchange(client, 1 << 16, seed=6)
    finally:
        lab.close()


def test_a_guest_whose_host_loses_ipv6_waits_for_nothing(both):
    """`vpnkit run` told of a way out at the start, and cannot take it back; whoever takes it hears at once."""
    with running(both.lab.host) as guest, Server(both.lab.far.listen(FAR6), echo) as server:
        with guest.namespace.connect(FAR6, server.port) as client:
            exchange(client, 1 << 16, seed=7)
        with both.lab.without_ipv6():

            def connect():
                with pytest.raises(OSError, match=r"unreachable"):
                    guest.namespace.connect(FAR6, server.port)

            assert took(connect) < AT_ONCE
        with guest.namespace.connect(FAR6, server.port) as client:
            exchange(client, 1 << 16, seed=8)


@pytest.mark.slow
def test_a_guest_of_run_sees_ipv6_come(both):
    """Nothing is configured where there is nothing at the start, and a router is believed afterwards."""
    with ExitStack() as stack:
        with both.lab.without_ipv6():
            guest = stack.enter_context(running(both.lab.host))
            assert "fd65" not in guest.run("ip", "-6", "address").stdout
        route = ("ip", "-6", "route", "show", "default")
        wait_for(lambda: "proto ra" in guest.run(*route).stdout, "it has a way out", SECONDS)
        wait_for(lambda: "tentative" not in guest.run("ip", "-6", "address").stdout, "it has an address")
        server = stack.enter_context(Server(both.lab.far.listen(FAR6), echo))
        with guest.namespace.connect(FAR6, server.port) as client:
            exchange(client, 1 << 16, seed=9)
        with both.lab.without_ipv6():
            wait_for(lambda: guest.run(*route).stdout == "", "it has none", SECONDS)


# NAT64 and DNS64


@pytest.fixture(scope="module", params=["only4", pytest.param("both", marks=pytest.mark.slow)])
def outside(request):
    """A host that has only IPv4, and one that has both."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def nat64(outside, peer_program):
    """A guest that has only IPv6, on a host whose IPv4 it may use."""
    with (
        serving(outside.lab.host, ["qemu:{d}/qemu"], "--nat64", *outside.dns) as instance,
        guest6(peer_program, instance) as made,
    ):
        made.wait_address()
        made.resolve_by_rdnss()
        yield instance, made


@pytest.fixture
def only6(nat64):
    return nat64[1]


@pytest.mark.program("dig")
def test_dns64_makes_addresses_of_what_has_ipv4_only(only6):
    assert only6.run("dig", "+short", "AAAA", "four.example").stdout == "64:ff9b::c633:6402\n"
    assert only6.run("dig", "+short", "AAAA", "both.example").stdout == f"{REMOTE6}\n"
    assert only6.run("dig", "+short", "A", "four.example").stdout == f"{REMOTE}\n"


@pytest.mark.program("dig")
def test_an_answer_in_fragments(only6):
    done = only6.run("dig", "+notcp", "+ignore", "+bufsize=4096", "TXT", "big.example").stdout
    assert re.search(r"MSG SIZE  rcvd: 3\d\d\d", done), done
    assert "029xxx" in done


def test_a_page_of_a_host_that_has_ipv4_only(outside, only6):
    assert only6.run("curl", "-sSf", outside.page("four.example")).stdout == "a page\n"


@pytest.mark.parametrize("size", ["56", "1440", "20000"])
def test_ping_through_nat64(only6, size):
    done = only6.run("ping", "-6", "-c4", "-i0.05", "-W5", "-s", size, f"{NAT64}{REMOTE}").stdout
    assert re.search("[34] received", done), done


def test_bulk_and_datagrams_through_nat64(outside, only6):
    with (
        Server(outside.lab.remote.listen(REMOTE), echo) as server,
        only6.namespace.connect(f"{NAT64}{REMOTE}", server.port) as client,
    ):
        exchange(client, (4 << 20) + 5, seed=64)
    with (
        outside.lab.remote.socket(socket.SOCK_DGRAM) as server,
        only6.namespace.socket(socket.SOCK_DGRAM, socket.AF_INET6) as client,
    ):
        for made in (server, client):
            made.settimeout(5)
        server.bind((REMOTE, 0))
        for size in (0, 1000, 1452, 9000):
            client.sendto(bytes(size), (f"{NAT64}{REMOTE}", server.getsockname()[1]))
            data, peer = server.recvfrom(65536)
            assert (len(data), peer[0]) == (size, HOST)
            server.sendto(data, peer)
            back, source = client.recvfrom(65536)
            assert (len(back), source[0]) == (size, "64:ff9b::c633:6402")


def test_errors_through_nat64(outside, only6):
    with pytest.raises(ConnectionRefusedError):
        only6.namespace.connect(f"{NAT64}{REMOTE}", 9)
    with pytest.raises(OSError, match=r"unreachable|No route"):
        only6.namespace.connect(f"{NAT64}203.0.113.250", 80)


@pytest.mark.program("traceroute")
def test_traceroute_through_nat64(only6):
    done = only6.run("traceroute", "-6", "-n", "-q1", "-N1", "-w3", f"{NAT64}{REMOTE}").stdout
    assert re.findall(r"^ *\d+ +([0-9a-f:]+) ", done, re.MULTILINE) == [GATEWAY6, "64:ff9b::c633:6402"]


def test_what_the_operator_sees_of_nat64(outside, nat64):
    instance, guest = nat64
    with (
        Server(outside.lab.remote.listen(REMOTE), echo) as server,
        guest.namespace.connect(f"{NAT64}{REMOTE}", server.port),
    ):
        [flow] = [flow for flow in instance.ask("flows") if flow["protocol"] == "tcp"]
        assert flow["remote"] == f"[64:ff9b::c633:6402]:{server.port}"
        assert flow["host"] == f"{REMOTE}:{server.port}"

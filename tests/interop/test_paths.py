"""The way to a host behind a router, as the guest's kernel and programs find it out: TTL, path MTU, fragments, DSCP.

guest - (gateway) host - 198.51.100.2 remote, a router - far, with a smaller MTU on the last link.
"""

from __future__ import annotations

import errno
import re
import select
import socket
import struct
import threading
from contextlib import contextmanager

import pytest

from tests.interop.guest_tools import ALIAS, GATEWAY, HOST, REMOTE, Namespace, running, wait_for

FAR = "203.0.113.130"
ROUTER = "203.0.113.129"
FAR_MTU = 1300
UPLINK_MTU = 1400
PATIENCE = 5.0  # seconds, for what takes milliseconds

IP_RECVERR, IP_MTU_DISCOVER, IP_MTU, MSG_ERRQUEUE = 11, 10, 14, 0x2000
PMTUDISC_DONT, PMTUDISC_DO, PMTUDISC_PROBE = 0, 2, 3


@pytest.fixture(scope="module")
def far(lab):
    """Two hops behind the host."""
    made = Namespace.new()
    lab.remote.run("ip", "link", "add", "east", "mtu", str(FAR_MTU), "type", "veth", "peer", "west", "netns", made.path)
    lab.remote.run("ip", "address", "add", f"{ROUTER}/25", "dev", "east")
    lab.remote.run("ip", "link", "set", "east", "up")
    made.run("ip", "address", "add", f"{FAR}/25", "dev", "west")
    made.run("ip", "link", "set", "west", "mtu", str(FAR_MTU), "up")
    made.run("ip", "route", "add", "default", "via", ROUTER)
    made.set("icmp_ratelimit", 0)
    lab.host.run("ip", "route", "add", f"{FAR}/32", "via", REMOTE)
    yield made
    lab.host.run("ip", "route", "del", f"{FAR}/32")
    lab.remote.run("ip", "link", "del", "east")
    made.close()


@pytest.fixture(params=["ping socket", "raw socket"])
def pinging(lab, request):
    """A host that allows ping sockets, and one that does not."""
    lab.host.set("ping_group_range", "0 2147483647" if request.param == "ping socket" else "1 0")
    yield
    lab.host.set("ping_group_range", "1 0")


@contextmanager
def uplink_mtu(lab, mtu):
    lab.host.run("ip", "link", "set", "uplink", "mtu", str(mtu))
    try:
        yield
    finally:
        lab.host.run("ip", "link", "set", "uplink", "mtu", "1500")


def forget_paths(*namespaces):
    """No path MTU that an earlier test found out."""
    for namespace in namespaces:
        namespace.run("ip", "route", "flush", "cache")


def udp_socket(namespace, *, discover=None, ttl=None, tos=None):
    made = namespace.socket(socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    made.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    for option, value in ((IP_MTU_DISCOVER, discover), (socket.IP_TTL, ttl), (socket.IP_TOS, tos)):
        if value is not None:
            made.setsockopt(socket.IPPROTO_IP, option, value)
    return made


def error_of(made):
    """(errno, ICMP type, code, info, offender, payload) of the next error in the queue."""
    poller = select.poll()
    poller.register(made, select.POLLERR)
    assert poller.poll(PATIENCE * 1000), "no error"
    data, ancillary, _, _ = made.recvmsg(2000, 512, MSG_ERRQUEUE)
    [(_, _, value)] = [each for each in ancillary if each[1] == IP_RECVERR]
    number, _, kind, code, _, info, _ = struct.unpack_from("=IBBBBII", value)
    return errno.errorcode[number], kind, code, info, socket.inet_ntoa(value[20:24]), data


# TTL


class TestTrace:
    """traceroute, with each protocol."""

    def hops(self, namespace, probe):
        seen = []
        for ttl in range(1, 6):
            seen.append(probe(namespace, ttl))
            if seen[-1] == FAR:
                return seen
        return seen

    @staticmethod
    def by_udp(namespace, ttl):
        with udp_socket(namespace, ttl=ttl) as made:
            made.sendto(b"traceroute's payload", (FAR, 33434 + ttl))
            number, kind, code, _, offender, data = error_of(made)
            assert data == b"traceroute's payload"
            if offender == FAR:
                assert (number, kind, code) == ("ECONNREFUSED", 3, 3)
            else:
                assert (number, kind, code) == ("EHOSTUNREACH", 11, 0)
            return offender

    @staticmethod
    def by_icmp(namespace, ttl):
        done = namespace.run("sh", "-c", f"ping -n -c1 -W5 -t {ttl} {FAR} || true")
        return re.search(r"(?:From|bytes from) ([\d.]+)", done)[1]

    @staticmethod
    def by_tcp(namespace, ttl):
        with namespace.socket() as made:
            made.settimeout(PATIENCE)
            made.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            made.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            try:
                made.connect((FAR, 81))
            except ConnectionRefusedError:
                return FAR
            except OSError as error:
                assert error.errno == errno.EHOSTUNREACH  # noqa: PT017
                _, kind, code, _, offender, _ = error_of(made)
                assert (kind, code) == (11, 0)
                return offender

    def test_udp(self, guest, far):
        assert self.hops(guest.namespace, self.by_udp) == [GATEWAY, REMOTE, FAR]

    @pytest.mark.usefixtures("far", "pinging")
    def test_icmp_rfc5508_req4(self, root_guest):
        assert self.hops(root_guest.namespace, self.by_icmp) == [GATEWAY, REMOTE, FAR]

    @pytest.mark.usefixtures("far")
    def test_tcp(self, guest):
        assert self.hops(guest.namespace, self.by_tcp) == [GATEWAY, REMOTE, FAR]

    def test_a_connection_with_a_short_ttl_works_on(self, root_guest, far):
        with far.listen(FAR) as listener, root_guest.namespace.socket() as client:
            client.settimeout(PATIENCE)
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 9)
            client.connect(listener.getsockname())
            with listener.accept()[0] as server:
                server.sendall(b"hello")
                assert client.recv(100) == b"hello"

    def test_our_own_addresses_are_no_hop_away(self, lab, root_guest):
        with socket_of(lab.host) as server, udp_socket(root_guest.namespace, ttl=1) as made:
            made.sendto(b"near", (ALIAS, server.getsockname()[1]))
            assert server.recv(100) == b"near"
        assert "1 received" in root_guest.run("ping", "-c1", "-W5", "-t1", GATEWAY).stdout

    def test_one_mapping_with_every_ttl(self, root_guest, far):
        """As traceroutes do that keep their port; and an expired probe costs nothing but itself."""
        with socket_of(far, FAR) as server, udp_socket(root_guest.namespace) as made:
            for ttl in (64, 2, 1, 64, 2, 64):
                made.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
                made.sendto(b"%d" % ttl, server.getsockname())
                if ttl < 3:
                    assert error_of(made)[4] == (GATEWAY if ttl == 1 else REMOTE)
            assert [server.recvfrom(100)[0] for _ in range(3)] == [b"64"] * 3


def socket_of(namespace, address="127.0.0.1"):
    made = namespace.socket(socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    made.bind((address, 0))
    return made


# Path MTU


class TestPathMtu:
    @pytest.mark.parametrize("discover", [PMTUDISC_DO, PMTUDISC_PROBE])
    def test_a_router_asks_for_less_rfc4787_req13(self, lab, guest, far, discover):
        forget_paths(lab.host, guest.namespace)
        with socket_of(far, FAR) as server, udp_socket(guest.namespace, discover=discover) as made:
            made.sendto(bytes(1400), server.getsockname())
            assert error_of(made)[:5] == ("EMSGSIZE", 3, 4, FAR_MTU, REMOTE)
            made.sendto(bytes(FAR_MTU - 28), server.getsockname())
            assert len(server.recv(2000)) == FAR_MTU - 28

    def test_the_hosts_own_link_is_too_small(self, lab, guest):
        forget_paths(lab.host, guest.namespace)
        with (
            uplink_mtu(lab, UPLINK_MTU),
            socket_of(lab.remote, REMOTE) as server,
            udp_socket(guest.namespace, discover=PMTUDISC_DO) as made,
        ):
            for size in (1450, 60000):
                made.sendto(bytes(size), server.getsockname())
                assert error_of(made)[:5] == ("EMSGSIZE", 3, 4, UPLINK_MTU, GATEWAY)
                forget_paths(guest.namespace)
            made.sendto(bytes(UPLINK_MTU - 28), server.getsockname())
            assert len(server.recv(2000)) == UPLINK_MTU - 28
        forget_paths(guest.namespace)

    def test_a_burst_that_is_too_large(self, lab, root_guest):
        """A train, which the host cannot cut: each datagram is told about."""
        forget_paths(lab.host, root_guest.namespace)
        with uplink_mtu(lab, UPLINK_MTU), udp_socket(root_guest.namespace, discover=PMTUDISC_PROBE) as made:
            for _ in range(10):
                try:
                    made.sendto(bytes(1450), (REMOTE, 9))
                except OSError as error:  # of an earlier one
                    assert error.errno == errno.EMSGSIZE  # noqa: PT017
            assert error_of(made)[:5] == ("EMSGSIZE", 3, 4, UPLINK_MTU, GATEWAY)
        forget_paths(root_guest.namespace)

    @pytest.mark.parametrize("size", [1400, 4000, 65507])
    def test_without_df_it_arrives_rfc4787_req13a(self, lab, guest, far, size):
        data = bytes(i % 251 for i in range(size))
        forget_paths(lab.host, guest.namespace)
        with socket_of(far, FAR) as server, udp_socket(guest.namespace, discover=PMTUDISC_DONT) as made:
            made.sendto(data, server.getsockname())
            assert server.recv(65536) == data

    def test_df_comes_and_goes_on_one_mapping(self, lab, root_guest, far):
        forget_paths(lab.host, root_guest.namespace)
        with socket_of(far, FAR) as server, udp_socket(root_guest.namespace) as made:
            for discover in (PMTUDISC_DONT, PMTUDISC_PROBE, PMTUDISC_DONT, PMTUDISC_PROBE):
                made.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, discover)
                made.sendto(b"%d" % discover + bytes(1400), server.getsockname())
                if discover == PMTUDISC_PROBE:
                    assert error_of(made)[:4] == ("EMSGSIZE", 3, 4, FAR_MTU)
                else:
                    assert server.recv(2000)[:1] == b"0"

    @pytest.mark.program("tracepath")
    @pytest.mark.usefixtures("far")
    def test_tracepath(self, lab, root_guest):
        forget_paths(lab.host, root_guest.namespace)
        said = root_guest.run("tracepath", "-n", FAR).stdout
        assert f"pmtu {FAR_MTU}" in said
        assert re.search(rf"Resume: pmtu {FAR_MTU} hops 3", said), said
        assert re.search(rf"^ *1: +{re.escape(GATEWAY)} ", said, re.M), said
        assert re.search(rf"^ *2: +{re.escape(REMOTE)} ", said, re.M), said
        assert re.search(rf"^ *3: +{re.escape(FAR)} .*reached", said, re.M), said
        forget_paths(lab.host, root_guest.namespace)

    @pytest.mark.usefixtures("far", "pinging")
    def test_ping(self, lab, root_guest):
        forget_paths(lab.host, root_guest.namespace)
        run = root_guest.namespace.run
        assert f"mtu = {FAR_MTU}" in run("sh", "-c", f"ping -c1 -W5 -s 1400 -M do {FAR} || true")
        forget_paths(root_guest.namespace)
        # the host knows it now, and says so itself
        assert re.search(rf"mtu ?[=:] ?{FAR_MTU}", run("sh", "-c", f"ping -c1 -W5 -s 1400 -M do {FAR} || true"))
        forget_paths(lab.host, root_guest.namespace)
        assert "1 received" in run("ping", "-c1", "-W5", "-s", "1400", "-M", "dont", FAR)
        assert "1 received" in run("ping", "-c1", "-W5", "-s", "20000", "-M", "dont", FAR)
        forget_paths(lab.host, root_guest.namespace)


# Fragments


@pytest.fixture(scope="module")
def narrow(lab):
    """A guest whose link is an ordinary one."""
    with running(lab.host, "root", "--mtu", "1500") as started:
        yield started


class TestFragments:
    """The guest's kernel cuts, we put together; we cut, it puts together."""

    @pytest.mark.parametrize("address", [GATEWAY, ALIAS])
    def test_ping_of_us(self, narrow, address):
        assert "3 received" in narrow.run("ping", "-c3", "-i0.01", "-W5", "-s20000", "-Mdont", address).stdout
        assert "1 received" in narrow.run("ping", "-c1", "-W5", "-s65507", "-Mdont", address).stdout

    @pytest.mark.usefixtures("far", "pinging")
    def test_ping_of_others(self, narrow):
        assert "1 received" in narrow.run("ping", "-c1", "-W5", "-s20000", "-Mdont", FAR).stdout

    @pytest.mark.parametrize("size", [1473, 4000, 65507])
    def test_udp(self, lab, narrow, size):
        data = bytes(i % 251 for i in range(size))
        with socket_of(lab.host) as server, udp_socket(narrow.namespace) as made:
            made.sendto(data, (ALIAS, server.getsockname()[1]))
            got, peer = server.recvfrom(65536)
            assert got == data
            server.sendto(data[::-1], peer)
            assert made.recv(65536) == data[::-1]

    def test_many_at_once(self, lab, narrow):
        with socket_of(lab.host) as server, udp_socket(narrow.namespace) as made:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            for i in range(100):
                made.sendto(bytes([i]) * 5000, (ALIAS, server.getsockname()[1]))
            assert [server.recv(65536) for _ in range(100)] == [bytes([i]) * 5000 for i in range(100)]

    @pytest.mark.program("nft")
    def test_out_of_order(self, lab, narrow):
        """Fragments by hand, the last one first."""
        with socket_of(lab.host) as server, narrow.namespace.entered():
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            with raw:
                data = bytes(i % 251 for i in range(3000))
                datagram = struct.pack("!HHHH", 5000, server.getsockname()[1], 8 + len(data), 0) + data
                for start in (2960, 1480, 0):
                    part = datagram[start : start + 1480]
                    flags = start >> 3 | (0x2000 if start < 2960 else 0)
                    source, destination = socket.inet_aton("192.168.65.3"), socket.inet_aton(ALIAS)
                    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(part), 77, flags, 64, 17, 0)
                    raw.sendto(header + source + destination + part, (ALIAS, 0))
            assert server.recv(65536) == data


# DSCP


@contextmanager
def tos_of(listener):
    """What the IP header of a received datagram says."""
    listener.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    yield lambda: listener.recvmsg(100, 100)[1][0][2][0]


class TestDscp:
    def test_udp(self, root_guest, far):
        with socket_of(far, FAR) as server, tos_of(server) as heard, udp_socket(root_guest.namespace) as made:
            for tos, wanted in ((0, 0), (0xB8, 0xB8), (0xBA, 0xB8), (2, 0), (0, 0)):  # ECN goes no further
                made.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
                made.sendto(b"x", server.getsockname())
                assert heard() == wanted

    @pytest.mark.program("nft")
    def test_tcp(self, root_guest, far):
        far.run("nft", "-f", "-", stdin="table ip seen { counter c {}; chain input {"
            " type filter hook input priority 0; ip dscp 46 counter name c; }; }\n")  # fmt: skip
        try:
            with far.listen(FAR) as listener, root_guest.namespace.socket() as client:
                client.settimeout(PATIENCE)
                client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8)
                client.connect(listener.getsockname())
                listener.accept()[0].close()
            assert "packets 0" not in far.run("nft", "list", "counters")
        finally:
            far.run("nft", "delete", "table", "ip", "seen")


# Hairpin


def test_two_ports_of_the_guest_by_their_outer_addresses_rfc4787_req9(lab, guest):
    with socket_of(lab.host, HOST) as server, udp_socket(guest.namespace) as one, udp_socket(guest.namespace) as other:
        outer = []
        for made in (one, other):
            made.sendto(b"who am I?", server.getsockname())
            outer.append((HOST, server.recvfrom(100)[1][1]))
        one.sendto(b"hello", outer[1])
        assert other.recvfrom(100) == (b"hello", outer[0])
        other.sendto(b"hello yourself", outer[0])
        assert one.recvfrom(100) == (b"hello yourself", outer[1])


# Nobody turns in circles


def test_errors_without_end_cost_what_they_cost(lab, root_guest, far):
    """conformance B16: after a storm of errors the process rests."""
    with udp_socket(root_guest.namespace, ttl=2) as made:
        for _ in range(200):
            try:
                made.sendto(b"x", (FAR, 33434))
            except OSError:
                pass
        drained = threading.Event()

        def quiet():
            before = root_guest.vpnkit.cpu_seconds()
            drained.wait(0.2)
            return root_guest.vpnkit.cpu_seconds() - before < 0.05

        wait_for(quiet, "it rests")

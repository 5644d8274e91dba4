"""The guest reaches the host's loopback by the alias and by nothing else, and no metadata service."""

from __future__ import annotations

import socket
import threading

import pytest

from tests.interop.frames import echo_request, ethernet, ipv4, tcp_segment, udp_datagram
from tests.interop.guest_tools import ALIAS, GATEWAY, GUEST, HOST, Server, echo, running, wait_for
from tests.interop.test_errors import tcp_outcome, udp_outcome

METADATA = "169.254.169.254"


@pytest.fixture
def everywhere(lab):
    """A TCP and a UDP server on every address of the host, and what they got: nothing may come but by the alias."""
    came = []
    datagrams = lab.host.socket(socket.SOCK_DGRAM)

    def serve(connection):
        came.append(("tcp", connection.getsockname()[0]))
        echo(connection)

    with Server(lab.host.listen("0.0.0.0"), serve) as server:
        datagrams.bind(("0.0.0.0", server.port))

        def receive():
            while data := datagrams.recvfrom(100):
                if data[0] == b"end":
                    return
                came.append(("udp", data[0]))
                datagrams.sendto(data[0], data[1])

        receiver = threading.Thread(target=receive)
        receiver.start()
        yield server.port, came
        with lab.host.socket(socket.SOCK_DGRAM) as last:
            last.sendto(b"end", ("127.0.0.1", server.port))
        receiver.join()
        datagrams.close()


# Addresses that no packet may have, and some that would be the host to a careless translator.
FORBIDDEN = ["127.0.0.1", "127.0.0.53", "127.255.255.254", "0.0.0.0", "0.1.2.3", "255.255.255.255", "224.0.0.1"]
FORBIDDEN += ["240.0.0.1", "192.168.65.0", "192.168.65.255", "192.168.65.9", GUEST]


def frames_to(address, port):
    """A SYN, a datagram and a ping, as a guest that makes its own frames sends them."""
    destination = socket.inet_aton(address)
    yield ethernet(ipv4(6, tcp_segment(40000, port, 1000, 0, 2, destination=destination), destination=destination))
    yield ethernet(ipv4(17, udp_datagram(40000, port, b"raw", destination=destination), destination=destination))
    yield ethernet(ipv4(1, echo_request(b""), destination=destination))


def test_raw_frames_do_not_reach_the_hosts_loopback(guest, everywhere):
    port, came = everywhere
    with guest.namespace.entered():
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    with link:
        link.bind(("tap0", 0))
        link.settimeout(5)
        for address in FORBIDDEN:
            for frame in frames_to(address, port):
                link.send(frame)
        # The frames before this one have been dealt with when it is answered.
        answered = set()
        for frame in frames_to(GATEWAY, 7):
            link.send(frame)
        while len(answered) < 3:
            frame = link.recv(2048)
            if frame[:6] == bytes.fromhex("025000000001"):
                assert frame[26:30] == socket.inet_aton(GATEWAY), "an answer to a forbidden destination"
                answered.add((frame[23], frame[34]))
        assert answered == {(6, 0), (1, 3), (1, 0)}
    # The alias works, and is the only thing that did.
    with guest.connect(port) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
    assert udp_outcome(guest.namespace, ALIAS, port) == "answered"
    assert came == [("tcp", "127.0.0.1"), ("udp", b"anybody?")]


def test_route_for_loopback_through_the_gateway(lab, guest, everywhere):
    """The same with the guest's own kernel, told to send 127.0.0.9 out of the door."""
    port, came = everywhere
    script = f"""
        ip address del 127.0.0.1/8 dev lo
        echo 1 > /proc/sys/net/ipv4/conf/tap0/route_localnet
        ip route del local 127.0.0.0/8 dev lo table local
        ip route add 127.0.0.0/8 via {GATEWAY} src {GUEST}
        ip route get 127.0.0.9
        timeout 0.5 bash -c 'exec 3<>/dev/tcp/127.0.0.9/{port}'
        echo status $?
        ip route del 127.0.0.0/8 via {GATEWAY}
        ip address add 127.0.0.1/8 dev lo
    """
    done = guest.run("sh", "-c", script)
    assert "status 124" in done.stdout, done.stdout + done.stderr
    assert f"127.0.0.9 via {GATEWAY} dev tap0" in done.stdout
    assert came == []


def test_metadata_service_is_prohibited(lab, guest):
    lab.host.run("ip", "address", "add", f"{METADATA}/32", "dev", "lo")
    try:
        with Server(lab.host.listen(METADATA, 80), echo):
            assert tcp_outcome(lab.host, METADATA, 80) == "connected"
            assert tcp_outcome(guest.namespace, METADATA, 80) == "EHOSTUNREACH"
            assert udp_outcome(guest.namespace, METADATA, 80) == "EHOSTUNREACH"
    finally:
        lab.host.run("ip", "address", "del", f"{METADATA}/32", "dev", "lo")


def test_other_addresses_of_the_host_are_hosts_like_any_other(lab, guest, everywhere):
    port, came = everywhere
    assert tcp_outcome(guest.namespace, HOST, port) == "connected"
    wait_for(lambda: came == [("tcp", HOST)], "the connection at the server")


@pytest.mark.parametrize("options", [("--no-host-loopback",), ("--host-ip", "none")])
def test_no_host_loopback(lab, everywhere, options):
    port, came = everywhere
    with running(lab.host, "root", *options) as guest:
        guest.namespace.set("neigh/tap0/retrans_time_ms", 100)
        # An address of the LAN that nobody has.
        assert tcp_outcome(guest.namespace, ALIAS, port) == "EHOSTUNREACH"
        assert udp_outcome(guest.namespace, ALIAS, port) == "EHOSTUNREACH"
        assert came == []
        assert tcp_outcome(guest.namespace, HOST, port) == "connected"
    wait_for(lambda: came == [("tcp", HOST)], "the connection at the server")

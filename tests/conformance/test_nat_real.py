"""The NAT with real kernels at both ends, where a script cannot show it: RFC 4787 REQ-7 and RFC 5382 REQ-8."""

from __future__ import annotations

import socket
import sys

import pytest

from tests.interop.guest_tools import ALIAS, GUEST, REMOTE, Lab, Server, echo, receive_exactly, running

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(sys.platform != "linux", reason="network namespaces need Linux"),
]
TWIN = "192.168.65.77"  # of the host's own network, which has the guest's addresses


@pytest.fixture(scope="module")
def guest():
    """On a host whose other interface has the guest's subnet too, and whose port 8080 is the guest's port 80."""
    lab = Lab()
    lab.host.run("ip", "link", "add", "lan", "type", "veth", "peer", "name", "cable")
    lab.host.run("ip", "address", "add", f"{GUEST}/24", "dev", "lan")
    lab.host.run("ip", "link", "set", "lan", "up")
    lab.host.run("ip", "link", "set", "cable", "up")
    try:
        with running(lab.host, "root", "-p", "8080:80") as started:
            started.lab = lab
            yield started
    finally:
        lab.close()


def test_rfc4787_req_7_the_rest_of_the_world_is_reached(guest):
    """And answers come back, though the host has an interface with the guest's very address."""
    with guest.lab.remote.socket(socket.SOCK_DGRAM) as server, guest.namespace.socket(socket.SOCK_DGRAM) as client:
        server.bind((REMOTE, 0))
        server.settimeout(5)
        client.settimeout(5)
        client.sendto(b"question", server.getsockname())
        data, peer = server.recvfrom(100)
        assert data == b"question"
        server.sendto(b"answer", peer)
        assert client.recvfrom(100) == (b"answer", server.getsockname())


def test_rfc4787_req_7_so_is_the_host(guest):
    with Server(guest.lab.host.listen(), echo) as server, guest.connect(server.port) as client:
        client.sendall(b"hello")
        assert receive_exactly(client, 5) == b"hello"


def test_rfc4787_req_7_a_host_of_that_network_is_not_mistaken_for_a_neighbour(guest):
    """Nobody has that address on the guest's side, so nobody answers, whoever has it on the other."""
    guest.lab.host.run("ip", "address", "add", f"{TWIN}/32", "dev", "lan")
    guest.namespace.set("neigh/tap0/retrans_time_ms", 20)  # it asks three times
    with guest.lab.host.listen(TWIN) as listener, guest.namespace.socket() as client:
        client.settimeout(5)
        with pytest.raises(OSError, match="No route to host"):  # the guest's kernel: nobody answers its ARP
            client.connect(listener.getsockname())


def test_rfc5382_req_8_the_guest_calls_himself_by_the_hosts_address(guest):
    """Through his own forwarded port; who calls him is the host, from outside."""
    with guest.listen(80) as listener, guest.connect(8080) as client:
        accepted, caller = listener.accept()
        with accepted:
            assert caller[0] == ALIAS
            client.sendall(b"hello, me")
            assert receive_exactly(accepted, 9) == b"hello, me"
            accepted.sendall(b"hello")
            assert receive_exactly(client, 5) == b"hello"
            assert client.getpeername() == (ALIAS, 8080)

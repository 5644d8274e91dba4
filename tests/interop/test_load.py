"""Many flows that do nothing: what they cost, that they live, and that nobody spins."""

from __future__ import annotations

import resource
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pytest

from tests.interop.guest_tools import ALIAS, Server, idle_cpu, receive_exactly, running, wait_for
from tests.interop.test_errors import closed_port, tcp_outcome, udp_outcome

MAX_OCTETS_PER_FLOW = 16 << 10
MAX_OPEN_SECONDS = 0.05
SLACK = 10  # a busy machine must not fail a test
MAX_IDLE_CPU_SECONDS = 0.05  # in three seconds

# An echo server that is one process with one thread, so that our own descriptors are all for the other end.
SERVER = """
import resource, select, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
listener.setblocking(False)
poller = select.epoll()
poller.register(listener, select.EPOLLIN)
poller.register(sys.stdin, select.EPOLLIN)
print(listener.getsockname()[1], flush=True)
peers = {}
while True:
    for number, _ in poller.poll():
        if number == listener.fileno():
            peer = listener.accept()[0]
            peer.setblocking(False)
            peers[peer.fileno()] = peer
            poller.register(peer, select.EPOLLIN)
        elif number == sys.stdin.fileno():
            sys.exit()
        else:
            try:
                data = peers[number].recv(4096)
            except OSError:
                data = b""
            if data:
                peers[number].send(data)
            else:
                peers.pop(number).close()
"""


@contextmanager
def echo_process(host):
    with host.entered():
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    with process:
        yield int(process.stdout.readline())
        process.stdin.close()


@pytest.fixture
def descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_flows(guest, port, count, held):
    """`count` connections, each of which was used once."""
    made = []
    with guest.namespace.entered():
        for _ in range(count):
            made.append(held.enter_context(socket.create_connection((ALIAS, port), 10)))
            made[-1].sendall(b"a")
            assert made[-1].recv(1) == b"a"
    return made


BATCH = 500  # flows; half of the transmit queue of a TAP device


def idle_flows(lab, count):
    with ExitStack() as held:
        guest = held.enter_context(running(lab.host))
        port = held.enter_context(echo_process(lab.host))
        flows = open_flows(guest, port, 20, held)
        before = guest.vpnkit.pss()
        flows += open_flows(guest, port, count - len(flows), held)
        each = (guest.vpnkit.pss() - before) / (count - 20)
        for start in range(0, len(flows), BATCH):  # more at once than the device queues would test the guest's patience
            for connection in flows[start : start + BATCH]:
                connection.sendall(b"b")
            for connection in flows[start : start + BATCH]:
                assert receive_exactly(connection, 1) == b"b"
        times = []
        for _ in range(20):
            started = time.perf_counter()
            with guest.connect(port):
                times.append(time.perf_counter() - started)
        median = statistics.median(times)
        print(f"{count} flows: {each / 1024:.1f} KiB each, one more in {median * 1000:.2f} ms")
        assert each <= MAX_OCTETS_PER_FLOW
        assert median < MAX_OPEN_SECONDS * SLACK
        assert guest.vpnkit.descriptors() > count
        for connection in flows:
            connection.close()
        wait_for(lambda: guest.vpnkit.descriptors() < 50, "every host socket is closed", 90)


@pytest.mark.usefixtures("descriptors")
def test_five_hundred_idle_flows(lab):
    idle_flows(lab, 500)


@pytest.mark.slow
@pytest.mark.usefixtures("descriptors")
def test_ten_thousand_idle_flows(lab):
    idle_flows(lab, 10_000)


# Nobody spins


def test_idle_flows_cost_no_time(lab):
    with ExitStack() as held:
        guest = held.enter_context(running(lab.host))
        port = held.enter_context(echo_process(lab.host))
        open_flows(guest, port, 50, held)
        used = idle_cpu(guest.vpnkit)
        print(f"50 idle flows: {used:.4f} s in 3 s")
        assert used < MAX_IDLE_CPU_SECONDS


def test_half_closed_flows_cost_no_time(lab):
    """25 that the guest closed and the server did not, 25 the other way round, and forwards likewise."""

    def hold(connection):
        mode = receive_exactly(connection, 1)
        if mode == b"s":
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
        else:
            assert connection.recv(1) == b""
            connection.sendall(b"e")
            ended.recv(1, socket.MSG_PEEK)

    ended, end = socket.socketpair()
    with ended, end, ExitStack() as held:
        guest = held.enter_context(running(lab.host, "root", "-p", "127.0.0.1:8070:7000"))
        server = held.enter_context(Server(lab.host.listen(), hold))
        inside = held.enter_context(Server(guest.listen(7000), hold))
        clients = [held.enter_context(guest.connect(server.port)) for _ in range(50)]
        clients += [held.enter_context(lab.host.connect("127.0.0.1", 8070)) for _ in range(50)]
        for number, client in enumerate(clients):
            if number % 2:
                client.sendall(b"s")
                assert client.recv(1) == b""
            else:
                client.sendall(b"c")
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b"e"
        used = idle_cpu(guest.vpnkit)
        print(f"100 half-closed flows: {used:.4f} s in 3 s")
        assert used < MAX_IDLE_CPU_SECONDS
        for client in clients:
            client.close()
        end.sendall(b"x")
    assert server.failures == inside.failures == []


def test_storm_of_errors_leaves_nothing_to_do(lab):
    with running(lab.host) as guest:
        port = closed_port(lab.host)
        for _ in range(300):
            assert tcp_outcome(guest.namespace, ALIAS, port) == "ECONNREFUSED"
        for _ in range(50):
            udp_outcome(guest.namespace, ALIAS, port, 0.01)
            udp_outcome(guest.namespace, "192.0.2.77", port, 0.01)
            tcp_outcome(guest.namespace, "192.0.2.77", port, 0.01)
        used = idle_cpu(guest.vpnkit)
        print(f"after a storm of errors: {used:.4f} s in 3 s")
        assert used < MAX_IDLE_CPU_SECONDS
        assert guest.vpnkit.descriptors() < 200  # the UDP mappings stay for some minutes

"""`vpnkit run -p`: servers in the guest, reached from the host."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.interop.guest_tools import (
    ALIAS,
    HOST,
    LINGER_RESET,
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
from tests.interop.test_errors import closed_port, outcome_of
from tests.tapdev.guests import environment

SIZE = (1 << 21) + 77


@pytest.fixture(scope="module", params=["root", "nobody"])
def guest(lab, request):
    forwards = ("-p", "127.0.0.1:8080:8000", "-p", "8081:192.168.65.3:8001", "-p", "198.51.100.1:8082:8000")
    with running(lab.host, request.param, *forwards) as started:
        yield started


def test_server_sees_the_host_alias_as_the_caller(lab, guest):
    seen = []
    server = Server(guest.listen(8000), lambda connection: seen.append(connection.getpeername()))
    with server, lab.host.connect("127.0.0.1", 8080) as client:
        assert client.recv(1) == b""
    assert seen[0][0] == ALIAS


def test_two_forwards_and_one_for_other_hosts(lab, guest):
    with (
        Server(guest.listen(8000), lambda connection: connection.sendall(b"first")),
        Server(guest.listen(8001), lambda connection: connection.sendall(b"second")),
    ):
        for namespace, address, port, expected in (
            (lab.host, "127.0.0.1", 8080, b"first"),
            (lab.host, "127.0.0.1", 8081, b"second"),
            (lab.remote, "198.51.100.1", 8082, b"first"),
        ):
            with namespace.connect(address, port) as client:
                assert b"".join(received(client)) == expected
        with lab.host.entered(), socket.socket(socket.AF_INET6) as client:
            client.connect(("::1", 8081))
            assert client.recv(10) == b"second"


def send_all(connection, seed):
    for part in stream(SIZE, seed):
        connection.sendall(part)
    connection.shutdown(socket.SHUT_WR)


def test_half_close_by_the_client(lab, guest):
    digests = []

    def serve(connection):
        digests.append(digest_of(received(connection)))
        send_all(connection, 2)

    with Server(guest.listen(8000), serve) as server, lab.host.connect("127.0.0.1", 8080) as client:
        send_all(client, 1)
        assert digest_of(received(client)) == digest_of(stream(SIZE, 2))
    assert digests == [digest_of(stream(SIZE, 1))]
    assert server.failures == []


def test_half_close_by_the_server(lab, guest):
    digests = []

    def serve(connection):
        send_all(connection, 2)
        digests.append(digest_of(received(connection)))

    with Server(guest.listen(8000), serve) as server, lab.host.connect("127.0.0.1", 8080) as client:
        assert digest_of(received(client)) == digest_of(stream(SIZE, 2))
        send_all(client, 1)
    assert digests == [digest_of(stream(SIZE, 1))]
    assert server.failures == []


def test_nobody_listens_in_the_guest(lab, guest):
    assert closed_port(guest.namespace) != 8000
    with lab.host.socket() as client:
        client.settimeout(5)
        # The reset may be there before `connect` is back.
        outcome = outcome_of(lambda: client.connect(("127.0.0.1", 8080))) or outcome_of(lambda: client.recv(1))
        assert outcome == "ECONNRESET"
    wait_for(lambda: not lab.host.tcp_sockets(), "no host socket is left")


def test_resets_cross(lab, guest):
    def reset(connection):
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)

    with Server(guest.listen(8000), reset), lab.host.connect("127.0.0.1", 8080) as client:
        client.sendall(b"x")
        assert outcome_of(lambda: client.recv(1)) == "ECONNRESET"

    seen = []
    with Server(guest.listen(8000), lambda connection: seen.append(outcome_of(lambda: echo(connection)))):
        client = lab.host.connect("127.0.0.1", 8080)
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        client.close()
    assert seen == ["ECONNRESET"]


def test_hundred_connections_at_once(lab, guest):
    def talk(seed):
        with lab.host.connect("127.0.0.1", 8080) as client:
            client.sendall(f"{seed:05}".encode())
            assert receive_exactly(client, 5) == f"{seed:05}".encode()
            all_here.wait(10)
            data = next(stream(20000, seed))
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert b"".join(received(client)) == data

    all_here = threading.Barrier(100)
    with Server(guest.listen(8000), echo) as server, ThreadPoolExecutor(100) as pool:
        for done in [pool.submit(talk, seed) for seed in range(100)]:
            done.result()
    assert server.failures == []
    wait_for(lambda: not lab.host.tcp_sockets(), "no host socket is left")


def listeners(namespace):
    return {line.split()[3] for line in namespace.run("ss", "-Hltn").splitlines()}


def test_any_free_port(lab):
    before = listeners(lab.host)
    with running(lab.host, "root", "-p", "127.0.0.1:0:8000") as guest:
        [found] = listeners(lab.host) - before
        address, port = found.rsplit(":", 1)
        assert address == "127.0.0.1"
        with Server(guest.listen(8000), echo), lab.host.connect(address, int(port)) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
    assert listeners(lab.host) == before


def test_the_port_that_the_system_chose_is_told():
    argv = [sys.executable, "-m", "vpnkit", "run", "-p", "127.0.0.1:0:8000", "-p", "127.0.0.1:0:8001", "--", "true"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    told = re.findall(r"^vpnkit run: 127.0.0.1:0:(\d+)\S* is 127.0.0.1:(\d+):(\d+)", done.stderr, re.MULTILINE)
    assert [(asked, guest) for asked, _, guest in told] == [("8000", "8000"), ("8001", "8001")]
    assert all(int(chosen) > 0 for _, chosen, _ in told)


def test_forward_works_before_the_command_runs(lab):
    """The command can rely on it: what is forwarded is there at once."""
    code = "import socket; c = socket.create_server(('', 8000)).accept()[0]; c.sendall(b'made it'); print('done')"
    with lab.host.entered():
        process = subprocess.Popen(
            vpnkit_run("root", "-p", "127.0.0.1:8090:8000", "--", sys.executable, "-I", "-c", code),
            stdout=subprocess.PIPE,
            env=environment(),
        )

    def fetched():
        try:
            with lab.host.connect("127.0.0.1", 8090) as client:
                return client.recv(10) == b"made it"
        except OSError:
            return False

    wait_for(fetched, "an answer through the forward")
    assert process.communicate(timeout=5) == (b"done\n", None)
    assert process.returncode == 0


def test_busy_port_is_one_clear_line(lab):
    with lab.host.listen(HOST, 8091), lab.host.entered():
        done = subprocess.run(
            vpnkit_run("root", "-p", "198.51.100.1:8091:80", "--", "true"),
            capture_output=True,
            text=True,
            env=environment(),
            timeout=10,
        )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "198.51.100.1:8091" in done.stderr

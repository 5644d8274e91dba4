"""A connection that fails looks to the guest as it would on a real network: errno by errno, against the host's own."""

from __future__ import annotations

import errno
import select
import socket
import threading
from contextlib import contextmanager

import pytest

from tests.interop.guest_tools import (
    ALIAS,
    GATEWAY,
    LINGER_RESET,
    REMOTE,
    Server,
    receive_exactly,
    wait_for,
)

IP_RECVERR = 11  # linux/in.h
TIMEOUT = 3.0  # seconds; what answers does so in a few milliseconds


def name_of(error: OSError) -> str:
    return "TIMEOUT" if isinstance(error, TimeoutError) and not error.errno else errno.errorcode[error.errno]


def tcp_outcome(namespace, address, port, timeout=TIMEOUT):
    """The errno of `connect`, by name."""
    with namespace.socket() as connection:
        connection.settimeout(timeout)
        try:
            connection.connect((address, port))
        except OSError as error:
            return name_of(error)
    return "connected"


def udp_outcome(namespace, address, port, timeout=TIMEOUT):
    """The errno that a connected socket gets for a datagram, when it is sent or afterwards."""
    with namespace.socket(socket.SOCK_DGRAM) as connection:
        connection.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)  # else most ICMP errors are not told
        connection.settimeout(timeout)
        try:
            connection.connect((address, port))
            connection.send(b"anybody?")
            connection.recv(100)
        except OSError as error:
            return name_of(error)
    return "answered"


OUTCOMES = {"tcp": tcp_outcome, "udp": udp_outcome}


def closed_port(namespace, kind=socket.SOCK_STREAM):
    with namespace.socket(kind) as unused:
        unused.bind(("0.0.0.0", 0))
        return unused.getsockname()[1]


# Nobody there


@pytest.mark.parametrize("protocol", OUTCOMES)
def test_refused_by_the_hosts_loopback(lab, guest, protocol):
    port = closed_port(lab.host)
    assert OUTCOMES[protocol](lab.host, "127.0.0.1", port) == "ECONNREFUSED"
    assert OUTCOMES[protocol](guest.namespace, ALIAS, port) == "ECONNREFUSED"


@pytest.mark.parametrize("protocol", OUTCOMES)
def test_refused_by_the_remote_host(lab, guest, protocol):
    port = closed_port(lab.remote)
    assert OUTCOMES[protocol](lab.host, REMOTE, port) == "ECONNREFUSED"
    assert OUTCOMES[protocol](guest.namespace, REMOTE, port) == "ECONNREFUSED"


@pytest.mark.parametrize("protocol", OUTCOMES)
def test_refused_by_the_gateway(guest, protocol):
    assert OUTCOMES[protocol](guest.namespace, GATEWAY, 7) == "ECONNREFUSED"


# Routes of the host, errors before anything is sent

NO_ROUTE = "192.0.2.9"
ROUTES = {"unreachable": "203.0.113.1", "prohibit": "203.0.113.2", "blackhole": "203.0.113.3"}


@pytest.fixture(scope="module")
def host_routes(lab):
    for kind, address in ROUTES.items():
        lab.host.run("ip", "route", "add", kind, f"{address}/32")
    yield
    for kind, address in ROUTES.items():
        lab.host.run("ip", "route", "del", kind, f"{address}/32")


NO_WAY = {
    "no route": (NO_ROUTE, "ENETUNREACH", "ENETUNREACH", "ENETUNREACH"),
    "unreachable": (ROUTES["unreachable"], "EHOSTUNREACH", "EHOSTUNREACH", "EHOSTUNREACH"),
    # No ICMP message makes these two errnos: to the guest they happen on a router, which says so or discards.
    "prohibit": (ROUTES["prohibit"], "EACCES", "EHOSTUNREACH", "EHOSTUNREACH"),
    "blackhole": (ROUTES["blackhole"], "EINVAL", "EHOSTUNREACH", "TIMEOUT"),
}


@pytest.mark.parametrize("way", NO_WAY)
@pytest.mark.usefixtures("host_routes")
def test_no_way_out_of_the_host(lab, guest, way):
    address, on_the_host, tcp, udp = NO_WAY[way]
    assert tcp_outcome(lab.host, address, 80) == on_the_host
    assert udp_outcome(lab.host, address, 80) == on_the_host
    assert tcp_outcome(guest.namespace, address, 80) == tcp
    assert udp_outcome(guest.namespace, address, 80, 0.5 if udp == "TIMEOUT" else TIMEOUT) == udp


# Routers on the way: ICMP errors


REJECTIONS = {
    "icmp type net-unreachable": "ENETUNREACH",
    "icmp type host-unreachable": "EHOSTUNREACH",
    "icmp type prot-unreachable": "ENOPROTOOPT",
    "icmp type port-unreachable": "ECONNREFUSED",
    "icmp type net-prohibited": "ENETUNREACH",
    "icmp type host-prohibited": "EHOSTUNREACH",
    "icmp type admin-prohibited": "EHOSTUNREACH",
}


@contextmanager
def filtered(namespace, rule):
    """`rule` for what comes in from outside."""
    table = f"table ip filtered {{ chain input {{ type filter hook input priority 0; iifname eth0 {rule}; }}; }}\n"
    namespace.run("nft", "-f", "-", stdin=table)
    try:
        yield
    finally:
        namespace.run("nft", "delete", "table", "ip", "filtered")


@pytest.mark.program("nft")
@pytest.mark.parametrize("protocol", OUTCOMES)
@pytest.mark.parametrize("how", REJECTIONS)
def test_rejected_on_the_way(lab, guest, protocol, how):
    with filtered(lab.remote, f"reject with {how}"):
        expected = OUTCOMES[protocol](lab.host, REMOTE, 80)
        assert expected == REJECTIONS[how]
        assert OUTCOMES[protocol](guest.namespace, REMOTE, 80) == expected


@pytest.mark.program("nft")
def test_reset_by_a_firewall(lab, guest):
    with filtered(lab.remote, "meta l4proto tcp reject with tcp reset"):
        assert tcp_outcome(lab.host, REMOTE, 80) == "ECONNREFUSED"
        assert tcp_outcome(guest.namespace, REMOTE, 80) == "ECONNREFUSED"


# Black holes


@pytest.fixture
def impatient_host(lab):
    lab.host.set("tcp_syn_retries", 1)  # 3 seconds
    yield lab.host
    lab.host.set("tcp_syn_retries", 6)


@pytest.mark.program("nft")
def test_black_hole_is_silence_and_holds_nothing_for_ever(lab, root_guest, impatient_host):
    with filtered(lab.remote, "drop"):
        tried = [root_guest.namespace.socket() for _ in range(10)]
        try:
            for connection in tried:
                connection.setblocking(False)
                assert connection.connect_ex((REMOTE, 80)) == errno.EINPROGRESS
            wait_for(lambda: len(impatient_host.tcp_sockets("SYN-SENT")) == 10, "ten held SYNs")
            assert tcp_outcome(root_guest.namespace, REMOTE, 80, 0.3) == "TIMEOUT"
            assert select.select([], tried, [], 0)[1] == []
        finally:
            for connection in tried:
                connection.close()
        assert udp_outcome(root_guest.namespace, REMOTE, 80, 0.3) == "TIMEOUT"
        wait_for(lambda: not impatient_host.tcp_sockets(), "no host socket is left", 8)


def test_full_backlog_is_a_wait(lab, guest):
    with lab.host.listen(backlog=0) as listener:
        port = listener.getsockname()[1]
        outcome = []
        first = lab.host.connect("127.0.0.1", port)
        waiting = threading.Thread(target=lambda: outcome.append(tcp_outcome(guest.namespace, ALIAS, port, 10)))
        waiting.start()
        wait_for(lambda: lab.host.tcp_sockets("SYN-SENT"), "a SYN that nobody answers")
        assert outcome == []
        accepted = [listener.accept()[0]]
        waiting.join(10)
        assert outcome == ["connected"]
        accepted.append(listener.accept()[0])
        for connection in (first, *accepted):
            connection.close()


# Resets in the middle


def outcome_of(action):
    try:
        return action()
    except OSError as error:
        return name_of(error)


def ends_of(server):
    """The errors that a client sees after 10 octets went each way, one after the other, until it gives up."""

    def dialogue(namespace, address, port):
        with namespace.connect(address, port) as client:
            client.sendall(b"0123456789")
            assert receive_exactly(client, 10) == b"abcdefghij"
            seen = [outcome_of(lambda: client.recv(100))]
            seen.append(outcome_of(lambda: client.send(b"x")))
            seen.append(outcome_of(lambda: client.recv(100)))
            return seen

    return dialogue


def resets(connection):
    receive_exactly(connection, 10)
    connection.sendall(b"abcdefghij")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)


def leaves_data_unread(connection):
    assert select.select([connection], [], [], TIMEOUT)[0]
    connection.recv(9)
    connection.sendall(b"abcdefghij")


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [(resets, ["ECONNRESET", "EPIPE", b""]), (leaves_data_unread, ["ECONNRESET", "EPIPE", b""])],
)
def test_reset_by_the_server(lab, guest, behaviour, expected):
    with Server(lab.host.listen(), behaviour) as server:
        dialogue = ends_of(server)
        assert dialogue(lab.host, "127.0.0.1", server.port) == expected
        assert dialogue(guest.namespace, ALIAS, server.port) == expected
    assert server.failures == []
    wait_for(lambda: not lab.host.tcp_sockets(), "no host socket is left")


def test_reset_in_the_middle_of_a_stream(lab, guest):
    def cut(connection):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        receive_exactly(connection, 1 << 20)

    def upload(namespace, address, port):
        with namespace.connect(address, port) as client:
            while True:
                client.sendall(bytes(65536))

    with Server(lab.host.listen(), cut) as server:
        for namespace, address in ((lab.host, "127.0.0.1"), (guest.namespace, ALIAS)):
            with pytest.raises(ConnectionError) as caught:
                upload(namespace, address, server.port)
            assert caught.value.errno == errno.ECONNRESET
    assert server.failures == []


def test_client_that_reads_late_gets_what_was_sent_before_the_reset(lab, guest):
    """As the host's own kernel does it: what was received before the reset is still there to be read."""
    told = threading.Event()

    def serve(connection):
        connection.sendall(b"abcdefghij")
        told.wait(TIMEOUT)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)

    with Server(lab.host.listen(), serve) as server:
        for namespace, address in ((lab.host, "127.0.0.1"), (guest.namespace, ALIAS)):
            told.clear()
            with namespace.connect(address, server.port) as client:
                assert select.select([client], [], [], TIMEOUT)[0]
                told.set()
                poller = select.poll()
                poller.register(client, select.POLLRDHUP)
                assert poller.poll(TIMEOUT * 1000)
                assert client.recv(100) == b"abcdefghij"
                assert outcome_of(lambda: client.recv(100)) == "ECONNRESET"


# The guest's side, as the server sees it


def server_sees(namespace, address, host, behave):
    """What a server that sent 10 octets gets from `recv` and then from `send`, for a client that does `behave`."""
    seen = []

    def serve(connection):
        connection.sendall(b"abcdefghij")
        seen.append(outcome_of(lambda: connection.recv(100)))
        seen.append(outcome_of(lambda: connection.send(b"x")))
        seen.append(outcome_of(lambda: connection.recv(100)))

    with Server(host.listen(), serve) as server:
        client = namespace.connect(address, server.port)
        try:
            behave(client)
        finally:
            client.close()
    assert server.failures == []
    return seen


def client_resets(client):
    receive_exactly(client, 10)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)


def client_leaves_data_unread(client):
    assert receive_exactly(client, 5) == b"abcde"


@pytest.mark.parametrize("behave", [client_resets, client_leaves_data_unread])
def test_reset_by_the_guest(lab, guest, behave):
    expected = ["ECONNRESET", "EPIPE", b""]
    assert server_sees(lab.host, "127.0.0.1", lab.host, behave) == expected
    assert server_sees(guest.namespace, ALIAS, lab.host, behave) == expected


def test_data_for_a_guest_that_closed_is_a_broken_pipe(lab, guest):
    def sees(namespace, address):
        seen = []

        def serve(connection):
            seen.append(connection.recv(100))
            seen.append(connection.send(b"x"))
            poller = select.poll()
            poller.register(connection, 0)
            assert poller.poll(TIMEOUT * 1000)  # POLLERR or POLLHUP
            seen.append(outcome_of(lambda: connection.send(b"x")))

        with Server(lab.host.listen(), serve) as server:
            namespace.connect(address, server.port).close()
        assert server.failures == []
        return seen

    assert sees(lab.host, "127.0.0.1") == [b"", 1, "EPIPE"]
    assert sees(guest.namespace, ALIAS) == [b"", 1, "EPIPE"]


def test_program_that_is_killed_is_an_end(lab, guest):
    seen = []

    def serve(connection):
        seen.append(connection.recv(100))

    with Server(lab.host.listen(), serve) as server:
        script = f"exec 3<>/dev/tcp/{ALIAS}/{server.port}; kill -KILL $$"
        guest.run("bash", "-c", script, check=False)
    assert seen == [b""]

"""The control API of a running `vpnkit run`, with curl on both sides, and a guest of this kernel."""

from __future__ import annotations

import json
import re
import socket
import threading
from pathlib import Path

import pytest

from tests.interop.guest_tools import Server, echo, receive_exactly, received, running, wait_for
from vpnkit.control import client

GUEST = "192.168.65.3"
TOKEN = "a-token-for-the-tests"

pytestmark = pytest.mark.program("curl")


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("control") / "token"
    path.touch(0o600)
    path.write_text(TOKEN)
    return path


@pytest.fixture(scope="module")
def guest(lab, token_file):
    options = ("--gateway-api", "--control-tcp", "127.0.0.1:0", "--control-token-file", str(token_file))
    with running(lab.host, "root", *options) as started:
        yield started


@pytest.fixture(scope="module")
def path(guest):
    return guest.directory.path / "vpnkit" / "default.sock"


def curl(lab, path, target, *options):
    """What curl on the host gets, and the status."""
    answer = lab.host.run(
        "curl", "-sS", "--unix-socket", str(path), f"http:/unix{target}", "-w", "\n%{http_code}", *options
    )
    body, _, status = answer.rpartition("\n")
    return body, int(status)


def inside(guest, what, body):
    """What a program in the guest gets, as Podman asks."""
    url = f"http://gateway.containers.internal/services/forwarder/{what}"
    done = guest.run("curl", "-sS", "--max-time", "10", url, "-w", "\n%{http_code}", "-d", json.dumps(body))
    answer, _, status = done.stdout.rpartition("\n")
    return answer, int(status)


def test_a_port_that_the_guest_publishes(lab, guest, path):
    wanted = {"local": "127.0.0.1:9100", "remote": ":8000", "protocol": "tcp"}
    assert inside(guest, "expose", wanted) == ("", 200)
    with (
        Server(guest.listen(8000), lambda connection: connection.sendall(b"from inside")),
        lab.host.connect("127.0.0.1", 9100) as caller,
    ):
        assert b"".join(received(caller)) == b"from inside"
    body, _ = curl(lab, path, "/services/forwarder/all")
    assert json.loads(body) == [{"local": "127.0.0.1:9100", "remote": f"{GUEST}:8000", "protocol": "tcp"}]
    assert inside(guest, "expose", {"local": ":9101", "remote": "192.168.65.4:80"})[1] == 500
    assert inside(guest, "unexpose", {"local": "127.0.0.1:9100"}) == ("", 200)
    with pytest.raises(ConnectionRefusedError):
        lab.host.connect("127.0.0.1", 9100)


def test_expose_and_unexpose_from_the_host(lab, guest, path):
    body = json.dumps({"local": ":9200", "remote": f"{GUEST}:8000"})
    assert curl(lab, path, "/services/forwarder/expose", "-d", body) == ("", 200)
    with Server(guest.listen(8000), echo):
        for address in ("127.0.0.1", lab.host.run("hostname", "-I").split()[0]):
            with lab.host.connect(address, 9200) as caller:
                caller.sendall(b"hello")
                assert receive_exactly(caller, 5) == b"hello"
    answer, status = curl(lab, path, "/services/forwarder/expose", "-d", body)
    assert (answer, status) == ("proxy already running for tcp on :9200\n", 500)
    assert curl(lab, path, "/services/forwarder/unexpose", "-d", body) == ("", 200)


def test_a_port_that_somebody_has(lab, path):
    with lab.host.listen("127.0.0.1", 9300):
        body = json.dumps({"local": "127.0.0.1:9300", "remote": f"{GUEST}:8000"})
        answer, status = curl(lab, path, "/services/forwarder/expose", "-d", body)
        assert (answer, status) == ("listen tcp 127.0.0.1:9300: bind: address already in use\n", 500)
        port = {"proto": "tcp", "out_ip": "127.0.0.1", "out_port": 9300, "in_ip": GUEST, "in_port": 8000}
        answer, status = curl(
            lab, path, "/forwards/expose/port", "-H", "Content-Type: application/json", "-d", json.dumps(port)
        )
        assert (json.loads(answer), status) == (
            {"message": "listen tcp 127.0.0.1:9300: bind: address already in use"},
            400,
        )


def tunnel(path, port, early=b"", ip=GUEST):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(str(path))
    connection.sendall(f"POST /tunnel?ip={ip}&port={port} HTTP/1.1\r\nHost: unix\r\n\r\n".encode() + early)
    assert receive_exactly(connection, 2) == b"OK"
    return connection


def test_a_tunnel_into_the_guest(guest, path):
    with Server(guest.listen(8022), echo), tunnel(path, 8022, b"early") as connection:
        assert receive_exactly(connection, 5) == b"early"
        sent = bytes(range(256)) * 4096
        writing = threading.Thread(target=lambda: (connection.sendall(sent), connection.shutdown(socket.SHUT_WR)))
        writing.start()
        assert b"".join(received(connection)) == sent
        writing.join()


def test_a_tunnel_to_a_closed_port_or_to_nobody_ends(path):
    for ip, port in ((GUEST, 8023), ("192.168.65.77", 22)):
        with tunnel(path, port, ip=ip) as connection:
            try:
                assert connection.recv(1) == b""
            except ConnectionResetError:
                pass


def test_tunnels_leave_nothing(guest, path):
    def descriptors():
        return guest.vpnkit.descriptors()

    before = descriptors()
    with Server(guest.listen(8024), echo):
        for _ in range(20):
            with tunnel(path, 8024, b"x") as connection:
                assert connection.recv(1) == b"x"
    wait_for(lambda: descriptors() <= before, "the descriptors of tunnels to be closed")


def test_names_that_are_added_while_it_runs(lab, guest, path):
    zone = {"Name": "apps.test.", "Records": [{"Name": "db", "IP": "192.0.2.77"}], "DefaultIP": "192.0.2.78"}
    assert curl(lab, path, "/services/dns/add", "-d", json.dumps(zone)) == ("", 200)
    assert guest.run("dig", "+short", "db.apps.test").stdout == "192.0.2.77\n"
    assert guest.run("dig", "+short", "other.apps.test").stdout == "192.0.2.78\n"
    assert curl(lab, path, "/v1/zones/apps.test", "-X", "DELETE")[1] == 200


def test_who_is_there(lab, guest, path):
    leases = json.loads(curl(lab, path, "/leases")[0])
    assert leases["192.168.65.1"] == "f6:16:36:bc:f9:c6"
    assert leases[GUEST] == "02:50:00:00:00:01"
    assert json.loads(curl(lab, path, "/cam")[0]) == {"02:50:00:00:00:01": 1}
    stats = json.loads(curl(lab, path, "/stats")[0])
    assert stats["BytesReceived"] > 0


def test_metrics(lab, guest, path):
    text, status = curl(lab, path, "/metrics")
    assert status == 200
    assert "\nvpnkit_guests 1\n" in text
    [octets] = re.findall(r'vpnkit_guest_bytes_total{guest="1",.*direction="to_host"} (\d+)', text)
    assert int(octets) > 0


def test_events(lab, guest, path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(10)
        listener.connect(str(path))
        listener.sendall(b"GET /v1/events HTTP/1.0\r\n\r\n")
        file = listener.makefile("rb")
        while file.readline() != b"\r\n":
            pass
        client.request(path, "POST", "/v1/forwards", {"spec": "9400:8000"})
        client.request(path, "DELETE", "/v1/forwards?spec=9400:8000", None)
        events = [json.loads(file.readline()) for _ in range(2)]
        assert [event["event"] for event in events] == ["forward_added", "forward_removed"]
        assert events[0]["forwards"][0]["spec"] == "9400:8000"


def test_over_tcp_with_the_token(lab, guest, path, token_file):
    [place] = re.findall(r"the control API is at (127\.0\.0\.1:\d+) too", guest.log())
    status = lab.host.run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"http://{place}/v1/status")
    assert status == "401"
    token = token_file.read_text()
    answer = lab.host.run("curl", "-sS", "-H", f"Authorization: Bearer {token}", f"http://{place}/v1/status")
    assert json.loads(answer)["name"] == "default"
    assert token not in guest.log()


DOCUMENT = Path(__file__).parents[2] / "docs/control.md"
COMMANDS = [
    line.partition("     #")[0]
    for block in re.findall(r"```\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("curl --unix-socket $S ")
]


def test_the_commands_of_the_document(lab, path):
    assert len(COMMANDS) > 15
    for command in COMMANDS:
        if "/v1/events" in command:
            command += " --max-time 0.5 || test $? = 28"
        answer = lab.host.run("sh", "-c", f"S={path}; {command.replace('curl', 'curl -sS --fail-with-body', 1)}")
        assert "error" not in answer, command


def test_the_guest_does_not_reach_the_socket_of_the_operator(guest):
    done = guest.run("curl", "-sS", "http://192.168.65.1/v1/status", "-w", "%{http_code}")
    assert done.stdout == "404 page not found\n404"


def test_without_the_option_the_gateway_has_no_such_port(lab):
    with running(lab.host) as other:
        done = other.run("curl", "-sS", "--max-time", "10", "http://192.168.65.1/services/forwarder/all", check=False)
        assert done.returncode == 7, "connection refused"

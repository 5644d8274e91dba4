"""Forwards of every kind with other people's programs, made and unmade at run time by the command line."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.interop.guest_tools import (
    ALIAS,
    GUEST,
    HOST,
    REMOTE,
    Directory,
    Server,
    echo,
    receive_exactly,
    received,
    running,
    wait_for,
)
from tests.interop.servers import NameServer
from tests.tapdev.guests import as_user, environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.interop.guest_tools import Guest, Lab, Namespace


@pytest.fixture(scope="module", params=["root", "nobody"])
def guest(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with running(lab.host, request.param) as started:
        yield started


def cli(guest: Guest, *argv: str, status: int = 0) -> str:
    """What `vpnkit ARGV` says about this guest's instance, on stdout or, when it fails, on stderr."""
    done = subprocess.run(
        as_user(guest.user, [sys.executable, "-m", "vpnkit", *argv]),
        capture_output=True,
        text=True,
        timeout=20,
        env=environment(XDG_RUNTIME_DIR=str(guest.directory.path)),
    )
    assert done.returncode == status, f"{argv}: {done.returncode} {done.stdout} {done.stderr}"
    return done.stderr if status else done.stdout


@contextmanager
def exposed(guest: Guest, *specs: str) -> Iterator[list[str]]:
    """These forwards, as `vpnkit expose` says them."""
    made = cli(guest, "expose", *specs).split()
    try:
        yield made
    finally:
        cli(guest, "unexpose", "--close", *made)


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


def port_of(spec: str) -> int:
    return int(spec.split(":")[-2])


class DatagramServer:
    """Answers each datagram with who sent it."""

    def __init__(self, namespace: Namespace, address: str = "0.0.0.0") -> None:
        self.socket = namespace.socket(socket.SOCK_DGRAM)
        self.socket.bind((address, 0))
        self.port = self.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._stop = namespace.socket(socket.SOCK_DGRAM)
        self._stop.bind(("127.0.0.1", 0))

    def _serve(self) -> None:
        while True:
            data, source = self.socket.recvfrom(65535)
            if data == b"stop" and source == self._stop.getsockname():
                return
            self.socket.sendto(f"{source[0]} {len(data)}".encode(), source)

    def __enter__(self) -> DatagramServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.sendto(b"stop", ("127.0.0.1", self.port))
        self._thread.join(10)
        self.socket.close()
        self._stop.close()


def ask(namespace: Namespace, address: str, port: int, data: bytes = b"who am I?") -> str:
    with namespace.socket(socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(data, (address, port))
        answer, source = client.recvfrom(65535)
        assert source == (address, port)
        return answer.decode()


@needs("dig")
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_a_name_server_in_the_guest(lab: Lab, guest: Guest, transport: str) -> None:
    protocol = "udp" if transport == "+notcp" else "tcp"
    with (
        NameServer(guest.namespace, GUEST) as names,
        exposed(guest, f"{HOST}:0:{names.port}/{protocol}", f"0:{names.port}/{protocol}") as [outside, inside],
    ):
        question = ["dig", "+short", "+tries=1", "+time=5", transport, "some.example"]
        far = lab.remote.run(*question, f"@{HOST}", "-p", str(port_of(outside)))
        near = lab.host.run(*question, "@127.0.0.1", "-p", str(port_of(inside)))
        six = lab.host.run(*question, "@::1", "-p", str(port_of(inside)))
        assert far == near == six == "203.0.113.77\n"
        assert set(names.asked) == {protocol}


@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 9216, 60000])
def test_datagrams_of_any_size(lab: Lab, guest: Guest, size: int) -> None:
    with DatagramServer(guest.namespace) as server, exposed(guest, f"127.0.0.1:0:{server.port}/udp") as [spec]:
        assert ask(lab.host, "127.0.0.1", port_of(spec), b"x" * size) == f"{ALIAS} {size}"


def test_a_datagram_to_any_address_of_the_host_is_answered_from_there(lab: Lab, guest: Guest) -> None:
    with DatagramServer(guest.namespace) as server, exposed(guest, f"0.0.0.0:0:{server.port}/udp") as [spec]:
        assert ask(lab.remote, HOST, port_of(spec)) == f"{ALIAS} 9"
        assert ask(lab.host, "127.0.0.9", port_of(spec)) == f"{ALIAS} 9"


def test_the_guest_sees_the_client_itself(lab: Lab, guest: Guest) -> None:
    callers: list[tuple[str, int]] = []
    with (
        DatagramServer(guest.namespace) as datagrams,
        Server(guest.listen(8000), lambda connection: callers.append(connection.getpeername())),
        exposed(guest, "0.0.0.0:0:8000,source=client", f"0.0.0.0:0:{datagrams.port}/udp,source=client") as specs,
    ):
        stream, datagram = (port_of(spec.partition(",")[0]) for spec in specs)
        with lab.remote.connect(HOST, stream) as client:
            assert client.recv(1) == b""
            assert callers == [client.getsockname()]
            assert callers[0][0] == REMOTE
        assert ask(lab.remote, HOST, datagram) == f"{REMOTE} 9"
        with lab.host.connect("127.0.0.1", stream) as client:  # an address that the guest has itself
            assert client.recv(1) == b""
        assert callers[1][0] == ALIAS
        assert ask(lab.host, "127.0.0.1", datagram) == f"{ALIAS} 9"


NGINX = """
daemon off; worker_processes 1; pid {directory}/pid; error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {directory}/b; proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f;
    uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
    server {{ listen 8001 proxy_protocol; location / {{ return 200 "$proxy_protocol_addr $remote_addr\\n"; }} }}
    server {{ listen 8002; location / {{ return 200 "$remote_addr\\n"; }} }}
}}
"""


@pytest.fixture
def nginx(guest: Guest) -> Iterator[None]:
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    with Directory() as directory:
        (directory / "nginx.conf").write_text(NGINX.format(directory=directory))
        with guest.namespace.entered():
            process = subprocess.Popen(
                ["nginx", "-e", "stderr", "-c", str(directory / "nginx.conf")], stderr=subprocess.PIPE
            )
        try:
            wait_for(lambda: ":8002" in guest.namespace.run("ss", "-Hltn"), "nginx listens")
            yield
        finally:
            process.terminate()
            process.wait(10)
            process.stderr.close()


@needs("curl")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_nginx_understands_the_proxy_header(lab: Lab, guest: Guest, nginx: None, version: str) -> None:
    with exposed(guest, f"{HOST}:0:8001,proxy={version}") as [spec]:
        url = f"http://{HOST}:{port_of(spec.partition(',')[0])}/"
        assert lab.remote.run("curl", "-sS", url) == f"{REMOTE} {ALIAS}\n"


@needs("curl")
def test_curl_by_a_unix_socket(lab: Lab, guest: Guest, nginx: None) -> None:
    with Directory(guest.user) as directory:
        path = directory / "made" / "web.sock"
        with exposed(guest, f"unix:{path}:8002", f"unix:{path}2:8001,proxy=v2") as specs:
            assert specs == [f"unix:{path}:8002", f"unix:{path}2:8001,proxy=v2"]
            assert path.stat().st_mode & 0o777 == 0o600
            asked = ["curl", "-sS", "http://guest/", "--unix-socket"]
            assert lab.host.run(*asked, str(path)) == f"{ALIAS}\n"
            assert lab.host.run(*asked, f"{path}2") == f" {ALIAS}\n"  # who has no address, it says
            says = cli(guest, "expose", f"unix:{path}:8003", status=1)
            assert f"{path} is forwarded already, by unix:{path}:8002" in says
        assert not path.exists()


@needs("iperf3")
@pytest.mark.parametrize("options", [[], ["-R"], ["-u", "-b", "20M"], ["-u", "-b", "20M", "-R"]])
def test_iperf3(lab: Lab, guest: Guest, options: list[str]) -> None:
    with guest.namespace.entered():
        server = subprocess.Popen(["iperf3", "-s", "-1", "-p", "5201"], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: ":5201" in guest.namespace.run("ss", "-Hltn"), "iperf3 listens")
        with exposed(guest, f"{HOST}:5201:5201", f"{HOST}:5201:5201/udp"):
            output = lab.remote.run("iperf3", "-c", HOST, "-p", "5201", "-t", "1", "-J", *options, timeout=30)
        end = json.loads(output)["end"]
        received_octets = end["sum"]["bytes"] if "-u" in options else end["sum_received"]["bytes"]
        assert received_octets > 1_000_000
        if "-u" in options:
            assert end["sum"]["lost_percent"] < 50  # of a busy machine; no datagram at all would be 100
    finally:
        server.terminate()
        server.wait(10)


def test_made_and_unmade_at_run_time(lab: Lab, guest: Guest) -> None:
    with Server(guest.listen(8000), echo):
        [spec] = cli(guest, "expose", "127.0.0.1:0:8000").split()
        port = port_of(spec)
        [report] = json.loads(cli(guest, "ports", "--json"))
        assert (report["spec"], report["host_port"], report["guest_port"]) == (spec, port, 8000)
        client = lab.host.connect("127.0.0.1", port)
        with client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            assert cli(guest, "ports").splitlines()[1].split()[3:5] == ["1", "1"]
            assert "is forwarded already" in cli(guest, "expose", spec, status=1)
            assert cli(guest, "unexpose", spec).split() == [spec]
            client.sendall(b"y")  # what is open goes on
            assert client.recv(1) == b"y"
            with pytest.raises(ConnectionRefusedError):
                lab.host.connect("127.0.0.1", port)
            assert f"{spec} is not forwarded; nothing is" in cli(guest, "unexpose", spec, status=1)
        cli(guest, "expose", spec)
        with lab.host.connect("127.0.0.1", port) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            cli(guest, "unexpose", "--close", spec)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    assert cli(guest, "ports").count("\n") == 1


def test_a_busy_port_says_who_has_it_and_a_range_is_all_or_nothing(lab: Lab, guest: Guest) -> None:
    with lab.host.listen("127.0.0.1") as taken:
        port = taken.getsockname()[1]
        says = cli(guest, "expose", f"127.0.0.1:{port - 1}-{port}:8000-8001", status=1)
        assert f"127.0.0.1:{port} is in use" in says
        if guest.user == "root":
            assert "(pid " in says
    assert json.loads(cli(guest, "ports", "--json")) == []


def test_vsock_and_the_forwarder_say_what_is_missing(guest: Guest) -> None:
    says = cli(guest, "expose", "127.0.0.1:0:unix:/run/docker.sock", status=1)
    assert "a unix socket in the guest needs the forwarder there, and none is connected" in says
    with exposed(guest, "127.0.0.1:0:vsock:4242:80") as [spec]:
        assert spec.endswith(":vsock:4242:80")


def open_and_close(guest: Guest, host: Namespace, port: int, count: int, halves: int) -> None:
    """That many connections of eight threads, closed by either side, and some that are half-closed."""

    def some(number: int) -> None:
        for index in range(count // 8):
            with host.connect("127.0.0.1", port) as client:
                client.sendall(b"x" * 100)
                assert receive_exactly(client, 100) == b"x" * 100
                if index % 2:
                    client.shutdown(socket.SHUT_WR)
                    assert b"".join(received(client)) == b""

    threads = [threading.Thread(target=some, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    half = []
    for _ in range(halves):
        client = host.connect("127.0.0.1", port)
        client.shutdown(socket.SHUT_WR)
        half.append(client)
    for client in half:
        client.settimeout(20)
        assert client.recv(1) == b""
        client.close()


@pytest.mark.parametrize(("count", "halves"), [(160, 40), pytest.param(2000, 500, marks=pytest.mark.slow)])
def test_many_connections_leave_nothing(lab: Lab, guest: Guest, count: int, halves: int) -> None:
    with Server(guest.listen(8000), echo), exposed(guest, "127.0.0.1:0:8000") as [spec]:
        port = port_of(spec)
        with lab.host.connect("127.0.0.1", port) as client:
            client.sendall(b"warm")
            receive_exactly(client, 4)
        wait_for(lambda: json.loads(cli(guest, "flows", "--json")) == [], "the first connection is gone")
        before = guest.vpnkit.descriptors()
        open_and_close(guest, lab.host, port, count, halves)
        wait_for(lambda: not lab.host.tcp_sockets(), "no host socket is left", 20)
        assert json.loads(cli(guest, "flows", "--json")) == []
        [report] = json.loads(cli(guest, "ports", "--json"))
        assert (report["connections"], report["failures"], report["refused"]) == (0, 0, 0)
        assert report["accepted"] == count + halves + 1
        wait_for(lambda: guest.vpnkit.descriptors() == before, f"{before} descriptors again")


@pytest.mark.parametrize("count", [100, pytest.param(1500, marks=pytest.mark.slow)])
def test_many_clients_of_a_udp_forward_leave_no_descriptor(lab: Lab, guest: Guest, count: int) -> None:
    with DatagramServer(guest.namespace) as server, exposed(guest, f"127.0.0.1:0:{server.port}/udp") as [spec]:
        ask(lab.host, "127.0.0.1", port_of(spec))
        before = guest.vpnkit.descriptors()
        for _ in range(count):
            assert ask(lab.host, "127.0.0.1", port_of(spec)) == f"{ALIAS} 9"
        assert guest.vpnkit.descriptors() == before
        [report] = json.loads(cli(guest, "ports", "--json"))
        assert report["connections"] <= 1024
        flows = json.loads(cli(guest, "flows", "--json"))
        assert {(flow["protocol"], flow["direction"]) for flow in flows} == {("udp", "in")}
    assert json.loads(cli(guest, "flows", "--json")) == []


@needs("prlimit")
def test_out_of_descriptors(lab: Lab) -> None:
    """Neither a spin nor a flood, what is open goes on, and afterwards all is well (B9)."""
    with running(lab.host, "root", "-p", "127.0.0.1:8095:8000") as guest, Server(guest.listen(8000), echo):
        pid = str(guest.vpnkit.pid)
        with lab.host.connect("127.0.0.1", 8095) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            before = subprocess.run(
                ["prlimit", "--pid", pid, "--nofile", "-o", "SOFT,HARD", "--noheadings"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            limit = guest.vpnkit.descriptors()
            subprocess.run(["prlimit", "--pid", pid, f"--nofile={limit}:{before[1]}"], check=True)
            with lab.host.connect("127.0.0.1", 8095) as waiting:  # in the backlog
                waiting.sendall(b"later")
                waiting.settimeout(1)
                cpu = guest.vpnkit.cpu_seconds()
                with pytest.raises(TimeoutError):
                    waiting.recv(5)
                assert guest.vpnkit.cpu_seconds() - cpu < 0.5  # a spin would use it all
                client.sendall(b"y")
                assert client.recv(1) == b"y"
                subprocess.run(["prlimit", "--pid", pid, f"--nofile={before[0]}:{before[1]}"], check=True)
                waiting.settimeout(10)
                assert receive_exactly(waiting, 5) == b"later"
        assert guest.log().count("cannot accept") == 1


def test_no_more_than_max_connections(lab: Lab) -> None:
    options = ("--max-connections", "5", "-p", "127.0.0.1:8096:8000")
    with running(lab.host, "root", *options) as guest, Server(guest.listen(8000), echo):
        kept = [lab.host.connect("127.0.0.1", 8096) for _ in range(5)]
        for client in kept:
            client.sendall(b"x")
            assert client.recv(1) == b"x"

        def is_refused() -> bool:
            try:
                with lab.host.connect("127.0.0.1", 8096) as client:
                    client.sendall(b"x")
                    return client.recv(1) != b"x"
            except ConnectionError:
                return True

        assert all(is_refused() for _ in range(20))
        for client in kept:  # whom it cost nothing
            client.sendall(b"y")
            assert client.recv(1) == b"y"
            client.close()
        wait_for(lambda: not is_refused(), "there is room again")
        assert guest.log().count("too many") == 1


def test_a_guest_whose_server_is_gone(lab: Lab, guest: Guest, tmp_path: Path) -> None:
    """UDP says nothing, TCP a reset, and neither ends the forward."""
    with DatagramServer(guest.namespace) as server:
        port = server.port
    with exposed(guest, f"127.0.0.1:0:{port}/udp", f"127.0.0.1:0:{port}") as [datagram, stream]:
        with lab.host.socket(socket.SOCK_DGRAM) as client:
            client.settimeout(0.3)
            for _ in range(3):
                client.sendto(b"x", ("127.0.0.1", port_of(datagram.removesuffix("/udp"))))
                with pytest.raises(TimeoutError):
                    client.recv(10)
        with pytest.raises(ConnectionResetError), lab.host.connect("127.0.0.1", port_of(stream)) as client:
            client.recv(1)
        with Server(guest.listen(port), echo), lab.host.connect("127.0.0.1", port_of(stream)) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"


def test_a_loopback_forward_is_not_for_others(lab: Lab, guest: Guest) -> None:
    """CVE-2020-8558 and its kind: what listens on 127.0.0.1 is out of reach for the network."""
    with Server(guest.listen(8000), echo), exposed(guest, "0:8000", "0.0.0.0:0:8000") as [inside, outside]:
        lab.remote.connect(HOST, port_of(outside)).close()
        with pytest.raises(ConnectionRefusedError):
            lab.remote.connect(HOST, port_of(inside))


def test_what_the_guest_keeps_to_himself_stays_so(lab: Lab, guest: Guest) -> None:
    """A server on the guest's own 127.0.0.1 is not reached by a forward to that port."""
    with (
        Server(guest.namespace.listen("127.0.0.1", 8000), echo),
        exposed(guest, "127.0.0.1:0:8000") as [spec],
        pytest.raises(ConnectionResetError),
        lab.host.connect("127.0.0.1", port_of(spec)) as client,
    ):
        client.recv(1)


def test_the_guest_calls_himself_by_the_host(lab: Lab, guest: Guest) -> None:
    """RFC 4787 REQ-9: hairpinning, with the external source."""
    callers = []

    def serve(connection: socket.socket) -> None:
        callers.append(connection.getpeername()[0])
        echo(connection)

    with (
        Server(guest.listen(8000), serve),
        DatagramServer(guest.namespace) as datagrams,
        exposed(guest, "0:8000", f"{HOST}:0:8000", f"0:{datagrams.port}/udp") as [inside, outside, datagram],
    ):
        for address, port in ((ALIAS, port_of(inside)), (HOST, port_of(outside))):
            with guest.connect(port, address) as client:
                client.sendall(b"x" * 1000)
                assert receive_exactly(client, 1000) == b"x" * 1000
        assert ask(guest.namespace, ALIAS, port_of(datagram)) == f"{ALIAS} 9"
    assert callers == [ALIAS, ALIAS]

"""`vpnkit --ethernet ...` as a process, with a VMN3T guest, and everything that the original serves beside it."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import dpkt
import pytest
import trio

from tests.interop.guest_tools import Namespace
from tests.interop.link_guests import LEASE_SCRIPT, WAYS, Directory, LinkGuest, Program
from tests.tapdev.guests import environment, eventually
from tests.vpnkit.control.p9.client import P9Client, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.root,
    pytest.mark.program("cc"),
    pytest.mark.program("udhcpc"),
    pytest.mark.skipif(sys.platform != "linux", reason="network namespaces need Linux"),
]

SECONDS = 20


class Running(NamedTuple):
    """As far as LinkGuest wants to know."""

    host: Namespace
    directory: Path
    pipes: list[int]
    process: subprocess.Popen[str]

    def path(self, name: str) -> str:
        return str(self.directory / name)


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    made = Program()
    yield made
    made.close()


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    made = Namespace.new()
    yield made
    made.close()


@contextmanager
def original(host: Namespace, *words: str, wait_for: tuple[str, ...] = ("vmnet",), **more: object) -> Iterator[Running]:
    """`vpnkit --ethernet {d}/vmnet WORDS`, where `{d}` is a directory of its own, ready when those sockets are."""
    with Directory() as directory:
        argv = [sys.executable, "-m", "vpnkit", "--ethernet", f"{directory}/vmnet"]
        argv += [word.format(d=directory) for word in words]
        with host.entered():
            process = subprocess.Popen(
                argv,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(XDG_RUNTIME_DIR=str(directory)),
                **more,  # type: ignore[call-overload]
            )
        try:
            there = lambda: all((directory / name).is_socket() for name in wait_for)  # noqa: E731
            assert eventually(lambda: there() or process.poll() is not None, SECONDS)
            yield Running(host, directory, [], process)
        finally:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=SECONDS)
            sys.stderr.write(err)
        assert (process.returncode, out) == (0, "")
        assert "Traceback" not in err
        assert not any(directory.glob("*.sock"))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "lease"
    path.write_text(LEASE_SCRIPT)
    path.chmod(0o755)
    return path


@contextmanager
def guest_of(program: Program, running: Running) -> Iterator[LinkGuest]:
    guest = LinkGuest(program, running, WAYS["vmnet"])  # type: ignore[arg-type]
    try:
        yield guest
    finally:
        guest.close()


def fetch(path: str) -> bytes:
    """All that comes from a unix socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(path)
        return connection.makefile("rb").read()


def hello(listener: socket.socket, connect: object, text: bytes = b"hello") -> None:
    """What the guest says to who comes arrives."""
    with connect() as client:  # type: ignore[operator]
        listener.settimeout(SECONDS)
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(text)
        client.settimeout(SECONDS)
        assert client.makefile("rb").read() == text


def test_a_guest_and_a_forward_by_9p(program: Program, host: Namespace, script: Path) -> None:
    sockets = ("vmnet", "9p", "state", "tar", "pcap")
    flags = "--port {d}/9p --introspection {d}/state --diagnostics {d}/tar --pcap {d}/pcap --listen-backlog 7"
    flags += " --lowest-ip 192.168.65.40 --highest-ip 192.168.65.40 --gc-compact-interval 60"
    with original(host, *flags.split(), wait_for=sockets) as running, guest_of(program, running) as guest:
        lease = guest.dhcp(script)
        assert (lease["address"], lease["router"], lease["mtu"]) == ("192.168.65.40", "192.168.65.1", "1500")

        with host.listen() as server:
            hello(server, lambda: guest.connect(server.getsockname()[1]))  # the host alias

        async def forward() -> None:
            async with await trio.open_unix_socket(running.path("9p")) as stream:
                client = await P9Client(stream).begin()
                _, answer = await client.forward("web", "tcp:127.0.0.1:0:tcp:192.168.65.40:7000")
                assert answer.startswith("OK tcp:127.0.0.1:")
                port = int(answer.split(":")[2])
                with guest.listen(7000) as listener:
                    hello(listener, lambda: host.connect("127.0.0.1", port))
                waiting = host.run("ss", "-Hltn", "sport", "=", f":{port}").split()[2]
                assert waiting == "7"
                assert f"tcp:127.0.0.1:{port}" in (await introspect("connections")).decode()
            assert eventually(lambda: not host.run("ss", "-Hltn", "sport", "=", f":{port}"))

        async def introspect(*names: str) -> bytes:
            async with await trio.open_unix_socket(running.path("state")) as stream:
                client = await P9Client(stream).begin()
                with pytest.raises(Refusal):
                    await client.mkdir("web")
                return await client.content(*names)

        trio.run(forward)
        assert json.loads(trio.run(introspect, "status.json"))["guests"] == 1
        packets = list(dpkt.pcap.Reader(io.BytesIO(trio.run(introspect, "capture", "all.pcap"))))
        assert len(packets) > 5

        with tarfile.open(fileobj=io.BytesIO(fetch(running.path("tar")))) as archive:
            names = archive.getnames()
            assert {"connections", "flows", "endpoints", "ports", "capture/all.pcap", "capture/dns.pcap"} <= set(names)
            assert all(entry.isreg() and entry.mode == 0o644 for entry in archive)
            ring = archive.extractfile("capture/all.pcap")
            assert ring is not None
            reader = dpkt.pcap.Reader(ring)
            assert (reader.snaplen, reader.datalink()) == (128, dpkt.pcap.DLT_EN10MB)
            assert len(list(reader)) >= len(packets)

        with socket.socket(socket.AF_UNIX) as live:
            live.settimeout(SECONDS)
            live.connect(running.path("pcap"))
            source = live.makefile("rb")
            assert source.read(24)[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1")
            guest.run("ping", "-c", "1", "192.168.65.1")
            source.read(16)


def test_ports_of_the_gateway_by_a_file(program: Program, host: Namespace, script: Path, tmp_path: Path) -> None:
    file = tmp_path / "forwards.json"
    with host.listen() as tcp, host.socket(socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(SECONDS)
        entry = {"protocol": "tcp", "external_port": 81, "internal_ip": "127.0.0.1", "internal_port": 1}
        file.write_text(json.dumps([entry]))
        forwards = f"7:127.0.0.1:{udp.getsockname()[1]}"
        words = ("--gateway-forwards", str(file), "--udpv4-forwards", forwards)
        with original(host, *words) as running, guest_of(program, running) as guest:
            guest.dhcp(script)
            with guest.datagrams() as asker:
                asker.connect(("192.168.65.1", 7))
                asker.send(b"question")
                data, client = udp.recvfrom(100)
                udp.sendto(data.upper(), client)
                assert asker.recv(100) == b"QUESTION"
                with host.socket(socket.SOCK_DGRAM) as other:  # the host alias has the same 127.0.0.1 behind it
                    other.bind(("127.0.0.1", 0))
                    other.settimeout(SECONDS)
                    asker.connect(("192.168.65.2", other.getsockname()[1]))
                    asker.send(b"question")
                    other.sendto(b"answer", other.recvfrom(100)[1])
                    assert asker.recv(100) == b"answer"
                    asker.connect(("192.168.65.1", 7))
                    udp.sendto(b"again", client)
                    assert asker.recv(100) == b"again"
            with pytest.raises(ConnectionRefusedError):
                guest.connect(81, "192.168.65.1")
            file.write_text(json.dumps([{**entry, "internal_port": tcp.getsockname()[1]}]))

            def is_followed() -> bool:
                try:
                    hello(tcp, lambda: guest.connect(81, "192.168.65.1"))
                except ConnectionRefusedError:
                    time.sleep(0.1)
                    return False
                return True

            assert eventually(is_followed, SECONDS)


def test_the_http_proxy_by_its_socket(program: Program, host: Namespace, script: Path, tmp_path: Path) -> None:
    file = tmp_path / "http.json"
    file.write_text("{}")
    words = ("--http", str(file), "--http-api-path", "{d}/api")
    with original(host, *words, wait_for=("vmnet", "api")) as running, guest_of(program, running) as guest:
        guest.dhcp(script)

        def asked(request: bytes) -> bytes:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(SECONDS)
                connection.connect(running.path("api"))
                connection.sendall(request)
                return connection.makefile("rb").read()

        get = b"GET /http_proxy.json HTTP/1.0\r\nHost: unix\r\n\r\n"
        assert b" 200 " in asked(get)
        body = json.dumps({"http": "127.0.0.1:3129"}).encode()
        head = b"POST /http_proxy.json HTTP/1.0\r\nHost: unix\r\nContent-Type: application/json\r\n"
        assert b" 200 " in asked(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert b"127.0.0.1:3129" in asked(get)
        assert b" 404 " in asked(b"GET /v1/status HTTP/1.0\r\nHost: unix\r\n\r\n")
        with guest.connect(3128, "192.168.65.1") as client:  # the proxy answers at the gateway
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.makefile("rb").readline().startswith(b"HTTP/1.1 400 ")


def test_rootlesskits_command_line(program: Program, host: Namespace, script: Path) -> None:
    words = ("--mtu", "1500", "--host-ip", "0.0.0.0")
    with original(host, *words) as running, guest_of(program, running) as guest:
        assert guest.dhcp(script)["address"] == "192.168.65.3"
        with host.listen(port=7077), pytest.raises(OSError, match="No route to host"):
            guest.connect(7077, "192.168.65.2")  # nobody has that address


def test_an_inherited_socket(program: Program, host: Namespace, script: Path) -> None:
    """Bound, and not listening, as Docker Desktop hands them over."""
    with Directory() as directory, socket.socket(socket.AF_UNIX) as ours, socket.socket(socket.AF_UNIX) as tar:
        ours.bind(str(directory / "vmnet"))
        tar.bind(str(directory / "tar"))
        argv = [sys.executable, "-m", "vpnkit", "--ethernet", f"fd:{ours.fileno()}", "--diagnostics"]
        with host.entered():
            process = subprocess.Popen(
                [*argv, f"fd:{tar.fileno()}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=(ours.fileno(), tar.fileno()),
                env=environment(XDG_RUNTIME_DIR=str(directory)),
            )
        running = Running(host, directory, [], process)
        try:

            def answers() -> bool:
                try:
                    return bool(fetch(running.path("tar")))
                except ConnectionRefusedError:
                    return False

            assert eventually(answers, SECONDS)
            with guest_of(program, running) as guest:
                assert guest.dhcp(script)["address"] == "192.168.65.3"
        finally:
            process.terminate()
            said = process.communicate(timeout=SECONDS)[1]
        assert process.returncode == 0, said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "fd:77"], "--port fd:77: Bad file descriptor"),
        (["--diagnostics", "/dev/null"], "--diagnostics socket /dev/null exists and is not a socket"),
        (["--port", "/proc/x"], "--port socket"),
        (["--forwards", "/x"], "--forwards: tunnels for outgoing connections are not there"),
    ],
)
def test_what_cannot_be_had(host: Namespace, words: list[str], said: str) -> None:
    with Directory() as directory:
        argv = [sys.executable, "-m", "vpnkit", "--ethernet", f"{directory}/vmnet", *words]
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=SECONDS, env=environment(XDG_RUNTIME_DIR=str(directory))
        )
        assert done.returncode in (1, 2)
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert os.listdir(directory) in ([], ["vpnkit"])

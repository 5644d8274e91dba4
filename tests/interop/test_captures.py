"""Captures of a real guest, read by other people's programs."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from pcap.classic import FILE, RECORD
from pcap.filter import compile_filter
from tests.interop.guest_tools import Server, echo
from tests.interop.link_guests import WAYS, LinkGuest, exchange, serving
from tests.pcap.filter.filter_frames import EXPRESSIONS
from tests.tapdev.guests import environment, eventually

pytestmark = [pytest.mark.program("tshark", "capinfos", "tcpdump", "curl")]

SIZE = 3 << 20
VPNKIT = [sys.executable, "-m", "vpnkit"]
CHECKS = [part for name in ("ip", "tcp", "udp") for part in ("-o", f"{name}.check_checksum:TRUE")]
WRONG = (
    "_ws.malformed || ip.checksum.status==0 || tcp.checksum.status==0 || udp.checksum.status==0 || "
    "icmpv6.checksum.status==0 || icmp.checksum.status==0"
)


class Page(http.server.SimpleHTTPRequestHandler):
    """A file server that takes files, too."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        left = int(self.headers["Content-Length"])
        self.send_response(100)
        self.end_headers()
        while left:
            left -= len(self.rfile.read(min(left, 65536)))
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class calls it so)
        pass


class Six(http.server.ThreadingHTTPServer):
    address_family = 10  # AF_INET6


@pytest.fixture(scope="module")
def directory():
    with tempfile.TemporaryDirectory(prefix="vpnkit-captures-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def ports(directory):
    """Of a file server on 127.0.0.1 and one on ::1."""
    (directory / "big").write_bytes(hashlib.sha512(b"seed").digest() * (SIZE // 64))
    servers = []
    for kind, address in ((http.server.ThreadingHTTPServer, "127.0.0.1"), (Six, "::1")):
        server = kind((address, 0), partial(Page, directory=str(directory)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
    yield [server.server_address[1] for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


class Guest:
    """`vpnkit run` with a shell that reads commands."""

    def __init__(self, place: Path, *options: str) -> None:
        self.control = place / "control.sock"
        self.process = subprocess.Popen(
            [*VPNKIT, "run", "--control", str(self.control), *options, "--", "sh"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True,
        )  # fmt: skip
        assert self.does("true") == 0

    def does(self, command: str) -> int:
        """Runs `command` in the guest; returns its status."""
        self.process.stdin.write(f"{command} >/dev/null; echo $?\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def capture(self, *argv: str) -> list[str]:
        return [*VPNKIT, "capture", *argv, "--control", str(self.control)]

    def asks(self, *argv: str) -> bytes:
        return subprocess.run(self.capture(*argv), capture_output=True, check=True, timeout=60).stdout

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@contextlib.contextmanager
def guest(place: Path, *options: str):
    made = Guest(place, *options)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def following(made: Guest, text: str, file: Path):
    """A reader of what `text` wants, who is there before anything else happens."""
    process = subprocess.Popen(made.capture("follow", text, "-o", str(file)))
    try:
        assert eventually(lambda: file.exists() and file.stat().st_size > 0, 20)
        yield
    finally:
        process.terminate()
        process.wait(20)


def tshark(file: Path, *argv: str) -> list[str]:
    done = subprocess.run(["tshark", "-n", "-r", file, *argv], capture_output=True, check=True, timeout=120, text=True)
    return done.stdout.splitlines()


def check(file: Path) -> int:
    """The number of packets, about which nobody has anything to complain."""
    assert tshark(file, *CHECKS, "-Y", WRONG) == []
    counted = len(tshark(file, "-T", "fields", "-e", "frame.number"))
    told = subprocess.run(["capinfos", "-Tcm", file], capture_output=True, check=True, text=True, timeout=60).stdout
    assert str(counted) in told
    printed = subprocess.run(["tcpdump", "-n", "-r", file], capture_output=True, check=True, text=True, timeout=60)
    assert len([line for line in printed.stdout.splitlines() if line[:1].isdigit()]) == counted
    return counted


def agree_with_tcpdump(file: Path) -> None:
    """Filters want as many of the recorded frames as tcpdump says."""
    recorded = []
    data = file.read_bytes()
    at = FILE.size
    while at < len(data):
        _, _, captured, length = RECORD.unpack_from(data, at)
        recorded.append((data[at + RECORD.size : at + RECORD.size + captured], length))
        at += RECORD.size + captured
    for text in EXPRESSIONS[::5]:
        wanted = compile_filter(text)
        argv = ["tcpdump", "-n", "-r", file, "--count", "--", text]
        said = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        if "rejects all packets" not in said.stderr:
            assert said.stdout.split()[0] == str(sum(wanted(frame, length) for frame, length in recorded)), text


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--mtu", "1500"], id="super-frames"),
        pytest.param(["--mtu", "1500", "--no-offload"], id="no offload", marks=pytest.mark.slow),
        pytest.param([], id="large MTU", marks=pytest.mark.slow),
    ],
)
def test_nobody_complains_about_a_capture(directory, ports, tmp_path, options):
    four, six = ports
    with guest(directory, *options, "--ipv6", "on") as made:
        file = tmp_path / "followed.pcapng"
        with following(made, f"tcp port {four} or {six}", file):
            for place in (f"host.internal:{four}", f"[fd65:7670:6e6b::2]:{six}"):
                assert made.does(f"curl -sSfg http://{place}/big") == 0
                assert made.does(f"curl -sSfg -T {directory}/big http://{place}/up") == 0
            made.asks("read", "all", "-o", str(tmp_path / "all.pcapng"))
            made.asks("read", "all", "--format", "pcap", "-o", str(tmp_path / "all.pcap"))
            made.asks("read", "dns", "-o", str(tmp_path / "dns.pcapng"))
            made.asks("read", "bad", "-o", str(tmp_path / "bad.pcapng"))
            audit = made.asks("audit", "--json")
        for name in ("all.pcapng", "all.pcap", "followed.pcapng"):
            assert check(tmp_path / name) > 50
        agree_with_tcpdump(tmp_path / "all.pcap")
        assert check(tmp_path / "dns.pcapng") >= 2
        assert check(tmp_path / "bad.pcapng") == 0
        lengths = {int(length) for length in tshark(file, "-T", "fields", "-e", "ip.len") if length}
        assert (max(lengths) > 1500) is (options == [])
        comments = tshark(file, "-T", "fields", "-e", "frame.comment", "-Y", f"tcp.port == {four}")
        said = {comment for comment in comments if comment}
        assert any(comment.startswith("flow ") for comment in said), said  # those that are still open
        assert all(comment.endswith("host.internal") for comment in said), said
        assert b'"action":"follow"' in audit
        assert f'"uid":{os.geteuid()}'.encode() in audit


def test_what_is_followed_is_there_soon(directory, tmp_path):
    """A ping is on the screen of who looks, long before anybody would wonder."""
    with guest(directory) as made:
        reader = subprocess.Popen(made.capture("follow", "icmp and inbound or icmp[0] = 0"), stdout=subprocess.PIPE)
        pipes = {"stdin": reader.stdout, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        screen = subprocess.Popen(["tshark", "-n", "-l", "-r", "-"], **pipes, text=True)
        reader.stdout.close()
        try:
            assert eventually(lambda: b'"follow"' in made.asks("audit", "--json"), 20)
            delays = []
            for number in range(5):
                started = time.perf_counter()
                assert made.does("ping -n -c 1 192.168.65.1") == 0
                while f"seq=1/256, ttl=64 (request in {2 * number + 1})" not in screen.stdout.readline():
                    pass
                delays.append(time.perf_counter() - started)
            print(f"a ping and its two lines in tshark: {[round(1000 * delay) for delay in delays]} ms")
            assert sorted(delays)[2] < 5
        finally:
            reader.kill()
            screen.kill()
            reader.wait()
            screen.wait()
            screen.stdout.close()


def test_a_file_is_readable_after_sigkill(directory, tmp_path):
    file = tmp_path / "killed.pcapng"
    with guest(directory) as made, following(made, "icmp and host 192.168.65.1", file):
        assert made.does("ping -n -c 3 -i 0.2 192.168.65.1") == 0
        assert eventually(lambda: len(tshark(file)) == 6, 20)
        made.process.kill()
    assert check(file) == 6


def test_no_capture_is_honoured(directory):
    with guest(directory, "--no-capture") as made:
        done = subprocess.run(made.capture("list"), capture_output=True, text=True, timeout=30)
        assert done.returncode == 1
        assert "captures are off in this instance (--no-capture)" in done.stderr


@pytest.mark.program("cc", "udhcpc")
@pytest.mark.parametrize("way", ["qemu", "krun-qemu", pytest.param("vmnet", marks=pytest.mark.slow)])
def test_nobody_complains_about_a_stream(lab, peer_program, lease_script, tmp_path, way):
    """krun-qemu sends partial checksums and super-frames without a word about it."""
    with serving(lab.host, [WAYS[way].url.replace("{n}", "1")]) as instance:
        peer = LinkGuest(peer_program, instance, WAYS[way])
        try:
            peer.dhcp(lease_script)
            instance.command("capture", "add", "whole", "ip", "--snaplen", "65549", "--ring", "16m")
            with Server(lab.host.listen(), echo) as server, peer.connect(server.port) as connection:
                exchange(connection, 1 << 20, 1)
            for name in ("all", "whole"):
                file = tmp_path / f"{name}.pcapng"
                instance.command("capture", "read", name, "-o", str(file))
                assert check(file) > 50
        finally:
            peer.close()

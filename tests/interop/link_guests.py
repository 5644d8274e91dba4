"""Guests with the network stack of this kernel on the links of `vpnkit serve`.

A guest is a network namespace with a TAP device, which `link_peer.c` joins to a link as a VMM would.  The instance
runs in the namespace that is the host.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.interop.guest_tools import (
    ALIAS,
    GATEWAY,
    Directory,
    Namespace,
    Process,
    digest_of,
    receive_exactly,
    stream,
    wait_for,
)
from tests.tapdev.guests import environment
from vpnkit.control.client import get

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SOURCE = Path(__file__).with_name("link_peer.c")
TAP = "tap0"
START_SECONDS = 20.0  # of an instance or a guest, on a busy machine
FORWARD = 8070  # the port on the host of the forward that many tests have
INSIDE = 7000  # the port in the guest that it leads to


class Way(NamedTuple):
    """A kind of link: `{d}` is the instance's directory, `{n}` the number of a guest of which each has its own link."""

    url: str  # for --link
    peer: str  # words for link_peer, after KIND TAP
    kind: str  # for link_peer
    mtu: int  # what DHCP tells
    flags: tuple[str, ...] = ()
    shared: bool = False  # many guests on one link


WAYS = {
    "qemu": Way("qemu:{d}/qemu", "{d}/qemu", "qemu", 65520, shared=True),
    "qemu-tcp": Way("qemu:tcp:127.0.0.1:7010", "tcp:127.0.0.1:7010", "qemu", 65520, shared=True),
    "qemu-connect": Way("qemu-connect:{d}/vm{n}", "{d}/vm{n}", "qemu-listen", 65520),
    "qemu-connect-tcp": Way("qemu-connect:tcp:127.0.0.1:702{n}", "tcp:127.0.0.1:702{n}", "qemu-listen", 65520),
    "vmnet": Way("vmnet:{d}/vmnet", "{d}/vmnet", "vmnet", 1500, shared=True),
    "gvforwarder": Way("vmnet:{d}/vmnet", "{d}/vmnet", "connect", 1500, shared=True),
    "fc-vsock": Way("fc-vsock:{d}/v.sock:1024", "{d}/v.sock_1024", "vmnet", 1500, shared=True),
    "hyperkit": Way("hyperkit:{d}:1024", "{d}/00000002.00000400", "vmnet", 1500, shared=True),
    "vfkit": Way("vfkit:{d}/vfkit{n}", "{d}/vz{n} {d}/vfkit{n}", "vfkit", 1500),
    "vfkit-hello": Way("vfkit:{d}/vfkit{n}", "{d}/vz{n} {d}/vfkit{n} VFKT", "vfkit", 1500),
    "dgram": Way("dgram:{d}/ours{n},{d}/vm{n}", "{d}/vm{n} {d}/ours{n}", "dgram", 65520),
    "dgram-learned": Way("dgram:{d}/ours{n}", "{d}/vm{n} {d}/ours{n}", "dgram", 65520),
    "bess": Way("bess:{d}/bess", "{d}/bess", "bess", 1500, shared=True),
    "stdio": Way("stdio:", "", "stdio", 1500),
    "krun-qemu": Way("qemu:{d}/qemu", "{d}/qemu", "qemu", 65520, ("-k",), shared=True),
    "krun-vfkit": Way("vfkit:{d}/vfkit{n}", "{d}/vz{n} {d}/vfkit{n} VFKT", "vfkit", 1500, ("-k",)),
}


class Program:
    """link_peer, compiled."""

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="vk-")
        self.path = f"{self._directory}/link_peer"
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", self.path, str(SOURCE)], check=True)

    def close(self) -> None:
        shutil.rmtree(self._directory)


class Instance:
    """`vpnkit serve` with `links`, in `host`; the control socket and what the links need are in `directory`."""

    def __init__(self, host: Namespace, links: Iterable[str], *options: str, directory: Path) -> None:
        self.host = host
        self.directory = directory
        self.control = directory / "control"
        self.pipes: list[int] = []  # of stdio: what a guest reads, what it writes
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        links = list(links)
        argv = [sys.executable, "-m", "vpnkit", "serve", "--control", str(self.control)]
        argv += [word for link in links for word in ("--link", link)] + list(options)
        ready, told = os.pipe()
        self.on_stdio = links == ["stdio:"]
        if "stdio:" in links:
            read_by_us, written_by_guest = os.pipe()
            read_by_guest, written_by_us = os.pipe()
            ours, self.pipes = [read_by_us, written_by_us], [read_by_guest, written_by_guest]
        else:
            ours = [os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)]
        with host.entered():
            self.process = subprocess.Popen(
                [*argv, "--ready-fd", str(told)],
                stdin=ours[0],
                stdout=ours[1],
                stderr=self._errors,
                pass_fds=[told],
                env=environment(XDG_RUNTIME_DIR=str(directory)),
            )
        for fd in (told, *ours):
            os.close(fd)
        try:
            assert select.select([ready], [], [], START_SECONDS)[0], f"not ready: {self.log()}"
            assert os.read(ready, 2) == b"1", self.log()
        except BaseException:
            self.kill()
            raise
        finally:
            os.close(ready)
        self.vpnkit = Process(self.process.pid)

    def log(self) -> str:
        """What vpnkit said on stderr so far."""
        return os.pread(self._errors.fileno(), 1 << 20, 0).decode()

    def ask(self, what: str) -> object:
        """The control API's answer for `vpnkit {what} --json`."""
        return json.loads(get(self.control, f"/v1/{what}"))

    def counter(self, name: str) -> int:
        return self.ask("status")["counters"].get(name, 0)

    def command(self, *words: str) -> str:
        """What `vpnkit WORDS` prints of this instance."""
        argv = [sys.executable, "-m", "vpnkit", *words, "--control", str(self.control)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, env=environment())
        assert done.returncode == 0, done.stderr
        return done.stdout

    def kill(self) -> None:
        """End it, if it has not ended.  Idempotent."""
        self.process.kill()
        self._ended()

    def _ended(self) -> int:
        status = self.process.wait(10)
        self._errors.close()
        for fd in self.pipes:
            os.close(fd)
        self.pipes = []
        return status

    def close(self) -> None:
        """End it in the ordinary way, and look whether it was well all the time."""
        if not self.on_stdio or self.pipes:  # else it ends by itself when the guest does
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            log = self.log()
            self.kill()
            raise AssertionError(f"vpnkit did not end: {log}") from None
        log = self.log()
        assert self._ended() == 0, log
        assert "Traceback" not in log, log
        assert "internal error" not in log, log


@contextmanager
def serving(host: Namespace, links: Iterable[str], *options: str) -> Iterator[Instance]:
    """An instance with a directory of its own, which `{d}` in `links` is."""
    with Directory() as directory:
        instance = Instance(host, [link.format(d=directory) for link in links], *options, directory=directory)
        try:
            yield instance
        except BaseException:
            sys.stderr.write(instance.log())
            instance.kill()
            raise
        instance.close()


class LinkGuest:
    """A network namespace on a link of `instance`.

    `namespace` is that of a guest that comes again; a new one, which ends with the guest, when None.
    """

    def __init__(
        self,
        program: Program,
        instance: Instance,
        way: Way,
        *arguments: str,
        number: int = 1,
        mac: str = "",
        namespace: Namespace | None = None,
    ) -> None:
        self.way = way
        self.ip = ""
        self._owned = ExitStack()
        self.namespace = namespace or Namespace.new()
        if namespace is None:
            self._owned.callback(self.namespace.close)
        words = way.peer.format(d=instance.directory, n=number).split()
        argv = [program.path, *way.flags, "-n", self.namespace.path, way.kind, TAP, *words, *arguments]
        streams = instance.pipes if way.kind == "stdio" else [subprocess.PIPE, subprocess.DEVNULL]
        with instance.host.entered():
            self.process = subprocess.Popen(argv, stdin=streams[0], stdout=streams[1], stderr=subprocess.PIPE)
        try:
            if way.kind == "stdio":  # his alone now, so that the link ends with either
                for fd in instance.pipes:
                    os.close(fd)
                instance.pipes = []
            line = self.process.stderr.readline().decode()
            assert line.startswith("ready "), line
            told = dict(word.split("=") for word in line.split()[1:])
            self.mac, self.told_mtu = told["mac"], int(told["mtu"])
            if mac:
                self.mac = mac
                self.namespace.run("ip", "link", "set", TAP, "address", mac)
            self.namespace.run("ip", "link", "set", TAP, "up")
        except BaseException:
            self.leave()
            self.close()
            raise

    def dhcp(self, script: Path, timeout: float = 20) -> dict[str, str]:
        """Become what udhcpc is given, MTU included; returns that."""
        argv = ["udhcpc", "-f", "-n", "-q", "-t", "8", "-T", "1", "-i", TAP, "-s", str(script)]
        lines = self.namespace.run(*argv, timeout=timeout).splitlines()
        [line] = [line for line in lines if line.startswith("lease ")]
        lease = dict(word.split("=") for word in line.split()[1:])
        self.ip = lease["address"]
        return lease

    def configure(self, ip: str, mtu: int | None = None) -> None:
        """Become `ip` without asking."""
        self.namespace.run("ip", "link", "set", TAP, "mtu", str(mtu or self.way.mtu))
        self.namespace.run("ip", "address", "add", f"{ip}/24", "dev", TAP)
        self.namespace.run("ip", "route", "add", "default", "via", GATEWAY)
        self.ip = ip

    def run(self, *argv: str, timeout: float = 30) -> str:
        """What `argv` prints in the guest, which must succeed."""
        return self.namespace.run(*argv, timeout=timeout)

    def connect(self, port: int, address: str = ALIAS, timeout: float = 30) -> socket.socket:
        return self.namespace.connect(address, port, timeout)

    def listen(self, port: int, address: str = "0.0.0.0") -> socket.socket:
        return self.namespace.listen(address, port)

    def datagrams(self, port: int = 0, address: str = "0.0.0.0") -> socket.socket:
        """A UDP socket in the guest."""
        sock = self.namespace.socket(socket.SOCK_DGRAM)
        sock.settimeout(5)
        sock.bind((address, port))
        return sock

    def packets(self, protocol: int = 3) -> socket.socket:
        """All frames of the device, also those that it sends, or those of an ethertype; and a way to send any."""
        with self.namespace.entered():
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
        sock.bind((TAP, protocol))
        sock.settimeout(5)
        return sock

    def leave(self) -> None:
        """The VMM is killed; `close` is still to be called."""
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        """The VMM ends, and was well all the time.  Idempotent."""
        if self.process.stdin is None:
            self.process.terminate()
        else:
            self.process.stdin.close()
        try:
            status = self.process.wait(10)
            if not self.process.stderr.closed:
                complaint = self.process.stderr.read().decode()
                self.process.stderr.close()
                assert status in (0, -signal.SIGKILL, -signal.SIGTERM), complaint
        finally:
            self._owned.close()


LEASE_SCRIPT = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip link set $interface mtu ${mtu:-1500}
ip address replace $ip/$mask dev $interface
ip route replace default via $router
echo lease address=$ip mask=$mask router=$router dns=$dns mtu=$mtu
"""


# Transfers


def exchange(connection: socket.socket, size: int, seed: int) -> None:
    """Send `size` octets and the end to a peer that sends them back, and compare."""

    def send() -> None:
        for part in stream(size, seed):
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    for part in stream(size, seed):
        assert receive_exactly(connection, len(part)) == part
    assert connection.recv(1) == b""
    sender.join()


def download(guest: LinkGuest | Namespace, port: int, size: int, address: str = ALIAS) -> None:
    """Fetch `size` octets of a WebServer with curl, and look whether they are right."""
    done = guest.run("sh", "-ec", f"curl -sSf http://{address}:{port}/bytes/{size} | sha256sum", timeout=100)
    assert done.split()[0] == digest_of(stream(size))


def upload(guest: LinkGuest | Namespace, port: int, path: Path, address: str = ALIAS, copies: int = 1) -> None:
    """Send `copies` of the file to a WebServer with curl, and look whether they arrived."""
    words = f"cat {f'{path} ' * copies}| curl -sSf -T - -H Expect: http://{address}:{port}/up"
    assert guest.run("sh", "-ec", words, timeout=100) == hashlib.sha256(path.read_bytes() * copies).hexdigest()


def no_flow_is_left(instance: Instance) -> None:
    wait_for(lambda: not instance.ask("status")["flows"].get("tcp"), "every flow has ended")

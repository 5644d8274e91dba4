"""Cables between a VM and `vpnkit serve`, and what is at the other ends: a process of ours, and host servers."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.interop.guest_tools import (
    ALIAS,
    BLOCK,
    Namespace,
    Server,
    digest_of,
    family_of,
    received,
    stream,
    wait_for,
)
from tests.tapdev.guests import environment, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.vm.machine import Machine

JUMBO = 65520  # what we tell on QEMU's links and TAP devices
MACS = ("52:54:00:76:6b:03", "52:54:00:76:6b:04")


@dataclass(frozen=True)
class Cable:
    """One way from a VM to us."""

    kind: str
    link: str  # for --link
    netdev: str  # for QEMU
    namespace: Namespace  # where QEMU runs
    reconnects: bool  # by itself, when we come back: QEMU 7.2's client role does not


# By kind: --link, -netdev, and whether it comes back by itself; D is a directory, P a free TCP port of the host.
SOCKETS = {
    "stream": ("qemu:D/net", "stream,server=off,addr.type=unix,addr.path=D/net", False),
    "stream-server": ("qemu-connect:D/vm", "stream,server=on,addr.type=unix,addr.path=D/vm", True),
    "tcp": ("qemu:tcp:127.0.0.1:P", "stream,server=off,addr.type=inet,addr.host=127.0.0.1,addr.port=P", False),
    "tcp-server": (
        "qemu-connect:tcp:127.0.0.1:P",
        "stream,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port=P",
        True,
    ),
    "socket": ("qemu:tcp:127.0.0.1:P", "socket,connect=127.0.0.1:P", False),
    "dgram": (
        "dgram:D/net,D/vm",
        "dgram,local.type=unix,local.path=D/vm,remote.type=unix,remote.path=D/net",
        True,
    ),
}
KINDS = (*SOCKETS, "tap")


class Cables:
    """A directory for the sockets, and the network namespaces with the bridges."""

    def __init__(self, host: Namespace) -> None:
        self._host = host
        self._bridges: list[Namespace] = []
        self.directory = Path(tempfile.mkdtemp(prefix="vk-"))

    def new(self, kind: str) -> Cable:
        if kind == "tap":
            return self._tap()
        place = tempfile.mkdtemp(dir=self.directory, prefix=kind)
        with self._host.listen() as probe:
            port = probe.getsockname()[1]
        link, netdev, reconnects = SOCKETS[kind]
        if "P" in link:
            link, netdev = link.replace(":P", f":{port}"), netdev.replace("=P", f"={port}").replace(":P", f":{port}")
        return Cable(kind, link.replace("D/", f"{place}/"), netdev.replace("D/", f"{place}/"), self._host, reconnects)

    def _tap(self) -> Cable:
        """A bridge between QEMU's TAP device and ours, which stay when their processes go."""
        namespace = Namespace.new()
        self._bridges.append(namespace)
        with namespace.entered():
            for which in ("all", "default"):  # the bridge and the devices say nothing of their own
                Path("/proc/sys/net/ipv6/conf", which, "disable_ipv6").write_text("1")
        namespace.run("ip", "link", "add", "bridge", "type", "bridge", "mcast_snooping", "0")
        for name in ("qemu", "vpnkit"):
            namespace.run("ip", "tuntap", "add", "name", name, "mode", "tap", "vnet_hdr")
            namespace.run("ip", "link", "set", name, "mtu", str(JUMBO), "master", "bridge", "up")
        namespace.run("ip", "link", "set", "bridge", "up")
        link = f"tap:vpnkit?netns={namespace.path}"
        return Cable("tap", link, "tap,ifname=qemu,script=no,downscript=no", namespace, True)

    def __enter__(self) -> Cables:
        return self

    def __exit__(self, *_: object) -> None:
        for namespace in self._bridges:
            namespace.close()
        shutil.rmtree(self.directory)


class Serve:
    """`vpnkit serve` on the host."""

    def __init__(self, host: Namespace, directory: Path, links: Sequence[str], *options: str) -> None:
        self._host = host
        self._control = str(directory / "control")
        self._argv = [sys.executable, "-m", "vpnkit", "serve", "--control", self._control]
        self._argv += [word for link in links for word in ("--link", link)]
        self._argv += options
        self.start()

    def start(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        with self._host.entered():
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment(),
            )
        self.ready = self._process.stdout.readline().decode()
        if not self.ready.startswith("ready "):
            self._process.kill()
            message = f"{self._argv} did not get ready: {self._process.wait()}: {self.ready}{self.log()}"
            self._release()
            raise AssertionError(message)

    def log(self) -> str:
        """What it said on stderr so far."""
        return os.pread(self._errors.fileno(), 1 << 20, 0).decode()

    def report(self, command: str) -> list[dict[str, Any]]:
        """What `vpnkit COMMAND --json` prints."""
        done = subprocess.run(
            [sys.executable, "-m", "vpnkit", command, "--json", "--control", self._control],
            capture_output=True,
            text=True,
            timeout=20,
            env=environment(),
        )
        assert done.returncode == 0, f"{command}: {done.stderr}\n{self.log()}"
        return list(json.loads(done.stdout))

    def macs(self) -> set[str]:
        """Of the guests that are here."""
        return {guest["mac"] for guest in self.report("guests")}

    def _release(self) -> None:
        self._process.stdout.close()
        self._errors.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._release()

    def close(self) -> None:
        """SIGTERM, and look whether it was well all the time."""
        early = self._process.poll()
        self._process.terminate()
        try:
            status = self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        log = self.log()
        self._release()
        assert early is None, f"vpnkit serve ended by itself: {early}: {log}"
        assert status == 0, f"vpnkit serve: {status}: {log}"
        assert "Traceback" not in log, log
        assert "internal error" not in log, log

    def __enter__(self) -> Serve:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            sys.stderr.write(self.log())
            self.kill()


# What a VM does


def lease(machine: Machine) -> dict[str, str]:
    """Ask for an address by DHCP, configure it, and say what was told."""
    output = machine.check("udhcpc -f -q -n -i eth0 -t 20 -T 1 -O mtu -O search", timeout=60)
    line = next(line for line in output.splitlines() if line.startswith("lease "))
    return dict(word.split("=") for word in line.split()[1:])


def reaches(machine: Machine, address: str, seconds: float = 30) -> None:
    """Wait until `address` answers a ping."""

    def answered() -> bool:
        return machine.run(f"ping -c1 -W1 {address}")[0] == 0

    assert eventually(answered, seconds), f"no answer from {address} in {seconds} s\n{machine.log()}"


def listening(machine: Machine, port: int) -> None:
    """Wait until somebody in the VM listens on `port`."""
    machine.check(f"until netstat -ltn | grep -q ':{port} '; do usleep 10000; done")


# Bulk

MEBIBYTE = 1 << 20

# `nc -e` makes the connection the standard output, and cat fills it by sendfile: nc itself copies in kibibytes.
SENDER = """#!/bin/sh
i=0
while [ $i -lt $2 ]; do printf %s:%08d $1 $i; cat /tmp/block; i=$((i + 1)); done
"""


def mebibytes_of(seed: str, count: int) -> Iterator[bytes]:
    """What SENDER sends."""
    for number in range(count):
        yield f"{seed}:{number:08d}".encode()
        yield BLOCK


def prepare(machine: Machine, web: int, address: str = ALIAS) -> None:
    """Have the VM fetch what `mebibytes_of` is made of."""
    if machine.run("[ -e block ]")[0]:
        machine.check(f"wget -q -O block http://{in_url(address)}:{web}/block")
        machine.check(f"cat > send <<'EOF'\n{SENDER}EOF\nchmod +x send")


class Digests:
    """Takes connections on the host; answers the end of each with the SHA-256 of what came, and remembers it."""

    def __init__(self, host: Namespace, address: str = "127.0.0.1") -> None:
        self.seen: list[str] = []
        self._server = Server(host.listen(address), self._serve)
        self.port = self._server.port

    def _serve(self, connection: socket.socket) -> None:
        digest = digest_of(received(connection))
        self.seen.append(digest)
        try:
            connection.sendall(digest.encode())
        except ConnectionError:
            pass  # who has exited does not read

    def __enter__(self) -> Digests:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()


def in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def download(machine: Machine, web: int, mebibytes: int, timeout: float = 300, address: str = ALIAS) -> None:
    """From the web server of the host."""
    size = mebibytes * MEBIBYTE
    output = machine.check(f"wget -q -O - http://{in_url(address)}:{web}/bytes/{size} | sha256sum", timeout)
    assert output.split() == [digest_of(stream(size)), "-"], output


def upload(
    machine: Machine, web: int, digests: Digests, mebibytes: int, timeout: float = 300, address: str = ALIAS
) -> None:
    """To the host."""
    prepare(machine, web, address)
    seed = secrets.token_hex(8)
    machine.check(f"nc {address} {digests.port} -e ./send {seed} {mebibytes}", timeout)
    expected = digest_of(mebibytes_of(seed, mebibytes))
    wait_for(lambda: expected in digests.seen, f"the SHA-256 of {mebibytes} MiB from {machine.mac}", 30)


def give(source: Machine, target: Machine, address: str, web: int, mebibytes: int) -> None:
    """From one VM to the other, which has `address`."""
    target.check("rm -f sum; nc -l -p 5001 -e sh -c 'sha256sum >sum.new; mv sum.new sum' >/dev/null 2>&1 &")
    listening(target, 5001)
    prepare(source, web)
    seed = secrets.token_hex(8)
    source.check(f"nc {address} 5001 -e ./send {seed} {mebibytes}", timeout=120)
    output = target.check("until [ -e sum ]; do usleep 10000; done; cat sum")
    assert output.split()[0] == digest_of(mebibytes_of(seed, mebibytes)), output


class FileServer:
    """Enough of TFTP (RFC 1350, blksize of RFC 2348) for one transfer at a time; `files` are those it has."""

    READ, WRITE, DATA, ACK, _, OPTIONS = range(1, 7)

    def __init__(self, host: Namespace, files: dict[str, bytes], address: str = "127.0.0.1") -> None:
        self.files = files
        self._socket = host.socket(socket.SOCK_DGRAM, family_of(address))
        self._socket.bind((address, 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        name, block_size, writing = "", 512, False
        while True:
            packet, peer = self._socket.recvfrom(1 << 16)
            if not packet:
                return
            code, number = struct.unpack_from("!HH", packet)
            if code in (self.READ, self.WRITE):
                name, _, *options = packet[2:].decode().rstrip("\0").split("\0")
                asked = dict(zip(options[::2], options[1::2], strict=True))
                block_size = int(asked.get("blksize", "512"))
                writing = code == self.WRITE
                if writing:
                    self.files[name] = b""
                if asked:
                    answer = struct.pack("!H", self.OPTIONS) + f"blksize\0{block_size}\0".encode()
                else:
                    answer = struct.pack("!HH", self.ACK, 0) if writing else self._block(name, 1, block_size)
            elif code == self.DATA:
                if number == len(self.files[name]) // block_size + 1:
                    self.files[name] += packet[4:]
                answer = struct.pack("!HH", self.ACK, number)
            elif code == self.ACK and not writing and number * block_size <= len(self.files[name]):
                answer = self._block(name, number + 1, block_size)
            else:
                continue
            self._socket.sendto(answer, peer)

    def _block(self, name: str, number: int, size: int) -> bytes:
        return struct.pack("!HH", self.DATA, number) + self.files[name][(number - 1) * size : number * size]

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

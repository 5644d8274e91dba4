"""How each program is started, entered and stopped."""

from __future__ import annotations

import abc
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from . import processes
from .processes import BenchmarkError, find_by_command, last_line, run, spawn, wait_until
from .world import NEIGHBOUR

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

START_TIMEOUT = 15.0
_instances = count(1)


@dataclass(frozen=True)
class Forward:
    """A TCP port of the host's loopback that reaches a port of the guest."""

    host_port: int
    guest_port: int


@dataclass(frozen=True)
class Setup:
    mtu: int = 1500
    offload: bool = True
    forwards: tuple[Forward, ...] = ()


class Running:
    """One started contender and the guest behind it."""

    def __init__(
        self,
        contender: Contender,
        translator: subprocess.Popen[bytes] | None = None,
        guest_pid: int | None = None,
        others: Sequence[subprocess.Popen[bytes]] = (),
    ) -> None:
        self.contender = contender
        self.name = contender.name
        self.host_address = contender.host_address
        self._translator = translator
        self._guest_pid = guest_pid
        self._others = others

    def guest(self, argv: Sequence[str]) -> list[str]:
        """The same command, in the guest's network."""
        if self._guest_pid is None:
            return list(argv)
        return ["nsenter", "-t", str(self._guest_pid), "-n", "--", *argv]

    def pids(self) -> list[int]:
        """The translator's processes, without the command that stands for the guest."""
        if self._translator is None:
            return []
        return processes.family(self._translator.pid, without=[self._guest_pid] if self._guest_pid else ())

    def alive(self) -> bool:
        if self._translator is None:
            return True
        return self._translator.poll() is None and Path(f"/proc/{self._guest_pid}").exists()

    def stop(self) -> None:
        if self._translator is not None:
            processes.stop(self._translator)
        if self._guest_pid is not None and self.name != "loopback":
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._guest_pid, signal.SIGKILL)
        for other in self._others:
            processes.stop(other, signal.SIGKILL)


class Contender(abc.ABC):
    name: ClassVar[str]
    host_address: ClassVar[str]
    """Reaches the host's 127.0.0.1 from the guest."""
    dns_address: ClassVar[str]
    own_address: ClassVar[str | None] = None
    """An address the translator answers pings for by itself."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    @classmethod
    @abc.abstractmethod
    def installed(cls) -> bool: ...

    @classmethod
    @abc.abstractmethod
    def version(cls) -> str: ...

    @abc.abstractmethod
    def start(self, setup: Setup) -> Running: ...

    def time_start(self, setup: Setup) -> dict[str, float]:
        """Seconds from exec until the guest's first command runs (`ready`), and of a whole `run true` (`whole`)."""
        raise BenchmarkError(f"{self.name} has nothing to start")

    def _log(self) -> Path:
        return self.scratch / f"{self.name}-{next(_instances)}.log"

    def _await_command(self, translator: subprocess.Popen[bytes], marker: Sequence[str], log: Path) -> int:
        """The process id of the command the translator was asked to run."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if translator.poll() is not None:
                raise BenchmarkError(f"{self.name} ended while starting: {last_line(log.read_bytes())}")
            pid = find_by_command(marker)
            if pid is not None and _has_default_route(pid):
                return pid
            time.sleep(0.005)
        processes.stop(translator)
        raise BenchmarkError(f"{self.name} gave the guest no network within {START_TIMEOUT:.0f} s")

    def _time_command(self, argv: Sequence[str]) -> dict[str, float]:
        """Time a translator that runs a command itself: one that tells the time and shows its routes."""
        begin = time.time()
        out = run([*argv, "--", "sh", "-c", "date +%s.%N; cat /proc/net/route"], START_TIMEOUT)
        whole = time.time() - begin
        stamp, _, routes = out.partition("\n")
        if "\t00000000\t" not in routes:
            raise BenchmarkError(f"{self.name} ran the command before the guest had a route")
        return {"ready": float(stamp) - begin, "whole": whole}


def _has_default_route(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\t00000000\t" in Path(f"/proc/{pid}/net/route").read_text()
    return False


def _marker() -> list[str]:
    """A command that ends long after us and that no other process has."""
    return ["sleep", str(1_000_000 + next(_instances))]


class Loopback(Contender):
    """The host's own loopback: what the kernel gives without any translator."""

    name = "loopback"
    host_address = "127.0.0.1"
    dns_address = "127.0.0.1"

    @classmethod
    def installed(cls) -> bool:
        return True

    @classmethod
    def version(cls) -> str:
        return f"Linux {os.uname().release}"

    def start(self, setup: Setup) -> Running:
        return Running(self)


class Slirp4netns(Contender):
    name = "slirp4netns"
    host_address = "10.0.2.2"
    dns_address = "10.0.2.3"
    own_address = "10.0.2.2"

    @classmethod
    def installed(cls) -> bool:
        return shutil.which("slirp4netns") is not None

    @classmethod
    def version(cls) -> str:
        lines = run(["slirp4netns", "--version"], 5).splitlines()
        return ", ".join(line for line in lines if line.startswith(("slirp4netns", "libslirp")))

    def start(self, setup: Setup) -> Running:
        return self._start(setup)[0]

    def time_start(self, setup: Setup) -> dict[str, float]:
        running, ready = self._start(setup)
        running.stop()
        return {"ready": ready}

    def _start(self, setup: Setup) -> tuple[Running, float]:
        guest = spawn(["unshare", "-n", *_marker()])
        ours = os.readlink("/proc/self/ns/net")
        wait_until(lambda: _namespace_of(guest.pid) not in ("", ours), 5, "a namespace for slirp4netns")
        log = self._log()
        api = log.with_suffix(".sock")
        ready_read, ready_write = os.pipe()
        try:
            begin = time.time()
            argv = ["slirp4netns", "--configure", f"--mtu={setup.mtu}", f"--ready-fd={ready_write}"]
            argv += [f"--api-socket={api}"] if setup.forwards else []
            translator = spawn([*argv, str(guest.pid), "tap0"], log=log, pass_fds=[ready_write])
            os.close(ready_write)
            ready_write = -1
            if os.read(ready_read, 1) != b"1":
                processes.stop(guest, signal.SIGKILL)
                raise BenchmarkError(f"slirp4netns ended while starting: {last_line(log.read_bytes())}")
            ready = time.time() - begin
        finally:
            os.close(ready_read)
            if ready_write >= 0:
                os.close(ready_write)
        for forward in setup.forwards:
            self._forward(api, forward)
        return Running(self, translator, guest.pid, others=[guest]), ready

    @staticmethod
    def _forward(api: Path, forward: Forward) -> None:
        arguments = {
            "proto": "tcp",
            "host_addr": "127.0.0.1",
            "host_port": forward.host_port,
            "guest_port": forward.guest_port,
        }
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(5)
            control.connect(str(api))
            control.sendall(json.dumps({"execute": "add_hostfwd", "arguments": arguments}).encode())
            reply = control.recv(4096)
        if b"error" in reply:
            raise BenchmarkError(f"slirp4netns refused a forward: {reply.decode(errors='replace')}")


def _namespace_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


class Pasta(Contender):
    """passt in its namespace mode, through its TAP device: every port of the splice path is off."""

    name = "pasta"
    # pasta gives the guest the host's own address and gateway; the gateway reaches the host's loopback.
    host_address = NEIGHBOUR
    dns_address = NEIGHBOUR

    @classmethod
    def installed(cls) -> bool:
        return shutil.which("pasta") is not None

    @classmethod
    def version(cls) -> str:
        line = next(iter(run(["pasta", "--version"], 5, check=False).splitlines()), "pasta")
        if "unknown" in line and shutil.which("dpkg-query"):
            packaged = run(["dpkg-query", "-W", "-f", "${Version}", "passt"], 5, check=False).strip()
            return f"pasta {packaged}" if packaged else line
        return line

    def start(self, setup: Setup) -> Running:
        log, marker = self._log(), _marker()
        translator = spawn([*self._argv(setup), "--", *marker], log=log)
        return Running(self, translator, self._await_command(translator, marker, log))

    def time_start(self, setup: Setup) -> dict[str, float]:
        return self._time_command(self._argv(setup))

    @staticmethod
    def _argv(setup: Setup) -> list[str]:
        ports = ",".join(f"127.0.0.1/{one.host_port}:{one.guest_port}" for one in setup.forwards) or "none"
        no_splice = ["-t", ports, "-u", "none", "-T", "none", "-U", "none"]
        # Started by root it would become nobody, who may not enter the namespaces made here.
        return [
            *["pasta", "--runas", "0", "--netns-only", "--foreground", "--quiet", "--config-net", "-4"],
            *["--mtu", str(setup.mtu), "--dns-forward", NEIGHBOUR, *no_splice],
        ]


class Vpnkit(Contender):
    name = "vpnkit"
    host_address = "192.168.65.2"
    dns_address = "192.168.65.1"
    own_address = "192.168.65.1"

    @classmethod
    def installed(cls) -> bool:
        return (processes.REPOSITORY / "vpnkit" / "__main__.py").exists()

    @classmethod
    def version(cls) -> str:
        said = run([sys.executable, "-m", "vpnkit", "--version"], 10, check=False).strip()
        return said or "of this repository"

    def start(self, setup: Setup) -> Running:
        log, marker = self._log(), _marker()
        translator = spawn([*self._argv(setup), "--", *marker], log=log)
        return Running(self, translator, self._await_command(translator, marker, log))

    def time_start(self, setup: Setup) -> dict[str, float]:
        return self._time_command(self._argv(setup))

    @staticmethod
    def _argv(setup: Setup) -> list[str]:
        argv = [sys.executable, "-m", "vpnkit", "run", "--name", f"bench-{next(_instances)}", "--mtu", str(setup.mtu)]
        argv += [] if setup.offload else ["--no-offload"]
        for forward in setup.forwards:
            argv += ["-p", f"127.0.0.1:{forward.host_port}:{forward.guest_port}"]
        return argv

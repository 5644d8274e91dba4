"""Contenders whose guest comes over a unix stream with QEMU's framing.

What is at the other end is `tap_stream.c`: a TAP device in a namespace and a loop in C, so that no emulated machine is
measured with it.
"""

from __future__ import annotations

import abc
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from . import processes
from .contenders import Contender, Pasta, Running, Setup, Vpnkit, _has_default_route, _instances, _marker, _namespace_of
from .processes import run, spawn, wait_until
from .world import NEIGHBOUR, OUR_ADDRESS

if TYPE_CHECKING:
    from collections.abc import Sequence

PEER_SOURCE = Path(__file__).with_name("tap_stream.c")


class _Streamed(Contender):
    address: ClassVar[str]
    gateway: ClassVar[str]

    @abc.abstractmethod
    def _command(self, setup: Setup, path: Path) -> Sequence[str]:
        """What listens on the socket `path`."""

    def start(self, setup: Setup) -> Running:
        peer = self.scratch / "tap_stream"
        if not peer.exists():
            run(["cc", "-O2", "-o", str(peer), str(PEER_SOURCE)], 60)
        log = self._log()
        path = log.with_suffix(".sock")
        translator = spawn(list(self._command(setup, path)), log=log)
        others = []
        try:
            wait_until(path.exists, 10, f"the socket of {self.name}")
            guest = spawn(["unshare", "-n", *_marker()])
            others.append(guest)
            ours = _namespace_of(translator.pid)
            wait_until(lambda: _namespace_of(guest.pid) not in ("", ours), 5, f"a namespace for {self.name}")
            enter = ["nsenter", "-t", str(guest.pid), "-n", "--"]
            others.append(spawn([*enter, str(peer), "tap0", str(path)], log=log.with_suffix(".peer.log")))
            wait_until(lambda: "tap0:" in Path(f"/proc/{guest.pid}/net/dev").read_text(), 5, f"the TAP of {self.name}")
            for words in (
                ["link", "set", "lo", "up"],
                ["link", "set", "tap0", "mtu", str(setup.mtu), "up"],
                ["address", "add", f"{self.address}/24", "dev", "tap0"],
                ["route", "add", "default", "via", self.gateway],
            ):
                run([*enter, "ip", *words], 5)
            wait_until(lambda: _has_default_route(guest.pid), 5, f"the route of {self.name}")
        except BaseException:
            processes.stop(translator)
            for other in others:
                processes.stop(other, signal.SIGKILL)
            raise
        return Running(self, translator, guest.pid, others=others)


class PasstStream(_Streamed):
    name = "passt-stream"
    host_address = NEIGHBOUR
    dns_address = NEIGHBOUR
    address = OUR_ADDRESS
    gateway = NEIGHBOUR

    @classmethod
    def installed(cls) -> bool:
        return shutil.which("passt") is not None and shutil.which("cc") is not None

    @classmethod
    def version(cls) -> str:
        return Pasta.version().replace("pasta", "passt")

    def _command(self, setup: Setup, path: Path) -> Sequence[str]:
        ports = ["-t", "none", "-u", "none"]
        return ["passt", "--runas", "0", "-f", "-q", "-4", "-s", str(path), "--mtu", str(setup.mtu), *ports]


class VpnkitStream(_Streamed):
    name = "vpnkit-stream"
    host_address = Vpnkit.host_address
    dns_address = Vpnkit.dns_address
    own_address = Vpnkit.own_address
    address = "192.168.65.3"
    gateway = "192.168.65.1"

    @classmethod
    def installed(cls) -> bool:
        return Vpnkit.installed() and shutil.which("cc") is not None

    @classmethod
    def version(cls) -> str:
        return Vpnkit.version()

    def _command(self, setup: Setup, path: Path) -> Sequence[str]:
        name = f"bench-{next(_instances)}"
        return [
            sys.executable,
            "-m",
            "vpnkit",
            "serve",
            "--name",
            name,
            "--link",
            f"qemu:{path}",
            "--mtu",
            str(setup.mtu),
        ]

"""A virtual machine under QEMU, driven through its serial port."""

from __future__ import annotations

import base64
import os
import secrets
import select
import socket
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.interop.guest_tools import Namespace
    from tests.vm.image import Image

QEMU = "qemu-system-x86_64"
MEMORY = "256"  # MiB
MACHINE = "pc"  # with ACPI, for its HPET: by the PIT alone a busy machine leaves the kernel with jiffies for a clock
BOOT_TIMEOUT = 60.0  # seconds; two on a quiet machine
READY = b"ready\n"


class MachineError(AssertionError):
    """The machine did not do what was asked; has all that it said."""


class Machine:
    """A VM with one virtio network device on `netdev`, QEMU's words after `-netdev TYPE,id=net`.

    It is started at once, `booted` waits.  QEMU runs in `namespace`, and dies with the thread that started it.
    """

    def __init__(self, image: Image, netdev: str, *, mac: str, namespace: Namespace) -> None:
        self._image = image
        self._netdev = netdev
        self._namespace = namespace
        self.mac = mac
        self._start()

    def _start(self) -> None:
        self._serial, serial = socket.socketpair()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._received = b""
        try:
            with self._namespace.entered():
                self._process = subprocess.Popen(
                    self._argv(serial),
                    stdin=subprocess.DEVNULL,
                    stdout=self._said,
                    stderr=self._said,
                    pass_fds=(serial.fileno(),),
                )
        except BaseException:
            self._release()
            raise
        finally:
            serial.close()

    def _argv(self, serial: socket.socket) -> list[str]:
        kind, _, options = self._netdev.partition(",")
        return [
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *(QEMU, "-accel", "tcg", "-machine", MACHINE, "-m", MEMORY),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=commands,fd={serial.fileno()}", "-serial", "chardev:commands"),
            *("-netdev", f"{kind},id=net,{options}", "-device", f"virtio-net-pci,netdev=net,mac={self.mac},romfile="),
            *self._image.arguments(),
        ]

    def log(self) -> str:
        """What QEMU said and what the VM's console said."""
        text = os.pread(self._said.fileno(), 1 << 20, 0).decode(errors="replace")
        return f"machine {self.mac} with -netdev {self._netdev}, status {self._process.poll()}:\n{text}"

    # The serial port

    def _read_until(self, end: bytes, timeout: float, doing: str) -> bytes:
        """What came before `end`; what follows it is kept.  Raises MachineError."""
        deadline = time.monotonic() + timeout
        while end not in self._received:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._serial], [], [], left)[0]:
                raise MachineError(f"{doing}: no answer in {timeout} s\nso far: {self._received!r}\n{self.log()}")
            data = self._serial.recv(1 << 16)
            if not data:
                self._process.wait(10)
                raise MachineError(f"{doing}: QEMU ended\nso far: {self._received!r}\n{self.log()}")
            self._received += data
        before, _, self._received = self._received.partition(end)
        return before

    def booted(self, timeout: float = BOOT_TIMEOUT) -> Machine:
        """Wait until it takes commands."""
        self._read_until(READY, timeout, "boot")
        return self

    def _send(self, command: str) -> str:
        """Give it a command; returns the token that its answer has."""
        token = secrets.token_hex(8)
        self._serial.sendall(f"{token} {base64.b64encode(command.encode()).decode()}\n".encode())
        return token

    def run(self, command: str, timeout: float = 30) -> tuple[int, str]:
        """The status of the shell `command` and what it printed, on stdout or stderr.

        What it leaves running in the background must have its output elsewhere.
        """
        token = self._send(command)
        output = self._read_until(f"\n{token} ".encode(), timeout, command)
        status = self._read_until(b"\n", timeout, command)
        return int(status), output.decode(errors="replace")

    def check(self, command: str, timeout: float = 30) -> str:
        """What `command` printed, which must succeed."""
        status, output = self.run(command, timeout)
        if status:
            raise MachineError(f"{command}: status {status}\n{output}\n{self.log()}")
        return output

    # Life and death

    def reboot(self) -> None:
        """Reset it from inside, and wait for the boot.  QEMU goes on, and so does the link.

        `reboot -f` would stop the devices first, and Linux 6.1 can spin for ever in virtnet_poll_cleantx when that
        happens under load.
        """
        self._send("echo b > /proc/sysrq-trigger")
        self.booted()

    def kill(self) -> None:
        """SIGKILL, of QEMU."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Another QEMU of the same device, after `kill`."""
        self._release()
        self._start()

    def _release(self) -> None:
        self._serial.close()
        self._said.close()

    def close(self) -> None:
        self.kill()
        self._release()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def boot_together(machines: Sequence[Machine]) -> None:
    for machine in machines:
        machine.booted()

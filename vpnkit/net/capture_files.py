"""Rings that outlive the process: files in a directory, as pcapng, which anybody can read when we are gone.

Each ring has two files: when the newer is as long as the ring may be, it becomes the older.  They are written once a
second, so what came within the last second is lost with a process that is killed.  At the start they are read back.
Super-frames stay as they are here: to cut them, every second, would take more time than they took.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

import trio

import vpnkit
from pcap.pcapng import Pcapng
from pcap.reader import read
from vpnkit.errors import ConfigError
from vpnkit.net.ordinary import completed

if TYPE_CHECKING:
    from pathlib import Path

    from pcap.ring import Ring
    from vpnkit.net.captures import Captures

log = logging.getLogger(__name__)

SECONDS: Final = 1.0
MAX_FILE: Final = 128 << 20  # octets that are read back; more was never written by us
PACKETS: Final = 4096  # of a ring, at once


class RingFile:
    """The two files of one ring."""

    def __init__(self, directory: Path, ring: Ring, captures: Captures) -> None:
        name = ring.rule.name.removesuffix(".pcap")
        self.ring = ring
        self.path = directory / f"{name}.pcapng"
        self.older = directory / f"{name}.old.pcapng"
        self._captures = captures
        self._writer: Pcapng | None = None
        self._fd: int | None = None
        self._size = 0
        self._number = 0  # of the first packet that is not in a file

    def load(self) -> None:
        """Put what the files hold into the ring."""
        for path in (self.older, self.path):
            try:
                with path.open("rb") as file:
                    data = file.read(MAX_FILE)
            except FileNotFoundError:
                continue
            for packet, link in read(data):
                self.ring.append(packet._replace(interface=self._captures.capture.interface_number(link)))
        self._number = self.ring.seen

    def save(self) -> None:
        """Write what came since.  Raises OSError."""
        while self._number < self.ring.seen:
            first, packets = self.ring.read(self._number, PACKETS)
            writer = self._open()
            if first > self._number:
                writer.lost(first - self._number)
            self._number = first + len(packets)
            self._write(writer.packets(map(completed, packets)))

    def _open(self) -> Pcapng:
        """The writer, of a new file when the last one is full or there is none yet."""
        if self._fd is not None and self._size >= self.ring.rule.limit_bytes:
            self.close()
        if self._fd is None or self._writer is None:
            if self.path.exists():
                os.replace(self.path, self.older)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._size = 0
            self._writer = Pcapng(
                self._captures.capture.interface,
                application=f"vpnkit {vpnkit.__version__}",
                snaplen=self.ring.rule.snaplen,
            )
            self._write(self._writer.begin())
        return self._writer

    def _write(self, data: bytes) -> None:
        assert self._fd is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._size += len(data)

    def close(self) -> None:
        """Idempotent."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class CaptureFiles:
    """The files of all rings of an instance."""

    def __init__(self, captures: Captures, directory: Path) -> None:
        """Reads back what a former process left.  Raises ConfigError when the directory cannot be had."""
        self._captures = captures
        self._directory = directory
        self._files: dict[Ring, RingFile] = {}
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for ring in captures.capture.rings.values():
                self._file(ring).load()
        except OSError as error:
            raise ConfigError(f"--ring-file {directory}: {error.strerror}") from error

    def _file(self, ring: Ring) -> RingFile:
        found = self._files.get(ring)
        if found is None:
            found = self._files[ring] = RingFile(self._directory, ring, self._captures)
        return found

    async def run(self) -> None:
        """Write until cancelled, and at the end."""
        try:
            while True:
                await trio.sleep(SECONDS)
                self.save()
        finally:
            self.save()
            for file in self._files.values():
                file.close()

    def save(self) -> None:
        """Write what came since.  What cannot be written is said once, and tried again with what comes then."""
        rings = self._captures.capture.rings.values()
        for gone in self._files.keys() - set(rings):
            self._files.pop(gone).close()
        for ring in rings:
            try:
                self._file(ring).save()
            except OSError as error:
                self._captures.warn_once(f"--ring-file {self._directory}: {error.strerror}; packets are not kept")

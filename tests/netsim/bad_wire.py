"""The same bad wire between two kernels, and between a kernel and vpnkit: how fast is bulk TCP, and is it right?"""

from __future__ import annotations

import hashlib
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.interop.guest_tools import ALIAS, GATEWAY, GUEST, Namespace, digest_of, stream
from tests.interop.link_guests import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE: Final = Path(__file__).with_name("wire.c")
DEVICE: Final = "tap0"
PORT: Final = 5001
TIMEOUT: Final = 100.0  # seconds for one transfer
CONGESTION_CONTROL: Final = b"cubic"  # bbr does not mind loss; a namespace's default may not be set to any


class Weather(NamedTuple):
    loss: float  # percent of the frames, as are the next two
    reorder: float
    duplicate: float
    delay: int  # microseconds, one way

    def words(self, seed: int) -> list[str]:
        fates = [str(round(100 * percent)) for percent in self[:3]]
        return [*fates, str(self.delay), str(seed)]


class WireProgram:
    """wire.c, compiled."""

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="vk-")
        self.path = f"{self._directory}/wire"
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", self.path, str(SOURCE)], check=True)

    def close(self) -> None:
        shutil.rmtree(self._directory)


@dataclass
class Course:
    """Where a test's connections begin and end: the client's end is at the wire in both arrangements."""

    client: Namespace
    server: Namespace
    listens: str  # the server's address
    called: str  # what the client calls it


@contextmanager
def wire(program: WireProgram, weather: Weather, seed: int, *ends: str) -> Iterator[list[list[int]]]:
    """A wire between `ends`.  What it did with the frames of each direction is in the list when it is over."""
    did: list[list[int]] = []
    argv = [program.path, *weather.words(seed), *ends]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield did
        finally:
            out, _ = process.communicate(timeout=10)
            did += [[int(word) for word in line.split()] for line in out.splitlines()]
    assert process.returncode == 0


def namespace(owned: ExitStack) -> Namespace:
    made = Namespace.new()
    owned.callback(made.close)
    made.set("tcp_no_metrics_save", 1)  # every connection begins from nothing
    return made


def configure(end: Namespace, address: str) -> None:
    end.run("ip", "link", "set", DEVICE, "mtu", "1500", "up")
    end.run("ip", "address", "add", f"{address}/24", "dev", DEVICE)


@contextmanager
def two_kernels(program: WireProgram, weather: Weather, seed: int) -> Iterator[Course]:
    with ExitStack() as owned:
        client, server = namespace(owned), namespace(owned)
        ends = [f"tap:{end.path}:{DEVICE}" for end in (client, server)]
        did = owned.enter_context(wire(program, weather, seed, *ends))
        configure(client, GUEST)
        configure(server, ALIAS)
        yield Course(client, server, ALIAS, ALIAS)
    suffered(did, weather)


@contextmanager
def kernel_and_vpnkit(program: WireProgram, weather: Weather, seed: int) -> Iterator[Course]:
    with ExitStack() as owned:
        client, host = namespace(owned), namespace(owned)
        instance = owned.enter_context(serving(host, ["qemu:{d}/qemu"], "--mtu", "1500"))
        did = owned.enter_context(
            wire(program, weather, seed, f"tap:{client.path}:{DEVICE}", f"qemu:{instance.directory}/qemu")
        )
        configure(client, GUEST)
        client.run("ip", "route", "add", "default", "via", GATEWAY)
        yield Course(client, host, "127.0.0.1", ALIAS)
    suffered(did, weather)


ARRANGEMENTS: Final = {"kernel": two_kernels, "vpnkit": kernel_and_vpnkit}


def suffered(did: list[list[int]], weather: Weather) -> None:
    """Every fault happened in both directions, about as often as it should have where that can be told."""
    assert len(did) == 2
    for frames, *counts in did:
        for count, percent in zip(counts, weather[:3], strict=True):
            expected = frames * percent / 100
            assert expected < 10 or expected / 4 <= count <= expected * 4, did


def transfer(path: Course, octets: int, *, up: bool, seed: int = 0) -> float:
    """One connection that moves `octets`, from the client if `up`.  Seconds until the last was read; raises
    AssertionError if one was wrong."""
    failed: list[BaseException] = []
    with path.server.listen(path.listens, PORT) as listener:
        listener.settimeout(TIMEOUT)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_CONTROL)

        def serve() -> None:
            try:
                connection, _ = listener.accept()
                with connection:
                    use(connection, write=not up)
            except BaseException as error:
                failed.append(error)

        ends: list[float] = []

        def use(connection: socket.socket, *, write: bool) -> None:
            connection.settimeout(TIMEOUT)
            assert (
                connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).strip(b"\0") == CONGESTION_CONTROL
            )
            if write:
                for part in stream(octets, seed):
                    connection.sendall(part)
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(1) == b""
                return
            digest, count = hashlib.sha256(), 0
            while data := connection.recv(1 << 18):
                digest.update(data)
                count += len(data)
            ends.append(time.perf_counter())
            assert count == octets
            assert digest.hexdigest() == digest_of(stream(octets, seed))

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        began = time.perf_counter()
        with path.client.socket() as connection:
            connection.settimeout(TIMEOUT)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_CONTROL)
            connection.connect((path.called, PORT))
            use(connection, write=up)
        server.join(TIMEOUT)
    if failed:
        raise failed[0]
    return ends[0] - began


def compare(program: WireProgram, weather: Weather, octets: int, rounds: int) -> dict[str, dict[str, float]]:
    """Octets a second, the middle of `rounds`: {"up" | "down": {"kernel" | "vpnkit": ...}}.

    The two arrangements take turns, so that a busy machine is as busy for both.
    """
    rates: dict[str, dict[str, list[float]]] = {way: {name: [] for name in ARRANGEMENTS} for way in ("up", "down")}
    for seed in range(rounds):
        for name, arrangement in ARRANGEMENTS.items():
            with arrangement(program, weather, seed) as path:
                for way, found in rates.items():
                    found[name].append(octets / transfer(path, octets, up=way == "up", seed=seed))
    return {way: {name: statistics.median(each) for name, each in found.items()} for way, found in rates.items()}

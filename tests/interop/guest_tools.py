"""What the tests with real programs share: a host, a remote host and guests, none of which is this machine.

The "host" of these tests is a network namespace, and so is the "remote host", at the other end of a veth pair.  Nothing
of the machine is touched, workers do not meet, and nothing is left when the tests are killed: a namespace lives as long
as the descriptor that we hold.  A thread of ours that has entered a namespace makes its sockets there, also in the
guest's, and they stay there: the two ends of a connection can be held in one test.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.tapdev.guests import NOBODY, as_user, environment, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLONE_NEWNET = 0x40000000

GATEWAY = "192.168.65.1"
ALIAS = "192.168.65.2"  # the host's 127.0.0.1
GUEST = "192.168.65.3"
GATEWAY_MAC = "f6:16:36:bc:f9:c6"
HOST = "198.51.100.1"  # towards the remote host
REMOTE = "198.51.100.2"

LINGER_RESET = b"\x01\0\0\0\0\0\0\0"  # struct linger: close sends a RST


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Namespace:
    """A network namespace, held by a descriptor."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    @classmethod
    def new(cls) -> Namespace:
        made: list[Namespace] = []

        def make() -> None:  # a thread's namespace is its own
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0:
                made.append(cls(f"/proc/self/task/{threading.get_native_id()}/ns/net"))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        [namespace] = made
        namespace.run("ip", "link", "set", "lo", "up")
        return namespace

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Sockets and processes that this thread makes are in the namespace."""
        libc = ctypes.CDLL(None, use_errno=True)
        before = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(self._fd, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield
            finally:
                libc.setns(before, CLONE_NEWNET)
        finally:
            os.close(before)

    def run(self, *argv: str, stdin: str = "", timeout: float = 10) -> str:
        """What `argv` prints, which must succeed."""
        with self.entered():
            done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def set(self, name: str, value: object, family: str = "ipv4") -> None:
        """A setting below net.ipv4, or net.ipv6."""
        with self.entered():
            Path("/proc/sys/net", family, name).write_text(str(value))

    def socket(self, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET) -> socket.socket:
        with self.entered():
            return socket.socket(family, kind)

    def listen(self, address: str = "127.0.0.1", port: int = 0, backlog: int = 1024) -> socket.socket:
        with self.entered():
            return socket.create_server((address, port), family=family_of(address), backlog=backlog)

    def connect(self, address: str, port: int, timeout: float = 10) -> socket.socket:
        with self.entered():
            return socket.create_connection((address, port), timeout)

    def tcp_sockets(self, *states: str) -> list[str]:
        """One line for each TCP socket that does not listen, TIME-WAIT left out."""
        lines = self.run("ss", "-Htn", "state", "connected", "exclude", "time-wait").splitlines()
        return [line for line in lines if not states or line.split()[0] in states]

    def close(self) -> None:
        os.close(self._fd)


class Lab:
    """The host and the remote host."""

    def __init__(self) -> None:
        self.host = Namespace.new()
        self.remote = Namespace.new()
        self.host.run("ip", "link", "add", "uplink", "type", "veth", "peer", "eth0", "netns", self.remote.path)
        self.host.run("ip", "address", "add", f"{HOST}/24", "dev", "uplink")
        self.host.run("ip", "link", "set", "uplink", "up")
        self.remote.run("ip", "address", "add", f"{REMOTE}/24", "dev", "eth0")
        self.remote.run("ip", "link", "set", "eth0", "up")
        self.remote.set("ip_forward", 1)
        self.remote.set("icmp_ratelimit", 0)

    def close(self) -> None:
        self.host.close()
        self.remote.close()


class Directory:
    """A temporary directory that `user` can write and everybody can read."""

    def __init__(self, user: str = "root") -> None:
        self.path = Path(tempfile.mkdtemp(prefix="vpnkit-interop-"))
        self.path.chmod(0o755)
        if user == "nobody":
            os.chown(self.path, NOBODY, NOBODY)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path)


def vpnkit_run(user: str, *words: str) -> list[str]:
    return as_user(user, [sys.executable, "-m", "vpnkit", "run", *words])


class Process:
    """What /proc says of a process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._directory = Path(f"/proc/{pid}")

    def _smaps(self, name: str) -> int:
        for line in (self._directory / "smaps_rollup").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(name)

    def pss(self) -> int:
        return self._smaps("Pss")

    def rss(self) -> int:
        return self._smaps("Rss")

    def descriptors(self) -> int:
        return len(os.listdir(self._directory / "fd"))

    def cpu_seconds(self) -> float:
        fields = (self._directory / "schedstat").read_text().split()
        return int(fields[0]) / 1e9

    def only_child(self) -> int:
        [pid] = (self._directory / f"task/{self.pid}/children").read_text().split()
        return int(pid)


class Guest:
    """`vpnkit run` with a command that waits, so that programs and sockets can join it in its namespace."""

    def __init__(
        self,
        host: Namespace,
        user: str = "root",
        *options: str,
        script: str = "exec cat",
        **settings: str,
    ) -> None:
        self.user = user
        self.directory = Directory(user)  # the place of the control socket
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        argv = vpnkit_run(user, *options, "--", "sh", "-c", f"echo ready; {script}")
        with host.entered():
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment(XDG_RUNTIME_DIR=str(self.directory.path), **settings),
            )
        self.namespace: Namespace | None = None
        try:
            assert self.process.stdout.readline() == b"ready\n", self.log()
            self.vpnkit = Process(self.process.pid)
            self.init = self.vpnkit.only_child()
            self.namespace = Namespace(f"/proc/{self.init}/ns/net")
        except BaseException:
            self.kill()
            raise

    def log(self) -> str:
        """What vpnkit said on stderr so far."""
        return os.pread(self._errors.fileno(), 1 << 20, 0).decode()

    def command(self, *argv: str) -> list[str]:
        namespaces = ["-n", "-m"]
        if self.user != "root":
            namespaces += ["-U", "--preserve-credentials"]
        return as_user(self.user, ["nsenter", "-t", str(self.init), *namespaces, "--", *argv])

    def run(
        self, *argv: str, timeout: float = 20, check: bool = True, **options: object
    ) -> subprocess.CompletedProcess[str]:
        """`argv` in the guest, with its own mounts and as its own user."""
        done = subprocess.run(
            self.command(*argv),
            **{"capture_output": True, "text": True, "timeout": timeout, "env": environment(), "cwd": "/", **options},
        )
        if check:
            assert done.returncode == 0, f"{argv}: {done.returncode} {done.stdout} {done.stderr}\n{self.log()}"
        return done

    def connect(self, port: int, address: str = ALIAS, timeout: float = 10) -> socket.socket:
        return self.namespace.connect(address, port, timeout)

    def listen(self, port: int, backlog: int = 1024) -> socket.socket:
        return self.namespace.listen("0.0.0.0", port, backlog)

    def drop(self, one_in: int) -> None:
        """Lose one IP datagram in `one_in`, each way, at random.  ARP, which tries three times only, is left alone."""
        lose = f"meta protocol ip numgen random mod {one_in} == 0 counter drop"
        self.namespace.run(
            "nft",
            "-f",
            "-",
            stdin=f"table netdev loss {{"
            f" chain in {{ type filter hook ingress device tap0 priority 0; {lose}; }};"
            f" chain out {{ type filter hook egress device tap0 priority 0; {lose}; }}; }}\n",
        )

    def drop_nothing(self) -> None:
        """The end of `drop`."""
        self.namespace.run("nft", "delete", "table", "netdev", "loss")

    def dropped(self) -> list[int]:
        """How many frames were lost, [to the guest, from it]."""
        words = self.namespace.run("nft", "list", "table", "netdev", "loss").split()
        return [int(words[i + 1]) for i, word in enumerate(words) if word == "packets"]

    def kill(self) -> None:
        if self.process.poll() is None:
            try:
                os.kill(Process(self.process.pid).only_child(), signal.SIGKILL)
            except (OSError, ValueError):
                pass
            self.process.kill()
        self.process.wait()
        self._release()

    def _release(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self._errors.close()
        if self.namespace is not None:
            self.namespace.close()
        with self.directory:
            pass

    def close(self) -> None:
        """End it in the ordinary way, and look whether it was well all the time."""
        if self.process.poll() is not None:
            log = self.log()
            self._release()
            raise AssertionError(f"vpnkit ended with {self.process.returncode}: {log}")
        self.process.stdin.close()
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            log = self.log()
            self.kill()
            raise AssertionError(f"vpnkit did not end: {log}") from None
        log = self.log()
        self._release()
        assert status == 0, log
        assert "Traceback" not in log, log
        assert "internal error" not in log, log


@contextmanager
def running(host: Namespace, user: str = "root", *options: str) -> Iterator[Guest]:
    guest = Guest(host, user, *options)
    try:
        yield guest
    except BaseException:
        sys.stderr.write(guest.log())
        guest.kill()
        raise
    guest.close()


class Server:
    """Accepts connections of `listener` and has `serve` called with each in a thread of its own.

    At the end those that wait are still accepted, and all are served to their end.
    """

    def __init__(self, listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        self.address, self.port = listener.getsockname()[:2]
        self.failures: list[BaseException] = []
        self._listener = listener
        listener.setblocking(False)
        self._ending, self._end = os.pipe()
        self._serve = serve
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                if self._listener not in select.select([self._listener, self._ending], [], [])[0]:
                    return
                continue
            self._threads.append(threading.Thread(target=self._one, args=(connection,), daemon=True))
            self._threads[-1].start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(120)
                self._serve(connection)
            except BaseException as error:
                self.failures.append(error)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._end, b"x")
        for thread in self._threads:  # the first may add others until it ends
            thread.join(120)
        self._listener.close()
        os.close(self._ending)
        os.close(self._end)


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


# Data

BLOCK = random.Random(20260101).randbytes(1 << 20)


def stream(size: int, seed: int = 0) -> Iterator[bytes]:
    """`size` octets of which no two mebibytes are alike."""
    position = 0
    while position < size:
        head = f"{seed}:{position:016x}".encode()
        chunk = head + BLOCK[len(head) :]
        yield chunk[: size - position]
        position += len(chunk)


def digest_of(parts: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def received(connection: socket.socket) -> Iterator[bytes]:
    """What arrives until the end."""
    while data := connection.recv(1 << 18):
        yield data


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        assert part, f"the end after {len(data)} of {size} octets"
        data += part
    return data


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 5.0) -> None:
    assert eventually(condition, seconds), f"not within {seconds} s: {what}"


def idle_cpu(process: Process, seconds: float = 3.0) -> float:
    """The processor time that a process which has nothing to do uses in `seconds`."""
    before = process.cpu_seconds()
    time.sleep(seconds)  # the measurement itself, no event ends it
    return process.cpu_seconds() - before

"""`vpnkit serve` as a process: who hears that it is ready, how it ends, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tapdev.guests import environment, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECONDS = 10  # more than anything here takes on a busy machine
SERVE = [sys.executable, "-m", "vpnkit", "serve"]
CONTROL = "vpnkit/default.sock"

# Becomes ARGV[2:] with the descriptors of ARGV[1] as 3 and up, as a service manager starts a program.
ACTIVATE = """if True:
    import os, sys
    passed = [int(number) for number in sys.argv[1].split(",")]
    for index, fd in enumerate(passed):
        os.dup2(fd, 100 + index)
    for index in range(len(passed)):
        os.dup2(100 + index, 3 + index)
        os.close(100 + index)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(len(passed))
    os.execv(sys.argv[2], sys.argv[2:])
"""

# One frame: an ARP request of 02:00:00:00:00:aa, 192.168.65.77, for the gateway.
ASKER = bytes.fromhex("0200000000aa")
ARP_REQUEST = b"".join(
    (
        b"\xff" * 6 + ASKER + b"\x08\x06",
        bytes.fromhex("0001080006040001"),
        ASKER + bytes([192, 168, 65, 77]),
        bytes(6) + bytes([192, 168, 65, 1]),
    )
)


class Served:
    """A `vpnkit serve` with pipes."""

    def __init__(self, directory: Path, argv: list[str], pass_fds: tuple[int, ...] = (), **variables: str) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            env=environment(XDG_RUNTIME_DIR=str(directory), **variables),
        )

    def ready(self) -> str:
        """The first line of standard output, once it is there."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        if not line:
            raise AssertionError(self.process.communicate(timeout=SECONDS)[1].decode())
        return line.rstrip("\n")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """(status, standard error) after the signal."""
        self.process.send_signal(number)
        return self.finish()

    def finish(self) -> tuple[int, str]:
        out, err = self.process.communicate(timeout=SECONDS)
        assert out == b""
        return self.process.returncode, err.decode()

    def guests(self) -> int:
        """How many there are, says the control socket."""
        argv = [sys.executable, "-m", "vpnkit", "status", "--json"]
        done = subprocess.run(
            argv, capture_output=True, check=True, env=environment(XDG_RUNTIME_DIR=str(self.directory))
        )
        return int(json.loads(done.stdout)["guests"])

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            try:
                if stream is not None:
                    stream.close()
            except BrokenPipeError:
                pass


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vk-") as name:
        yield Path(name)


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def begin(*argv: str, program: list[str] = SERVE, pass_fds: tuple[int, ...] = (), **variables: str) -> Served:
        started.append(Served(directory, [*program, *argv], pass_fds, **variables))
        return started[-1]

    yield begin
    for served in started:
        served.kill()


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*"))


def connected(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, kind)
    client.settimeout(SECONDS)
    client.connect(str(path))
    return client


def exactly(client: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = client.recv(count - len(found))
        assert piece, found
        found += piece
    return found


def answered(client: socket.socket) -> bool:
    """Whether the gateway answers to ARP over a QEMU stream."""
    client.sendall(len(ARP_REQUEST).to_bytes(4, "big") + ARP_REQUEST)
    frame = exactly(client, int.from_bytes(exactly(client, 4), "big"))
    return frame[:6] == ASKER and frame[20:22] == b"\0\2" and frame[28:32] == bytes([192, 168, 65, 1])


# Ready


def test_the_line_says_where_everything_is_and_all_of_it_accepts(start, directory) -> None:
    links = [f"qemu:{directory}/q", f"vmnet:{directory}/v", f"dgram:{directory}/d", f"vfkit:{directory}/f"]
    served = start(*(word for link in links for word in ("--link", link)))
    assert served.ready() == " ".join([f"ready control={directory}/{CONTROL}", *(f"link={link}" for link in links)])
    for name in ("q", "v"):
        connected(directory / name).close()
    for name in ("d", "f"):
        connected(directory / name, socket.SOCK_DGRAM).close()
    for name in ("q", "v", "d", "f", CONTROL):
        assert (directory / name).stat().st_mode & 0o777 == 0o600
    assert served.guests() == 0
    assert served.end()[0] == 0


def test_a_port_that_the_system_chose_is_said(start, directory) -> None:
    served = start("--link", "qemu:tcp:127.0.0.1:0", "-p", "127.0.0.1:0:80")
    words = re.fullmatch(r"ready control=\S+ link=qemu:tcp:127.0.0.1:(\d+) forward=127.0.0.1:(\d+):80", served.ready())
    assert words is not None
    for port in words.groups():
        assert int(port) > 0
        socket.create_connection(("127.0.0.1", int(port))).close()
    assert served.end()[0] == 0


def test_the_ready_descriptor_gets_a_1_and_is_closed(start, directory) -> None:
    reader, writer = os.pipe()
    served = start("--link", f"qemu:{directory}/q", "--ready-fd", str(writer), pass_fds=(writer,))
    os.close(writer)
    with open(reader, "rb") as stream:
        assert stream.read() == b"1"
    assert served.ready().startswith("ready ")
    assert served.end() == (0, "")


def test_a_guest_is_served(start, directory) -> None:
    served = start("--link", f"qemu:{directory}/q")
    served.ready()
    with connected(directory / "q") as client:
        assert answered(client)
        assert served.guests() == 1
    assert eventually(lambda: served.guests() == 0, SECONDS)
    with connected(directory / "q") as client:
        assert answered(client)
    assert served.end() == (0, "")


@contextmanager
def service_manager(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        receiver.settimeout(SECONDS)
        yield receiver


def test_the_service_manager_is_told(start, directory) -> None:
    with service_manager(str(directory / "notify")) as receiver:
        served = start("--link", f"qemu:{directory}/q", NOTIFY_SOCKET=str(directory / "notify"), WATCHDOG_USEC="100000")
        served.ready()
        said = [receiver.recv(4096).decode() for _ in range(3)]
        assert sorted(said)[:1] == [
            f"READY=1\nSTATUS=Serving 192.168.65.0/24 on qemu:{directory}/q\nMAINPID={served.process.pid}"
        ]
        assert said.count("WATCHDOG=1") == 2
        assert served.end() == (0, "")
        while (last := receiver.recv(4096)) == b"WATCHDOG=1":
            pass
        assert last == b"STOPPING=1"
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(4096)


@pytest.mark.skipif(sys.platform != "linux", reason="the abstract namespace is Linux's")
def test_the_service_manager_has_an_abstract_name(start, directory) -> None:
    name = directory.name
    with service_manager(f"\0{name}") as receiver:
        served = start("--link", f"qemu:{directory}/q", NOTIFY_SOCKET=f"@{name}")
        assert receiver.recv(4096).startswith(b"READY=1\n")
        assert served.ready()
        assert served.end() == (0, "")
        assert receiver.recv(4096) == b"STOPPING=1"


# Socket activation


@contextmanager
def bound(directory: Path, **names: socket.SocketKind) -> Iterator[tuple[int, ...]]:
    """Descriptors of sockets with those names in `directory`."""
    sockets = []
    for name, kind in names.items():
        server = socket.socket(socket.AF_UNIX, kind)
        sockets.append(server)
        server.bind(str(directory / name))
        if kind != socket.SOCK_DGRAM:
            server.listen()
    try:
        yield tuple(server.fileno() for server in sockets)
    finally:
        for server in sockets:
            server.close()


def activate(start, descriptors: tuple[int, ...], *argv: str, **variables: str) -> Served:
    numbers = ",".join(map(str, descriptors))
    return start(*argv, program=[sys.executable, "-c", ACTIVATE, numbers, *SERVE], pass_fds=descriptors, **variables)


def test_inherited_sockets_are_for_those_with_their_paths(start, directory) -> None:
    with bound(directory, q=socket.SOCK_STREAM, f=socket.SOCK_DGRAM, c=socket.SOCK_STREAM) as descriptors:
        words = ["--link", f"vmnet:{directory}/v", "--link", f"vfkit:{directory}/f", "--link", f"qemu:{directory}/q"]
        with connected(directory / "q") as early:  # before anybody serves it
            served = activate(start, descriptors, *words, "--control", f"{directory}/c")
            assert served.ready() == (
                f"ready control={directory}/c link=vmnet:{directory}/v link=vfkit:{directory}/f link=qemu:{directory}/q"
            )
            assert answered(early)
        with connected(directory / "c") as control:
            control.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert control.recv(12) == b"HTTP/1.1 200"
        assert served.end() == (0, "")
    assert left(directory) == ["c", "f", "q"]  # theirs who made them; ours is gone


def test_an_inherited_socket_that_nobody_wants_is_a_warning(start, directory) -> None:
    with bound(directory, x=socket.SOCK_STREAM) as descriptors:
        served = activate(start, descriptors, "--link", f"qemu:{directory}/q", LISTEN_FDNAMES="odd")
        served.ready()
        status, err = served.end()
    assert status == 0
    assert err.count("\n") == 1
    assert f"socket activation: descriptor 3 (odd), {directory}/x, is not on the command line; closed" in err


def test_an_inherited_socket_of_the_wrong_type_is_an_error(start, directory) -> None:
    with bound(directory, q=socket.SOCK_DGRAM) as descriptors:
        status, err = activate(start, descriptors, "--link", f"qemu:{directory}/q").finish()
    assert status == 1
    assert f"{directory}/q" in err
    assert err.count("\n") == 1


def test_an_inherited_socket_of_the_wrong_type_for_control(start, directory) -> None:
    with bound(directory, c=socket.SOCK_SEQPACKET) as descriptors:
        served = activate(start, descriptors, "--link", f"qemu:{directory}/q", "--control", f"{directory}/c")
        status, err = served.finish()
    assert status == 1
    assert err.startswith(f"vpnkit: socket {directory}/c of socket activation")
    assert err.count("\n") == 1
    assert left(directory) == ["c"]


# The end


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_ends_it_in_order(start, directory, name) -> None:
    links = [f"qemu:{directory}/q", f"vmnet:{directory}/v", f"dgram:{directory}/d", f"bess:{directory}/b"]
    served = start(*(word for link in links for word in ("--link", link)))
    served.ready()
    with connected(directory / "q") as client:
        assert answered(client)
        assert served.end(getattr(signal, name)) == (0, "")
        assert client.recv(1) == b""
    assert left(directory) == []


def test_nohup_is_respected(start, directory) -> None:
    program = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *SERVE]
    served = start("--link", f"qemu:{directory}/q", program=program)
    served.ready()
    served.process.send_signal(signal.SIGHUP)
    with connected(directory / "q") as client:
        assert answered(client)
    assert served.end() == (0, "")


def test_a_second_signal_kills(start, directory) -> None:
    served = start("--link", f"qemu:{directory}/q")
    served.ready()
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        served.process.send_signal(number)
    status, err = served.finish()
    assert status in (-signal.SIGTERM, -signal.SIGINT)
    assert err == ""


def test_busy_guests_do_not_delay_the_end(start, directory) -> None:
    served = start("--link", f"vmnet:{directory}/v")
    served.ready()
    frame = len(ARP_REQUEST).to_bytes(2, "little") + ARP_REQUEST
    clients = []
    for _ in range(10):
        client = connected(directory / "v")
        clients.append(client)
        client.sendall(b"VMN3T" + (22).to_bytes(4, "little") + b"0123456789" * 4 + b"\x01" + bytes(40))
        assert exactly(client, 49 + 258)[49] == 1

    def flood(client: socket.socket) -> None:
        try:
            while True:
                client.sendall(frame * 500)
        except OSError:
            pass

    threads = [threading.Thread(target=flood, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    assert served.guests() == 10
    assert served.end() == (0, "")
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    for client in clients:
        client.close()
    assert left(directory) == []


def test_standard_output_is_the_guests_and_it_ends_with_him(start, directory) -> None:
    served = start("--link", "stdio:", "--log-level", "info")
    frame = len(ARP_REQUEST).to_bytes(2, "little") + ARP_REQUEST
    assert served.process.stdin is not None
    assert served.process.stdout is not None
    served.process.stdin.write(frame)
    served.process.stdin.flush()
    answer = served.process.stdout.read(2 + 42)
    assert answer[:8] == (42).to_bytes(2, "little") + ASKER
    status, err = served.finish()  # which closes his output
    assert status == 0
    assert re.search(f"^ready control={directory}/{CONTROL} link=stdio:$", err, re.MULTILINE)
    assert left(directory) == []


def test_standard_input_that_ends_is_not_the_end_of_other_links(start, directory) -> None:
    served = start("--link", "stdio:", "--link", f"qemu:{directory}/q")
    assert served.process.stdin is not None
    assert served.process.stderr is not None
    assert served.process.stderr.readline().startswith(b"ready ")
    served.process.stdin.close()
    served.process.stdin = None
    with connected(directory / "q") as client:
        assert answered(client)
    assert served.end()[0] == 0


# What is in the way


def test_what_a_dead_one_left_is_replaced(start, directory) -> None:
    first = start("--link", f"qemu:{directory}/q", "--link", f"dgram:{directory}/d", "--link", f"bess:{directory}/b")
    first.ready()
    first.process.kill()
    first.process.wait()
    assert {"b", "d", "default.sock", "q"} <= set(left(directory))
    second = start("--link", f"qemu:{directory}/q", "--link", f"dgram:{directory}/d", "--link", f"bess:{directory}/b")
    second.ready()
    with connected(directory / "q") as client:
        assert answered(client)
    assert second.end() == (0, "")
    assert left(directory) == []


def test_what_a_live_one_has_is_an_error_that_names_it(start, directory) -> None:
    first = start("--link", f"qemu:{directory}/q")
    first.ready()
    before = left(directory)
    second = start("--link", f"vmnet:{directory}/v", "--link", f"qemu:{directory}/q", "--name", "second")
    status, err = second.finish()
    assert status == 1
    assert err.startswith("vpnkit: ")
    assert f"{directory}/q" in err
    assert f"process {first.process.pid}" in err
    assert err.count("\n") == 1
    assert left(directory) == before
    third = start("--link", f"vmnet:{directory}/v")  # has the name "default" too
    status, err = third.finish()
    assert status == 1
    assert f"control socket {directory}/{CONTROL} is already served by process {first.process.pid}" in err
    assert left(directory) == before
    with connected(directory / "q") as client:
        assert answered(client)
    assert first.end() == (0, "")


def test_a_busy_port_is_an_error_and_leaves_nothing(start, directory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        served = start("--link", f"qemu:{directory}/q", "-p", f"127.0.0.1:{port}:80")
        status, err = served.finish()
    assert status == 1
    assert f"127.0.0.1:{port} is in use" in err
    assert err.count("\n") == 1
    assert left(directory) == []


def test_a_wrong_link_is_2_as_a_process(start, directory) -> None:
    status, err = start("--link", f"smoke:{directory}/q").finish()
    assert status == 2
    assert err.startswith("vpnkit: Invalid value for '--link'")
    assert err.count("\n") == 1

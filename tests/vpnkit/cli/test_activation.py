"""Sockets from the service manager: which are ours, and what each is for."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tapdev.spec import parse
from tests.tapdev.guests import environment
from vpnkit.cli.activation import InheritedSocket, addresses, adopt, inherited_sockets

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST = 3


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vk-") as name:
        yield Path(name)


def bound(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    server = socket.socket(socket.AF_UNIX, kind)
    server.bind(str(path))
    return server.detach()


def found_by_a_process(*passed: int, **variables: str) -> list[str]:
    """What a process that got `passed` as descriptors 3 and up finds, a line each; the last says what is left.

    LISTEN_PID is its own unless it is among the variables.
    """
    script = f"""if True:
        import os, sys
        from vpnkit.cli.activation import inherited_sockets
        for index, fd in enumerate({passed!r}):
            os.dup2(fd, 100 + index)
        for index in range({len(passed)}):
            os.dup2(100 + index, {FIRST} + index)
        os.environ.setdefault("LISTEN_PID", str(os.getpid()))
        for one in inherited_sockets(os.environ):
            print(one.fd, one.name, one.address, os.get_inheritable(one.fd))
        print(sorted(name for name in os.environ if name.startswith("LISTEN_")))
    """
    done = subprocess.run(
        [sys.executable, "-c", script],
        pass_fds=passed,
        capture_output=True,
        text=True,
        check=False,
        env=environment(**variables),
    )
    return (done.stdout + done.stderr).splitlines()


def test_sockets_are_found_named_and_kept_from_children(directory: Path) -> None:
    path = directory / "a.sock"
    first, second = bound(path), os.open("/dev/null", os.O_RDONLY)
    try:
        lines = found_by_a_process(first, second, LISTEN_FDS="2", LISTEN_FDNAMES="vm:other")
    finally:
        os.close(first)
        os.close(second)
    assert lines == [f"3 vm {path} False", "4 other  False", "[]"]


def test_those_of_another_process_are_left_alone() -> None:
    assert found_by_a_process(LISTEN_FDS="1", LISTEN_PID="1") == ["[]"]


@pytest.mark.parametrize(("count", "words"), [("many", "LISTEN_FDS is 'many', not a number"), ("1", "descriptor 3:")])
def test_nonsense_is_a_warning(count: str, words: str) -> None:
    lines = found_by_a_process(LISTEN_FDS=count)
    assert lines[0] == "[]"
    assert words in lines[1]


def test_without_variables_there_is_nothing() -> None:
    assert inherited_sockets({}) == []


def test_a_socket_is_for_whoever_has_its_path(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    (directory / "real").mkdir()
    (directory / "link").symlink_to("real")
    ours, other, numbered = (os.open("/dev/null", os.O_RDONLY) for _ in range(3))
    sockets = [
        InheritedSocket(ours, "a", f"{directory}/real/a.sock"),
        InheritedSocket(other, "b", f"{directory}/b.sock"),
        InheritedSocket(numbered, "", f"{directory}/c.sock"),
    ]
    with caplog.at_level(logging.WARNING):
        adopted = adopt(sockets, [f"{directory}/link/a.sock", f"{directory}/z.sock"], {numbered})
    assert adopted == {f"{directory}/link/a.sock": ours}
    os.close(ours)
    os.close(numbered)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(other)
    assert [record.getMessage() for record in caplog.records] == [
        f"socket activation: descriptor {other} (b), {directory}/b.sock, is not on the command line; closed"
    ]


def test_addresses_of_other_kinds() -> None:
    with socket.socket(socket.AF_UNIX) as unbound, socket.socket() as inet:
        inet.bind(("127.0.0.1", 0))
        lines = found_by_a_process(unbound.fileno(), inet.fileno(), LISTEN_FDS="2")
        assert lines[:2] == ["3   False", f"4  tcp:127.0.0.1:{inet.getsockname()[1]} False"]


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("qemu:/a", ["/a"]),
        ("dgram:/a,/b", ["/a"]),
        ("qemu:tcp:[::1]:80", ["tcp:[::1]:80"]),
        ("vsock:9", ["vsock:9", "vsock:9"]),
        ("vsock:3:9", ["vsock:3:9", "vsock:9"]),
        ("fc-vsock:/v.sock:9", ["/v.sock_9"]),
        ("hyperkit:/dir:9", ["/dir/00000002.00000009"]),
        ("tap:a", []),
        ("qemu-connect:/a", []),
        ("qemu-connect:tcp:localhost:80", []),
        ("fd:3", []),
        ("stdio:", []),
    ],
)
def test_where_the_socket_of_a_link_is(link: str, expected: list[str]) -> None:
    assert addresses(parse(link)) == expected


def test_an_address_is_compared_as_text() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    assert adopt([InheritedSocket(fd, "", "vsock:9")], ["vsock:3:9", "vsock:9"]) == {"vsock:9": fd}
    os.close(fd)

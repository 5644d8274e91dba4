"""Linux's own 9P client, in a VM: it mounts the tree, makes a forward, uses it and reads the state.

The VM comes to the 9P socket as to any server of the host: a listener on the host's loopback leads to it.
"""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.interop.guest_tools import ALIAS, GUEST, Server, wait_for
from tests.vm.image import WANTED, Image, ImageError
from tests.vm.machine import Machine
from tests.vm.tools import MACS, Cables, Serve, lease, listening

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.interop.guest_tools import Namespace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FILES = ["README", "capture", "flows.json", "forwards.json", "guests.json", "leases.json", "status.json"]


@pytest.fixture(scope="module")
def image_with_9p(tmp_path_factory):
    try:
        return Image(tmp_path_factory.mktemp("image"), (*WANTED, "9pnet_fd", "9p"))
    except ImageError as error:
        pytest.skip(str(error))


class Way:
    """From a TCP port of the host's loopback to a unix socket."""

    def __init__(self, host: Namespace, path: Path) -> None:
        self._path = path
        self.open = 0  # connections
        self._server = Server(host.listen(), self._serve)
        self.port = self._server.port

    def _serve(self, connection: socket.socket) -> None:
        self.open += 1
        with socket.socket(socket.AF_UNIX) as inside:
            inside.connect(str(self._path))
            back = threading.Thread(target=copy, args=(inside, connection))
            back.start()
            copy(connection, inside)
            back.join()
        connection.close()
        self.open -= 1

    def __enter__(self) -> Way:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()


def copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        with suppress(OSError):  # it has no other end any more
            target.shutdown(socket.SHUT_RDWR)  # to close it would not wake who reads it


@pytest.fixture(scope="module")
def site(lab, image_with_9p):
    """A VM that has got its address, and where it finds the 9P socket."""
    with Cables(lab.host) as cables:
        cable = cables.new("stream-server")
        path = cables.directory / "p9"
        with (
            Serve(lab.host, cables.directory, [cable.link], "--9p", str(path)) as serve,
            Way(lab.host, path) as way,
            Machine(image_with_9p, cable.netdev, mac=MACS[0], namespace=cable.namespace) as machine,
        ):
            machine.booted(120)
            lease(machine)
            machine.check("mkdir /port /other")
            # A loop, as the end of a background process would come to the shell that reads our commands.
            machine.check("while :; do nc -l -p 80 -e echo hello from the VM; done >/dev/null 2>&1 &")
            listening(machine, 80)
            yield serve, machine, way


@contextmanager
def mounted(machine: Machine, way: Way, version: str = ",version=9p2000.u", place: str = "/port") -> Iterator[None]:
    ways = way.open
    machine.check(f"mount -t 9p -o trans=tcp,port={way.port}{version} {ALIAS} {place}")
    try:
        yield
    except BaseException:
        machine.run(f"killall -9 sleep; usleep 100000; umount -l {place}")  # for the tests after this one
        raise
    machine.check(f"until umount {place}; do usleep 10000; done")  # a process that was killed may be closing its files
    wait_for(lambda: way.open == ways, "the connection has ended")


def refused(host: Namespace, port: int) -> bool:
    with host.socket(socket.SOCK_STREAM) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def names(machine: Machine) -> list[str]:
    return sorted(machine.check("ls /port").split())


def hold(machine: Machine, name: str, spec: str) -> str:
    """Ask for a forward as a process that keeps its `ctl` open; what is said."""
    machine.check(f"mkdir /port/{name}")
    machine.check(
        f"(exec 3<>/port/{name}/ctl; echo {spec} >&3; touch asked; exec sleep 1000) >/dev/null 2>&1 & echo $! >{name}"
    )
    machine.check("until [ -e asked ]; do usleep 10000; done; rm asked")
    return machine.check(f"cat /port/{name}/ctl").strip()


def let_go(machine: Machine, name: str) -> None:
    """The end of the process of `hold`."""
    machine.check(f"kill -9 $(cat {name}); while kill -0 $(cat {name}); do usleep 10000; done 2>/dev/null")


# Without a version Linux asks for 9P2000.L, and takes 9P2000.
@pytest.mark.parametrize("version", [",version=9p2000.u", ",version=9p2000", ""], ids=["9P2000.u", "9P2000", "default"])
def test_linux_mounts_the_tree(lab, site, version):
    serve, machine, way = site
    with mounted(machine, way, version):
        assert names(machine) == FILES
        assert "`ctl`" in machine.check("cat /port/README")
        [guest] = json.loads(machine.check("cat /port/guests.json"))
        assert guest["ip"] == GUEST
        assert json.loads(machine.check("cat /port/status.json"))["guests"] == 1
        said = hold(machine, "web", f"tcp:127.0.0.1:0:tcp:{GUEST}:80")
        assert said.startswith("OK tcp:127.0.0.1:"), said
        port = int(said.split(":")[2])
        assert names(machine) == [*FILES, "web"]
        # Here Linux has web as the directory that it was, as long as something in it is open; a new mount has the file.
        with mounted(machine, way, version, "/other"):
            assert machine.check("cat /other/web").strip() == said.removeprefix("OK ")
        with lab.host.socket(socket.SOCK_STREAM) as client:
            client.settimeout(20)
            client.connect(("127.0.0.1", port))
            assert client.makefile().read() == "hello from the VM\n"
        [forward] = json.loads(machine.check("cat /port/forwards.json"))
        assert (forward["host_port"], forward["guest_port"]) == (port, 80)
        # The process dies, Linux clunks, the forward is gone.
        let_go(machine, "web")
        wait_for(lambda: refused(lab.host, port), "the port is closed")
        assert names(machine) == FILES
        # To remove it ends it too.
        port = int(hold(machine, "again", f"tcp:127.0.0.1:0:tcp:{GUEST}:80").split(":")[2])
        assert not refused(lab.host, port)
        machine.check("rmdir /port/again")
        assert refused(lab.host, port)
        let_go(machine, "again")
    assert serve.report("guests")


def test_errors_reach_the_programs_of_the_guest(site):
    _, machine, way = site
    with mounted(machine, way):
        said = hold(machine, "taken", f"tcp:127.0.0.1:{way.port}:tcp:{GUEST}:80")
        assert said == f"ERROR Bind for 127.0.0.1:{way.port} failed: port is already allocated"
        for command, message in (
            ("cat /port/nothing", "No such file or directory"),
            ("mkdir /port/taken", "File exists"),
            ("touch /port/file", "Permission denied"),
            ("echo x > /port/README", "Permission denied"),
            ("rm /port/README", "Permission denied"),
            ("mv /port/README /port/other", ""),
        ):
            status, output = machine.run(command)
            assert status
            assert message in output, (command, output)
        machine.check("ls /port")
        let_go(machine, "taken")


def test_a_mount_that_ends_leaves_no_forward(lab, site):
    _, machine, way = site
    with mounted(machine, way):
        machine.check("mkdir /port/directory")
    with mounted(machine, way):
        assert names(machine) == FILES


def test_a_vm_that_is_killed_leaves_no_forward(lab, site):
    """The last one: there is no VM after it."""
    _, machine, way = site
    machine.check(f"mount -t 9p -o trans=tcp,port={way.port},version=9p2000.u {ALIAS} /port")
    port = int(hold(machine, "web", f"tcp:127.0.0.1:0:tcp:{GUEST}:80").split(":")[2])
    assert not refused(lab.host, port)
    machine.kill()
    wait_for(lambda: refused(lab.host, port), "the forward is gone")
    wait_for(lambda: way.open == 0, "the connection has ended")

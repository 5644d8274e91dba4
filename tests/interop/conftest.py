"""The host and the remote host that a worker's tests share, and a guest for those that leave theirs as it was."""

from __future__ import annotations

import sys

import pytest

from tests.interop.guest_tools import REMOTE, Directory, Lab, running, stream, wait_for
from tests.interop.link_guests import LEASE_SCRIPT, Program
from tests.interop.servers import NameServer, WebServer

PAYLOAD = 32 << 20


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/interop" in item.path.as_posix():
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.skipif(sys.platform != "linux", reason="network namespaces need Linux"))


@pytest.fixture(scope="session")
def lab():
    made = Lab()
    yield made
    made.close()


@pytest.fixture(scope="module", params=["root", "nobody"])
def guest(lab, request):
    """A guest of each user, for the tests of a module."""
    with running(lab.host, request.param) as started:
        yield started


@pytest.fixture(scope="module")
def root_guest(lab):
    with running(lab.host) as started:
        yield started


@pytest.fixture(scope="session")
def peer_program():
    made = Program()
    yield made
    made.close()


@pytest.fixture(scope="session")
def served_files():
    with Directory() as path:
        yield path


@pytest.fixture(scope="session")
def lease_script(served_files):
    """What udhcpc calls: the guest becomes what it is told."""
    script = served_files / "lease"
    script.write_text(LEASE_SCRIPT)
    script.chmod(0o755)
    return script


@pytest.fixture(scope="session")
def payload(served_files):
    """A file of PAYLOAD octets of `stream`."""
    path = served_files / "payload"
    with path.open("wb") as file:
        for part in stream(PAYLOAD):
            file.write(part)
    return path


@pytest.fixture(scope="session")
def web_server(lab, served_files):
    with WebServer(lab.host, served_files) as server:
        yield server


@pytest.fixture
def web(lab, web_server):
    """A web server on the host, whose connections end with the test."""
    yield web_server
    port = f":{web_server.port} "
    wait_for(lambda: not any(port in f"{line} " for line in lab.host.tcp_sockets()), "the web server's are closed")


@pytest.fixture(scope="session")
def names(lab):
    with NameServer(lab.remote, REMOTE) as server:
        yield server

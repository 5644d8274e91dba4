"""The image that all VMs boot, and the host with its servers."""

from __future__ import annotations

import sys

import pytest

from tests.interop.guest_tools import BLOCK, REMOTE, Directory, Lab
from tests.interop.servers import NameServer, WebServer
from tests.vm.image import Image, ImageError
from tests.vm.machine import QEMU
from tests.vm.tools import Digests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/vm" in item.path.as_posix():
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.program(QEMU))
            item.add_marker(pytest.mark.skipif(sys.platform != "linux", reason="network namespaces need Linux"))


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    try:
        return Image(tmp_path_factory.mktemp("image"))
    except ImageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def lab():
    made = Lab()
    yield made
    made.close()


@pytest.fixture(scope="session")
def web(lab):
    with Directory() as path:
        (path / "page").write_text("a page of the host\n")
        (path / "block").write_bytes(BLOCK)
        with WebServer(lab.host, path) as server:
            yield server


@pytest.fixture(scope="session")
def sums(lab):
    """Says what it got, by its SHA-256."""
    with Digests(lab.host) as server:
        yield server


@pytest.fixture(scope="session")
def names(lab):
    with NameServer(lab.remote, REMOTE) as server:
        yield server

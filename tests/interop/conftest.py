"""The host and the remote host that a worker's tests share, and a guest for those that leave theirs as it was."""

from __future__ import annotations

import sys

import pytest

from tests.interop.guest_tools import Lab, running


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

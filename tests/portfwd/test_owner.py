from __future__ import annotations

import os
import socket
import sys
from ipaddress import ip_address

import pytest

from portfwd import owner

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


@pytest.mark.parametrize(
    ("bound", "wanted", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.2", "127.0.0.1", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("::", "::1", True),
        ("::", "127.0.0.1", True),
        ("::1", "127.0.0.1", False),
        ("0.0.0.0", "::1", False),
    ],
)
def test_what_is_in_the_way(bound: str, wanted: str, expected: bool) -> None:
    assert owner._in_the_way(ip_address(bound), ip_address(wanted)) is expected


def test_the_kernel_s_spelling_of_addresses() -> None:
    assert owner._decode("0100007F") == ip_address("127.0.0.1")
    assert owner._decode("00000000000000000000000001000000") == ip_address("::1")
    assert owner._decode("B80D0120000000000000000001000000") == ip_address("2001:db8::1")


def test_a_listener_is_found_and_a_connected_socket_is_not() -> None:
    with socket.socket() as listener, socket.socket() as client:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert owner.who_listens("127.0.0.1", port) is None
        listener.listen()
        client.connect(("127.0.0.1", port))
        assert str(owner.who_listens("127.0.0.1", port)).endswith(f" (pid {os.getpid()})")
        assert owner.who_listens("127.0.0.1", client.getsockname()[1]) is None


@pytest.mark.parametrize("address", ["", "localhost", "1.2.3"])
def test_nonsense_is_nobody(address: str) -> None:
    assert owner.who_listens(address, 80) is None


def test_without_proc_nobody_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def listdir(path: str) -> list[str]:
        raise PermissionError(path)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setattr(os, "listdir", listdir)
        found = owner.who_listens("127.0.0.1", listener.getsockname()[1])
        monkeypatch.undo()
    assert found is None

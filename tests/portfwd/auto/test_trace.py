"""The kernel's word that somebody begins to listen, where tracing can be had."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys

import pytest

from portfwd.auto import trace
from portfwd.auto.trace import ListenTrace, TraceError

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(sys.platform != "linux", reason="tracefs is Linux's"),
]


@pytest.fixture
def tracing(tmp_path, monkeypatch):
    done = subprocess.run(["mount", "-t", "tracefs", "none", str(tmp_path)], capture_output=True, check=False)
    monkeypatch.setattr(trace, "PLACES", (str(tmp_path),))
    yield tmp_path if done.returncode == 0 else None
    if done.returncode == 0:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_listen_and_bind_are_told(tracing):
    if tracing is None:
        with pytest.raises(TraceError):
            ListenTrace()
        return
    stale = tracing / "instances" / "vpnkit-4194305"  # no process has it: above the greatest pid
    stale.mkdir()
    with ListenTrace() as made:
        assert not stale.exists()
        poller = select.poll()
        poller.register(made, select.POLLIN)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(type=kind) as sock:
                sock.bind(("127.0.0.1", 0))
                if kind == socket.SOCK_STREAM:
                    sock.listen()
                assert poller.poll(5000)
            made.drain()
    assert not [name for name in os.listdir(tracing / "instances") if name == f"vpnkit-{os.getpid()}"]


def test_no_tracefs(tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "PLACES", (str(tmp_path),))
    with pytest.raises(TraceError, match="there is no tracefs"):
        ListenTrace()

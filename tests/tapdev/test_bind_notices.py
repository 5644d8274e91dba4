"""Being told of bind and listen, by a filter on a child."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys

import pytest

from tapdev.bind_notices import BindNotices, install

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's"),
]


@pytest.fixture
def watched():
    """A function that forks a child under the filter to run a body; it gives his pid and the notices."""
    ended = []

    def start(body):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                fd = install()
                socket.send_fds(theirs, [b"x"], [fd])
                os.close(fd)
                body()
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        _, [fd], _, _ = socket.recv_fds(ours, 1, 1)
        ours.close()
        notices = BindNotices(fd)
        ended.append((pid, notices))
        return pid, notices

    yield start
    for pid, notices in ended:
        notices.close()
        notices.close()
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def wait(notices):
    poller = select.poll()
    poller.register(notices, select.POLLIN)
    assert poller.poll(5000)


def test_bind_and_listen_are_told_and_happen(watched):
    def body():
        with socket.create_server(("127.0.0.1", 0)) as made, socket.create_connection(made.getsockname()):
            pass

    pid, notices = watched(body)
    told = 0
    while True:
        wait(notices)
        if not notices.receive():
            break
        told += 1
    assert told == 2
    assert os.waitpid(pid, 0)[1] == 0


def test_who_is_killed_while_he_waits(watched):
    def body():
        socket.create_server(("127.0.0.1", 0))

    pid, notices = watched(body)
    wait(notices)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not notices.receive()


def test_nobody_hears_any_more(watched):
    def body():
        os.read(go, 1)
        try:
            socket.socket().bind(("127.0.0.1", 0))
        except OSError:
            return
        raise AssertionError

    go, write = os.pipe()
    pid, notices = watched(body)
    notices.close()
    os.write(write, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(go)
    os.close(write)

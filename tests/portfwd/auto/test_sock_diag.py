"""What listens, as the kernel says, and as broken messages do."""

from __future__ import annotations

import select
import socket
import sys
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.auto.sock_diag import Listener, decode, drain, listeners, messages, open_diag, watch_ends

linux = pytest.mark.skipif(sys.platform != "linux", reason="sock_diag is Linux's")


def bound(closing, kind, address, family=socket.AF_INET, only6=False):
    made = closing.enter_context(socket.socket(family, kind))
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only6)
    made.bind((address, 0))
    if kind == socket.SOCK_STREAM:
        made.listen()
    return made, made.getsockname()[1]


@linux
def test_listeners_are_seen():
    with ExitStack() as closing:
        diag = closing.enter_context(open_diag())
        _, four = bound(closing, socket.SOCK_STREAM, "0.0.0.0")
        _, six = bound(closing, socket.SOCK_STREAM, "::", socket.AF_INET6, only6=True)
        _, both = bound(closing, socket.SOCK_STREAM, "::", socket.AF_INET6)
        _, loopback = bound(closing, socket.SOCK_DGRAM, "127.0.0.1")
        connected, other = bound(closing, socket.SOCK_DGRAM, "127.0.0.1")
        connected.connect(("127.0.0.1", loopback))
        found = listeners(diag)
        assert found >= {
            Listener("tcp", four, "0.0.0.0"),
            Listener("tcp", six, "::", True),
            Listener("tcp", both, "::"),
            Listener("udp", loopback, "127.0.0.1"),
        }
        assert not any(listener.port == other and listener.protocol == "udp" for listener in found)


@linux
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_the_end_of_one_is_told_and_that_of_a_connection_is_not(kind):
    with ExitStack() as closing:
        ends = closing.enter_context(open_diag())
        watch_ends(ends)
        poller = select.poll()
        poller.register(ends, select.POLLIN)
        made, port = bound(closing, kind, "127.0.0.1")
        client = closing.enter_context(socket.socket(type=kind))
        client.connect(("127.0.0.1", port))
        drain(ends)
        made.close()
        assert poller.poll(5000)
        drain(ends)
        assert ends.recv  # still open


@given(st.binary(max_size=300))
def test_any_octets(data):
    for _, message in messages(data):
        found = decode(message, "tcp")
        assert found is None or 1 <= found.port <= 65535

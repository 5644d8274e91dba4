"""The guest's side of the idle-flow row: many connections that do nothing until they are asked to.

`python -m benchmarks.flows ADDRESS PORT COUNT` opens them and says so in one JSON line; a line on stdin asks for the
check: one byte there and back on each, then the time to open one more.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import time

AT_ONCE = 64
ONE_MORE = 5


def open_many(address: str, port: int, count: int, patience: float) -> list[socket.socket]:
    """Open `count` connections, at most `AT_ONCE` of them in the making.  Returns those that opened."""
    deadline = time.monotonic() + patience
    poller = select.epoll()
    opening: dict[int, socket.socket] = {}
    opened: list[socket.socket] = []
    started = 0
    while (started < count or opening) and time.monotonic() < deadline:
        while started < count and len(opening) < AT_ONCE:
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex((address, port))
            poller.register(one, select.EPOLLOUT)
            opening[one.fileno()] = one
            started += 1
        for fd, _ in poller.poll(1.0):
            poller.unregister(fd)
            one = opening.pop(fd)
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                opened.append(one)
            else:
                one.close()
    return opened


def count_alive(connections: list[socket.socket], patience: float) -> int:
    """How many give a byte back.  One that does not holds the others up for a second only."""
    deadline = time.monotonic() + patience
    poller = select.epoll()
    waiting: dict[int, socket.socket] = {}
    alive = 0

    def collect(quiet: float) -> None:
        nonlocal alive
        while waiting and time.monotonic() < deadline:
            events = poller.poll(quiet)
            if not events:
                return
            for fd, _ in events:
                poller.unregister(fd)
                with contextlib.suppress(OSError):
                    alive += waiting.pop(fd).recv(1) == b"x"

    for begin in range(0, len(connections), AT_ONCE):
        for one in connections[begin : begin + AT_ONCE]:
            with contextlib.suppress(OSError):
                one.send(b"x")
                waiting[one.fileno()] = one
                poller.register(one, select.EPOLLIN)
        collect(1.0)
    collect(5.0)
    return alive


def time_one_more(address: str, port: int) -> float:
    """Milliseconds until a new connection is open and has carried a byte both ways: the slowest of a few."""
    slowest = 0.0
    for _ in range(ONE_MORE):
        begin = time.perf_counter()
        with socket.create_connection((address, port), timeout=10) as one:
            one.sendall(b"x")
            one.recv(1)
            slowest = max(slowest, time.perf_counter() - begin)
    return slowest * 1000


def main() -> None:
    address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    patience = 10 + count / 200
    begin = time.perf_counter()
    connections = open_many(address, port, count, patience)
    print(json.dumps({"opened": len(connections), "seconds": time.perf_counter() - begin}), flush=True)
    sys.stdin.readline()
    alive = count_alive(connections, patience)
    try:
        one_more: float | None = time_one_more(address, port)
    except OSError:
        one_more = None
    print(json.dumps({"alive": alive, "one_more": one_more}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()

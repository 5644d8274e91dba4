"""What the guests talk to, on the host's loopback: nginx, iperf3, a DNS server and an echo server.

`python -m benchmarks.servers dns|echo PORT` is the process behind the last two.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from .processes import listening, spawn, stop, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

HTTP_PORT = 8080
IPERF_PORT = 5201
ECHO_PORT = 7007
DNS_PORT = 53
DNS_ADDRESS = "127.0.0.1"
SLOW = b"s"
"""What the names begin with that are answered after SLOW_SECONDS."""
SLOW_SECONDS = 0.02

_NGINX = """
daemon off;
master_process off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid {scratch}/nginx.pid;
error_log stderr emerg;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 3600;
    tcp_nodelay on;
    default_type text/plain;
    client_body_temp_path {scratch}/body;
    proxy_temp_path {scratch}/proxy;
    fastcgi_temp_path {scratch}/fastcgi;
    uwsgi_temp_path {scratch}/uwsgi;
    scgi_temp_path {scratch}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        listen [::1]:{port} backlog=4096;
        location / {{ return 200 "a small body of sixty-four bytes, which is all that is asked for.\\n"; }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(scratch: Path) -> Iterator[None]:
    configuration = scratch / "nginx.conf"
    configuration.write_text(_NGINX.format(scratch=scratch, port=HTTP_PORT))
    server = spawn(["nginx", "-p", str(scratch), "-e", "stderr", "-c", str(configuration)], log=scratch / "nginx.log")
    with _until_done(server, HTTP_PORT):
        yield


@contextlib.contextmanager
def iperf(called: str) -> Iterator[None]:
    """One iperf3 server for one test, on the loopback of the family of the address that the guest calls."""
    server = spawn(["iperf3", "-s", "-1", "-B", "::1" if ":" in called else "127.0.0.1", "-p", str(IPERF_PORT)])
    with _until_done(server, IPERF_PORT):
        yield


@contextlib.contextmanager
def echo() -> Iterator[None]:
    server = spawn([sys.executable, "-m", "benchmarks.servers", "echo", str(ECHO_PORT)])
    with _until_done(server, ECHO_PORT):
        yield


@contextlib.contextmanager
def dns() -> Iterator[None]:
    server = spawn([sys.executable, "-m", "benchmarks.servers", "dns", str(DNS_PORT)])
    with _until_done(server, DNS_PORT):  # it answers on TCP too
        yield


@contextlib.contextmanager
def _until_done(server: subprocess.Popen[bytes], port: int) -> Iterator[None]:
    try:
        wait_until(lambda: listening(port), 10, f"a server on port {port}")
        yield
    finally:
        stop(server, signal.SIGKILL)


# ---- the processes --------------------------------------------------------------------------------------------------


def dns_answer(query: bytes) -> bytes:
    """One A record for whatever was asked; it may be cached when the name begins with `c` or `s`."""
    end = 12
    while query[end]:
        end += query[end] + 1
    question = query[12 : end + 5]
    header = query[:2] + b"\x85\x80\0\x01\0\x01\0\0\0\0"
    ttl = b"\0\0\x0e\x10" if query[13:14] in (b"c", SLOW) else bytes(4)
    return header + question + b"\xc0\x0c\0\x01\0\x01" + ttl + b"\0\x04\xc6\x33\x64\x05"


def _serve_dns(port: int) -> None:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    udp.bind((DNS_ADDRESS, port))
    tcp = socket.create_server((DNS_ADDRESS, port), backlog=1024)
    if os.fork() == 0:
        while True:
            connection, _ = tcp.accept()
            with connection, contextlib.suppress(OSError, IndexError):
                connection.settimeout(2)
                answer = dns_answer(connection.recv(4096)[2:])
                connection.sendall(len(answer).to_bytes(2, "big") + answer)
    waiting: deque[tuple[float, bytes, tuple[str, int]]] = deque()
    while True:
        udp.settimeout(max(waiting[0][0] - time.monotonic(), 0.0001) if waiting else None)
        try:
            query, client = udp.recvfrom(4096)
            if query[13:14] == SLOW:
                waiting.append((time.monotonic() + SLOW_SECONDS, dns_answer(query), client))
            else:
                udp.sendto(dns_answer(query), client)
        except (IndexError, OSError):
            pass
        while waiting and waiting[0][0] <= time.monotonic():
            _, answer, client = waiting.popleft()
            with contextlib.suppress(OSError):
                udp.sendto(answer, client)


def _serve_echo(port: int) -> None:
    selector = selectors.DefaultSelector()
    server = socket.create_server(("127.0.0.1", port), backlog=4096)
    server.setblocking(False)
    selector.register(server, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is server:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        accepted, _ = server.accept()
                        accepted.setblocking(False)
                        selector.register(accepted, selectors.EVENT_READ)
            elif isinstance(key.fileobj, socket.socket):
                connection = key.fileobj
                try:
                    data = connection.recv(4096)
                    if data:
                        connection.send(data)
                        continue
                except OSError:
                    pass
                selector.unregister(connection)
                connection.close()


if __name__ == "__main__":
    {"dns": _serve_dns, "echo": _serve_echo}[sys.argv[1]](int(sys.argv[2]))

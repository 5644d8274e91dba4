"""Servers for other people's clients: a web server that counts and a name server."""

from __future__ import annotations

import functools
import hashlib
import http.server
import socket
import struct
import threading
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.interop.guest_tools import Server, receive_exactly, stream

if TYPE_CHECKING:
    from pathlib import Path

    from tests.interop.guest_tools import Namespace

BIG_TEXT = 3000  # octets in the answer for big.example


class Web(http.server.SimpleHTTPRequestHandler):
    """Files of a directory; GET /bytes/N is N octets of `stream`; PUT answers with the SHA-256 of what came."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self.path.startswith("/bytes/"):
            super().do_GET()
            return
        size = int(self.path.removeprefix("/bytes/"))
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for part in stream(size):
            self.wfile.write(part)

    def do_PUT(self) -> None:
        digest = hashlib.sha256()
        assert self.headers["Transfer-Encoding"] == "chunked"
        while size := int(self.rfile.readline(), 16):
            digest.update(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        body = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class WebServer6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


class WebServer:
    """Web on `address` of `host`, with the files below `directory`."""

    def __init__(self, host: Namespace, directory: Path, address: str = "127.0.0.1", port: int = 0) -> None:
        with host.entered():
            handler = functools.partial(Web, directory=str(directory))
            kind = WebServer6 if ":" in address else http.server.ThreadingHTTPServer
            self._server = kind((address, port), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> WebServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class NameServer:
    """Answers for big.example (TXT) and every other name (A) but missing.example, on UDP and TCP."""

    def __init__(self, host: Namespace, address: str) -> None:
        self.asked: list[str] = []  # "udp" or "tcp", for each query
        listener = host.listen(address)
        self.port = listener.getsockname()[1]
        self._udp = host.socket(socket.SOCK_DGRAM)
        self._udp.bind((address, self.port))
        self._tcp = Server(listener, self._serve_stream)
        self._thread = threading.Thread(target=self._serve_datagrams)

    def _answer(self, query: bytes, transport: str) -> bytes:
        self.asked.append(transport)
        message = dns.message.from_wire(query)
        question = message.question[0]
        response = dns.message.make_response(message, our_payload=4096)
        if question.name.to_text().lower() == "missing.example.":
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif question.name.to_text().lower() == "big.example.":
            if question.rdtype == dns.rdatatype.TXT:
                texts = " ".join(f'"{i:03d}{"x" * 97}"' for i in range(BIG_TEXT // 100))
                response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "TXT", texts))
        elif question.rdtype == dns.rdatatype.A:
            response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", "203.0.113.77"))
        wire = response.to_wire(max_size=65535)
        limit = max(message.payload, 512)
        if transport == "udp" and len(wire) > limit:
            response.answer.clear()
            response.flags |= dns.flags.TC
            wire = response.to_wire()
        return wire

    def _serve_datagrams(self) -> None:
        while True:
            data, source = self._udp.recvfrom(65535)
            if not data:
                return
            self._udp.sendto(self._answer(data, "udp"), source)

    def _serve_stream(self, connection: socket.socket) -> None:
        while head := connection.recv(2):
            if len(head) < 2:
                head += receive_exactly(connection, 1)
            wire = self._answer(receive_exactly(connection, struct.unpack("!H", head)[0]), "tcp")
            connection.sendall(struct.pack("!H", len(wire)) + wire)

    def __enter__(self) -> NameServer:
        self._tcp.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._tcp.__exit__()
        # A datagram of nothing from ourselves ends the thread: closing would not wake it.
        self._udp.sendto(b"", self._udp.getsockname())
        self._thread.join()
        self._udp.close()

"""The guest's half of `vpnkit demo`: what a machine does when it comes up, told step by step.

Runs inside the namespace, started by `demo`.  Argument: the port of the demo's web server on the host.  It ends when
the host fetched a page from it.
"""

from __future__ import annotations

import hashlib
import http.client
import http.server
import os
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Final

from vpnkit.wire import dhcp, ethernet, ipv4, udp
from vpnkit.wire.checksum import checksum, ones_sum

if TYPE_CHECKING:
    from vpnkit.wire.dhcp import DhcpMessage

DEVICE: Final = "tap0"
PAGE: Final = b"hello from inside the guest\n"
GUEST_PORT: Final = 8000
WAIT_SECONDS: Final = 5.0


def say(text: str) -> None:
    print(f"  guest | {text}", flush=True)


def main() -> None:
    """The steps, in order.  Any failure ends the process with an exception, and so the demo."""
    host_port = int(sys.argv[1])
    acknowledged = get_address()
    address = socket.inet_ntoa(acknowledged.yiaddr)
    mtu = int.from_bytes(acknowledged.options[dhcp.INTERFACE_MTU], "big")
    server = socket.inet_ntoa(acknowledged.options[dhcp.SERVER_ID])
    say(f"DHCP: {address} from {server}, mtu {mtu}, lease {int.from_bytes(acknowledged.options[51], 'big')} s")
    configure(acknowledged)
    resolved = socket.getaddrinfo("host.internal", host_port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    say(f"DNS: host.internal is {resolved}")
    fetch(str(resolved), host_port)
    serve()


def get_address() -> DhcpMessage:
    """DISCOVER, OFFER, REQUEST, ACK on the bare device, as there is no address yet (RFC 2131 section 3.1)."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ethernet.ETHERTYPE_IPV4)) as raw:
        raw.bind((DEVICE, 0))
        raw.settimeout(WAIT_SECONDS)
        mac = raw.getsockname()[4]
        xid = int.from_bytes(os.urandom(4), "big")
        options = {dhcp.MESSAGE_TYPE: bytes([dhcp.DISCOVER]), dhcp.HOST_NAME: b"demo"}
        offer = ask(raw, mac, dhcp.DhcpMessage(dhcp.BOOTREQUEST, xid, mac, options, flags=dhcp.BROADCAST_FLAG))
        options = {
            dhcp.MESSAGE_TYPE: bytes([dhcp.REQUEST]),
            dhcp.REQUESTED_ADDRESS: offer.yiaddr,
            dhcp.SERVER_ID: offer.options[dhcp.SERVER_ID],
            dhcp.HOST_NAME: b"demo",
        }
        answer = ask(raw, mac, dhcp.DhcpMessage(dhcp.BOOTREQUEST, xid, mac, options, flags=dhcp.BROADCAST_FLAG))
        if answer.kind != dhcp.ACK:
            raise RuntimeError(f"DHCP answered {answer.kind} where ACK was expected")
        return answer


def ask(raw: socket.socket, mac: bytes, message: DhcpMessage) -> DhcpMessage:
    payload = message.encode()
    transport = udp.HEADER.pack(68, 67, udp.HEADER.size + len(payload), 0)
    total = ones_sum(transport + payload) + ipv4.pseudo_sum(dhcp.ANY, ipv4.BROADCAST, ipv4.UDP, 8 + len(payload))
    transport = udp.HEADER.pack(68, 67, udp.HEADER.size + len(payload), checksum(total))
    header = ipv4.encode_header(dhcp.ANY, ipv4.BROADCAST, ipv4.UDP, len(transport) + len(payload))
    raw.send(ethernet.HEADER.pack(ethernet.BROADCAST, mac, ethernet.ETHERTYPE_IPV4) + header + transport + payload)
    while True:
        frame = memoryview(raw.recv(65535))
        packet = ipv4.decode(frame[ethernet.HEADER.size :])
        if packet.protocol == ipv4.UDP:
            _, port, _, data = udp.decode(packet.payload)
            if port == 68:
                answer = dhcp.decode(data)
                if answer.xid == message.xid:
                    return answer


def configure(lease: DhcpMessage) -> None:
    """The address and the default route of the lease on the device."""
    from pyroute2 import IPRoute

    prefix = bin(struct.unpack("!I", lease.options[dhcp.SUBNET_MASK])[0]).count("1")
    with IPRoute() as route:
        index = route.link_lookup(ifname=DEVICE)[0]
        route.addr("add", index=index, address=socket.inet_ntoa(lease.yiaddr), prefixlen=prefix)
        route.route("add", dst="default", gateway=socket.inet_ntoa(lease.options[dhcp.ROUTER][:4]))


def fetch(address: str, port: int) -> None:
    """A page and a big file from the host's web server."""
    connection = http.client.HTTPConnection(address, port, timeout=WAIT_SECONDS)
    connection.request("GET", "/", headers={"Host": "host.internal"})
    page = connection.getresponse().read()
    say(f"HTTP: GET http://host.internal:{port}/ gave {page.decode().strip()!r}")
    connection.request("GET", "/big")
    response = connection.getresponse()
    expected = response.headers["X-SHA256"]
    digest = hashlib.sha256()
    size = 0
    started = time.perf_counter()
    while data := response.read(1 << 20):
        digest.update(data)
        size += len(data)
    seconds = time.perf_counter() - started
    if digest.hexdigest() != expected:
        raise RuntimeError("the big file came out different from how it went in")
    say(f"HTTP: {size >> 20} MiB in {seconds:.2f} s, SHA-256 equal on both sides")


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class calls it so)
        say(f"HTTP: {self.client_address[0]} asked for {self.path}")


def serve() -> None:
    """A web server for one request, which the host sends through the forward."""
    with http.server.HTTPServer(("", GUEST_PORT), Page) as server:
        server.timeout = WAIT_SECONDS
        server.handle_request()


if __name__ == "__main__":
    main()

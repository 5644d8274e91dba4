"""`vpnkit demo`: the main job on this machine, in under a minute, told step by step.

A guest, which is a process in a network namespace of its own, gets an address, resolves a name, fetches from a server
on this host, and is reached through a forward.  Then the capture of its DNS traffic is printed.  Any step that fails
makes the exit status 1.
"""

from __future__ import annotations

import hashlib
import http.client
import http.server
import os
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from vpnkit.cli.demo_guest import GUEST_PORT, PAGE
from vpnkit.errors import VpnkitError
from vpnkit.net.plan import Plan, guest_mac

if TYPE_CHECKING:
    from tapdev.netns import NamespaceGuest

BIG: Final = 256 << 20  # octets of the file that the guest downloads
DEADLINE_SECONDS: Final = 45.0


def say(text: str = "") -> None:
    print(text, flush=True)


class HostPage(http.server.BaseHTTPRequestHandler):
    """The host's web server: a page, and a big file with its digest."""

    protocol_version = "HTTP/1.1"

    def __init__(self, block: bytes, digest: str, *args: object) -> None:
        self._block = block
        self._digest = digest
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        if self.path == "/big":
            self.send_response(200)
            self.send_header("Content-Length", str(BIG))
            self.send_header("X-SHA256", self._digest)
            self.end_headers()
            for _ in range(BIG // len(self._block)):
                self.wfile.write(self._block)
            return
        page = b"hello from the host\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class calls it so)
        pass


def demo() -> int:
    """Run it; returns the exit status."""
    if sys.platform != "linux":
        raise VpnkitError(f"the demo's guest needs Linux: {sys.platform} has no network namespaces")
    from tapdev.netns import GuestConfig, NamespaceError, spawn

    plan = Plan()
    block = os.urandom(1 << 20)
    digest = hashlib.sha256()
    for _ in range(BIG // len(block)):
        digest.update(block)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(HostPage, block, digest.hexdigest()))
    server.daemon_threads = True
    port = server.server_address[1]
    say(f"1. a web server on this host's loopback, port {port}")
    say("2. a guest: a process in its own network namespace, with a TAP device as its only link")
    config = GuestConfig(
        mac=guest_mac(1),
        mtu=plan.mtu,
        address=str(plan.guest_ip),
        prefix_length=plan.subnet.prefixlen,
        gateway=str(plan.gateway_ip),
        nameserver=str(plan.gateway_ip),
        configure=False,
    )
    try:
        guest = spawn(config, [sys.executable, "-m", "vpnkit.cli.demo_guest", str(port)])
    except NamespaceError as error:
        return _fail(str(error))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        return _serve(guest, plan)
    except NamespaceError as error:
        return _fail(str(error))
    finally:
        guest.close()
        server.shutdown()
        server.server_close()


def _fail(text: str) -> int:
    print(f"vpnkit demo: {text}; `vpnkit doctor` says what this machine allows", file=sys.stderr)
    return 1


def _serve(guest: NamespaceGuest, plan: Plan) -> int:
    import trio

    from pcap.capture import Capture
    from pcap.predicates import tcp, udp
    from pcap.ring import Rule
    from pcap.show import show
    from tapdev.tap import TapLink
    from tapdev.wrappers import Tee
    from vpnkit.net.network import Network
    from vpnkit.net.reporting import NetworkReporter

    capture = Capture([Rule("dns.pcap", udp(port=53) | tcp(port=53))])
    status: list[int] = []
    page: list[bytes] = []
    fetched = trio.Event()

    async def fetch_through_forward(port: int) -> None:
        """As soon as the guest listens; before that it refuses."""
        while True:
            try:
                page.append(await trio.to_thread.run_sync(_get, port))
            except OSError:
                await trio.sleep(0.05)
            else:
                fetched.set()
                return

    async def main() -> None:
        network = Network(plan)
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            fd, vnet_header = guest.receive_tap()
            link = TapLink(fd, mtu=plan.mtu, vnet_header=vnet_header)
            offloads = [name for name in ("checksum", "tso4", "uso") if getattr(link.capabilities, name)]
            say(f"   mtu {link.capabilities.mtu}, offloads: {', '.join(offloads) or 'none'}")
            await nursery.start(network.serve_guest, Tee(link, capture), guest_mac(1), plan.guest_ip)
            [forward] = await network.expose(f"127.0.0.1:0:{GUEST_PORT}")
            host_port = forward.addresses[0][1]
            say(f"3. a forward: 127.0.0.1:{host_port} on this host is port {GUEST_PORT} of the guest")
            await guest.wait_configured()
            say("4. the guest comes up")
            started = time.perf_counter()
            guest.start()
            with trio.move_on_after(DEADLINE_SECONDS):
                async with trio.open_nursery() as both:
                    both.start_soon(fetch_through_forward, host_port)
                    status.append(await guest.wait())
                    with trio.move_on_after(1):
                        await fetched.wait()
                    both.cancel_scope.cancel()
            say(f"   it ran for {time.perf_counter() - started:.2f} s")
            if page:
                say(f"5. through the forward this host got {page[0].decode().strip()!r}")
            report = NetworkReporter(network).status()
            say(f"6. frames: {report.frames_to_host} from the guest, {report.frames_to_guest} to it; the DNS capture:")
            for line in show(capture["dns.pcap"]):
                say(f"   {line}")
            nursery.cancel_scope.cancel()

    trio.run(main)
    if status != [0]:
        return _fail(f"the guest failed with status {status[0]}" if status else "the guest did not finish in time")
    if page != [PAGE]:
        return _fail("nothing came through the forward")
    if not len(capture["dns.pcap"]):
        return _fail("the capture is empty")
    say("done: every step worked")
    return 0


def _get(port: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read()
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()

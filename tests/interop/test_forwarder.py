"""`serve --forwarder`: a guest's unix sockets and his own loopback, by a forwarder that runs in him."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests.interop.guest_tools import Directory, Namespace, Server, echo, wait_for
from tests.interop.link_guests import Instance, exchange
from tests.tapdev.guests import environment

# The guest's side, in a process of its own
FORWARDER = """
import sys, socket, trio
from portfwd.mux.forwarder import serve_host
from portfwd.mux.wire import MuxError

async def serve(stream):
    try:
        await serve_host(stream)
    except (MuxError, trio.BrokenResourceError) as error:
        print(error, file=sys.stderr)

async def main():
    made = trio.socket.socket(socket.AF_UNIX)
    await made.bind(sys.argv[1])
    made.listen()
    print("ready", flush=True)
    await trio.serve_listeners(serve, [trio.SocketListener(made)])

trio.run(main)
"""


class Forwarder:
    def __init__(self, namespace: Namespace, path: str) -> None:
        with namespace.entered():
            self.process = subprocess.Popen(
                [sys.executable, "-c", FORWARDER, path], stdout=subprocess.PIPE, env=environment()
            )
        assert self.process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def setting(lab):
    """An instance that knows a forwarder, the forwarder's namespace, and a directory."""
    guest = Namespace.new()
    guest.run("ip", "link", "set", "lo", "up")
    with Directory() as directory:
        path = f"{directory}/forwarder"
        forwarder = Forwarder(guest, path)
        instance = Instance(lab.host, [f"qemu:{directory}/qemu"], "--forwarder", f"unix:{path}", directory=directory)
        try:
            yield instance, guest, directory, forwarder, path
            instance.close()
        finally:
            if instance.process.poll() is None:
                instance.kill()
            forwarder.close()
            guest.close()


def test_his_loopback_and_his_unix_sockets(lab, setting):
    instance, guest, directory, _, _ = setting
    at = socket.socket(socket.AF_UNIX)
    at.bind(f"{directory}/inside")
    at.listen()
    with Server(guest.listen("127.0.0.1", 7001), echo), Server(at, echo), guest.socket(socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 7002))
        specs = ["8201:127.0.0.1:7001", f"8202:unix:{directory}/inside", "8203:127.0.0.1:7002/udp", "8204:127.0.0.1:9"]
        instance.command("expose", *specs)
        for port in (8201, 8202):
            with lab.host.connect("127.0.0.1", port) as client:
                exchange(client, 8 << 20, port)
        with lab.host.socket(socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.connect(("127.0.0.1", 8203))
            client.send(b"abc")
            udp.settimeout(5)
            data, source = udp.recvfrom(100)
            udp.sendto(data.upper(), source)
            assert client.recv(100) == b"ABC"
        with lab.host.connect("127.0.0.1", 8204) as client, pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_forwarder_that_comes_again(lab, setting):
    instance, guest, directory, forwarder, path = setting
    with Server(guest.listen("127.0.0.1", 7001), echo):
        instance.command("expose", "8201:127.0.0.1:7001")
        with lab.host.connect("127.0.0.1", 8201) as client:
            exchange(client, 1000, 1)
        with lab.host.connect("127.0.0.1", 8201) as client:
            client.sendall(b"abc")
            assert client.recv(3) == b"abc"
            forwarder.close()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        (directory / "forwarder").unlink()
        again = Forwarder(guest, path)
        try:

            def works():
                try:
                    with lab.host.connect("127.0.0.1", 8201) as client:
                        client.sendall(b"abc")
                        return client.recv(3) == b"abc"
                except ConnectionResetError:
                    return False

            wait_for(works, "the second forwarder", 10)
        finally:
            again.close()

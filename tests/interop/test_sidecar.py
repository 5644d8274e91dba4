"""The life of `vpnkit serve` beside its guests: it ends at once, it comes back on the same paths, and so do they."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import uuid
from contextlib import ExitStack

import pytest

from tests.interop.guest_tools import ALIAS, BLOCK, GATEWAY, Directory, Server, echo, received, wait_for
from tests.interop.link_guests import FORWARD, INSIDE, TAP, WAYS, Instance, LinkGuest, exchange, serving
from tests.tapdev.guests import environment

pytestmark = [pytest.mark.program("cc"), pytest.mark.program("udhcpc")]

MAC = "52:54:00:12:34:56"
LINKS = {
    "qemu": "qemu:{d}/qemu",
    "vmnet": "vmnet:{d}/vmnet",
    "vfkit": "vfkit:{d}/vfkit1",
    "bess": "bess:{d}/bess",
    "dgram-learned": "dgram:{d}/ours1",
}
FILES = ["bess", "control", "ours1", "qemu", "vfkit1", "vmnet"]


def links(directory):
    return [url.format(d=directory) for url in LINKS.values()]


def sockets(directory):
    return sorted(name for name in os.listdir(directory) if name in FILES)


def test_the_ready_line(lab):
    with Directory() as directory:
        url = f"qemu:{directory}/qemu"
        argv = [sys.executable, "-m", "vpnkit", "serve", "--link", url, "--control", f"{directory}/control"]
        with lab.host.entered():
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment())
        with process:
            try:
                assert process.stdout.readline().decode() == f"ready control={directory}/control link={url}\n"
                assert sockets(directory) == ["control", "qemu"]
            finally:
                process.terminate()
        assert process.returncode == 0
        assert os.listdir(directory) == []


# The end


def flood(connection: socket.socket) -> None:
    """Send for ever."""
    while True:
        connection.sendall(BLOCK)


def processor_time_of_the_dead() -> float:
    """Seconds of all children that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Busy:
    """A guest with a bulk flow from the host, and one to it."""

    def __init__(self, guest: LinkGuest, source: int, sink: int) -> None:
        self.octets = 0
        self._connections = [guest.connect(source), guest.connect(sink)]
        for connection in self._connections:
            connection.settimeout(None)
        self._threads = [threading.Thread(target=self._receive), threading.Thread(target=self._send)]
        for thread in self._threads:
            thread.start()

    def _receive(self) -> None:
        for part in received(self._connections[0]):
            self.octets += len(part)

    def _send(self) -> None:
        try:
            flood(self._connections[1])
        except OSError:  # it was shut down here: nobody else ends it
            pass

    def close(self) -> None:
        for connection in self._connections:
            connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for connection in self._connections:
            connection.close()


def test_sigterm_with_ten_busy_guests(lab, peer_program):
    arrived = []

    def swallow(connection: socket.socket) -> None:
        arrived.append(sum(map(len, received(connection))))

    with Directory() as directory, ExitStack() as stack:
        source = stack.enter_context(Server(lab.host.listen(), flood))
        sink = stack.enter_context(Server(lab.host.listen(), swallow))
        instance = Instance(lab.host, links(directory), directory=directory)
        stack.callback(instance.kill)
        busy = []
        for number in range(10):
            kind = "qemu" if number % 2 else "vmnet"
            guest = LinkGuest(peer_program, instance, WAYS[kind])
            stack.callback(guest.close)
            guest.configure(f"192.168.65.{10 + number}")
            busy.append(Busy(guest, source.port, sink.port))
            stack.callback(busy[-1].close)
        before = [each.octets for each in busy]
        wait_for(
            lambda: all(each.octets > then for each, then in zip(busy, before, strict=True)), "all of them receive"
        )
        assert instance.ask("status")["flows"]["tcp"] == 20
        others = processor_time_of_the_dead()
        lived = instance.vpnkit.cpu_seconds()
        instance.process.send_signal(signal.SIGTERM)
        assert instance.process.wait(5) == 0, instance.log()
        took = processor_time_of_the_dead() - others - lived  # whatever else this machine does meanwhile
        assert took < 1.0
        assert sockets(directory) == []
        assert "Traceback" not in instance.log()
        wait_for(lambda: not lab.host.tcp_sockets(), "no host socket is left")


# Coming back


def test_killed_and_started_again_on_the_same_paths(lab, peer_program, lease_script):
    with Directory() as directory:
        instance = Instance(lab.host, links(directory), directory=directory)
        guest = LinkGuest(peer_program, instance, WAYS["qemu"])
        try:
            guest.dhcp(lease_script)
            instance.kill()
            assert guest.process.wait(5) == 0, "the link has ended"
        finally:
            guest.close()
        assert sockets(directory) == FILES
        with Server(lab.host.listen(), echo) as server:
            instance = Instance(lab.host, links(directory), directory=directory)
            try:
                for kind in LINKS:
                    guest = LinkGuest(peer_program, instance, WAYS[kind])
                    try:
                        guest.dhcp(lease_script)
                        with guest.connect(server.port) as connection:
                            exchange(connection, 100_000, seed=1)
                    finally:
                        guest.close()
            except BaseException:
                instance.kill()
                raise
            instance.close()
        assert sockets(directory) == []


def test_a_second_instance_on_live_paths(lab, peer_program):
    with serving(lab.host, LINKS.values()) as instance, Directory() as elsewhere:
        guest = LinkGuest(peer_program, instance, WAYS["qemu"])
        guest.configure("192.168.65.3")
        try:
            attempts = [(url, f"{elsewhere}/control") for url in links(instance.directory)]
            attempts.append((f"qemu:{elsewhere}/qemu", str(instance.control)))
            for (url, control), name in zip(
                attempts, ["qemu", "vmnet", "vfkit1", "bess", "ours1", "control"], strict=True
            ):
                argv = [sys.executable, "-m", "vpnkit", "serve", "--link", url, "--control", control]
                with lab.host.entered():
                    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, env=environment())
                assert done.returncode == 1, done.stderr
                assert f"{instance.directory}/{name}" in done.stderr
                assert len(done.stderr.splitlines()) == 1
                assert done.stdout == ""
            assert sockets(instance.directory) == FILES
            assert os.listdir(elsewhere) == []
            guest.run("ping", "-c1", "-W5", GATEWAY)
        finally:
            guest.close()


@pytest.mark.parametrize("kind", ["qemu", "vmnet", "vfkit", "dgram"])
def test_a_guest_that_goes_and_returns(lab, peer_program, lease_script, kind):
    way = WAYS[kind]
    him, her = (str(uuid.uuid4()), str(uuid.uuid4())) if kind == "vmnet" else (MAC, "52:54:00:12:34:57")

    def visit(who: str) -> str:
        arguments = (who,) if kind == "vmnet" else ()
        guest = LinkGuest(peer_program, instance, way, *arguments, mac="" if kind == "vmnet" else who)
        try:
            guest.dhcp(lease_script)
            guest.run("ping", "-c1", "-W5", GATEWAY)
        finally:
            guest.leave()
            guest.close()
        return guest.ip

    with serving(lab.host, [way.url.replace("{n}", "1")]) as instance:
        assert [visit(him), visit(her), visit(him), visit(her)] == ["192.168.65.3", "192.168.65.4"] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("kind", ["qemu-connect", "dgram"])
def test_guests_outlive_us(lab, peer_program, lease_script, kind, number):
    """They stay as they are, and all is as before when there is another one of us; he need not hear them first."""
    way = WAYS[kind]
    url = way.url.replace("{n}", "1")
    with Directory() as directory, Server(lab.host.listen(), echo) as server, ExitStack() as stack:
        instance = Instance(lab.host, [url.format(d=directory)], directory=directory)
        guest = LinkGuest(peer_program, instance, way)
        stack.callback(guest.close)
        with guest.namespace.entered(), open(f"/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6", "w") as setting:
            setting.write("1")  # else he speaks whenever his link comes up
        ip = guest.dhcp(lease_script)["address"]
        with guest.connect(server.port) as connection:
            exchange(connection, 100_000, seed=1)
        instance.process.send_signal(number)
        assert instance.process.wait(5) == (0 if number == signal.SIGTERM else -signal.SIGKILL), instance.log()
        instance.kill()

        again = Instance(
            lab.host, [url.format(d=directory)], "-p", f"{FORWARD}:{ip}:{INSIDE}", directory=directory
        )  # fmt: skip
        stack.callback(again.kill)
        wait_for(lambda: again.ask("guests"), "the guest's link is there")
        [report] = again.ask("guests")
        assert (report["mac"], report["frames_to_host"]) == (None, 0)
        with Server(guest.listen(INSIDE), echo), lab.host.connect("127.0.0.1", FORWARD) as connection:
            exchange(connection, 100_000, seed=2)
        [report] = again.ask("guests")
        assert (report["mac"], report["ip"]) == (guest.mac, ip)
        with guest.connect(server.port, ALIAS) as connection:
            exchange(connection, 100_000, seed=3)
        again.process.terminate()
        assert again.process.wait(5) == 0, again.log()

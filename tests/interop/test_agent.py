"""Agents in guests: what listens there is forwarded on the host, by `serve --allow-agent`."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.interop.guest_tools import Server, echo, receive_exactly, wait_for
from tests.interop.link_guests import WAYS, LinkGuest, serving
from tests.tapdev.guests import as_user, environment

pytestmark = [pytest.mark.program("cc"), pytest.mark.program("udhcpc")]

# What the module imports beside itself, printed at its end
ALONE = """
import runpy, sys
try:
    runpy.run_module("portfwd.auto.agent", run_name="__main__")
finally:
    foreign = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
    print("foreign:", *sorted(foreign - {"__main__", "portfwd", "__mp_main__"}), flush=True)
"""


class Agent:
    def __init__(self, guest: LinkGuest, *options: str, user: str = "root") -> None:
        with guest.namespace.entered():
            self.process = subprocess.Popen(
                as_user(user, [sys.executable, "-S", "-c", ALONE, "--once", *options]),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment(PYTHONPATH=str(Path(__file__).parent.parent.parent)),
                text=True,
            )

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def until(self, *words: str) -> None:
        """Read lines until one has them all."""
        lines = []
        while not lines or not all(word in lines[-1] for word in words):
            lines.append(self.process.stdout.readline())
            assert lines[-1], lines

    def end(self) -> str:
        self.process.send_signal(2)
        return self.process.communicate(timeout=10)[0]

    def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait(10)
        self.process.stdout.close()


@contextmanager
def guests(lab, program, lease_script, count, *options):
    way = WAYS["qemu"]
    with serving(lab.host, [way.url], *options) as instance, ExitStack() as closing:
        made = []
        for number in range(1, count + 1):
            guest = LinkGuest(program, instance, way, number=number, mac=f"02:50:00:00:09:0{number}")
            closing.callback(guest.close)
            guest.dhcp(lease_script)
            made.append(guest)
        agents = ExitStack()
        closing.enter_context(agents)

        def start(guest, *more, **settings):
            agent = Agent(guest, *more, **settings)
            agents.callback(agent.close)
            return agent

        yield instance, made, start


def reaches(lab, port, data=b"abc"):
    try:
        with lab.host.connect("127.0.0.1", port) as client:
            client.sendall(data)
            return receive_exactly(client, len(data)) == data
    except OSError:
        return False


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_an_agent(lab, peer_program, lease_script, user):
    with guests(lab, peer_program, lease_script, 1, "--allow-agent") as (_, [guest], start):
        agent = start(guest, user=user)
        assert agent.line() == "forwarded: nothing"
        with Server(guest.listen(8130), echo), guest.listen(8131, "127.0.0.1"), guest.listen(80):
            agent.until("not forwarded: tcp 80: ports of the host below 1024 are not for guests")
            assert reaches(lab, 8130)
            assert not reaches(lab, 8131)
            assert not reaches(lab, 80)
        wait_for(lambda: not reaches(lab, 8130), "the end of the forward")
        with guest.listen(8132):
            wait_for(lambda: f":{8132} " in lab.host.run("ss", "-lnt"), "another")
            said = agent.end()
            wait_for(lambda: f":{8132} " not in lab.host.run("ss", "-lnt"), "the end with the agent")
        assert said.endswith("foreign:\n"), said


def test_two_agents_that_want_one_port(lab, peer_program, lease_script):
    with guests(lab, peer_program, lease_script, 2, "--allow-agent") as (_, [one, two], start):
        first, second = start(one), start(two)
        with Server(one.listen(8140), echo) as _, Server(two.listen(8141), echo):
            wait_for(lambda: reaches(lab, 8140) and reaches(lab, 8141), "both")
            with two.listen(8140):
                second.until("not forwarded: tcp 8140", "is forwarded already")
                assert reaches(lab, 8140)
                first.end()
                one.leave()
                second.until("forwarded: ", f"8140:{two.ip}:8140")


def test_a_guest_that_goes_takes_his_forwards_along(lab, peer_program, lease_script):
    with guests(lab, peer_program, lease_script, 1, "--allow-agent=auto:8150") as (_, [guest], start):
        start(guest)
        with guest.listen(8150), guest.listen(8151):
            wait_for(lambda: ":8150 " in lab.host.run("ss", "-lnt"), "the forward")
            assert ":8151 " not in lab.host.run("ss", "-lnt")
            guest.leave()
            wait_for(lambda: ":8150 " not in lab.host.run("ss", "-lnt"), "the end", 10)


def test_agents_are_not_heard_unless_allowed(lab, peer_program, lease_script):
    with guests(lab, peer_program, lease_script, 1) as (_, [guest], start):
        assert "Connection refused" in start(guest).line()


def test_nonsense_is_not_answered(lab, peer_program, lease_script):
    with guests(lab, peer_program, lease_script, 1, "--allow-agent") as (instance, [guest], _):
        for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b'{"version":1}\n', os.urandom(1 << 18)):
            with guest.connect(62374, "192.168.65.1") as client:
                try:
                    client.sendall(nonsense)
                    assert client.recv(100) == b""
                except ConnectionError:
                    pass
        wait_for(lambda: "agent of" in instance.log(), "the complaint")

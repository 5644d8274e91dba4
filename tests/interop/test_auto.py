"""What programs in a guest listen on is forwarded while they do, by `vpnkit run -p auto`."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.interop.guest_tools import Guest, Process, running, wait_for

SERVER = [sys.executable, "-m", "http.server", "--directory", "/usr/share/doc"]


def answers(lab, port, address="127.0.0.1"):
    with lab.host.entered():
        try:
            with urllib.request.urlopen(f"http://{address}:{port}/", timeout=5) as response:
                return response.status == 200
        except OSError:
            return False


def listens(lab, port, protocol="tcp"):
    return f":{port} " in lab.host.run("ss", f"-ln{protocol[0]}")


@pytest.fixture
def started():
    """A function that starts a command of a guest, ended at the end."""
    processes = []

    def start(guest, *argv):
        process = subprocess.Popen(
            guest.command(*argv), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_a_web_server_comes_and_goes(lab, started, user):
    with running(lab.host, user, "-p", "auto") as guest:
        assert not answers(lab, 8123)
        server = started(guest, *SERVER, "8123", "--bind", "0.0.0.0")
        wait_for(lambda: answers(lab, 8123), "the server's page")
        server.kill()
        wait_for(lambda: not listens(lab, 8123), "the end of the forward")


def test_only_what_the_rule_says(lab, started):
    with running(lab.host, "root", "-p", "auto:8000-8010,!8005,8200=9200") as guest:
        for port, bound in (("8001", "0.0.0.0"), ("8005", "0.0.0.0"), ("8200", "0.0.0.0"), ("8002", "127.0.0.1")):
            started(guest, *SERVER, port, "--bind", bound)
        wait_for(lambda: answers(lab, 8001) and answers(lab, 9200), "both servers")
        wait_for(lambda: all(f":{port} " in guest.run("ss", "-lnt").stdout for port in (8005, 8002)), "the others")
        time_is_over = time.monotonic() + 1.5  # longer than between two looks
        wait_for(lambda: time.monotonic() > time_is_over, "a look")
        assert not any(listens(lab, port) for port in (8005, 8200, 8002))


def test_a_port_that_is_busy_is_taken_when_it_is_free(lab, started):
    with lab.host.listen(port=8124) as busy, running(lab.host, "root", "-p", "auto") as guest:
        started(guest, *SERVER, "8124", "--bind", "0.0.0.0")
        wait_for(lambda: "8124 is in use" in guest.log(), "the complaint")
        busy.close()
        wait_for(lambda: answers(lab, 8124), "the page", 15)


PROGRAM = """
import socket, sys
for line in sys.stdin:
    words = line.split()
    if words[0] == "udp":
        made = socket.socket(type=socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", int(words[1])))
    elif words[0] == "six":
        made = socket.create_server(("::", int(words[1])), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        made = socket.create_server(("0.0.0.0", int(words[1])))
"""


def test_the_command_itself(lab, tmp_path):
    """It is told of by a filter; what entered the namespace later is looked for once a second."""
    script = tmp_path / "listen.py"
    script.write_text(PROGRAM)
    guest = Guest(lab.host, "root", "-p", "auto", script=f"exec {sys.executable} {script}")
    try:
        for line, port, protocol in (("four 8125", 8125, "tcp"), ("six 8126", 8126, "tcp"), ("udp 8127", 8127, "udp")):
            guest.process.stdin.write(f"{line}\n".encode())
            guest.process.stdin.flush()
            wait_for(lambda port=port, protocol=protocol: listens(lab, port, protocol), line)
        wait_for(lambda: not listens(lab, 8125), "the end of the one before")
        status = Path(f"/proc/{Process(guest.init).only_child()}/status").read_text()
        assert "Seccomp:\t2" in status
    except BaseException:
        sys.stderr.write(guest.log())
        guest.kill()
        raise
    guest.close()

"""The tests of other rooms, as if on macOS: not a name, but a behaviour of Linux may be what they stood on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MACOS = [sys.executable, str(HERE / "macos.py"), "pytest", "-q", "-n0", "-p", "no:cacheprovider"]

# What those tests are about, and macOS has not.
NOT_THERE = {
    "who has a port, which /proc says": "test_a_busy_port_is_an_error_that_says_who_has_it"
    " or test_nothing_listens_when_one_address_is_busy",
    "who is at the other end of a unix socket": "test_peers or test_a_taken_path_fails_before_started"
    " or test_what_a_live_process_serves_is_an_error_that_names_it",
    "an ICMP error about a datagram of an unconnected socket": "test_nobody_listens",
    "datagrams of more than 9216 octets from a test's own server": "test_udp_has_a_channel_for_each_client"
    " or test_bug_answers_larger_than_4096_octets",
    "unix sockets of type seqpacket": "seqpacket or Seqpacket or test_an_empty_packet_is_the_end_for_good"
    " or test_descriptors_are_adopted",
}


def passes(*paths: str) -> None:
    unwanted = " or ".join(NOT_THERE.values())
    environment = {name: value for name, value in os.environ.items() if name != "VPNKIT_NO_SKIPS"}
    argv = [*MACOS, "-k", f"not ({unwanted})", *paths]  # what asks for Linux itself is skipped
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=110, env=environment)
    assert done.returncode == 0, done.stdout[-4000:]


def test_kqueue_and_the_poller():
    passes("tests/portability/test_kqueue.py", "tests/vpnkit/flow")


@pytest.mark.slow
def test_links():
    passes("tests/tapdev/test_stream.py", "tests/tapdev/test_vmnet.py", "tests/tapdev/test_unix_path.py")


@pytest.mark.slow
def test_host_sockets_of_a_guest():
    passes("tests/vpnkit/net/test_guest_tcp.py", "tests/vpnkit/net/test_guest_udp.py")


@pytest.mark.slow
@pytest.mark.parametrize("room", ["portfwd", "vpnkit/services"])
def test_room(room):
    passes(f"tests/{room}")


@pytest.mark.slow
def test_the_control_socket():
    """Where it listens and who may come; what is said then is the same everywhere."""
    names = ("listen", "paths", "tcp", "http", "connect", "events")
    passes(*(f"tests/vpnkit/control/test_{name}.py" for name in names))

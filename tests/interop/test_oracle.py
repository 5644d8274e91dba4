"""What we send, as tshark reads it: no malformed frame, no wrong checksum, also when frames are lost."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager

import pytest

from tests.interop.guest_tools import ALIAS, GATEWAY, GATEWAY_MAC, REMOTE, Directory, running, wait_for
from tests.interop.servers import NameServer
from tests.interop.test_errors import closed_port, tcp_outcome, udp_outcome
from tests.interop.test_transfers import transfer
from tests.tapdev.guests import environment

pytestmark = [
    pytest.mark.program("tshark"),
    pytest.mark.program("dumpcap"),
    pytest.mark.program("ping"),
    pytest.mark.program("nft"),
]

LAST = b"the end of all"
OURS = f"eth.src == {GATEWAY_MAC}"
FAULTS = "_ws.malformed or _ws.expert.severity == error or ip.checksum.status == 0"
WRONG_CHECKSUM = "tcp.checksum.status == 0 or udp.checksum.status == 0 or icmp.checksum.status == 0"


@contextmanager
def captured(guest, path):
    """Every frame on the guest's device."""
    argv = guest.command("dumpcap", "-q", "-B", "64", "-i", "tap0", "-w", str(path))
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment())
    with process:
        try:
            for line in process.stderr:
                if line.startswith("File:"):  # it captures
                    break
            yield
            # dumpcap forgets what it has not taken from the kernel when it ends: wait for a last ping and its answer.
            guest.run("ping", "-c1", "-s", str(len(LAST)), "-p", LAST.hex(), GATEWAY)
            wait_for(lambda: path.read_bytes().count(LAST) >= 2, "the last frames are in the capture")
        finally:
            process.terminate()
        assert "dropped" in process.stderr.read()
    assert process.returncode == 0


def frames(path, display_filter, checksums):
    """One line for each frame of the capture that the filter takes."""
    # No guesses about what our random octets are, and no reassembly of what is sent again in other pieces.
    plain = ["-d", "tcp.port==1024-65535,data", "-o", "tcp.desegment_tcp_streams:FALSE"]
    verify = [f"{name}.check_checksum:{str(checksums).upper()}" for name in ("tcp", "udp")]
    done = subprocess.run(
        [
            *("tshark", "-n", "-r", str(path), "-o", "ip.check_checksum:TRUE"),
            *plain,
            *(word for preference in verify for word in ("-o", preference)),
            *("-Y", f"({OURS}) and ({display_filter})"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(HOME="/nonexistent"),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def everything(lab, guest):
    """A bit of all that we can send."""
    transfer(lab, guest, 10)
    guest.run("dig", "+short", "any.example")
    guest.run("dig", "+short", "TXT", "big.example", "+bufsize=4096")
    guest.run("dig", "+short", "+tcp", "TXT", "big.example")
    guest.run("ping", "-c1", "-s1", GATEWAY)
    guest.run("ping", "-c1", "-s1399", REMOTE)
    guest.run("udhcpc", "-f", "-n", "-q", "-i", "tap0", "-s", "/bin/true")
    for outcome in (tcp_outcome, udp_outcome):
        assert outcome(guest.namespace, ALIAS, closed_port(lab.host)) == "ECONNREFUSED"
        assert outcome(guest.namespace, "192.0.2.9", 80) == "ENETUNREACH"
        assert outcome(guest.namespace, "169.254.169.254", 80) == "EHOSTUNREACH"


KINDS = ("arp", "dhcp", "dns", "tcp", "udp", "icmp.type == 0", "icmp.type == 3", "ip.flags.mf == 1")


@pytest.mark.program("dig")
@pytest.mark.program("udhcpc")
@pytest.mark.parametrize("options", [("--no-offload", "--mtu", "1500"), ()], ids=["no offload", "offload"])
def test_everything_we_send_is_well_formed(lab, options):
    checksums = bool(options)  # with offload the device's other end completes them, after the capture
    with (
        NameServer(lab.remote, REMOTE) as names,
        running(lab.host, "root", "--dns", f"{REMOTE}#{names.port}", *options) as guest,
        Directory() as directory,
    ):
        path = directory / "capture.pcapng"
        with captured(guest, path):
            everything(lab, guest)
        seen = [kind for kind in KINDS if frames(path, kind, checksums)]
        assert seen == [kind for kind in KINDS if checksums or kind != "ip.flags.mf == 1"]
        assert frames(path, FAULTS, checksums) == []
        if checksums:
            assert frames(path, WRONG_CHECKSUM, checksums) == []
            assert len(frames(path, "tcp.checksum.status == 1", checksums)) > 100
            assert frames(path, "frame.len > 1514", checksums) == []
        else:
            assert frames(path, "frame.len > 65534", checksums) == []


@pytest.mark.parametrize("options", [("--no-offload", "--mtu", "1500"), ()], ids=["no offload", "offload"])
def test_retransmissions_are_well_formed(lab, options):
    checksums = bool(options)
    with running(lab.host, "root", *options) as guest, Directory() as directory:
        guest.drop(50 if checksums else 10)
        path = directory / "capture.pcapng"
        with captured(guest, path):
            transfer(lab, guest, 10)
            guest.drop_nothing()
        assert frames(path, "tcp.analysis.retransmission or tcp.analysis.out_of_order", checksums)
        assert frames(path, FAULTS, checksums) == []
        if checksums:
            assert frames(path, WRONG_CHECKSUM, checksums) == []

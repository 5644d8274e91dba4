from __future__ import annotations

import subprocess
import sys
from ipaddress import IPv4Address

import click
import pytest
from click.testing import CliRunner

from tests.tapdev.guests import environment
from vpnkit.cli.lease_options import LEASE_OPTIONS, leases_from, static_lease
from vpnkit.errors import ConfigError
from vpnkit.net.lease_options import LeaseOptions, StaticLease

MAC = bytes.fromhex("025000000009")
IP = IPv4Address("192.168.65.9")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("02:50:00:00:00:09=192.168.65.9", ""),
        ("02-50-00-00-00-09=192.168.65.9,db", "db"),
        ("02:50:00:00:00:09=192.168.65.9,Db-1", "Db-1"),
    ],
)
def test_a_lease(text, name):
    assert static_lease(text) == StaticLease(MAC, IP, name)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("192.168.65.9", "like 02:50"),
        ("02:50:00:00:00=192.168.65.9", "MAC address"),
        ("02:50-00:00:00:09=192.168.65.9", "MAC address"),
        ("025000000009=192.168.65.9", "MAC address"),
        ("03:50:00:00:00:09=192.168.65.9", "even"),
        ("00:00:00:00:00:00=192.168.65.9", "may be 0"),
        ("02:50:00:00:00:09=192.168.65", "IPv4 address"),
        ("02:50:00:00:00:09=192.168.65.9,", "host name"),
        ("02:50:00:00:00:09=192.168.65.9,a.b", "host name"),
        ("02:50:00:00:00:09=192.168.65.9,-a", "host name"),
        ("02:50:00:00:00:09=fd00::9", "IPv4 address"),
    ],
)
def test_no_lease(text, wrong):
    with pytest.raises(ValueError, match=wrong):
        static_lease(text)


def command(*argv: str) -> LeaseOptions | str:
    """What the options amount to, or what the user is told."""
    found = []

    def body(**options):
        found.append(leases_from(options))

    for option in LEASE_OPTIONS:
        body = option(body)
    result = CliRunner().invoke(click.command()(body), argv)
    if isinstance(result.exception, ConfigError):
        return str(result.exception)
    return found[0] if found else result.output


def test_nothing_given():
    assert command() == LeaseOptions()


def test_all_of_them(tmp_path):
    json = tmp_path / "dhcp.json"
    state = tmp_path / "state"
    found = command(
        *("--lease", "02:50:00:00:00:09=192.168.65.9,db", "--lease", "02:50:00:00:00:0a=192.168.65.10"),
        *("--boot-file", "http://192.168.65.2:8000/boot.ipxe", "--next-server", "192.168.65.2"),
        *("--dhcp-json", str(json), "--state", str(state), "--ntp-server", "10.0.0.1", "--ntp-server", "10.0.0.2"),
    )
    assert found == LeaseOptions(
        static=(
            StaticLease(MAC, IP, "db"),
            StaticLease(bytes.fromhex("02500000000a"), IPv4Address("192.168.65.10")),
        ),
        next_server=IPv4Address("192.168.65.2"),
        boot_file="http://192.168.65.2:8000/boot.ipxe",
        ntp=(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")),
        dhcp_json=json,
        state=state,
    )


@pytest.mark.parametrize(
    ("argv", "wrong"),
    [
        (["--lease", "x"], "Invalid value for '--lease'"),
        (["--lease", "02:50:00:00:00:09=192.168.65.9", "--lease", "02:50:00:00:00:09=192.168.65.8"], "there twice"),
        (["--lease", "02:50:00:00:00:09=192.168.65.9", "--lease", "02:50:00:00:00:08=192.168.65.9"], "there twice"),
        (["--boot-file", "x" * 256], "255"),
        (["--boot-file", ""], "255"),
        (["--boot-file", "a\nb"], "255"),
        (["--next-server", "x", "--boot-file", "y"], "IPv4"),
        (["--ntp-server", "pool.example"], "IPv4"),
        (["--next-server", "10.0.0.1"], "without --boot-file"),
    ],
)
def test_refused(argv, wrong):
    told = command(*argv)
    assert isinstance(told, str)
    assert wrong in told


def serve(directory, *options: str) -> subprocess.CompletedProcess[str]:
    """`vpnkit serve` with options that are wrong."""
    argv = [sys.executable, "-m", "vpnkit", "serve", "--link", f"qemu:{directory}/link", *options]
    return subprocess.run(
        [*argv, "--control", str(directory / "control")], capture_output=True, text=True, timeout=30, env=environment()
    )


def test_a_broken_state_file_ends_the_start_and_stays(tmp_path):
    state = tmp_path / "state"
    state.write_text('{"version": 7}')
    done = serve(tmp_path, "--state", str(state))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"vpnkit: --state {state} is broken: ")
    assert done.stderr.count("\n") == 1
    assert state.read_text() == '{"version": 7}'


def test_what_does_not_fit_ends_the_start(tmp_path):
    done = serve(tmp_path, "--lease", "02:50:00:00:00:09=10.0.0.1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "vpnkit: --lease: 10.0.0.1 is not a host address of subnet 192.168.65.0/24\n"

"""The command line where there is no Linux: what cannot work there says so in one line."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vpnkit.cli import COMMANDS

MACOS = [sys.executable, str(Path(__file__).with_name("macos.py")), "vpnkit"]


def vpnkit(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MACOS, *argv], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help(command):
    done = vpnkit(*command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: vpnkit")


@pytest.mark.parametrize("command", [("run", "true"), ("demo",)])
def test_commands_that_need_linux(command):
    done = vpnkit(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vpnkit: ")
    assert "needs Linux: darwin has no network namespaces" in done.stderr
    assert done.stderr.count("\n") == 1


def test_doctor():
    done = vpnkit("doctor", "--json")
    assert (done.returncode, done.stderr) == (1, ""), "`vpnkit run` cannot work there"
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert not [check for check in checks.values() if "cannot tell" in check["detail"] or "Error" in check["detail"]]
    assert {name for name, check in checks.items() if check["needed"] and check["state"] == "missing"} == {
        "guest",
        "/dev/net/tun",
    }
    assert checks["kernel"]["detail"].startswith("Darwin ")
    assert checks["ping"]["state"] == "OK"


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("tap:tap0", "darwin has no TAP devices"),
        ("tap:tap0?netns=box", "darwin has no TAP devices"),
        ("fd:0", "descriptor 0 is a character device"),
        ("vsock:1024", "this system has no AF_VSOCK"),
        ("bess:{}/bess", "Protocol not supported"),
        ("qemu:{}/" + "x" * 80, "at most 103 fit"),
        ("vfkit:{}/" + "x" * 80, "at most 103 fit"),
    ],
)
def test_links_that_macos_has_not(link, message):
    with tempfile.TemporaryDirectory(prefix="vk-" + "y" * 20) as name:
        done = vpnkit("serve", "--control", f"{name}/control", "--link", link.format(name))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("vpnkit: --link ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert list(Path(name).iterdir()) == []


def test_who_nobody_serves():
    done = vpnkit("status", "--control", "/tmp/vk-nobody-is-here")
    assert done.returncode == 1
    assert done.stderr.startswith("vpnkit: nobody listens on /tmp/vk-nobody-is-here")

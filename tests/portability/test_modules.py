"""Every module but those for Linux can be imported where there is no Linux."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.portability.macos_modules import FOR_LINUX
from tests.portability.stubs import only_on_linux

MACOS = [sys.executable, str(Path(__file__).with_name("macos.py"))]

# Imports what is said on standard input, each name once; prints what failed and what is left of Linux.
IMPORTER = "tests.portability.importer"


def modules() -> list[str]:
    import pcap
    import portfwd
    import tapdev
    import vpnkit

    names = []
    for package in (pcap, portfwd, tapdev, vpnkit):
        names += [info.name for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return [name for name in names if not name.endswith("__main__")]


@pytest.fixture(scope="module")
def report():
    asked = {"modules": modules(), "names": {module: sorted(names) for module, names in only_on_linux().items()}}
    done = subprocess.run([*MACOS, IMPORTER], input=json.dumps(asked), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_everything_else_can_be_imported(report):
    assert {name: error for name, error in report["failed"].items() if name not in FOR_LINUX} == {}
    assert len(modules()) - len(report["failed"]) > 80


def test_the_modules_for_linux_are_really_away(report):
    assert {"tapdev.tap", "tapdev.netns", "tapdev.signals", "tapdev._namespace_init"} <= report["failed"].keys()
    assert report["pyroute2"] is False


def test_nothing_of_linux_is_left(report):
    assert report["platform"] == "darwin"
    assert report["system"] == "Darwin"
    assert report["left"] == []
    assert report["visible"] == []
    assert report["kqueue"] is True
    assert report["descriptors"] == [256, True, 10240]


def test_the_modules_for_linux_can_be_imported_here():
    for name in sorted(FOR_LINUX & set(modules())):
        __import__(name)

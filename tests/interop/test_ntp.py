"""Other people's clients ask the gateway for the time."""

from __future__ import annotations

import json
import re

import pytest

from tests.interop.guest_tools import GATEWAY

CLOSE = 0.010  # seconds: both have the same clock


@pytest.mark.program("ntpdig")
def test_ntpdig(root_guest):
    said = json.loads(root_guest.run("ntpdig", "-j", "-t", "5", GATEWAY).stdout)
    assert abs(said["offset"]) < CLOSE
    assert said["stratum"] == 10
    assert said["leap"] in ("no-leap", "add-leap", "del-leap")


@pytest.mark.program("chronyd")
def test_chronyd(root_guest):
    """It asks four times and believes; the clock is not set (-Q)."""
    done = root_guest.run("chronyd", "-Q", "-t", "20", "-f", "/dev/null", f"server {GATEWAY} iburst", timeout=40)
    [offset] = re.findall(r"System clock wrong by ([-0-9.]+) seconds", done.stdout + done.stderr)
    assert abs(float(offset)) < CLOSE

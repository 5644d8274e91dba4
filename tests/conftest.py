"""What every test gets: skips with a reason, skips that are failures in CI, and a check for leaked descriptors."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Test modules share helpers as `tests.room.module`, also under a plain `pytest` that did not install anything.
ROOT = str(Path(__file__).parent.parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

NO_SKIPS = os.environ.get("VPNKIT_NO_SKIPS", "") not in ("", "0")

# A busy machine is no failure, and CI tries the same examples every time; everyday runs try new ones.
settings.register_profile("everyday", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if NO_SKIPS else "everyday")


def missing(item: pytest.Item) -> str | None:
    """Why `item` cannot run on this machine."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        return "needs root"
    for marker in item.iter_markers("program"):
        for name in marker.args:
            if shutil.which(name) is None and shutil.which(name, path="/usr/sbin:/sbin") is None:
                return f"needs the program {name}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    reason = missing(item)
    if reason is not None:
        pytest.skip(reason)


def fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if NO_SKIPS and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"VPNKIT_NO_SKIPS: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    report = yield
    fail_if_skipped(report)
    return report


def descriptors() -> dict[int, str]:
    """The open descriptors of this process and what each of them is; empty where there is no /proc."""
    found = {}
    try:
        numbers = os.listdir("/proc/self/fd")
    except OSError:
        return {}
    for number in numbers:
        try:
            found[int(number)] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # the descriptor of this very listing
    return found


# Opened once by a library and kept for good.
KEPT = ("/dev/urandom", "/dev/random", "/dev/null")


@pytest.fixture(autouse=True)
def no_leaked_descriptors():
    before = descriptors()
    yield
    leaked = descriptors().items() - before.items()
    if leaked:
        gc.collect()  # what only garbage still holds is pytest's to report, as a ResourceWarning
        leaked = descriptors().items() - before.items()
    assert not [name for _, name in leaked if name not in KEPT], f"descriptors left open: {sorted(leaked)}"

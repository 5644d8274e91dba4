"""The machine that a run is about."""

from __future__ import annotations

import os
import platform
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .processes import BenchmarkError, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .contenders import Contender

TOOLS = {
    "iperf3": ["iperf3", "--version"],
    "wrk": ["wrk", "-v"],
    "nginx": ["sh", "-c", "nginx -v 2>&1"],
    "dnsperf": ["dnsperf", "-h"],
}


def describe(contenders: Sequence[type[Contender]]) -> dict[str, str]:
    found = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "TCP": f"{_read('/proc/sys/net/ipv4/tcp_congestion_control')}, rmem {_read('/proc/sys/net/ipv4/tcp_rmem')}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "load before": _read("/proc/loadavg"),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": _commit(),
    }
    for one in contenders:
        if one.name != "loopback":
            found[one.name] = one.version()
    found["tools"] = ", ".join(_version(name, argv) for name, argv in TOOLS.items())
    return found


def _read(path: str) -> str:
    try:
        return " ".join(Path(path).read_text().split())
    except OSError:
        return "unknown"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    try:
        commit = run(["git", "describe", "--always", "--abbrev=12", "--exclude=*"], 10).strip()
        changed = run(["git", "status", "--porcelain", "--", "vpnkit", "tapdev", "portfwd", "pcap"], 10).strip()
    except BenchmarkError:
        return "unknown"
    return f"{commit} with changes" if changed else commit


def _version(name: str, argv: list[str]) -> str:
    if not shutil.which(name):
        return f"no {name}"
    words = run(argv, 10, check=False).split()
    number = next((word for word in words if any(c.isdigit() for c in word) and "." in word), "")
    return f"{name} {number.rpartition('/')[2]}"

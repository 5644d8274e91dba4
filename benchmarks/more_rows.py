"""The quiet rows: latency, start, idle cost, memory per flow; and the list of all of them."""

from __future__ import annotations

import json
import re
import select
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from . import ipv6, processes, servers
from .processes import BenchmarkError, run, spawn, stop
from .results import Metric
from .rows import TRANSLATORS, Bench, Bulk, CachedQueries, Datagrams, Queries, Requests, Row, StreamBulk
from .world import NEIGHBOUR

if TYPE_CHECKING:
    from .contenders import Running

SECTION = "Latency, start, memory"
MIB = 1 << 20


class Ping(Row):
    metrics = (Metric("rtt", "ms", False, SECTION),)

    def __init__(self, beyond: bool) -> None:
        self._beyond = beyond
        if beyond:
            self.id, self.label = "ping-beyond", "ping, a neighbour of the host"
        else:
            self.id, self.label = "ping-own", "ping, answered by the translator itself"
            self.contenders = ("slirp4netns", "vpnkit")  # pasta has no address of its own

    def sample(self, bench: Bench, guest: Running) -> dict[str, float]:
        target = NEIGHBOUR if self._beyond else guest.contender.own_address
        if target is None:
            raise BenchmarkError("has no address of its own")
        out = run(guest.guest(["ping", "-n", "-c", "20", "-i", "0.01", "-W", "1", target]), 10, check=False)
        times = [float(one) for one in re.findall(r"time=([\d.]+) ms", out)]
        if len(times) < 18:
            raise BenchmarkError(f"{len(times)} of 20 pings were answered")
        return {"rtt": statistics.median(times)}


class Start(Row):
    id = "start"
    label = "start"
    bar = "0.5 s"
    metrics = (
        Metric("ready", "s", False, SECTION, "from exec to ready"),
        Metric("whole", "s", False, SECTION, "a whole `run true`"),
    )
    contenders = TRANSLATORS

    def sample(self, bench: Bench, guest: Running) -> dict[str, float]:
        return guest.contender.time_start(self.setup)


class Idle(Row):
    """A fresh guest that does nothing.  The first seconds are left out: its kernel is still announcing itself."""

    SETTLE = 3.0
    WATCH = 10.0
    id = "idle"
    label = "idle"
    bar = "60 MiB, under 2 wake-ups a second"
    metrics = (
        Metric("rss", "MiB", False, SECTION, "resident memory"),
        Metric("pss", "MiB", False, SECTION, "proportional memory"),
        Metric("wakeups", "per second", False, SECTION, "wake-ups"),
        Metric("busy", "ms/s", False, SECTION, "CPU time"),
    )
    contenders = TRANSLATORS
    fresh = True
    together = True

    def sample(self, bench: Bench, guest: Running) -> dict[str, float]:
        time.sleep(self.SETTLE)
        pids = guest.pids()
        rss, pss = processes.memory(pids)
        before, cpu = processes.wakeups(pids), processes.cpu_seconds(pids)
        watch = self.WATCH if bench.seconds > 1 else self.WATCH / 2
        time.sleep(watch)
        woken, spent = processes.wakeups(pids) - before, processes.cpu_seconds(pids) - cpu
        if not rss or not guest.alive():
            raise BenchmarkError("the translator is gone")
        return {"rss": rss / MIB, "pss": pss / MIB, "wakeups": woken / watch, "busy": spent / watch * 1000}


class IdleFlows(Row):
    """Connections that are open and silent; afterwards each has to carry a byte both ways."""

    SETTLE = 2.0
    id = "flows"
    bar = "10,000 flows: all alive, 16 KiB each, a new one in 50 ms"
    metrics = (
        Metric("each", "KiB", False, SECTION, "memory of the translator for each"),
        Metric("alive", "% alive", True, SECTION, "alive at the end"),
        Metric("one_more", "ms", False, SECTION, "to open one more and use it"),
        Metric("opening", "flows/s", True, SECTION, "opened per second"),
    )
    contenders = TRANSLATORS
    fresh = True

    def __init__(self, flows: int) -> None:
        self.label = f"{flows:,} idle TCP flows"

    def sample(self, bench: Bench, guest: Running) -> dict[str, float]:
        time.sleep(0.5)
        _, before = processes.memory(guest.pids())
        patience = 30 + bench.flows / 200  # more than the program in the guest has
        argv = [sys.executable, "-m", "benchmarks.flows", guest.host_address, str(servers.ECHO_PORT), str(bench.flows)]
        with servers.echo():
            helper = spawn(guest.guest(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            try:
                opened = _say(helper, patience)
                time.sleep(self.SETTLE)
                _, after = processes.memory(guest.pids())
                assert helper.stdin is not None
                helper.stdin.write(b"check\n")
                helper.stdin.flush()
                checked = _say(helper, 2 * patience)
            finally:
                stop(helper)
        if opened["opened"] == 0:
            raise BenchmarkError("no connection opened")
        values = {
            "each": (after - before) / opened["opened"] / 1024,
            "alive": 100 * checked["alive"] / bench.flows,
            "opening": opened["opened"] / opened["seconds"],
        }
        if checked["one_more"] is not None:
            values["one_more"] = checked["one_more"]
        return values


def _say(helper: subprocess.Popen[bytes], patience: float) -> dict[str, Any]:
    """The next line of the helper in the guest."""
    assert helper.stdout is not None
    if not select.select([helper.stdout], [], [], patience)[0]:
        raise BenchmarkError(f"the connections were not done within {patience:.0f} s")
    line = helper.stdout.readline()
    if not line:
        raise BenchmarkError("the program in the guest ended early")
    said: dict[str, Any] = json.loads(line)
    return said


def all_rows(flows: int) -> list[Row]:
    """Every row, in the order of the report.  Neighbours with the same setup share their guests within a round."""
    large = "0.42 x loopback, 2 x slirp4netns"
    return [
        Start(),
        Idle(),
        IdleFlows(flows),
        Bulk(1500, True, 1, True, "0.38 x loopback, 8 x slirp4netns, 0.5 s/GiB"),
        Bulk(1500, True, 1, False, "0.5 x loopback, 4 x slirp4netns, 0.5 s/GiB"),
        Bulk(1500, True, 8, True),
        Bulk(1500, True, 8, False),
        Requests(1, True, "0.6 x slirp4netns"),
        Requests(64, True, "0.7 x slirp4netns"),
        Requests(16, False, "0.5 x pasta"),
        Datagrams(up=True),
        Datagrams(up=False),
        Queries(),
        CachedQueries(slow=False),
        CachedQueries(slow=True),
        Ping(beyond=False),
        Ping(beyond=True),
        Bulk(65520, True, 1, True, large),
        Bulk(65520, True, 1, False, f"{large}, 1.0 x pasta"),
        Bulk(65520, True, 8, True),
        Bulk(65520, True, 8, False),
        StreamBulk(up=True),
        StreamBulk(up=False),
        Bulk(1500, False, 1, True, "1.0 x slirp4netns"),
        Bulk(1500, False, 1, False, "0.35 x slirp4netns"),
        Bulk(1500, False, 8, True),
        Bulk(1500, False, 8, False),
        Bulk(65520, False, 1, True),
        Bulk(65520, False, 1, False),
        Bulk(65520, False, 8, True),
        Bulk(65520, False, 8, False),
        *ipv6.rows(),
    ]

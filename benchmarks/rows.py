"""The rows that move data: bulk TCP, requests, datagrams, queries.  `more_rows.py` has the quiet ones."""

from __future__ import annotations

import abc
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from . import processes, servers
from .contenders import Setup
from .processes import BenchmarkError, run
from .results import Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .contenders import Running

ALL = ("loopback", "slirp4netns", "pasta", "vpnkit")
TRANSLATORS = ALL[1:]
STREAMED = ("slirp4netns", "passt-stream", "vpnkit-stream")
GIB = 1 << 30
GRACE = 15.0
"""Seconds a measuring program may take beyond the time it was asked to measure."""


@dataclass
class Bench:
    """What the rows share within one run."""

    scratch: Path
    seconds: int
    flows: int


class Row(abc.ABC):
    id: str
    label: str
    bar: str = ""
    """The words of issue 2 about this row."""
    metrics: Sequence[Metric]
    setup: Setup = Setup()
    contenders: tuple[str, ...] = ALL
    fresh: ClassVar[bool] = False
    """Wants a contender that has done nothing before."""
    together: ClassVar[bool] = False
    """Takes long and disturbs nobody: all contenders at the same time."""

    @abc.abstractmethod
    def sample(self, bench: Bench, guest: Running) -> dict[str, float]:
        """One turn of one contender."""


def costed(guest: Running, work: Callable[[], dict[str, float]], amount: str, scale: float) -> dict[str, float]:
    """Do the work and add the translator's CPU seconds per `amount`, which is one of the values the work returns."""
    before = processes.cpu_seconds(guest.pids())
    values = work()
    spent = processes.cpu_seconds(guest.pids()) - before
    done = values.pop(amount)
    if guest.pids() and done > 0:
        values["cpu"] = spent / done * scale
    return values


# ---- bulk TCP -------------------------------------------------------------------------------------------------------


def iperf(guest: Running, seconds: int, *options: str) -> dict[str, Any]:
    """One iperf3 test from the guest to a server on the host's loopback; what it found at the end."""
    argv = ["iperf3", "-c", guest.host_address, "-p", str(servers.IPERF_PORT), "-J", "-i", "0", "-t", str(seconds)]
    with servers.iperf(guest.host_address):
        out = run(guest.guest([*argv, *options]), seconds + GRACE, check=False)
    try:
        found = json.loads(out)
    except ValueError:
        raise BenchmarkError("iperf3 said nothing that can be read") from None
    if "error" in found:
        raise BenchmarkError(f"iperf3: {found['error']}")
    end: dict[str, Any] = found["end"]
    return end


class Bulk(Row):
    """iperf3 without any trick.  Its bytes are those the receiver got, over the whole test, as the CPU time is."""

    metrics = (
        Metric("rate", "Gbit/s", True, "Bulk TCP"),
        Metric("cpu", "s/GiB", False, "CPU of the translator"),
    )

    def __init__(self, mtu: int, offload: bool, flows: int, up: bool, bar: str = "") -> None:
        way = "up" if up else "down"
        self.id = f"bulk-{way}-{mtu}-{'offload' if offload else 'plain'}-{flows}"
        self.label = (
            f"bulk, {'guest to host' if up else 'host to guest'}, MTU {mtu}"
            f"{'' if offload else ' without offload'}, {flows} flow{'s' if flows > 1 else ''}"
        )
        self.setup = Setup(mtu=mtu, offload=offload)
        self.bar = bar
        # The peers know no offload: the rows without it compare with one of them and spare the rest.
        self.contenders = ALL if offload else ("slirp4netns", "vpnkit")
        self._options = ["-P", str(flows), *([] if up else ["-R"])]

    def sample(self, bench: Bench, guest: Running) -> dict[str, float]:
        def work() -> dict[str, float]:
            received = iperf(guest, bench.seconds, *self._options)["sum_received"]
            if not received["bytes"]:
                raise BenchmarkError("iperf3 moved nothing")
            return {"rate": received["bytes"] * 8 / received["seconds"] / 1e9, "bytes": received["bytes"]}

        return costed(guest, work, "bytes", GIB)


class StreamBulk(Row):
    """iperf3 at the MTU of QEMU's links.  slirp4netns has its own TAP device; the others the same peer on a socket."""

    setup = Setup(mtu=65520)
    contenders = STREAMED
    metrics = (
        Metric("rate", "Gbit/s", True, "Bulk TCP over a unix stream"),
        Metric("cpu", "s/GiB", False, "Bulk TCP over a unix stream", "CPU of the translator"),
    )
    bar = "1.0 x slirp4netns, 0.4 x passt"

    def __init__(self, up: bool) -> None:
        self.id = f"stream-{'up' if up else 'down'}-65520"
        self.label = f"bulk over QEMU's framing, {'guest to host' if up else 'host to guest'}, MTU 65520"
        self._bulk = Bulk(65520, True, 1, up)

    def sample(self, bench: Bench, guest: Running) -> dict[str, float]:
        return self._bulk.sample(bench, guest)


# ---- requests -------------------------------------------------------------------------------------------------------


class Requests(Row):
    metrics = (
        Metric("rate", "requests/s", True, "Requests, datagrams, queries"),
        Metric("cpu", "us/request", False, "CPU of the translator"),
    )

    def __init__(self, connections: int, keep_alive: bool, bar: str) -> None:
        self.id = f"http-{'keep' if keep_alive else 'new'}-{connections}"
        if keep_alive:
            self.label = f"keep-alive requests, {connections} connection{'s' if connections > 1 else ''}"
        else:
            self.label = f"a new connection per request, {connections} at once"
        self.bar = bar
        self._connections = connections
        self._header = [] if keep_alive else ["-H", "Connection: close"]

    def sample(self, bench: Bench, guest: Running) -> dict[str, float]:
        def work() -> dict[str, float]:
            address = f"[{guest.host_address}]" if ":" in guest.host_address else guest.host_address
            url = f"http://{address}:{servers.HTTP_PORT}/"
            argv = ["wrk", "-t1", f"-c{self._connections}", f"-d{bench.seconds}s", *self._header, url]
            return wrk_report(run(guest.guest(argv), bench.seconds + GRACE))

        return costed(guest, work, "requests", 1e6)


def wrk_report(out: str) -> dict[str, float]:
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    total = re.search(r"(\d+) requests in", out)
    if not rate or not total or int(total[1]) == 0:
        raise BenchmarkError("wrk completed no request")
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    bad = sum(int(one) for one in errors.groups()) if errors else 0
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    bad += int(refused[1]) if refused else 0
    if bad * 100 > int(total[1]):
        raise BenchmarkError(f"wrk saw {bad} errors in {total[1]} requests")
    return {"rate": float(rate[1]), "requests": float(total[1])}


# ---- datagrams ------------------------------------------------------------------------------------------------------


class Datagrams(Row):
    """1400-byte datagrams at the rate that gets the most of them through.

    The first turn of a contender tries every rate; each later one tries the best so far and the two beside it.
    """

    RATES = (20_000, 40_000, 60_000, 80_000, 120_000, 160_000, 240_000, 0)
    SIZE = 1400
    metrics = (
        Metric("rate", "datagrams/s", True, "Requests, datagrams, queries"),
        Metric("loss", "% lost", False, "Requests, datagrams, queries", "loss at that rate"),
        Metric("cpu", "us/datagram", False, "CPU of the translator"),
    )
    bar = "0.6 x slirp4netns"

    def __init__(self, up: bool) -> None:
        self.id = f"udp-{'up' if up else 'down'}"
        self.label = f"UDP, {self.SIZE}-byte datagrams delivered, {'guest to host' if up else 'host to guest'}"
        self._options = ["-u", "-l", str(self.SIZE), *([] if up else ["-R"])]
        self._best: dict[str, int] = {}

    def sample(self, bench: Bench, guest: Running) -> dict[str, float]:
        best = self._best.get(guest.name)
        tries = range(len(self.RATES)) if best is None else range(max(0, best - 1), min(best + 2, len(self.RATES)))
        found: dict[int, dict[str, float]] = {}
        top = 0.0
        for index in tries:
            found[index] = self._try(guest, self.RATES[index])
            top = max(top, found[index]["rate"])
            if best is None and found[index]["rate"] < 0.5 * top:
                break  # past the top, and pushing harder only makes it worse
        index = self._best[guest.name] = max(found, key=lambda one: found[one]["rate"])
        return {**found[index], "sent at": float(self.RATES[index])}

    def _try(self, guest: Running, rate: int) -> dict[str, float]:
        return costed(guest, lambda: self._send(guest, 1, rate), "count", 1e6)

    def _send(self, guest: Running, seconds: int, rate: int) -> dict[str, float]:
        end = iperf(guest, seconds, *self._options, "-b", str(rate * self.SIZE * 8))
        received = end["sum_received"]
        arrived = received["packets"] - received["lost_packets"]
        sent = end["sum_sent"]["packets"]
        if arrived <= 0 or sent <= 0:
            raise BenchmarkError("no datagram arrived")
        return {"rate": arrived / received["seconds"], "loss": 100 * max(0, sent - arrived) / sent, "count": arrived}


# ---- queries --------------------------------------------------------------------------------------------------------


class Queries(Row):
    """Forwarded DNS queries.  The server behind is ours, and what it says may not be cached."""

    NAMES = 10_000
    id = "dns"
    label = "DNS queries through the translator's server, 100 at once"
    metrics = (
        Metric("rate", "queries/s", True, "Requests, datagrams, queries"),
        Metric("cpu", "us/query", False, "CPU of the translator"),
    )

    prefix = "name"
    """Of the names; the server does as it says."""

    def sample(self, bench: Bench, guest: Running) -> dict[str, float]:
        names = bench.scratch / f"{self.prefix}s"
        if not names.exists():
            names.write_text("".join(f"{self.prefix}-{number}.bench.example A\n" for number in range(self.NAMES)))

        def work() -> dict[str, float]:
            server = guest.contender.dns_address
            argv = ["dnsperf", "-s", server, "-d", str(names), "-l", str(bench.seconds), "-q", "100", "-t", "2"]
            return dnsperf_report(run(guest.guest(argv), bench.seconds + GRACE))

        return costed(guest, work, "queries", 1e6)


class CachedQueries(Queries):
    """A thousand names, asked again and again.  slirp4netns passes each query on, so it depends on who answers."""

    NAMES = 1000
    contenders = ("slirp4netns", "vpnkit")

    def __init__(self, slow: bool) -> None:
        self.id = "dns-cached-slow" if slow else "dns-cached"
        self.label = f"DNS queries that may be cached, the server takes {'20 ms' if slow else 'no time'}"
        self.bar = "5 x slirp4netns" if slow else "0.3 x slirp4netns"
        self.prefix = "slow" if slow else "cached"


def dnsperf_report(out: str) -> dict[str, float]:
    rate = re.search(r"Queries per second:\s+([\d.]+)", out)
    done = re.search(r"Queries completed:\s+(\d+)", out)
    lost = re.search(r"Queries lost:\s+(\d+)", out)
    good = re.search(r"NOERROR (\d+)", out)
    if not rate or not done or int(done[1]) == 0:
        raise BenchmarkError("dnsperf got no answer")
    if not good or int(good[1]) < 0.99 * int(done[1]):
        raise BenchmarkError(f"only {good[1] if good else 0} of {done[1]} DNS answers were good")
    if lost and int(lost[1]) * 100 > int(done[1]):
        raise BenchmarkError(f"{lost[1]} DNS queries were lost, {done[1]} answered")
    return {"rate": float(rate[1]), "queries": float(done[1])}

"""What the project promised, and whether a run keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .results import Results

US = "vpnkit"
BIG_FLOWS = 10_000


@dataclass(frozen=True)
class Bar:
    """One comparison: our median against a peer's, or against a number."""

    work: str
    row: str
    metric: str
    limit: float
    peer: str | None = None
    """Whose median the limit multiplies; None: the limit stands alone, in the metric's unit."""
    at_most: bool = False
    unit: str = ""
    us: str = US


IPV6_ROWS = {
    "bulk-up-1500-offload-1": "bulk, guest to host, MTU 1500",
    "bulk-down-1500-offload-1": "bulk, host to guest, MTU 1500",
    "bulk-up-65520-offload-1": "bulk, guest to host, MTU 65520",
    "bulk-down-65520-offload-1": "bulk, host to guest, MTU 65520",
    "bulk-up-1500-plain-1": "bulk, guest to host, MTU 1500, no offload",
    "bulk-down-1500-plain-1": "bulk, host to guest, MTU 1500, no offload",
    "http-keep-1": "keep-alive requests, 1 connection",
    "http-keep-64": "keep-alive requests, 64 connections",
    "http-new-16": "a new connection per request, 16 at once",
}


@dataclass(frozen=True)
class Verdict:
    bar: Bar
    asked: str
    value: str
    met: bool | None
    """None: not measured in this run."""


def _bulk(work: str, row: str, **factors: float) -> list[Bar]:
    return [Bar(work, row, "rate", factor, peer) for peer, factor in factors.items()]


def _streamed(work: str, row: str) -> list[Bar]:
    return [
        Bar(work, row, "rate", factor, peer, us="vpnkit-stream")
        for peer, factor in (("slirp4netns", 1.0), ("passt-stream", 0.4))
    ]


BARS = [
    *_bulk("bulk, guest to host, MTU 1500", "bulk-up-1500-offload-1", loopback=0.38, slirp4netns=8),
    *_bulk("bulk, host to guest, MTU 1500", "bulk-down-1500-offload-1", loopback=0.5, slirp4netns=4),
    *_bulk("bulk, guest to host, MTU 65520", "bulk-up-65520-offload-1", loopback=0.42, slirp4netns=2),
    *_bulk("bulk, host to guest, MTU 65520", "bulk-down-65520-offload-1", loopback=0.42, slirp4netns=2, pasta=1.0),
    *_bulk("bulk, guest to host, MTU 1500, no offload", "bulk-up-1500-plain-1", slirp4netns=1.0),
    *_bulk("bulk, host to guest, MTU 1500, no offload", "bulk-down-1500-plain-1", slirp4netns=0.35),
    *_streamed("bulk over QEMU's framing, guest to host, MTU 65520", "stream-up-65520"),
    *_streamed("bulk over QEMU's framing, host to guest, MTU 65520", "stream-down-65520"),
    Bar("CPU, guest to host, MTU 1500", "bulk-up-1500-offload-1", "cpu", 0.5, at_most=True, unit="s/GiB"),
    Bar("CPU, host to guest, MTU 1500", "bulk-down-1500-offload-1", "cpu", 0.5, at_most=True, unit="s/GiB"),
    Bar("CPU, guest to host, MTU 65520", "bulk-up-65520-offload-1", "cpu", 0.5, at_most=True, unit="s/GiB"),
    Bar("CPU, host to guest, MTU 65520", "bulk-down-65520-offload-1", "cpu", 0.5, at_most=True, unit="s/GiB"),
    Bar("keep-alive requests, 1 connection", "http-keep-1", "rate", 0.6, "slirp4netns"),
    Bar("keep-alive requests, 64 connections", "http-keep-64", "rate", 0.7, "slirp4netns"),
    Bar("a new connection per request, 16 at once", "http-new-16", "rate", 0.5, "pasta"),
    Bar("UDP datagrams, guest to host", "udp-up", "rate", 0.6, "slirp4netns"),
    Bar("UDP datagrams, host to guest", "udp-down", "rate", 0.6, "slirp4netns"),
    Bar("cached DNS answers, a fast server", "dns-cached", "rate", 0.3, "slirp4netns"),
    Bar("cached DNS answers, a server that takes 20 ms", "dns-cached-slow", "rate", 5, "slirp4netns"),
    Bar("start to ready", "start", "ready", 0.5, at_most=True, unit="s"),
    Bar("idle memory", "idle", "rss", 60, at_most=True, unit="MiB"),
    Bar("idle wake-ups", "idle", "wakeups", 2, at_most=True, unit="per second"),
    Bar("idle flows: memory of each", "flows", "each", 16, at_most=True, unit="KiB"),
    Bar("idle flows: alive", "flows", "alive", 100, unit="%"),
    Bar("idle flows: one more", "flows", "one_more", 50, at_most=True, unit="ms"),
    *(Bar(f"IPv6: {work}", f"{row}-ipv6", "rate", 0.95, US, us="vpnkit-ipv6") for row, work in IPV6_ROWS.items()),
]


def judge(results: Results) -> list[Verdict]:
    """Every bar against the medians of this run."""
    return [_judge(results, bar) for bar in BARS]


def _judge(results: Results, bar: Bar) -> Verdict:
    if bar.peer:
        asked = f"at least {bar.limit:g} x {bar.peer}"
        value = results.ratio(bar.row, bar.metric, bar.us, bar.peer)
        shown = f"{value:.2f} x" if value is not None else ""
    else:
        asked = f"{'at most' if bar.at_most else 'at least'} {bar.limit:g} {bar.unit}"
        value = results.median(bar.row, bar.metric, bar.us)
        shown = f"{value:.3g} {bar.unit}" if value is not None else ""
    flows = results.settings.get("flows", BIG_FLOWS)
    if bar.row == "flows" and flows != BIG_FLOWS and value is not None:
        shown += f" (with {flows:,} flows; `--full` opens {BIG_FLOWS:,})"
    met = None if value is None else value <= bar.limit if bar.at_most else value >= bar.limit
    # A failed round is not kept out of the verdict by the rounds that worked.
    row = results.row(bar.row)
    errors = row.errors(bar.us) if row else []
    if errors:
        met = False
        shown = f"{shown} ({len(errors)} of {len(row.samples[bar.us]) if row else 0} rounds failed)".strip()
    return Verdict(bar, asked, shown or "not measured", met)

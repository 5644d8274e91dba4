"""A run as Markdown: the machine, the tables, the bars."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from .bars import US, judge

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .results import Metric, Results, RowResult

SECTIONS = (
    "Bulk TCP",
    "Bulk TCP over a unix stream",
    "Requests, datagrams, queries",
    "Latency, start, memory",
    "CPU of the translator",
)
NOTES = {
    "Bulk TCP": "iperf3, guest to a server on the host's loopback. Higher is better. Without offload only we change.",
    "Bulk TCP over a unix stream": (
        "The same with a guest at the other end of a socket that speaks QEMU's framing: a loop in C that joins it to a "
        "TAP device without offload, so every checksum is computed. slirp4netns has a TAP device of its own."
    ),
    "Requests, datagrams, queries": (
        "wrk against nginx, iperf3 with datagrams at the rate that gets most of them through, dnsperf. "
        "Higher is better, except the loss."
    ),
    "Latency, start, memory": "Lower is better, except flows alive and opened per second.",
    "CPU of the translator": (
        "User and system time of the translator's own processes for the work above, lower is better. "
        "The kernel charges a write to the TAP device with the guest's receive path and a write to a socket with the "
        "server's, to us as to the others; the programs at both ends pay for the rest."
    ),
}


def number(value: float) -> str:
    """Three significant digits, and no exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _count(amount: int, thing: str) -> str:
    return f"{amount} {thing}{'' if amount == 1 else 's'}"


def markdown(results: Results, plot: str | None = None) -> str:
    return "\n".join(_markdown(results, plot)) + "\n"


def _markdown(results: Results, plot: str | None) -> Iterator[str]:
    settings = results.settings
    yield "# Benchmarks"
    yield ""
    yield (
        "Written by `python -m benchmarks`; do not edit. Every program did the same work in the same run: the "
        "contenders take turns within each row, the rows repeat in rounds, and who begins moves on each round. "
        f"Numbers are medians of {_count(settings.get('rounds', 0), 'round')} of {settings.get('seconds')} s "
        "(smallest - largest)."
    )
    yield ""
    yield from _table(["machine", ""], [[key, value] for key, value in results.machine.items()])
    yield f"Command: `{results.command}`, {_count(round(results.seconds / 60), 'minute')}."
    yield ""
    if not results.complete:
        yield "**This run was interrupted: the numbers below are what there was by then.**"
        yield ""
    if settings.get("rounds", 0) < 5:
        yield "**Fewer than five rounds: good for trying the harness, not for conclusions.**"
        yield ""
    if plot:
        yield f"![ratios to slirp4netns]({plot})"
        yield ""
    for section in SECTIONS:
        present = _present(results, section)
        rows = [line for row in results.rows for line in _section_lines(results, row, section, present)]
        if rows:
            yield f"## {section}"
            yield ""
            yield NOTES[section]
            yield ""
            yield from _table(["work", "unit", *present, *_ratio_heads(present)], rows)
    yield from _bars(results)
    yield from _failures(results)


def _present(results: Results, section: str) -> list[str]:
    """The contenders that did the work of a section, or tried to."""
    rows = [row for row in results.rows if any(metric.section == section for metric in row.metrics)]
    return [one for one in results.contenders if any(one in row.samples for row in rows)]


def _us(present: Sequence[str]) -> str | None:
    return next((one for one in present if one.startswith(US)), None)


def _peers(present: Sequence[str]) -> list[str]:
    us = _us(present)
    return [one for one in present if one != us] if us else []


def _ratio_heads(present: Sequence[str]) -> list[str]:
    return [f"{_us(present)} / {peer}" for peer in _peers(present)]


def _section_lines(results: Results, row: RowResult, section: str, present: Sequence[str]) -> Iterator[list[str]]:
    for metric in row.metrics:
        if metric.section == section:
            label = f"{row.label}: {metric.label}" if metric.label else row.label
            cells = [_cell(row, metric, contender) for contender in present]
            us = _us(present) or ""
            ratios = [results.ratio(row.id, metric.key, us, peer) for peer in _peers(present)]
            yield [label, metric.unit, *cells, *(number(one) if one is not None else "" for one in ratios)]


def _cell(row: RowResult, metric: Metric, contender: str) -> str:
    values = row.values(metric.key, contender)
    if not values:
        # A metric that a contender does not have is an empty cell; work that it could not do is not.
        return "failed" if row.errors(contender) else ""
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))} - {number(max(values))})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table that is also a table where it is only text."""
    if not rows:
        return
    widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    yield line(head)
    yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    for row in rows:
        yield line(row)
    yield ""


def _bars(results: Results) -> Iterator[str]:
    words = {True: "met", False: "NOT MET", None: ""}
    verdicts = judge(results)
    if US not in results.contenders or all(one.met is None for one in verdicts):
        return
    met = sum(one.met is True for one in verdicts)
    known = sum(one.met is not None for one in verdicts)
    yield "## Bars"
    yield ""
    yield f"What the project promised, against the medians of this run: {met} of {known} met."
    yield ""
    rows = [[one.bar.work, one.asked, one.value, words[one.met]] for one in verdicts]
    yield from _table(["work", "bar", "this run", ""], rows)


def _failures(results: Results) -> Iterator[str]:
    lines = []
    for row in results.rows:
        for contender in results.contenders:
            errors = row.errors(contender)
            if errors:
                total = len(row.samples[contender])
                lines.append(f"- {row.label}, {contender}, {len(errors)} of {total} rounds: {errors[0]}")
    if lines:
        yield "## What did not work"
        yield ""
        yield from lines

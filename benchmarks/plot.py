"""The ratios to slirp4netns as an SVG, written by hand so that no library is needed."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .results import Metric, Results, RowResult

BASE = "slirp4netns"
COLOURS = {
    "loopback": "#9aa0a6",
    "slirp4netns": "#c58af9",
    "pasta": "#f29900",
    "passt-stream": "#f29900",
    "vpnkit": "#1a73e8",
    "vpnkit-stream": "#1a73e8",
}
WIDTH, LEFT, RIGHT, TOP = 1100, 440, 60, 84
BAR, GAP = 11, 12


def svg(results: Results) -> str:
    """Horizontal bars on a log scale; further right is better, whatever the metric."""
    groups = [(label, ratios) for row in results.rows for label, ratios in _groups(results, row)]
    values = [value for _, ratios in groups for value in ratios.values()]
    low = min(-1, math.floor(math.log2(min(values, default=1))))
    high = max(1, math.ceil(math.log2(max(values, default=1))))
    scale = _Scale(low, high)
    body, y = [], float(TOP)
    for label, ratios in groups:
        body.append(_text(LEFT - 10, y + len(ratios) * BAR / 2 + 4, label, "end"))
        for contender, ratio in ratios.items():
            body.append(_bar(scale, y, contender, ratio))
            y += BAR
        y += GAP
    bottom = y
    parts = [*_frame(results, scale, bottom), *body]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 30:.0f}" width="{WIDTH}"'
    style = 'font-family="system-ui, sans-serif" font-size="12"'
    background = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return "\n".join([f"{head} {style}>", background, *parts, "</svg>"]) + "\n"


class _Scale:
    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def x(self, ratio: float) -> float:
        part = (math.log2(ratio) - self.low) / (self.high - self.low)
        return LEFT + part * (WIDTH - LEFT - RIGHT)


def _groups(results: Results, row: RowResult) -> Iterator[tuple[str, dict[str, float]]]:
    """The metrics of a row that slirp4netns has too: label and, for the others, how many times better they are."""
    for metric in row.metrics:
        if metric.key in ("alive", "loss", "busy", "pss", "whole", "wakeups", "opening"):
            continue  # often zero, or another's shadow
        if metric.key == "cpu" and not (row.id.startswith("bulk") and row.id.endswith("-1")):
            continue
        base = _median(row, metric, BASE)
        if not base or base < 0:
            continue
        ratios = {}
        for contender in results.contenders:
            value = _median(row, metric, contender)
            if contender != BASE and value and value > 0:
                ratios[contender] = value / base if metric.higher_is_better else base / value
        if ratios:
            cpu = " (CPU)" if metric.key == "cpu" else ""
            yield f"{row.label}{f': {metric.label}' if metric.label else ''}{cpu}", ratios


def _median(row: RowResult, metric: Metric, contender: str) -> float | None:
    values = row.values(metric.key, contender)
    return statistics.median(values) if values else None


def _bar(scale: _Scale, y: float, contender: str, ratio: float) -> str:
    start, end = sorted((scale.x(1), scale.x(ratio)))
    colour = COLOURS.get(contender, "#444444")
    bar = f'<rect x="{start:.1f}" y="{y:.1f}" width="{max(1.0, end - start):.1f}" height="{BAR - 1}" fill="{colour}"/>'
    words = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
    anchor, x = ("start", end + 4) if ratio >= 1 else ("end", start - 4)
    return bar + _text(x, y + BAR - 2, words, anchor, size=10, colour="#3c4043")


def _frame(results: Results, scale: _Scale, bottom: float) -> Iterator[str]:
    yield _text(20, 26, "How many times better than slirp4netns (log scale, right is better)", size=16)
    machine = ", ".join(results.machine.get(key, "") for key in ("processor", "kernel", "date"))
    rounds = results.settings.get("rounds", 0)
    many = "" if rounds == 1 else "s"
    yield _text(20, 44, f"medians of {rounds} round{many}; {machine}", size=11, colour="#5f6368")
    x = LEFT
    for contender in results.contenders:
        if contender != BASE:
            yield f'<rect x="{x}" y="54" width="11" height="11" fill="{COLOURS.get(contender, "#444444")}"/>'
            yield _text(x + 16, 64, contender)
            x += 110
    for power in range(scale.low, scale.high + 1):
        at = scale.x(2.0**power)
        colour = "#202124" if power == 0 else "#e8eaed"
        yield f'<line x1="{at:.1f}" y1="{TOP - 8}" x2="{at:.1f}" y2="{bottom:.0f}" stroke="{colour}"/>'
        words = f"{2**power}x" if power >= 0 else f"1/{2**-power}"
        yield _text(at, bottom + 16, words, "middle", size=11, colour="#5f6368")


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 12, colour: str = "#202124") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"'
    return f"<text {place}>{escape(words)}</text>"

"""The order of a run.

A busy or throttled machine bends whatever happens to run at that moment, so nothing is measured in one block: every
round visits every row, within a row the contenders take turns, and who begins moves on by one each round.
"""

from __future__ import annotations

import contextlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING

from . import servers
from .processes import BenchmarkError
from .results import Results, RowResult, Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .contenders import Contender, Running, Setup
    from .rows import Bench, Row


def measure(bench: Bench, rows: Sequence[Row], contenders: Sequence[Contender], rounds: int, results: Results) -> None:
    """Fill `results`, which stays usable when the run is interrupted."""
    begin = time.monotonic()
    results.rows = [RowResult(row.id, row.label, row.bar, list(row.metrics)) for row in rows]
    progress = _Progress(rounds * sum(sum(one.name in row.contenders for one in contenders) for row in rows))
    try:
        with contextlib.ExitStack() as hosts:
            if any(row.id.startswith("http") for row in rows):
                hosts.enter_context(servers.nginx(bench.scratch))
            if any(row.id.startswith("dns") for row in rows):
                hosts.enter_context(servers.dns())
            for number in range(rounds):
                turn = number % len(contenders)
                order = [*contenders[turn:], *contenders[:turn]]
                for setup, group in groupby(rows, key=lambda row: row.setup):
                    with Guests(setup) as guests:
                        for row in group:
                            _one_row(bench, row, order, number, guests, results, progress)
        results.complete = True
    finally:
        results.seconds = time.monotonic() - begin


def _one_row(
    bench: Bench,
    row: Row,
    order: Sequence[Contender],
    number: int,
    guests: Guests,
    results: Results,
    progress: _Progress,
) -> None:
    result = results.row(row.id)
    assert result is not None
    order = [one for one in order if one.name in row.contenders]
    if row.together:
        started = [_attempt(row, guests, one) for one in order]
        with ThreadPoolExecutor(max_workers=max(1, len(order))) as pool:
            samples = list(pool.map(lambda pair: _sample(bench, row, number, *pair), started))
        for guest, _ in started:
            if guest:
                guest.stop()
    else:
        samples = []
        for one in order:
            guest, error = _attempt(row, guests, one)
            samples.append(_sample(bench, row, number, guest, error))
            if guest and row.fresh:
                guest.stop()
            elif samples[-1].error:
                guests.discard(one)  # it may be stuck, and would take the others' time
    for one, sample in zip(order, samples, strict=True):
        result.samples.setdefault(one.name, []).append(sample)
        progress.show(row, one, sample)


def _attempt(row: Row, guests: Guests, contender: Contender) -> tuple[Running | None, str | None]:
    try:
        return (contender.start(row.setup) if row.fresh else guests.get(contender)), None
    except (BenchmarkError, OSError) as error:
        return None, f"did not start: {error}"


def _sample(bench: Bench, row: Row, number: int, guest: Running | None, error: str | None) -> Sample:
    if guest is None:
        return Sample(number, {}, error)
    try:
        return Sample(number, row.sample(bench, guest))
    except (BenchmarkError, OSError, ValueError, KeyError) as problem:
        kind = "" if isinstance(problem, BenchmarkError) else f"{type(problem).__name__}: "
        ended = "" if guest.alive() else " (the translator has ended)"
        return Sample(number, {}, f"{kind}{problem}{ended}")


class Guests(contextlib.AbstractContextManager["Guests"]):
    """The running contenders of one setup, each started when it is first wanted."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._running: dict[str, Running] = {}

    def get(self, contender: Contender) -> Running:
        running = self._running.get(contender.name)
        if running is not None and not running.alive():
            self.discard(contender)
            running = None
        if running is None:
            running = self._running[contender.name] = contender.start(self._setup)
        return running

    def discard(self, contender: Contender) -> None:
        running = self._running.pop(contender.name, None)
        if running is not None:
            running.stop()

    def __exit__(self, *_: object) -> None:
        for running in self._running.values():
            running.stop()
        self._running.clear()


class _Progress:
    """One line on stderr for each sample."""

    def __init__(self, total: int) -> None:
        self._done, self._total, self._begin = 0, total, time.monotonic()

    def show(self, row: Row, contender: Contender, sample: Sample) -> None:
        self._done += 1
        if sample.error:
            what = f"FAILED: {sample.error}"
        else:
            units = {metric.key: metric.unit for metric in row.metrics}
            what = ", ".join(f"{value:.4g} {units[key]}" for key, value in sample.values.items() if key in units)
        elapsed = time.monotonic() - self._begin
        line = f"{self._done:4}/{self._total} {elapsed:5.0f}s  {row.id:26} {contender.name:12} {what}"
        print(line, file=sys.stderr, flush=True)

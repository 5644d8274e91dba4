"""`python -m tests.sim`: live through many worlds, and say which one broke what."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.sim.faults import SOMETIMES
from tests.sim.scenario import draw
from tests.sim.world import Outcome, run

if TYPE_CHECKING:
    from collections.abc import Iterable

ENOUGH: Final = 300  # seeds, so that every fault must have happened
CHUNK: Final = 20


def seed(number: int) -> Outcome:
    return run(draw(number))


def outcomes(seeds: range, jobs: int) -> Iterable[Outcome]:
    if jobs == 1:
        yield from map(seed, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(seed, seeds, chunksize=CHUNK)


def many(seeds: range, jobs: int) -> int:
    began = time.perf_counter()
    faults: Counter[str] = Counter()
    counters: Counter[str] = Counter()
    frames = bad = done = 0
    simulated = 0.0
    for outcome in outcomes(seeds, jobs):
        done += 1
        frames += outcome.frames
        simulated += outcome.simulated
        faults.update(outcome.faults)
        counters.update(outcome.counters)
        if outcome.broken:
            bad += 1
            print(f"seed {outcome.seed}: {outcome.broken}", flush=True)
        if done % 1000 == 0:
            print(f"{done} seeds, {bad} broken, {time.perf_counter() - began:.0f} s", flush=True)
    took = time.perf_counter() - began
    print(f"{done} seeds, {frames} frames, {simulated / 3600:.0f} simulated hours in {took:.0f} s: {bad} broken")
    print("faults:", " ".join(f"{name}={faults[name]}" for name in SOMETIMES))
    print("network:", " ".join(f"{name}={count}" for name, count in sorted(counters.items())))
    never = [name for name in SOMETIMES if not faults[name]]
    if never and done >= ENOUGH:
        print("never happened:", " ".join(never))
        return 1
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many worlds")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="only this one; says more")
    parser.add_argument("--pcap", type=Path, help="with --seed: keep what crossed the link")
    parser.add_argument("--hours", type=float, help="one long world instead, of so many simulated hours")
    parser.add_argument("--flows", type=int, default=100, help="with --hours: programs that speak at once")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    arguments = parser.parse_args()
    if arguments.hours is not None:
        from tests.sim.soak import soak

        return soak(arguments.hours, arguments.flows, arguments.start)
    if arguments.seed is None:
        return many(range(arguments.start, arguments.start + arguments.seeds), arguments.jobs)
    scenario = draw(arguments.seed)
    print(scenario)
    outcome = run(scenario, pcap=arguments.pcap, verbose=True)
    print(outcome)
    return 1 if outcome.broken else 0


if __name__ == "__main__":
    sys.exit(main())

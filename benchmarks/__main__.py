"""`python -m benchmarks`: measure, print, write."""

from __future__ import annotations

import argparse
import fnmatch
import os
import shlex
import sys
from pathlib import Path

from . import plot, processes, report, world
from .contenders import Contender, Loopback, Pasta, Slirp4netns, Vpnkit
from .ipv6 import VpnkitIpv6
from .machine import describe
from .measure import measure
from .more_rows import all_rows
from .results import Results, load, save
from .rows import Bench, Row
from .stream_contenders import PasstStream, VpnkitStream

NAME = "benchmarks"
CONTENDERS: dict[str, type[Contender]] = {
    one.name: one for one in (Loopback, Slirp4netns, Pasta, Vpnkit, PasstStream, VpnkitStream, VpnkitIpv6)
}


def main() -> int:
    options = _options()
    if options.report:
        try:
            results = load(options.report)
        except (OSError, ValueError) as error:
            print(f"benchmarks: {error}", file=sys.stderr)
            return 2
        _write(results, options.output or options.report.parent)
        return 0
    flows = options.flows or (10_000 if options.full else 2_000)
    rows = _rows(options.rows, flows)
    if options.list:
        for row in rows:
            print(f"{row.id:26} {row.label}{f'  (bar: {row.bar})' if row.bar else ''}")
        return 0
    if not rows:
        print(f"benchmarks: no row matches {options.rows}; --list shows them", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("benchmarks: must be root, to give every program a network of its own: try sudo", file=sys.stderr)
        return 2
    return world.inside(lambda scratch: _run(options, rows, flows, scratch))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="The same work on vpnkit, slirp4netns, pasta and bare loopback, taking turns. Needs root; "
        "everything happens in a private network namespace, so nothing outside this machine is reached.",
    )
    add = parser.add_argument
    add("--rows", metavar="PATTERN", action="append", help="only rows whose name matches, as in 'bulk-*' (repeatable)")
    add("--contenders", metavar="A,B", help=f"only these of {','.join(CONTENDERS)}")
    add("--repeat", metavar="N", type=int, help="rounds; the median counts (default 5)")
    add("--seconds", metavar="S", type=int, help="length of each measurement (default 2)")
    add("--flows", metavar="N", type=int, help="idle connections in the row `flows` (default 2000)")
    add("--quick", action="store_true", help="one round of one second each: does it work at all?")
    add("--full", action="store_true", help="as for a release: 10 rounds of 3 s, 10,000 idle flows")
    add("--output", metavar="DIR", type=Path, help="where the report goes (default build/benchmarks)")
    add("--report", metavar="FILE", type=Path, help="measure nothing; write the report of this JSON file again")
    add("--list", action="store_true", help="list the rows")
    options = parser.parse_args()
    for name in ("repeat", "seconds", "flows"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1")
    unknown = set(options.contenders.split(",") if options.contenders else ()) - set(CONTENDERS)
    if unknown:
        parser.error(f"no contender {', '.join(sorted(unknown))}; there are {', '.join(CONTENDERS)}")
    return options


def _rows(patterns: list[str] | None, flows: int) -> list[Row]:
    rows = all_rows(flows)
    if patterns:
        rows = [row for row in rows if any(fnmatch.fnmatchcase(row.id, pattern) for pattern in patterns)]
    return rows


def _chosen(names: str | None) -> list[type[Contender]]:
    """The contenders that are here, in the order of the report."""
    wanted = names.split(",") if names else list(CONTENDERS)
    chosen = []
    for name, contender in CONTENDERS.items():
        if name in wanted:
            if contender.installed():
                chosen.append(contender)
            else:
                print(f"{name} is not installed: left out", file=sys.stderr)
    return chosen


def _run(options: argparse.Namespace, rows: list[Row], flows: int, scratch: Path) -> int:
    chosen = _chosen(options.contenders)
    if not chosen:
        return 1
    rounds = options.repeat or (1 if options.quick else 10 if options.full else 5)
    seconds = options.seconds or (1 if options.quick else 3 if options.full else 2)
    results = Results(
        machine=describe(chosen),
        command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        contenders=[one.name for one in chosen],
        settings={"rounds": rounds, "seconds": seconds, "flows": flows},
    )
    status = 0
    try:
        measure(Bench(scratch, seconds, flows), rows, [one(scratch) for one in chosen], rounds, results)
    except KeyboardInterrupt:
        status = 130
    finally:
        processes.stop_all()
    _write(results, options.output or Path("build/benchmarks"))
    return status


def _write(results: Results, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    text = report.markdown(results, plot=f"{NAME}.svg")
    save(results, directory / f"{NAME}.json")
    (directory / f"{NAME}.md").write_text(text)
    (directory / f"{NAME}.svg").write_text(plot.svg(results))
    print(text)
    print(f"written to {directory}/{NAME}.json, .md and .svg", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

"""The table: goodput for each combination of direction, round trip, buffer, reordering and loss."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from statistics import median
from typing import Final

from tests.netsim.world import Cell, transfer

SNAPSHOT: Final = Path(__file__).with_name("snapshot.txt")
WAYS: Final = ("down", "up")
RTTS: Final = (0.1, 10, 100)  # milliseconds
BUFFERS: Final = (4, 64, 1024)  # KiB
REORDERS: Final = (0, 5, 20)  # percent
LOSSES: Final = (0, 1, 5, 10, 30)  # percent
OCTETS: Final = 1 << 20  # of a cell without dice
DICED_OCTETS: Final = 1 << 18  # of each transfer of one with dice
SEEDS: Final = 15  # their number: one long timeout more or less would move an average, the middle stays
CELLS: Final = [Cell(*row) for row in product(WAYS, RTTS, BUFFERS, REORDERS, LOSSES)]

HEADER: Final = f"""\
# Goodput of bulk TCP over a bad wire, in kB/s of simulated time: `python -m tests.netsim` makes this file.
# {OCTETS >> 10} KiB over 1 Gbit/s between our TCP and one with a fixed buffer; with dice the middle of {SEEDS} times \
{DICED_OCTETS >> 10} KiB.
# way: down is to the guest; rtt in ms; buffer in KiB: the guest's window (down) or what he keeps (up);
# reorder and loss in percent of the segments, both directions alike.
# The dice are always the same, but a segment more or less and they fall for others: where much is lost a cell may
# move by half without a reason. A reason moves a row.
"""
COLUMNS: Final = f"{'way':4} {'rtt':>5} {'buffer':>6} {'reorder':>7} |" + "".join(f"{f'loss {n}':>10}" for n in LOSSES)


def goodput(cell: Cell) -> float:
    """kB/s."""
    if not cell.loss and not cell.reorder:
        return OCTETS / 1000 / transfer(cell, OCTETS, 0)
    return DICED_OCTETS / 1000 / median(transfer(cell, DICED_OCTETS, seed) for seed in range(SEEDS))


def write(found: dict[Cell, float]) -> str:
    lines = [HEADER + COLUMNS]
    for row in product(WAYS, RTTS, BUFFERS, REORDERS):
        way, rtt, buffer, reorder = row
        cells = "".join(f"{found[Cell(*row, loss)]:10.4g}" for loss in LOSSES)
        lines.append(f"{way:4} {rtt:5g} {buffer:6} {reorder:7} |{cells}")
    return "\n".join(lines) + "\n"


def read(text: str) -> dict[Cell, float]:
    """What `write` made.  Raises ValueError for anything else."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#") or line == COLUMNS:
            continue
        key, _, values = line.partition("|")
        way, rtt, buffer, reorder = key.split()
        for loss, value in zip(LOSSES, values.split(), strict=True):
            found[Cell(way, float(rtt), int(buffer), int(reorder), loss)] = float(value)
    if set(found) != set(CELLS):
        raise ValueError("the snapshot is of another table: make it anew with python -m tests.netsim")
    return found


def changed(expected: dict[Cell, float], found: dict[Cell, float], tolerance: float = 0.1) -> list[str]:
    """One line for each cell of `found` that differs by more than `tolerance` from what it was."""
    return [
        f"{cell.way}, rtt {cell.rtt:g} ms, buffer {cell.buffer} KiB, reorder {cell.reorder} %, loss {cell.loss} %: "
        f"{rate:.4g} kB/s, was {expected[cell]:.4g} ({rate / expected[cell] - 1:+.0%})"
        for cell, rate in found.items()
        if abs(rate - expected[cell]) > tolerance * expected[cell]
    ]

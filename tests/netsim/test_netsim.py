"""Goodput over bad wires is what it was when somebody looked last: snapshot.txt, within a tenth."""

from __future__ import annotations

import pytest

from tests.netsim import whole_guest
from tests.netsim.table import CELLS, COLUMNS, OCTETS, SNAPSHOT, changed, goodput, read, write
from tests.netsim.world import Cell, transfer

EVERYDAY = CELLS[::29]
REST = [cell for cell in CELLS if cell not in EVERYDAY]
AGREEMENT = 0.15  # a relay reads from its socket in other lumps than a test writes


def compare(cells: list[Cell]) -> None:
    differences = changed(read(SNAPSHOT.read_text()), {cell: goodput(cell) for cell in cells})
    assert not differences, "if that is as it should be: python -m tests.netsim\n" + "\n".join(differences)


def test_some_cells_are_as_they_were() -> None:
    compare(EVERYDAY)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_other_cells_are_as_they_were() -> None:
    compare(REST)


def test_the_same_seed_gives_the_same_time() -> None:
    cell = Cell("down", 10, 64, 20, 10)
    assert transfer(cell, OCTETS // 4, 5) == transfer(cell, OCTETS // 4, 5) != transfer(cell, OCTETS // 4, 6)


def test_the_file_is_what_is_written_for_what_it_says() -> None:
    text = SNAPSHOT.read_text()
    assert write(read(text)) == text


def test_a_cell_that_changed_is_named() -> None:
    cell = CELLS[7]
    assert changed({cell: 100.0}, {cell: 91.0}) == []
    (line,) = changed({cell: 100.0}, {cell: 89.0})
    assert line == "down, rtt 0.1 ms, buffer 4 KiB, reorder 5 %, loss 5 %: 89 kB/s, was 100 (-11%)"


def test_another_table_is_refused() -> None:
    with pytest.raises(ValueError, match="make it anew"):
        read(COLUMNS)


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize(
    ("rtt", "buffer", "reorder", "loss"),
    [(10, 64, 0, 0), (10, 64, 5, 1), (0.1, 1024, 0, 0), (100, 4, 0, 5)],
    ids=["clean", "bad", "fast", "small"],
)
async def test_a_whole_guest_agrees_with_its_core(nursery, way, rtt, buffer, reorder, loss) -> None:
    cell = Cell(way, rtt, buffer, reorder, loss)
    alone = sum(transfer(cell, OCTETS // 2, seed) for seed in range(3))
    whole = sum(whole_guest.transfer(nursery, cell, OCTETS // 2, seed) for seed in range(3))
    assert whole == pytest.approx(alone, rel=AGREEMENT)


@pytest.mark.parametrize("way", ["down", "up"])
async def test_a_whole_guest_by_ipv6_agrees_with_its_core(nursery, way) -> None:
    cell = Cell(way, 10, 64, 0, 0)
    alone = transfer(cell, OCTETS // 2, 0)
    assert whole_guest.transfer(nursery, cell, OCTETS // 2, 0, version=6) == pytest.approx(alone, rel=AGREEMENT)
    diced = Cell(way, 10, 64, 5, 1)
    assert whole_guest.transfer(nursery, diced, OCTETS // 2, 0, version=6) > alone

"""`python -m tests.netsim`: make snapshot.txt anew, and say which cells changed by more than 10 %."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor

from tests.netsim.table import CELLS, SNAPSHOT, changed, goodput, read, write


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.netsim", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--check", action="store_true", help="leave the file; status 1 when a cell changed")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        found = dict(zip(CELLS, pool.map(goodput, CELLS, chunksize=3), strict=True))
    differences = changed(read(SNAPSHOT.read_text()), found) if SNAPSHOT.exists() else []
    print("\n".join(differences) or "no cell changed")
    if arguments.check:
        return 1 if differences else 0
    SNAPSHOT.write_text(write(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

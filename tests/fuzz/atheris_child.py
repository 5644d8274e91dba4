"""The process in which atheris runs one target: `python -m tests.fuzz.atheris_child TARGET LIBFUZZER_ARGUMENTS...`."""

from __future__ import annotations

import importlib
import sys

import atheris

with atheris.instrument_imports(include=["vpnkit", "tapdev", "portfwd"]):
    target = importlib.import_module(f"tests.fuzz.targets.{sys.argv[1]}")

from tests.fuzz.victim import run  # only now: what it imports is instrumented


def main() -> None:
    def body(nursery, clock):  # type: ignore[no-untyped-def]
        atheris.Setup([sys.argv[0], *sys.argv[2:]], target.start(nursery, clock))
        atheris.Fuzz()  # ends the process

    run(body)


if __name__ == "__main__":
    main()

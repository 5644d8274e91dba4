"""Coverage-guided fuzzing of one header at a time, the rest of the frame being valid.

    python -m tests.fuzz.run TARGET|all [--seconds N] [--keep]

needs atheris (`pip install atheris`; Linux and macOS).  A finding ends it with status 1 and prints the input in
hexadecimal, ready for tests/fuzz/corpus/TARGET.txt, which tests/fuzz/test_corpus.py replays without atheris.  With
`--keep` the corpus becomes the inputs that covered something new, the shortest ones first.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
LONGEST = 1024  # octets of one input
MOST = 12 * 1024  # octets of one corpus file's inputs
RSS_LIMIT = 1024  # MiB


def names() -> list[str]:
    return sorted(path.stem for path in (HERE / "targets").glob("*.py") if path.stem != "common")


def corpus(name: str) -> list[bytes]:
    """The committed inputs of a target, and the seeds that it was begun with."""
    path = CORPUS / f"{name}.txt"
    kept = [bytes.fromhex(line) for line in path.read_text().split()] if path.exists() else []
    return [*importlib.import_module(f"tests.fuzz.targets.{name}").SEEDS, *kept]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__.partition("\n")[0])
    parser.add_argument("target", choices=[*names(), "all"])
    parser.add_argument("--seconds", type=int, default=60, help="of each target (60)")
    parser.add_argument("--keep", action="store_true", help="renew the committed corpus from what was found")
    options = parser.parse_args()
    chosen = names() if options.target == "all" else [options.target]
    return max([fuzz(name, options.seconds, keep=options.keep) for name in chosen])


def fuzz(name: str, seconds: int, *, keep: bool) -> int:
    """Fuzz one target in a process of its own.  Returns 1 when something was found."""
    with tempfile.TemporaryDirectory(prefix="vk-fuzz-") as made:
        directory = Path(made)
        inputs, found = directory / "inputs", directory / "found"
        inputs.mkdir()
        found.mkdir()
        write(inputs, corpus(name))
        limits = [f"-max_len={LONGEST}", f"-rss_limit_mb={RSS_LIMIT}", "-timeout=10", "-print_final_stats=1"]
        status = child(name, [f"-max_total_time={seconds}", f"-artifact_prefix={found}/", *limits, str(inputs)])
        for path in sorted(found.iterdir()):
            print(f"{name}: {path.name.partition('-')[0]}: {path.read_bytes().hex()}")
        if status == 0 and keep:
            save(name, [path.read_bytes() for path in inputs.iterdir()])
        return int(status != 0)


def child(name: str, arguments: list[str]) -> int:
    command = [sys.executable, "-m", "tests.fuzz.atheris_child", name, *arguments]
    return subprocess.run(command, cwd=HERE.parent.parent, check=False).returncode


def write(directory: Path, inputs: Iterable[bytes]) -> None:
    for number, data in enumerate(inputs):
        (directory / str(number)).write_bytes(data)


def save(name: str, inputs: list[bytes]) -> None:
    """The shortest ones first, as many as fit."""
    lines, octets = [], 0
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        octets += len(data)
        if octets > MOST:
            break
        if data:
            lines.append(data.hex())
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    sys.exit(main())

"""The inputs that fuzzing found interesting, and every finding, once more: without atheris, in a moment."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest

from tests.fuzz.run import CORPUS, corpus, names
from tests.fuzz.victim import run

if TYPE_CHECKING:
    import trio
    from trio.testing import MockClock


@pytest.mark.parametrize("name", names())
def test_replay(name):
    target = importlib.import_module(f"tests.fuzz.targets.{name}")

    def body(nursery: trio.Nursery, clock: MockClock) -> None:
        one = target.start(nursery, clock)
        for data in corpus(name):
            one(data)
            one(data[: len(data) // 2])
        getattr(one, "close", lambda: None)()

    run(body)


def test_the_corpus_is_small():
    assert sum(path.stat().st_size for path in CORPUS.glob("*")) < 200 * 1024
    assert {path.stem for path in CORPUS.glob("*.txt")} <= set(names())

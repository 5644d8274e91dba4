from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from vpnkit.proto.tcp import assembler as assembler_module
from vpnkit.proto.tcp.assembler import MAX_OCTETS, MAX_RANGES, Assembler

if TYPE_CHECKING:
    import pytest

BASES = st.sampled_from([0, 5000, 2**32 - 5, 2**32 - 40, 2**31 - 3])
STREAM = bytes(i * 7 % 251 for i in range(200))


@given(
    BASES,
    st.lists(st.tuples(st.integers(0, 150), st.integers(0, 50)), max_size=40),
    st.integers(0, 150),
)
def test_it_is_a_set_of_octets(base, pieces, taken_to):
    """The reference: octets with their place.  All pieces are cut from one stream, as those of one sender are."""
    assembler = Assembler()
    known: set[int] = set()
    for start, length in pieces:
        assembler.add(base, (base + start) & 0xFFFFFFFF, STREAM[start : start + length])
        known |= set(range(start, start + length))
    assert assembler.octets == len(known)
    assert bool(assembler) == bool(known)
    starts = [(sequence - base) & 0xFFFFFFFF for sequence, _ in assembler._ranges]
    ends = [start + len(data) for start, (_, data) in zip(starts, assembler._ranges, strict=True)]
    assert starts == sorted(starts)
    assert all(end < start for end, start in zip(ends, starts[1:], strict=False))
    got = bytearray()
    while (data := assembler.take((base + taken_to + len(got)) & 0xFFFFFFFF)) is not None:
        got += data
    end = taken_to
    while end in known:
        end += 1
    assert got == STREAM[taken_to:end]
    assert assembler.octets == len({x for x in known if x > end})


def test_the_first_octets_of_a_place_stay():
    """An overlap must not change what was there: inspection elsewhere may have seen only the first (RFC 1858)."""
    assembler = Assembler()
    assembler.add(0, 10, b"AAAA")
    assembler.add(0, 8, b"bbbbbbbb")
    assert assembler.take(8) == b"bbAAAAbb"


def test_adjoining_segments_are_one_range():
    assembler = Assembler()
    for start in (10, 30, 20, 0, 50):
        assembler.add(0, start + 5, bytes([start]) * 10)
    assert assembler.blocks(9) == [(55, 65), (5, 45)]
    assert len(assembler._ranges) == 2


def test_the_block_of_the_newest_segment_comes_first():
    """RFC 2018 section 4."""
    assembler = Assembler()
    for start in (10, 30, 50, 70, 90, 20):
        assembler.add(0, start, b"x" * 5)
    assert assembler.blocks(4) == [(20, 25), (90, 95), (70, 75), (50, 55)]
    assembler.add(0, 92, b"x" * 10)
    assert assembler.blocks(3) == [(90, 102), (20, 25), (70, 75)]
    assert len(assembler.blocks(9)) == 6


def test_ranges_are_bounded():
    assembler = Assembler()
    for i in range(1000):
        assembler.add(0, 2 + 2 * i, b"x")
    assert (assembler.octets, assembler.dropped) == (MAX_RANGES, 1000 - MAX_RANGES)


def test_octets_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(assembler_module, "MAX_OCTETS", 100)
    assembler = Assembler()
    assembler.add(0, 10, bytes(60))
    assembler.add(0, 100, bytes(60))
    assert (assembler.octets, assembler.dropped) == (60, 1)
    assert MAX_OCTETS >= 1 << 20


def test_data_is_copied():
    frame = bytearray(b"abc")
    assembler = Assembler()
    assembler.add(0, 1, memoryview(frame))
    frame[:] = b"\xdd\xdd\xdd"
    assert assembler.take(1) == b"abc"


def test_clear():
    assembler = Assembler()
    assembler.add(0, 1, b"abc")
    assembler.clear()
    assert not assembler
    assert assembler.octets == 0

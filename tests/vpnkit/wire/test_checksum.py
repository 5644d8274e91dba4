from __future__ import annotations

import random
import struct
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.utils import checksum as scapy_checksum

from vpnkit.wire import checksum as implementation
from vpnkit.wire.checksum import (
    ORDINARY,
    SLICE,
    TINY,
    checksum,
    data_sum,
    enable_fast_sums,
    fold,
    is_valid,
    numpy_sum,
    ones_sum,
    sum_by_slices,
)

BUFFERS = st.binary(max_size=200) | st.lists(st.sampled_from([0, 0xFF]), max_size=64).map(bytes)


def by_words(data: bytes) -> int:
    """RFC 1071 section 4.1, word for word."""
    if len(data) & 1:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(BUFFERS)
def test_the_sum_is_that_of_the_words(data):
    assert ones_sum(data) % 65535 == by_words(data) % 65535


@given(BUFFERS)
def test_the_checksum_is_scapys(data):
    """Zero has two representations; ours is the one that UDP demands."""
    assert checksum(ones_sum(data)) == (scapy_checksum(data) or 0xFFFF)


@given(BUFFERS)
def test_fold_is_the_complement(data):
    total = ones_sum(data)
    assert fold(total) ^ 0xFFFF == checksum(total) % 65535


@given(st.binary(min_size=2, max_size=100).filter(lambda data: len(data) % 2 == 0), st.integers(0, 2**20))
def test_what_carries_its_checksum_is_valid(data, pseudo):
    whole = data + checksum(ones_sum(data) + pseudo).to_bytes(2, "big")
    assert is_valid(whole, pseudo)
    for i in range(0, len(whole) * 8, 7):
        flipped = bytearray(whole)
        flipped[i // 8] ^= 1 << (i % 8)
        assert not is_valid(flipped, pseudo)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer(kind):
    assert ones_sum(kind(b"\x12\x34\x56")) == 0x1234 + 0x5600


def test_nothing():
    assert ones_sum(b"") == 0
    assert checksum(0) == fold(0) == 0xFFFF


# Around every length at which another way is taken; odd ones too, and what the largest frame can carry.
EDGES = sorted(
    {edge + off for edge in (0, TINY, ORDINARY, SLICE, 2 * SLICE, 65480) for off in range(-3, 4)} - {-3, -2, -1}
)


def octets(length: int, seed: int) -> bytes:
    return b"\xff" * length if seed == 0 else random.Random(seed).randbytes(length)


def views(data: bytes):
    """The same octets in every kind of buffer, one of them at an odd address and writable."""
    yield data
    yield bytearray(data)
    yield memoryview(data)
    yield memoryview(bytearray(b"xyz" + data + b"xyz"))[3 : 3 + len(data)]


def agree(data: bytes, implementations) -> None:
    wanted = by_words(data) % 65535
    for implementation_ in implementations:
        for view in views(data):
            assert implementation_(view) % 65535 == wanted


@pytest.mark.parametrize("length", EDGES)
def test_every_length_is_summed_alike(length):
    for seed in range(3):
        agree(octets(length, seed), (ones_sum, data_sum, sum_by_slices))


@given(st.integers(0, 70000), st.integers(0, 2**32))
@example(65549, 0)
def test_any_length_is_summed_alike(length, seed):
    agree(octets(length, seed), (ones_sum, data_sum, sum_by_slices))


@pytest.mark.parametrize("length", [0, 1, TINY + 1, ORDINARY, ORDINARY + 1, 65535])
def test_a_sum_for_adding_is_short(length):
    """So that the one division that follows is of a few digits."""
    for total in (data_sum(octets(length, 0)), sum_by_slices(octets(length, 0))):
        assert 0 <= total.bit_length() <= 8 * TINY + 8
    assert 0 <= ones_sum(octets(length, 0)) < 65535


@pytest.fixture(scope="module")
def by_numpy():
    pytest.importorskip("numpy")
    return numpy_sum()


class TestNumpy:
    def test_every_length(self, by_numpy):
        for length in EDGES:
            for seed in range(3):
                agree(octets(length, seed), (by_numpy,))

    @given(length=st.integers(0, 70000), seed=st.integers(0, 2**32))
    def test_any_length(self, by_numpy, length, seed):
        agree(octets(length, seed), (by_numpy,))

    def test_the_buffer_is_free_again(self, by_numpy):
        data = bytearray(4096)
        by_numpy(data)
        data.extend(b"more")  # a BufferError if an array still looked at it

    def test_enabled(self, by_numpy, monkeypatch):
        monkeypatch.setattr(implementation, "_large", sum_by_slices)
        assert enable_fast_sums()
        assert implementation._large is not sum_by_slices
        for length in EDGES:
            agree(octets(length, 1), (ones_sum, data_sum))


def test_without_numpy_nothing_changes(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    monkeypatch.setattr(implementation, "_large", sum_by_slices)
    assert not enable_fast_sums()
    assert implementation._large is sum_by_slices
    assert ones_sum(b"\x12\x34" * 32768) == 0x1234 * 32768 % 65535


def test_nobody_imports_numpy_unasked():
    code = "import sys, vpnkit.wire.checksum, vpnkit.wire.tcp; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import checksum as scapy_checksum

from vpnkit.wire.checksum import checksum, fold, is_valid, ones_sum

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

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import UDP

from vpnkit.errors import WireError
from vpnkit.wire import udp

PORT = st.integers(0, 65535)


@given(PORT, PORT, st.binary(max_size=64), st.binary(max_size=10))
def test_scapys_datagram_with_padding(source, destination, payload, padding):
    datagram = bytes(UDP(sport=source, dport=destination, len=8 + len(payload), chksum=0x1234) / payload)
    assert udp.decode(memoryview(datagram + padding)) == (source, destination, 0x1234, payload)


@given(st.binary(max_size=40))
def test_anything_is_a_datagram_or_an_error(data):
    try:
        *_, payload = udp.decode(memoryview(data))
    except WireError:
        return
    assert len(payload) <= len(data) - udp.HEADER.size


@pytest.mark.parametrize("length", [0, 7, 13])
def test_lengths_that_disagree(length):
    with pytest.raises(WireError):
        udp.decode(memoryview(udp.HEADER.pack(1, 2, length, 0) + b"data"))

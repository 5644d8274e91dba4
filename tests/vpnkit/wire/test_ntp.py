"""NTP packets, and that scapy reads them as we do."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.ntp import NTPHeader

from vpnkit.errors import WireError
from vpnkit.wire import ntp
from vpnkit.wire.ntp import NtpPacket

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
EXPONENT = st.integers(-128, 127)
PACKETS = st.builds(
    NtpPacket,
    st.integers(0, 3),
    st.integers(0, 7),
    st.integers(0, 7),
    st.integers(0, 255),
    EXPONENT,
    EXPONENT,
    U32,
    U32,
    st.binary(min_size=4, max_size=4),
    U64,
    U64,
    U64,
    U64,
)


@given(PACKETS, st.binary(max_size=30))
def test_there_and_back(packet, rest):
    assert ntp.decode(packet.encode() + rest) == packet


@given(PACKETS)
def test_scapy_agrees(packet):
    read = NTPHeader(packet.encode())
    assert (read.leap, read.version, read.mode, read.stratum) == (
        packet.leap,
        packet.version,
        packet.mode,
        packet.stratum,
    )
    assert tuple(map(read.getfieldval, ("ref", "orig", "recv", "sent"))) == (
        packet.reference,
        packet.origin,
        packet.receive,
        packet.transmit,
    )


@given(st.binary(max_size=47))
def test_a_cut_packet(data):
    with pytest.raises(WireError):
        ntp.decode(memoryview(data))


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), 2_208_988_800 << 32),
        (datetime(2000, 1, 1, tzinfo=UTC), 3_155_673_600 << 32),  # RFC 5905 figure 4
        (datetime(2036, 2, 7, 6, 28, 15, tzinfo=UTC), 0xFFFFFFFF << 32),
        (datetime(2036, 2, 7, 6, 28, 16, 500_000, tzinfo=UTC), 1 << 31),  # half a second into era 1
    ],
)
def test_timestamps(moment, expected):
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    assert ntp.timestamp((since.days * 86400 + since.seconds) * 10**9 + since.microseconds * 1000) == expected

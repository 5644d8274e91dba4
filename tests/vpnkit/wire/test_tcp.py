from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from vpnkit.errors import WireError
from vpnkit.wire import ipv4
from vpnkit.wire.checksum import fold, is_valid
from vpnkit.wire.tcp import (
    ACK,
    DEFAULT_MSS,
    HEADER,
    PSH,
    RST,
    SYN,
    FrameTemplate,
    SynOptions,
    decode,
    decode_sack,
    decode_syn_options,
    encode_sack,
)

NUMBER, PORT, FIELD = st.integers(0, 2**32 - 1), st.integers(0, 65535), st.integers(0, 65535)
ADDRESS = st.binary(min_size=4, max_size=4)
MACS = (b"\x02\x50\0\0\0\x01", bytes.fromhex("f61636bcf9c6"))


def template(source: bytes, destination: bytes, ports: tuple[int, int]) -> FrameTemplate:
    return FrameTemplate(*MACS, source, destination, struct.pack("!HH", *ports))


def recomputed(frame: bytes) -> tuple[int, int]:
    """The checksums that scapy would give this frame, IP and TCP."""
    read = Ether(frame)
    del read[IP].chksum, read[TCP].chksum
    again = Ether(bytes(read))
    return again[IP].chksum, again[TCP].chksum


def same(one: int, other: int) -> bool:
    return one % 0xFFFF == other % 0xFFFF


class TestTemplate:
    @given(ADDRESS, ADDRESS, st.tuples(PORT, PORT), NUMBER, NUMBER, FIELD, st.binary(max_size=100))
    def test_a_complete_header_is_scapys(self, source, destination, ports, sequence, acknowledgement, window, payload):
        made = template(source, destination, ports)
        for _ in range(2):  # the buffer is used again
            frame = bytes(made.complete_header(sequence, acknowledgement, ACK | PSH, window, payload)) + payload
            read = Ether(frame)
            assert (read.dst, read.src, read.type) == (MACS[0].hex(":"), MACS[1].hex(":"), 0x0800)
            ip, tcp = read[IP], read[TCP]
            assert (ip.len, ip.flags, ip.ttl, ip.proto, ip.ihl) == (40 + len(payload), "DF", 64, 6, 5)
            assert (tcp.sport, tcp.dport, tcp.seq, tcp.ack) == (*ports, sequence, acknowledgement)
            assert (tcp.flags, tcp.window, tcp.urgptr, tcp.dataofs) == ("PA", window, 0, 5)
            assert bytes(tcp.payload) == payload
            wanted = recomputed(frame)
            assert same(ip.chksum, wanted[0])
            assert same(tcp.chksum, wanted[1])
            sequence, window = sequence ^ 0xFFFFFFFF, window ^ 0xFFFF

    @given(ADDRESS, ADDRESS, st.tuples(PORT, PORT), NUMBER, NUMBER, FIELD, st.integers(0, 65495))
    def test_a_partial_checksum_is_that_of_the_pseudo_header(
        self, source, destination, ports, sequence, acknowledgement, window, length
    ):
        """And the kernel, which adds the rest, ends with the right one."""
        frame = bytes(template(source, destination, ports).header(sequence, acknowledgement, ACK, window, length))
        partial = struct.unpack_from("!H", frame, 50)[0]
        assert partial == fold(ipv4.pseudo_sum(source, destination, 6, 20 + length))
        assert is_valid(frame[14:34])
        assert struct.unpack_from("!H", frame, 16)[0] == 40 + length

    @given(NUMBER, NUMBER, st.sampled_from([SYN, SYN | ACK, RST, RST | ACK]), FIELD, st.sampled_from([None, 0, 7, 14]))
    def test_with_options(self, sequence, acknowledgement, flags, window, scale):
        made = template(bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), (80, 1234))
        options = SynOptions(1460, scale)
        frame = bytes(made.with_options(sequence, acknowledgement, flags, window, options.encode()))
        read = Ether(frame)[TCP]
        assert dict(read.options).get("MSS") == 1460
        assert dict(read.options).get("WScale") == scale
        assert (read.seq, read.ack, int(read.flags), read.window) == (sequence, acknowledgement, flags, window)
        assert not bytes(read.payload)
        assert same(read.chksum, recomputed(frame)[1])
        plain = bytes(made.with_options(sequence, acknowledgement, flags, window, b""))
        assert same(Ether(plain)[TCP].chksum, recomputed(plain)[1])
        assert len(plain) == FrameTemplate.SIZE


@given(PORT, PORT, NUMBER, NUMBER, st.integers(0, 255), FIELD, st.binary(max_size=50))
def test_scapys_segment(source, destination, sequence, acknowledgement, flags, window, payload):
    options = [("MSS", 1400), ("NOP", None), ("WScale", 9), ("SAckOK", b""), ("Timestamp", (1, 2))]
    data = bytes(
        TCP(
            sport=source,
            dport=destination,
            seq=sequence,
            ack=acknowledgement,
            flags=flags,
            window=window,
            options=options,
        )
        / payload
    )
    segment = decode(memoryview(data))
    assert (segment.source_port, segment.destination_port) == (source, destination)
    assert (segment.sequence, segment.acknowledgement) == (sequence, acknowledgement)
    assert (segment.flags, segment.window, segment.payload) == (flags, window, payload)
    assert decode_syn_options(segment.options) == SynOptions(1400, 9, True)


@given(st.binary(max_size=80))
def test_anything_is_a_segment_or_an_error(data):
    try:
        segment = decode(memoryview(data))
    except WireError:
        return
    assert HEADER.size + len(segment.options) + len(segment.payload) == len(data)


class TestOptions:
    @given(st.binary(max_size=40))
    def test_any_octets_are_options_or_an_error(self, data):
        try:
            options = decode_syn_options(data)
        except WireError:
            return
        assert 0 <= options.mss <= 65535
        assert options.window_scale is None or 0 <= options.window_scale <= 14

    @given(st.integers(0, 65535), st.none() | st.integers(0, 14), st.booleans())
    def test_round_trip(self, mss, scale, sack):
        encoded = SynOptions(mss, scale, sack).encode()
        assert len(encoded) % 4 == 0
        assert decode_syn_options(encoded) == SynOptions(mss, scale, sack)

    def test_none(self):
        assert decode_syn_options(b"") == SynOptions(DEFAULT_MSS, None)

    @pytest.mark.parametrize("kind", [2, 3, 4, 5, 8, 34, 253, 254])
    @pytest.mark.parametrize("rest", [b"", b"\x00", b"\x01", b"\x03", b"\x05\x00\x00", b"\xff\x00"])
    def test_illegal_lengths(self, kind, rest):
        with pytest.raises(WireError, match="length"):
            decode_syn_options(bytes([1, kind]) + rest)

    @pytest.mark.parametrize("kind", [5, 6, 8, 34, 200, 253])
    def test_unknown_ones_are_passed_over(self, kind):
        for shift in range(4):
            data = bytes([1] * shift + [kind, 5, 1, 2, 3]) + SynOptions(1200, 5).encode()
            assert decode_syn_options(data) == SynOptions(1200, 5)

    def test_known_ones_of_a_strange_length_are_passed_over(self):
        assert decode_syn_options(bytes([2, 3, 9, 3, 4, 1, 1])) == SynOptions()

    def test_behind_the_end_nothing_counts(self):
        assert decode_syn_options(b"\x00\x02\x04\x05\xb4") == SynOptions()

    def test_a_scale_above_14(self):
        assert decode_syn_options(b"\x03\x03\xff").window_scale == 14


class TestSack:
    @given(st.lists(st.tuples(NUMBER, NUMBER), max_size=4))
    def test_round_trip(self, blocks):
        encoded = encode_sack(blocks)
        assert len(encoded) % 4 == 0
        assert len(encoded) <= 40
        assert decode_sack(encoded) == tuple(blocks)

    @given(st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=4))
    def test_scapy_reads_the_same(self, blocks):
        made = template(bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), (80, 1234))
        read = Ether(bytes(made.with_options(1, 2, ACK, 3, encode_sack(blocks))))[TCP]
        assert dict(read.options)["SAck"] == tuple(edge for block in blocks for edge in block)

    @given(st.binary(max_size=40))
    def test_any_octets_are_blocks_or_an_error(self, data):
        try:
            blocks = decode_sack(data)
        except WireError:
            return
        assert len(blocks) <= 4

    def test_behind_others(self):
        assert decode_sack(bytes([1, 8, 10, *range(8)]) + encode_sack([(5, 9)])) == ((5, 9),)

    @pytest.mark.parametrize("length", [2, 9, 11, 17])
    def test_half_a_block_is_no_block(self, length):
        assert decode_sack(bytes([5, length]) + bytes(length - 2)) == ()

"""Reassembly of IPv6: RFC 8200 section 4.5, RFC 5722, RFC 6946, RFC 7112; conformance.md 2.3 and B13."""

from __future__ import annotations

import gc
import random
import struct
import tracemalloc
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, fragment6
from scapy.packet import Raw

from tests.vpnkit.proto.test_reassembly import PIECES, Oracle
from vpnkit.errors import WireError
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.reassembly import FRAGMENT_OVERHEAD, HIGH_WATER, LOW_WATER, MAX_RUNS, OVERHEAD
from vpnkit.proto.reassembly6 import TIMEOUT, Reassembler6
from vpnkit.wire import ipv6

GUEST = bytes.fromhex("fd657670 6e6b0000 00000000 00000003")
REMOTE = bytes.fromhex("20010db8 00000000 00000000 00000009")
PLAIN = 99  # a protocol that we do not know: nothing is asked of its header
PADDING = b"\x01\x04\0\0\0\0"  # PadN: the options of an extension header of 8 octets
DATA = bytes(i % 251 for i in range(4000))


def octets(
    start: int,
    payload: bytes,
    *,
    more: bool,
    identification: int = 1,
    following: int = PLAIN,
    before: bytes = b"",  # extension headers before the Fragment header; the first is Hop-by-Hop Options
    ttl: int = 64,
    tos: int = 0,
    source: bytes = GUEST,
) -> bytes:
    header = struct.pack("!BBHI", following, 0, start | more, identification)
    behind = before + header + payload
    kind = ipv6.HOP_BY_HOP if before else ipv6.FRAGMENT
    return bytes(ipv6.encode_header(source, REMOTE, kind, len(behind), ttl=ttl, tos=tos)) + behind


def fragment(start: int, payload: bytes, *, more: bool, **fields: object) -> ipv6.Ipv6Packet:
    return ipv6.decode(memoryview(octets(start, payload, more=more, **fields)))


def cut(data: bytes, *places: int, **fields: object) -> list[ipv6.Ipv6Packet]:
    borders = [0, *places, len(data)]
    return [fragment(start, data[start:end], more=end < len(data), **fields) for start, end in pairwise(borders)]


class Lab:
    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.given_up: list[bytes] = []
        self.core = Reassembler6(lambda what: self.counters.update([what]), self.given_up.append)
        self.now = 0.0

    def add(self, *fragments: ipv6.Ipv6Packet) -> list[ipv6.Ipv6Packet]:
        made = [self.core.add(one, self.now) for one in fragments]
        return [one for one in made if one is not None]


@pytest.fixture
def lab():
    return Lab()


class TestWhole:
    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2), (0, 2, 1), (2, 0, 1)])
    def test_any_order(self, lab, order):
        parts = cut(DATA, 1480, 2960)
        (whole,) = lab.add(*(parts[i] for i in order))
        assert whole.payload == DATA
        assert (whole.protocol, whole.source, whole.destination) == (PLAIN, GUEST, REMOTE)
        assert (whole.is_fragment, whole.fragmented) == (False, True)
        assert not len(lab.core)
        assert lab.core.octets == 0
        assert lab.core.next_deadline() == NEVER

    def test_the_header_is_the_first_fragments_and_has_no_fragment_header(self, lab):
        before = b"\x2c\x00" + PADDING
        (whole,) = lab.add(
            fragment(1480, DATA[1480:], more=False, ttl=9, following=6),
            fragment(0, DATA[:1480], more=True, ttl=7, tos=0xB8, before=before),
        )
        assert (whole.ttl, whole.tos, whole.protocol) == (7, 0xB8, PLAIN)
        assert whole.header[40:] == bytes((PLAIN, 0)) + PADDING
        assert whole.next_header_at == 40
        again = ipv6.decode(memoryview(bytes(whole.header) + bytes(whole.payload)))
        assert (again.payload, again.protocol) == (DATA, PLAIN)

    def test_extension_headers_in_the_fragmentable_part(self, lab):
        data = bytes((PLAIN, 0)) + PADDING + DATA
        (whole,) = lab.add(*cut(data, 1480, following=ipv6.DESTINATION_OPTIONS)[::-1])
        assert (whole.payload, whole.protocol, len(whole.header)) == (DATA, PLAIN, 48)

    def test_options_are_looked_at_when_it_is_whole(self, lab):
        first, second = cut(
            bytes((PLAIN, 0, 0x8A)) + bytes(5) + DATA,
            1480,
            following=ipv6.DESTINATION_OPTIONS,
            before=b"\x2c\x00" + PADDING,
        )
        assert lab.add(first) == []
        with pytest.raises(ipv6.Ipv6ParameterProblem) as caught:
            lab.add(second)
        assert (caught.value.code, caught.value.pointer) == (ipv6.UNRECOGNIZED_OPTION, 50)
        assert caught.value.quoted[50] == 0x8A
        assert not len(lab.core)
        assert lab.core.octets == 0

    def test_the_views_of_fragments_may_die(self, lab):
        frames = [bytearray(octets(0, DATA[:1480], more=True)), bytearray(octets(1480, DATA[1480:], more=False))]
        made = None
        for frame in frames:
            made = lab.core.add(ipv6.decode(memoryview(frame)), 0.0)
            frame[:] = b"\xee" * len(frame)
        assert made is not None
        assert (made.payload, made.source) == (DATA, GUEST)

    @pytest.mark.parametrize("what", [{"identification": 1 << 31 | 1}, {"source": REMOTE}])
    def test_fragments_of_others_are_not_mixed_in(self, lab, what):
        ours, theirs = cut(DATA, 1480), cut(DATA[::-1], 1480, **what)
        (one,) = lab.add(ours[0], theirs[0], ours[1])
        (other,) = lab.add(theirs[1])
        assert (one.payload, other.payload) == (DATA, DATA[::-1])

    def test_the_next_header_of_others_than_the_first_does_not_matter(self, lab):
        (whole,) = lab.add(fragment(8, b"rest", more=False, following=17), fragment(0, bytes(8), more=True))
        assert whole.protocol == PLAIN

    def test_the_largest(self, lab):
        data = random.Random(1).randbytes(65535)
        (whole,) = lab.add(*cut(data, *range(1448, 65535, 1448)))
        assert whole.payload == data

    def test_8192_fragments(self, lab):
        (whole,) = lab.add(*cut(bytes(65535), *range(8, 65535, 8)))
        assert len(whole.payload) == 65535

    def test_duplicates_are_harmless(self, lab):
        first, second, third = cut(DATA, 1480, 2960)
        (whole,) = lab.add(first, first, third, third, second)
        assert whole.payload == DATA
        assert lab.counters["fragment_duplicate"] == 2

    def test_scapys_fragments(self, lab):
        packet = IPv6(src="fd65::3", dst="2001:db8::9") / IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment(id=5)
        packet /= IPv6ExtHdrDestOpt(nh=PLAIN) / Raw(DATA)
        (whole,) = lab.add(*(ipv6.decode(memoryview(bytes(one))) for one in fragment6(packet, 1280)))
        assert (whole.protocol, whole.payload) == (PLAIN, DATA)


class TestRules:
    def dead(self, lab, why: str, *rest: ipv6.Ipv6Packet) -> None:
        """The packet is dropped, and so is what comes later; it waits for its time and tells nobody."""
        assert lab.counters[why] == 1
        assert lab.core.octets == OVERHEAD * len(lab.core)
        assert lab.add(*rest) == []
        assert lab.counters["fragment_of_dropped"] == len(rest)
        lab.core.on_deadline(TIMEOUT)
        assert not len(lab.core)
        assert lab.given_up == []

    @pytest.mark.parametrize(
        ("start", "length", "more"),
        [
            (8, 16, True),
            (0, 8, True),  # as the first one, with other octets
            (8, 3992, False),
            (1472, 16, True),
            (1472, 8, True),
            (1464, 1536, True),
            (2992, 1008, False),
            (0, 2000, True),
        ],
    )
    def test_overlap_rfc5722(self, lab, start, length, more):
        first, middle, last = cut(DATA, 1480, 3000 & ~7)
        lab.add(first, last)
        lab.add(fragment(start, b"\xff" * length, more=more))
        self.dead(lab, "fragment_overlap", middle, first, last)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ((1480, 520, False), (1480, 528, False)),
            ((1480, 520, False), (2000, 8, True)),
            ((2000, 8, True), (1480, 520, False)),
            ((2000, 80, False), (1480, 8, False)),
        ],
    )
    def test_two_ends(self, lab, one, other):
        for start, length, more in (one, other):
            lab.add(fragment(start, bytes(length), more=more))
        self.dead(lab, "fragment_inconsistent")

    def test_too_large_by_the_headers_of_the_first(self, lab):
        parts = cut(bytes(65535), *range(1448, 65535, 1448))
        before = b"\x2c\x00" + PADDING
        assert lab.add(*parts[1:], fragment(0, bytes(1448), more=True, before=before)) == []
        assert lab.counters["fragment_too_large"] == 1
        assert (len(lab.core), lab.core.octets) == (0, 0)

    def test_too_large_by_the_headers_of_a_first_that_came_first(self, lab):
        before = b"\x2c\x00" + PADDING
        parts = cut(bytes(65535), *range(1448, 65535, 1448))
        assert lab.add(fragment(0, bytes(1448), more=True, before=before), *parts[1:]) == []
        assert lab.counters == {"fragment_too_large": 1}
        assert not len(lab.core)

    @pytest.mark.parametrize(("start", "more"), [(0, True), (8, True), (8, False), (65528, False)])
    def test_empty_ones_change_nothing(self, lab, start, more):
        lab.add(fragment(start, b"", more=more))
        assert lab.counters == {"fragment_malformed": 1}
        assert not len(lab.core)

    def test_atomic_fragments_are_no_part_of_others_rfc6946(self, lab):
        lab.add(fragment(0, bytes(16), more=True))
        assert not fragment(0, b"atomic", more=False).is_fragment
        (whole,) = lab.add(fragment(16, b"rest", more=False))
        assert whole.payload == bytes(16) + b"rest"


class TestBounds:
    def test_holes(self, lab):
        lab.add(*(fragment(16 * i, bytes(8), more=True) for i in range(MAX_RUNS)))
        assert lab.counters == {}
        lab.add(fragment(16 * MAX_RUNS, bytes(8), more=True))
        assert lab.counters == {"fragment_holes": 1}
        assert lab.core.octets == OVERHEAD

    def test_memory(self, lab):
        for i in range(200):
            lab.add(fragment(0, bytes(60_000), more=True, identification=i))
            assert lab.core.octets <= HIGH_WATER
        kept = len(lab.core)
        assert LOW_WATER // 61_152 <= kept <= HIGH_WATER // 61_152
        assert lab.counters["fragment_evicted"] == 200 - kept
        assert lab.add(fragment(60_000, b"end", more=False, identification=0)) == []  # the oldest went
        (whole,) = lab.add(fragment(60_000, b"end", more=False, identification=199))
        assert len(whole.payload) == 60_003

    def test_an_offset_far_out_costs_no_more(self, lab):
        lab.add(*(fragment(65496, bytes(8), more=True, identification=i) for i in range(1000)))
        assert lab.core.octets == 1000 * (OVERHEAD + FRAGMENT_OVERHEAD + 8)
        assert lab.counters == {}

    @pytest.mark.slow
    @pytest.mark.parametrize("shape", ["first", "scattered", "duplicates", "overlaps", "tiny"])
    def test_a_million_hostile_fragments_cost_no_memory(self, lab, shape):
        """200,000 of each shape; what is held after the first quarter is what is held at the end."""
        middle = 0
        tracemalloc.start()
        try:
            for i in range(200_000):
                identification, start, length = {
                    "first": (i, 0, 8),
                    "scattered": (1 + i // 8000, (i * 16) % 65504, 8),
                    "duplicates": (1, 0, 8),
                    "overlaps": (1 + i // 1000, 8 * (i & 1), 16),
                    "tiny": (i // 8000, (i % 8000) * 8, 8),
                }[shape]
                packet = hostile(identification, start, length)
                lab.core.add(packet, i / 2000)
                lab.core.on_deadline(i / 2000)
                if i == 50_000:
                    middle = held()
            assert held() - middle < HIGH_WATER - LOW_WATER + 200_000
        finally:
            tracemalloc.stop()
        assert lab.core.octets <= HIGH_WATER
        assert len(lab.core) <= HIGH_WATER // OVERHEAD


def held() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


ZEROES = memoryview(bytes(64))


def hostile(identification: int, start: int, length: int) -> ipv6.Ipv6Packet:
    number = ipv6.Fragment(start, True, identification & 0xFFFFFFFF)
    return ipv6.Ipv6Packet(ZEROES[:48], ZEROES[:length], 0, 0, 64, PLAIN, GUEST, REMOTE, number, 40, 40)


class TestTime:
    def test_time_exceeded_quotes_the_first(self, lab):
        first, second, _ = cut(DATA, 1480, 2960)
        lab.add(second, first)
        assert lab.core.next_deadline() == TIMEOUT
        lab.core.on_deadline(TIMEOUT - 0.1)
        assert lab.given_up == []
        lab.core.on_deadline(TIMEOUT)
        (quoted,) = lab.given_up
        assert quoted[: ipv6.QUOTE_LIMIT] == (bytes(first.header) + bytes(first.payload))[: ipv6.QUOTE_LIMIT]
        assert lab.counters == {"fragment_timeout": 1}
        assert not len(lab.core)

    def test_the_quote_has_the_headers_behind_the_fragment_header(self, lab):
        first = fragment(0, bytes((PLAIN, 0)) + PADDING + bytes(8), more=True, following=ipv6.DESTINATION_OPTIONS)
        lab.add(first)
        lab.core.on_deadline(TIMEOUT)
        assert lab.given_up == [bytes(first.header) + bytes(first.payload)]

    def test_nothing_is_said_without_the_first(self, lab):
        lab.add(*cut(DATA, 1480, 2960)[1:])
        lab.core.on_deadline(TIMEOUT)
        assert lab.given_up == []
        assert lab.counters == {"fragment_timeout": 1}

    def test_the_time_counts_from_the_first_that_came(self, lab):
        first, second, third = cut(DATA, 1480, 2960)
        lab.add(second)
        lab.now = TIMEOUT - 1
        lab.add(first)
        assert lab.core.next_deadline() == TIMEOUT
        lab.core.on_deadline(TIMEOUT)
        assert lab.add(third) == []


@settings(max_examples=500)
@given(PIECES)
def test_as_the_oracle(pieces):
    lab, oracle = Lab(), Oracle()
    for place, length, more, kind in pieces:
        start = place * 8
        data = bytes((start + i + 100 * kind) % 256 for i in range(length))
        if more and length % 8:
            with pytest.raises(ipv6.Ipv6ParameterProblem):
                fragment(start, data, more=more)
            continue
        one = fragment(start, data, more=more)
        if not one.is_fragment:
            assert one.payload == data
            continue
        wanted = oracle.add(start, data, more)
        made = lab.add(one)
        assert [bytes(whole.payload) for whole in made] == ([] if wanted is None else [wanted])
        if wanted is not None:
            assert not len(lab.core)
            oracle = Oracle()
    lab.core.on_deadline(TIMEOUT)
    assert (len(lab.core), lab.core.octets) == (0, 0)


@settings(max_examples=200)
@given(st.binary(min_size=1, max_size=600), st.integers(1, 9), st.randoms(use_true_random=False))
def test_what_our_own_fragmentation_makes(data, eighths, rng):
    header = ipv6.encode_header(GUEST, REMOTE, PLAIN, len(data))
    parts = ipv6.fragments(header, data, 48 + 8 * eighths, 77)
    if len(parts) == 1:
        return
    rng.shuffle(parts)
    lab = Lab()
    (whole,) = lab.add(*(ipv6.decode(memoryview(b"".join(part))) for part in parts))
    assert whole.payload == data


@settings(max_examples=500)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 0, 8, 16]),
            st.binary(max_size=32),
            st.booleans(),
            st.sampled_from([PLAIN, 6, 17, 58, 0, 43, 44, 60]),
            st.sampled_from([b"", b"\x2c\x00" + PADDING, b"\x3c\x00" + PADDING + b"\x2c\x00" + PADDING]),
        ),
        max_size=8,
    )
)
def test_any_fragments_make_whole_packets_or_errors(pieces):
    lab = Lab()
    for start, data, more, following, before in pieces:
        try:
            one = fragment(start, data, more=more, following=following, before=before)
            if one.is_fragment:
                for whole in lab.add(one):
                    assert not whole.is_fragment
                    assert whole.protocol not in ipv6.CHAINED
        except WireError:
            pass
    lab.core.on_deadline(TIMEOUT)
    assert (len(lab.core), lab.core.octets) == (0, 0)

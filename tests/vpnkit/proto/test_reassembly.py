"""Reassembly: RFC 791, RFC 1122 section 3.3.2, RFC 5722; conformance.md 2.3 and B13."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpnkit.proto import reassembly
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.reassembly import FRAGMENT_OVERHEAD, HIGH_WATER, LOW_WATER, MAX_RUNS, OVERHEAD, TIMEOUT, Reassembler
from vpnkit.wire import ipv4
from vpnkit.wire.checksum import checksum, is_valid, ones_sum

GUEST, REMOTE = bytes([192, 168, 65, 3]), bytes([9, 9, 9, 9])


def fragment(
    start: int,
    payload: bytes,
    *,
    more: bool,
    identification: int = 1,
    protocol: int = ipv4.UDP,
    options: bytes = b"",
    ttl: int = 64,
    tos: int = 0,
    source: bytes = GUEST,
    flags: int = 0,
) -> ipv4.Ipv4Packet:
    header = ipv4.encode_header(
        source,
        REMOTE,
        protocol,
        len(options) + len(payload),
        ttl=ttl,
        tos=tos,
        identification=identification,
        flags_offset=flags | (ipv4.MF if more else 0) | start >> 3,
    )
    header[0] = 0x40 | (20 + len(options)) // 4
    header += options
    header[10:12] = bytes(2)
    header[10:12] = checksum(ones_sum(header)).to_bytes(2, "big")
    return ipv4.decode(memoryview(bytes(header) + payload))


class Lab:
    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.given_up: list[bytes] = []
        self.core = Reassembler(lambda what: self.counters.update([what]), self.given_up.append)
        self.now = 0.0

    def add(self, *fragments: ipv4.Ipv4Packet) -> list[ipv4.Ipv4Packet]:
        made = [self.core.add(one, self.now) for one in fragments]
        return [one for one in made if one is not None]


DATA = bytes(i % 251 for i in range(4000))


def cut(data: bytes, *places: int, **fields: object) -> list[ipv4.Ipv4Packet]:
    borders = [0, *places, len(data)]
    return [fragment(start, data[start:end], more=end < len(data), **fields) for start, end in pairwise(borders)]


@pytest.fixture
def lab():
    return Lab()


class TestWhole:
    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2), (0, 2, 1), (2, 0, 1)])
    def test_any_order_rfc4787_req14(self, lab, order):
        parts = cut(DATA, 1480, 2960)
        (whole,) = lab.add(*(parts[i] for i in order))
        assert whole.payload == DATA
        assert not len(lab.core)
        assert lab.core.octets == 0
        assert lab.core.next_deadline() == NEVER

    def test_the_header_is_the_first_fragments_and_says_that_it_is_whole(self, lab):
        options = b"\x94\x04\0\0"  # router alert
        first, *_ = cut(DATA, 1480, options=options, ttl=7, tos=0xB8)
        (whole,) = lab.add(fragment(1480, DATA[1480:], more=False, ttl=9), first)
        assert (whole.ttl, whole.tos, whole.flags_offset, whole.is_fragment) == (7, 0xB8, 0, False)
        assert whole.header[20:] == options
        assert is_valid(whole.header)
        again = ipv4.decode(memoryview(bytes(whole.header) + bytes(whole.payload)))
        assert again.payload == DATA

    def test_the_views_of_fragments_may_die(self, lab):
        frames = [bytearray(bytes(part.header) + bytes(part.payload)) for part in cut(DATA, 1480)]
        made = None
        for frame in frames:
            made = lab.core.add(ipv4.decode(memoryview(frame)), 0.0)
            frame[:] = b"\xee" * len(frame)
        assert made is not None
        assert made.payload == DATA
        assert made.source == GUEST

    @pytest.mark.parametrize("what", [{"identification": 2}, {"protocol": ipv4.ICMP}, {"source": bytes(4)}])
    def test_fragments_of_others_are_not_mixed_in(self, lab, what):
        ours, theirs = cut(DATA, 1480), cut(DATA[::-1], 1480, **what)
        (one,) = lab.add(ours[0], theirs[0], ours[1])
        (other,) = lab.add(theirs[1])
        assert (one.payload, other.payload) == (DATA, DATA[::-1])

    def test_the_largest(self, lab):
        data = random.Random(1).randbytes(65515)
        (whole,) = lab.add(*cut(data, *range(1480, 65515, 1480)))
        assert whole.payload == data
        assert len(whole.header) + len(whole.payload) == 65535

    def test_8192_fragments(self, lab):
        (whole,) = lab.add(*cut(bytes(65512), *range(8, 65512, 8)))
        assert len(whole.payload) == 65512

    def test_a_last_fragment_of_one_octet(self, lab):
        (whole,) = lab.add(*cut(DATA[:1481], 1480))
        assert whole.payload == DATA[:1481]

    def test_duplicates_are_harmless(self, lab):
        first, second, third = cut(DATA, 1480, 2960)
        (whole,) = lab.add(first, first, third, third, second)
        assert whole.payload == DATA
        assert lab.counters["fragment_duplicate"] == 2


class TestRules:
    def dead(self, lab, why: str, *rest: ipv4.Ipv4Packet) -> None:
        """The datagram is dropped, and so is what comes later; it waits for its time and tells nobody."""
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
            (0, 4000, False),
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

    def test_ping_of_death(self, lab):
        lab.add(fragment(0, bytes(1480), more=True, protocol=ipv4.ICMP))
        lab.add(fragment(65528, bytes(100), more=False, protocol=ipv4.ICMP))
        self.dead(lab, "fragment_too_large")

    def test_too_large_by_the_options_of_the_first(self, lab):
        parts = cut(bytes(65515), *range(1480, 65515, 1480))
        with_options = fragment(0, bytes(1480), more=True, options=b"\x01" * 40)
        assert lab.add(*parts[1:], with_options) == []
        assert lab.counters["fragment_too_large"] == 1
        assert not len(lab.core)

    @pytest.mark.parametrize(
        ("start", "length", "more"), [(0, 0, True), (8, 0, False), (0, 7, True), (16, 1, True), (65528, 0, False)]
    )
    def test_malformed_ones_change_nothing(self, lab, start, length, more):
        lab.add(fragment(start, bytes(length), more=more))
        assert lab.counters == {"fragment_malformed": 1}
        assert not len(lab.core)

    def test_teardrop(self, lab):
        lab.add(fragment(0, bytes(40), more=True), fragment(24, bytes(4), more=False))
        self.dead(lab, "fragment_inconsistent")


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

    @pytest.mark.parametrize("shape", ["first", "scattered", "duplicates", "overlaps", "tiny"])
    def test_a_hundred_thousand_hostile_fragments(self, lab, shape):
        """No cost grows with what came before: the counters of the core say so, not a clock."""
        for i in range(100_000):
            identification, start, octets = {
                "first": (i & 0xFFFF, 0, 8),
                "scattered": (1 + i // 8000, (i * 16) % 65504, 8),
                "duplicates": (1, 0, 8),
                "overlaps": (1, 8 * (i & 1), 16),
                "tiny": (i // 8000, (i % 8000) * 8, 8),
            }[shape]
            packet = ipv4.Ipv4Packet(
                memoryview(bytes(4) + identification.to_bytes(2, "big") + bytes(6) + GUEST + REMOTE),
                memoryview(bytes(octets)),
                0,
                identification,
                ipv4.MF | start >> 3,
                64,
                17,
                GUEST,
                REMOTE,
            )
            lab.core.add(packet, i / 1000)
            lab.core.on_deadline(i / 1000)
        assert lab.core.octets <= HIGH_WATER
        assert len(lab.core) <= HIGH_WATER // OVERHEAD


class TestTime:
    def test_time_exceeded_if_the_first_was_seen_rfc1122_3_3_2(self, lab):
        first, second, _ = cut(DATA, 1480, 2960)
        lab.add(first, second)
        assert lab.core.next_deadline() == TIMEOUT
        lab.core.on_deadline(TIMEOUT - 0.1)
        assert lab.given_up == []
        lab.core.on_deadline(TIMEOUT)
        assert lab.given_up == [bytes(first.header) + DATA[: reassembly.QUOTE_LIMIT]]
        assert lab.counters == {"fragment_timeout": 1}
        assert not len(lab.core)

    @pytest.mark.parametrize(
        ("payload", "destination", "told"),
        [
            (b"\x08" + bytes(7), REMOTE, 1),
            (b"\x03" + bytes(7), REMOTE, 0),
            (b"\x0b" + bytes(7), REMOTE, 0),
            (b"\x08" + bytes(7), bytes([224, 0, 0, 251]), 0),
            (b"\x08" + bytes(7), b"\xff" * 4, 0),
        ],
    )
    def test_nothing_is_said_about_an_error_or_a_group_rfc1122_3_2_2(self, lab, payload, destination, told):
        first = fragment(0, payload, more=True, protocol=ipv4.ICMP)
        header = bytes(first.header[:10]) + bytes(2) + GUEST + destination
        header = header[:10] + checksum(ones_sum(header)).to_bytes(2, "big") + header[12:]
        lab.add(ipv4.decode(memoryview(header + payload)))
        lab.core.on_deadline(TIMEOUT)
        assert len(lab.given_up) == told
        assert lab.counters == {"fragment_timeout": 1}

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

    def test_each_in_its_time(self, lab):
        for i in range(3):
            lab.now = float(i)
            lab.add(fragment(0, bytes(8), more=True, identification=i))
        lab.core.on_deadline(TIMEOUT + 1)
        assert len(lab.core) == 1
        assert lab.core.next_deadline() == TIMEOUT + 2


# A naive oracle: every octet of every datagram by itself


class Oracle:
    """One datagram, octet by octet."""

    def __init__(self) -> None:
        self.octets: dict[int, int] = {}
        self.seen: set[tuple[int, bytes]] = set()
        self.total: int | None = None
        self.dead = False

    def add(self, start: int, data: bytes, more: bool) -> bytes | None:
        if self.dead or not data or (more and len(data) % 8):
            return None
        places = range(start, start + len(data))
        if not more:
            if self.total is not None and self.total != places.stop:
                self.dead = True
                return None
            self.total = places.stop
        taken = [place for place in places if place in self.octets]
        if self.total is not None and max([*self.octets, *places]) >= self.total:
            self.dead = True
        elif taken:
            self.dead = (start, data) not in self.seen
        else:
            self.seen.add((start, data))
            self.octets.update(zip(places, data, strict=True))
        if not self.dead and self.total is not None and len(self.octets) == self.total:
            return bytes(self.octets[i] for i in range(self.total))
        return None


PIECES = st.lists(
    st.tuples(
        st.integers(0, 6),  # where, in units of 8 octets
        st.one_of(st.integers(1, 4).map(lambda n: n * 8), st.integers(0, 30)),
        st.booleans(),
        st.sampled_from([0, 0, 0, 1]),  # whose octets
    ),
    max_size=14,
)


@settings(max_examples=500)
@given(PIECES)
def test_as_the_oracle(pieces):
    lab, oracle = Lab(), Oracle()
    for place, length, more, kind in pieces:
        start = place * 8
        data = bytes((start + i + 100 * kind) % 256 for i in range(length))
        wanted = oracle.add(start, data, more)
        made = lab.add(fragment(start, data, more=more))
        assert [bytes(one.payload) for one in made] == ([] if wanted is None else [wanted])
        if wanted is not None:
            assert not len(lab.core)
            oracle = Oracle()
    lab.core.on_deadline(TIMEOUT)
    assert (len(lab.core), lab.core.octets) == (0, 0)


@settings(max_examples=200)
@given(st.binary(min_size=1, max_size=600), st.integers(1, 9), st.randoms(use_true_random=False))
def test_what_our_own_fragmentation_makes(data, eighths, rng):
    header = ipv4.encode_header(GUEST, REMOTE, 17, len(data), identification=77, flags_offset=0)
    parts = ipv4.fragments(header, data, 20 + 8 * eighths)
    if len(parts) == 1:
        return
    rng.shuffle(parts)
    lab = Lab()
    (whole,) = lab.add(*(ipv4.decode(memoryview(b"".join(part))) for part in parts))
    assert whole.payload == data

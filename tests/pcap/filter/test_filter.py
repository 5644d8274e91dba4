from __future__ import annotations

import random
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcap.filter import MAX_TEXT, FilterError, compile_filter
from pcap.predicates import udp
from tests.pcap.filter.filter_frames import EXPRESSIONS
from tests.pcap.filter.generated import expression
from tests.pcap.frames import ANY_BYTES, FRAMES

WORDS = st.sampled_from([
    "tcp", "udp", "ip", "ip6", "arp", "host", "net", "port", "portrange", "src", "dst", "and", "or", "not", "(",
    ")", "[", "]", ":", "/", "=", "!=", "<", ">", "<<", "+", "-", "*", "&", "|", "len", "less", "proto", "name",
    "broadcast", "inbound", "1.2.3.4", "10.0.0.0", "fd00::1", "80", "0x10", "1-5", "*.example.com", "tcp-syn",
    "\\tcp", "ether", "mask", "%",
])  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(WORDS, max_size=14).map(" ".join),
    st.integers().map(lambda seed: expression(random.Random(seed))),
)


@given(TEXTS, ANY_BYTES)
def test_any_text_is_a_filter_or_wrong_at_a_column(text, frame):
    wanted, column = None, 1
    try:
        wanted = compile_filter(text)
    except FilterError as error:
        column = error.column
    assert 1 <= column <= len(text) + 1
    if wanted is not None:
        assert wanted(frame) in (True, False)
        assert wanted(memoryview(frame)) is wanted(frame)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("tcp prot 80", 5, "expected `and`, `or` or the end, not 'prot'"),
        ("tcp port 70000", 10, "'70000' is no port: 0 to 65535"),
        ("udp and host example.com", 14, "names are not looked up; `name` finds flows by name"),
        ("net 10.1.0.0/8", 5, "10.1.0.0/8 is an address inside its network"),
        ("(tcp or udp", 12, "expected `)`, not the end"),
        ("tcp[13 & 2 != 0", 12, "expected `]`, not '!='"),
        ("(tcp[13) & 2 != 0", 8, "expected `]`, not ')'"),
        ("udp and ip[0:3] = 1", 14, "'3' octets cannot be compared: 1, 2 or 4"),
        ("tcp and ?", 9, "'?' means nothing here"),
        ("vlan 5", 1, "'vlan' is not spoken here"),
        ("name ", 6, "the end is no name like"),
        ("name a..b", 6, "no name like"),
        ("tcp and 53", 9, "has nothing to say what it is"),
        ("ip proto tcp", 10, "a backslash makes 'tcp' a name here: \\tcp"),
    ],
)
def test_an_error_points_at_the_column(text, column, message):
    with pytest.raises(FilterError) as caught:
        compile_filter(text)
    assert (caught.value.column, message in str(caught.value)) == (column, True), str(caught.value)
    line, caret, said = caught.value.explain().split("\n")
    assert line.rstrip() == text.rstrip()
    assert caret.index("^") == column - 1
    assert said == caught.value.message


def test_an_explanation_cannot_write_to_the_terminal():
    with pytest.raises(FilterError) as caught:
        compile_filter("tcp \x1b[2J\n")
    assert "\x1b" not in caught.value.explain()
    assert len(caught.value.explain().split("\n")) == 3


@pytest.mark.parametrize(
    "text",
    ["(" * 1000 + "tcp", "not " * 1000 + "tcp", "len > " + "(" * 500 + "1", "len > " + "- " * 1000 + "1",
     " or ".join(["tcp"] * 600), "tcp" + " and udp or tcp" * 100, "len > " + "+".join(["1"] * 600),
     "x" * (MAX_TEXT + 1)],
)  # fmt: skip
def test_what_is_too_complex_is_refused(text):
    with pytest.raises(FilterError):
        compile_filter(text)


def test_what_is_long_but_flat_is_fine():
    wanted = compile_filter(" or ".join(f"port {number}" for number in range(200)))
    assert wanted(FRAMES["dns query"])
    assert not wanted(FRAMES["udp"])


def test_a_filter_prints_as_it_was_written():
    wanted = compile_filter("udp port 53")
    assert str(wanted) == "udp port 53"
    both = wanted & ~udp(dst_port=53)
    again = eval(repr(both), {"compile_filter": compile_filter, "udp": udp})
    assert repr(again) == repr(both) == "compile_filter('udp port 53') & ~udp(dst_port=53)"
    assert [name for name, frame in FRAMES.items() if again(frame)] == [
        "dns answer",
        "dns refused",
        "dns unknown record",
    ]


def test_directions():
    frame = FRAMES["udp"]
    for text, directions in (("inbound", [1]), ("outbound and udp", [2]), ("not inbound", [0, 2]), ("udp", [0, 1, 2])):
        wanted = compile_filter(text)
        assert [way for way in (0, 1, 2) if wanted(frame, len(frame), way)] == directions


class Book:
    """Names of one address each."""

    def __init__(self, **names: str) -> None:
        self.names = {ip_address(address.replace("_", ".")).packed: name for name, address in names.items()}

    def is_named(self, address: bytes, pattern: str) -> bool:
        return self.names.get(address) == pattern


def test_names_are_asked_for_both_ends():
    book = Book(gateway="192.168.65.1", six="fd65:7670:6e6b::1")
    by_name = compile_filter("name gateway and udp", book)
    assert {name for name, frame in FRAMES.items() if by_name(frame)} == {
        name for name, frame in FRAMES.items() if compile_filter("host 192.168.65.1 and udp")(frame)
    } - {"tagged udp"}
    assert compile_filter("name SIX.", book)(FRAMES["ping6"])
    assert not compile_filter("name six", book)(FRAMES["ping"])
    assert not compile_filter("name gateway")(FRAMES["udp"])


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_of_a_flow_that_is_decided_once_every_packet_says_the_same(text):
    """What else differs between packets of one flow must not matter, where the filter says that it does not."""
    wanted = compile_filter(text)
    if not wanted.of_flow:
        return
    rng = random.Random(1)
    for name in ("tcp data", "udp", "udp6"):
        frame = bytearray(FRAMES[name]) + bytes(30)
        first = wanted(bytes(frame))
        fixed = {*range(12, 15), 20, 21, 23, *range(26, 38)} if frame[12] == 8 else {*range(12, 15), 20, *range(22, 58)}
        for _ in range(20):
            for at in set(range(len(frame))) - fixed:
                frame[at] = rng.randrange(256)
            assert wanted(bytes(frame), rng.randrange(54, 70000)) is first

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcap import predicates
from pcap.predicates import arp, ethertype, everything, host, icmp, icmp6, tcp, udp
from tests.pcap.frames import ANY_BYTES, FRAMES, GATEWAY6, GUEST

DNS = {"dns query", "dns answer", "dns refused", "dns unknown record"}
UDP4 = DNS | {"udp", "tagged udp"}
UDP6 = {"udp6", "udp6 with options", "udp6 first fragment"}
V6 = {*UDP6, "udp6 fragment", "ping6", "solicitation"}
EXPECTED = [
    (everything(), set(FRAMES)),
    (~everything(), set()),
    (udp(), UDP4 | UDP6 | {"fragment", "udp6 fragment"}),
    (udp(port=53), DNS),
    (tcp(port=53), {"dns over tcp"}),
    (udp(port=53) | tcp(port=53), DNS | {"dns over tcp"}),
    (udp(port=2000), {"udp", "tagged udp", *UDP6}),
    (udp(dst_port=53), {"dns query"}),
    (udp(src_port=53, dst_port=40000), DNS - {"dns query"}),
    (udp(src_port=53) & ~udp(dst_port=40000), set()),
    (tcp(), {"dns over tcp", "syn", "tcp data"}),
    (tcp(dst_port=80), {"syn"}),
    (icmp(), {"ping", "unreachable"}),
    (icmp6(), {"ping6", "solicitation"}),
    (arp(), {"arp", "arp reply"}),
    (ethertype(0x86DD), V6),
    (ethertype(0x0800) & udp(port=1000), {"udp", "tagged udp"}),
    (host(GUEST), set(FRAMES) - V6 - {"unknown"}),
    (host(GATEWAY6), V6),
    (host("10.0.0.1"), set()),
]


@pytest.mark.parametrize(("predicate", "wanted"), EXPECTED, ids=lambda value: repr(value) if callable(value) else "")
def test_what_a_predicate_wants(predicate, wanted):
    assert {name for name, frame in FRAMES.items() if predicate(frame)} == wanted
    assert {name for name, frame in FRAMES.items() if predicate(memoryview(frame))} == wanted


LEAVES = st.sampled_from(
    [everything(), arp(), icmp(), icmp6(), udp(), udp(port=53), tcp(src_port=1, dst_port=2), ethertype(0x800),
     host("1.2.3.4"), host("fd00::1")]
)  # fmt: skip
PREDICATES = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(lambda a, b: a & b, inner, inner)
        | st.builds(lambda a, b: a | b, inner, inner)
        | st.builds(lambda a: ~a, inner)
    ),
    max_leaves=8,
)


@given(PREDICATES, ANY_BYTES)
def test_a_predicate_prints_as_it_was_written(predicate, frame):
    again = eval(repr(predicate), vars(predicates).copy())
    assert repr(again) == repr(predicate)
    assert again(frame) is predicate(frame)


@pytest.mark.parametrize(
    ("predicate", "text"),
    [
        (udp(port=53) | tcp(port=53), "udp(port=53) | tcp(port=53)"),
        ((udp() | tcp()) & ~host("1.2.3.4"), "(udp() | tcp()) & ~host('1.2.3.4')"),
        (~(arp() & icmp()) | icmp6(), "~(arp() & icmp()) | icmp6()"),
        (arp() | (icmp() | icmp6()), "arp() | (icmp() | icmp6())"),
        (tcp(src_port=1, dst_port=2), "tcp(src_port=1, dst_port=2)"),
        (ethertype(0x806), "ethertype(0x0806)"),
    ],
)
def test_text(predicate, text):
    assert repr(predicate) == text


@given(st.one_of(PREDICATES, LEAVES), ANY_BYTES)
def test_whatever_the_bytes_a_predicate_says_true_or_false(predicate, frame):
    assert predicate(frame) in (True, False)
    assert predicate(memoryview(frame)) is predicate(frame)


@given(PREDICATES, PREDICATES, ANY_BYTES)
def test_combinations_are_logic(a, b, frame):
    assert (a & b)(frame) is (a(frame) and b(frame))
    assert (a | b)(frame) is (a(frame) or b(frame))
    assert (~a)(frame) is (not a(frame))


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="port=65536 is not a port"):
        udp(port=65536)
    with pytest.raises(ValueError, match="not an EtherType"):
        ethertype(-1)
    with pytest.raises(ValueError, match="host"):
        host("host")
    with pytest.raises(TypeError):
        udp() & (lambda frame: True)

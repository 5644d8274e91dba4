from __future__ import annotations

from ipaddress import ip_address

import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.proto.dns_names import LocalNames, reverse_address
from vpnkit.wire import dns as wire

GUEST = bytes((192, 168, 65, 3))
GATEWAY = bytes((192, 168, 65, 1))
GATEWAY_6 = ip_address("fd65:7670:6e6b::1").packed


def query_bytes(name: str = "example.com", rdtype: str = "A", **options: object) -> bytes:
    return dns.message.make_query(name, rdtype, **({"id": 4660} | options)).to_wire()  # type: ignore[arg-type]


@pytest.fixture
def names() -> LocalNames:
    made = LocalNames([(bytes((192, 168, 65, 0)), 24), (ip_address("fd65:7670:6e6b::").packed, 64)])
    made.add("gateway.internal", GATEWAY, GATEWAY_6)
    made.add("Gateway.Docker.Internal.", GATEWAY)
    made.add("host.internal", bytes((192, 168, 65, 2)))
    made.add_asker("vm.internal")
    return made


def ask(names: LocalNames, name: str, rdtype: str = "A", client: bytes = GUEST, **options: object) -> str | None:
    raw = query_bytes(name, rdtype, **options)
    reply = names.answer(wire.decode_query(raw), client)
    if reply is None:
        return None
    answer = dns.message.from_wire(reply)
    assert dns.message.from_wire(raw).is_response(answer)
    assert answer.question[0].name.to_text().rstrip(".") == name.rstrip(".")
    return " ".join([answer.rcode().name if hasattr(answer.rcode(), "name") else str(answer.rcode())] + [
        str(item) for rrset in answer.answer for item in rrset
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rdtype", "expected"),
    [
        ("gateway.internal", "A", "NOERROR 192.168.65.1"),
        ("gateway.internal", "AAAA", "NOERROR fd65:7670:6e6b::1"),
        ("gateway.internal", "ANY", "NOERROR 192.168.65.1 fd65:7670:6e6b::1"),
        ("GateWay.docker.INTERNAL", "A", "NOERROR 192.168.65.1"),
        ("gateway.docker.internal", "AAAA", "NOERROR"),
        ("gateway.docker.internal", "HTTPS", "NOERROR"),
        ("vm.internal", "A", "NOERROR 192.168.65.3"),
        ("vm.internal", "AAAA", "NOERROR"),
        ("x.vm.internal", "A", None),
        ("example.com", "A", None),
        (".", "NS", None),
        ("localhost", "A", "NOERROR 127.0.0.1"),
        ("a.LOCALHOST", "AAAA", "NOERROR ::1"),
        ("localhost", "MX", "NOERROR"),
        ("notlocalhost", "A", None),
        ("localhost.example.com", "A", None),
        ("1.65.168.192.in-addr.arpa", "PTR", "NOERROR gateway.internal."),
        ("2.65.168.192.in-addr.arpa", "PTR", "NOERROR host.internal."),
        ("3.65.168.192.in-addr.arpa", "PTR", "NOERROR vm.internal."),
        ("4.65.168.192.in-addr.arpa", "PTR", "NXDOMAIN"),
        ("1.65.168.192.in-addr.arpa", "A", "NOERROR"),
        ("1.66.168.192.in-addr.arpa", "PTR", None),
        ("65.168.192.in-addr.arpa", "SOA", None),
        ("1.0.0.127.in-addr.arpa", "PTR", "NOERROR localhost."),
        (ip_address("fd65:7670:6e6b::1").reverse_pointer, "PTR", "NOERROR gateway.internal."),
        (ip_address("fd65:7670:6e6b::9").reverse_pointer, "PTR", "NXDOMAIN"),
        (ip_address("2001:db8::1").reverse_pointer, "PTR", None),
    ],
)
def test_answers(names: LocalNames, name: str, rdtype: str, expected: str | None) -> None:
    assert ask(names, name, rdtype) == expected


def test_the_asker_is_whoever_asks(names: LocalNames) -> None:
    assert ask(names, "vm.internal", client=bytes((192, 168, 65, 9))) == "NOERROR 192.168.65.9"
    assert ask(names, "vm.internal", "AAAA", client=GATEWAY_6) == "NOERROR fd65:7670:6e6b::1"


def test_other_classes_are_not_ours(names: LocalNames) -> None:
    assert ask(names, "gateway.internal", rdclass="CH") is None
    assert ask(names, "1.65.168.192.in-addr.arpa", "PTR", rdclass="CH") is None


def test_edns_versions(names: LocalNames) -> None:
    assert ask(names, "gateway.internal", use_edns=0) == "NOERROR 192.168.65.1"
    assert ask(names, "gateway.internal", use_edns=1) == "BADVERS"


def test_names_come_and_go(names: LocalNames) -> None:
    names.add("db.internal", GUEST)
    names.add("db.internal", GUEST, GATEWAY)
    assert ask(names, "db.internal") == "NOERROR 192.168.65.3 192.168.65.1"
    assert ask(names, "3.65.168.192.in-addr.arpa", "PTR") == "NOERROR db.internal."
    names.remove("DB.internal")
    names.remove("unknown")
    assert ask(names, "db.internal") is None
    assert ask(names, "3.65.168.192.in-addr.arpa", "PTR") == "NOERROR vm.internal."
    assert ask(names, "1.65.168.192.in-addr.arpa", "PTR") == "NOERROR gateway.internal."
    with pytest.raises(ValueError, match="not a domain name"):
        names.add("a..b", GUEST)


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16))
def test_reverse_names_round_trip(address: bytes) -> None:
    assert reverse_address(wire.reverse_name(address)) == address


@pytest.mark.parametrize(
    "name",
    [
        "256.1.1.1.in-addr.arpa",
        "1.1.1.in-addr.arpa",
        "1.1.1.1.1.in-addr.arpa",
        "a.1.1.1.in-addr.arpa",
        "0001.1.1.1.in-addr.arpa",
        "-1.1.1.1.in-addr.arpa",
        "1_1.1.1.1.in-addr.arpa",
        "in-addr.arpa",
        "ip6.arpa",
        "g" + ".0" * 31 + ".ip6.arpa",
        "10" + ".0" * 31 + ".ip6.arpa",
        "arpa",
    ],
)
def test_not_reverse_names(name: str) -> None:
    assert reverse_address(wire.encode_name(name)) is None


@given(st.binary(max_size=60), st.sampled_from([b"", b"\x07in-addr\x04arpa\0", b"\x03ip6\x04arpa\0"]))
def test_any_name(base: bytes, suffix: bytes) -> None:
    reverse_address(base + suffix)

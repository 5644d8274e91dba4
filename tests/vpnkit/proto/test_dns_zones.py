"""Zones of the operator; gvproxy's tests of its own are named in gvproxy.md section 4."""

from __future__ import annotations

import time

import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.proto import dns_zones
from vpnkit.proto.dns_zones import Zone, ZoneError, ZoneRecord, Zones
from vpnkit.wire.dns import decode_query


def record(name: str, ip: str) -> ZoneRecord:
    return ZoneRecord(name, ip)


def ask(zones: Zones, name: str, rdtype: str = "A", rdclass: str = "IN") -> str | None:
    query = dns.message.make_query(name, rdtype, rdclass)
    reply = zones.answer(decode_query(query.to_wire()))
    if reply is None:
        return None
    answer = dns.message.from_wire(reply)
    assert query.is_response(answer)
    return " ".join([answer.rcode().name, *(str(item) for rrset in answer.answer for item in rrset)])


def made(*zones: Zone) -> Zones:
    found = Zones()
    for zone in zones:
        found.add(zone)
    return found


CONTAINERS = Zone("containers.internal.", (record("gateway", "192.168.127.1"), record("host", "192.168.127.254")))


@pytest.mark.parametrize(
    ("name", "rdtype", "expected"),
    [
        ("gateway.containers.internal", "A", "NOERROR 192.168.127.1"),
        ("HOST.Containers.Internal", "A", "NOERROR 192.168.127.254"),  # gvproxy's misses
        ("gateway.containers.internal", "AAAA", "NOERROR"),
        ("gateway.containers.internal", "TXT", "NOERROR"),
        ("nobody.containers.internal", "A", "NXDOMAIN"),
        ("a.gateway.containers.internal", "A", "NXDOMAIN"),
        ("containers.internal", "A", None),
        ("xcontainers.internal", "A", None),
        ("example.com", "A", None),
    ],
)
def test_a_zone_with_records(name: str, rdtype: str, expected: str | None) -> None:
    assert ask(made(CONTAINERS), name, rdtype) == expected


def test_add_zone_with_ip() -> None:
    zones = made(Zone("apps.testing", default_ip="192.168.127.2"))
    assert ask(zones, "anything.apps.testing") == "NOERROR 192.168.127.2"
    assert ask(zones, "any.thing.apps.testing") == "NOERROR 192.168.127.2"
    assert ask(zones, "apps.testing") is None


def test_add_zone_with_record_and_ip() -> None:
    zones = made(Zone("testing", (record("host", "10.0.0.1"),), "10.0.0.2"))
    assert ask(zones, "host.testing") == "NOERROR 10.0.0.1"
    assert ask(zones, "other.testing") == "NOERROR 10.0.0.2"


def test_add_to_existing_zone_with_default_ip() -> None:
    zones = made(Zone("testing", default_ip="10.0.0.2"))
    zones.add(Zone("testing.", default_ip="10.0.0.3"))
    assert zones.list() == [Zone("testing", default_ip="10.0.0.3")]
    zones.add(Zone("testing"))  # a request without one loses it: gvproxy's rule
    assert zones.list() == [Zone("testing")]


def test_add_to_existing_zone_with_records_twice() -> None:
    zones = made(Zone("testing", (record("a", "10.0.0.1"),)))
    zones.add(Zone("Testing", (record("b", "10.0.0.2"),)))
    zones.add(Zone("testing", (record("c", "10.0.0.3"),)))
    assert [r.name for r in zones.list()[0].records] == ["c", "b", "a"]
    assert ask(zones, "a.testing") == "NOERROR 10.0.0.1"


def test_retain_order_of_zones() -> None:
    zones = made(Zone("crc.testing"), Zone("testing", default_ip="10.0.0.9"), Zone("docker.internal"))
    zones.add(Zone("testing", (record("a", "10.0.0.1"),)))
    assert [zone.name for zone in zones.list()] == ["crc.testing", "testing", "docker.internal"]
    assert ask(zones, "x.crc.testing") == "NXDOMAIN"  # the first that it is in


def test_both_families_and_several_addresses() -> None:
    zones = made(Zone("x", (record("a", "10.0.0.1"), record("a", "10.0.0.2"), record("a", "fd00::1"))))
    assert ask(zones, "a.x") == "NOERROR 10.0.0.1 10.0.0.2"
    assert ask(zones, "a.x", "AAAA") == "NOERROR fd00::1"
    assert ask(zones, "a.x", "ANY") == "NOERROR 10.0.0.1 10.0.0.2 fd00::1"
    assert ask(zones, "a.x", "A", "CH") is None


def test_regular_expressions() -> None:
    zones = made(Zone("testing", (ZoneRecord(regexp=r"(.*)\.apps$", ip="10.0.0.7"), record("b.apps", "10.0.0.8"))))
    assert ask(zones, "WWW.Apps.testing") == "NOERROR 10.0.0.7"
    assert ask(zones, "b.apps.testing") == "NOERROR 10.0.0.8"
    assert ask(zones, "apps.testing") == "NOERROR"  # there is something below it (RFC 8020)
    assert ask(zones, "www.testing") == "NXDOMAIN"


def test_wildcards() -> None:
    zones = made(Zone("x", (record("*", "10.0.0.1"), record("*.dev", "10.0.0.2"), record("www.dev", "10.0.0.3"))))
    assert ask(zones, "a.x") == ask(zones, "a.b.x") == "NOERROR 10.0.0.1"
    assert ask(zones, "a.dev.x") == ask(zones, "a.b.dev.x") == "NOERROR 10.0.0.2"
    assert ask(zones, "www.dev.x") == "NOERROR 10.0.0.3"
    assert ask(zones, "dev.x") == "NOERROR 10.0.0.1"


def test_removing() -> None:
    changes: list[int] = []
    zones = Zones(lambda: changes.append(1))
    zones.add(CONTAINERS)
    assert zones.remove("Containers.Internal")
    assert not zones.remove("containers.internal")
    assert ask(zones, "gateway.containers.internal") is None
    assert len(changes) == 2


@pytest.mark.parametrize(
    ("zone", "wrong"),
    [
        (Zone("a", (record("x", "nonsense"),)), "invalid IP address: nonsense"),
        (Zone("a", default_ip="1.2.3"), "invalid IP address: 1.2.3"),
        (Zone("a", (record("", "10.0.0.1"),)), "neither a name"),
        (Zone("a..b"), "not a domain name"),
        (Zone("a", (ZoneRecord(regexp="(", ip="10.0.0.1"),)), "not a regular expression"),
        (Zone("a", (ZoneRecord(regexp="(a+)+$", ip="10.0.0.1"),)), "too long for a name"),
        (Zone("a", (ZoneRecord(regexp=".*.*.*x", ip="10.0.0.1"),)), "too long for a name"),
        (Zone("a", (ZoneRecord(regexp="a" * 257, ip="10.0.0.1"),)), "too long for a name"),
    ],
)
def test_zones_that_cannot_be(zone: Zone, wrong: str) -> None:
    zones = made(CONTAINERS)
    with pytest.raises(ZoneError, match=wrong):
        zones.add(zone)
    assert zones.list() == [CONTAINERS]


def test_zones_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_zones, "MAX_ZONES", 3)
    monkeypatch.setattr(dns_zones, "MAX_RECORDS", 5)
    zones = made(Zone("a"), Zone("b"))
    zones.add(Zone("c", tuple(record(f"r{n}", "10.0.0.1") for n in range(5))))
    with pytest.raises(ZoneError, match="zones already"):
        zones.add(Zone("d"))
    with pytest.raises(ZoneError, match="more than 5"):
        zones.add(Zone("a", (record("x", "10.0.0.1"),)))


def test_the_worst_expression_that_is_taken_is_quick_enough() -> None:
    zones = made(Zone("x", (ZoneRecord(regexp=".*a.*b!", ip="10.0.0.1"),)))
    name = ".".join(["a" * 60, "b" * 60, "a" * 60, "b" * 60, "x"])
    begin = time.process_time()
    assert ask(zones, name) == "NXDOMAIN"
    assert time.process_time() - begin < 2


@given(st.text(max_size=30), st.text(max_size=10), st.text(max_size=12), st.text(max_size=12))
def test_any_zone(name: str, of_record: str, ip: str, regexp: str) -> None:
    zones = Zones()
    try:
        zones.add(Zone(name, (ZoneRecord(of_record, ip or "10.0.0.1", regexp),)))
    except ZoneError:
        assert zones.list() == []
    ask(zones, "www.example")

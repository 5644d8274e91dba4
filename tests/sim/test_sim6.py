"""The simulated world by IPv6: a quiet one, and that the checker sees each invariant broken there."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.sim.quiet import broken6, scenario6
from tests.sim.scenario import EndPlan, Incident, TcpPlan
from tests.sim.world import run
from vpnkit.flow.tcp_flow import TcpFlow
from vpnkit.net.neighbours import Neighbours
from vpnkit.net.reachability import Reachability
from vpnkit.net.tcp import TcpTable
from vpnkit.net.udp_mapping import UdpMapping
from vpnkit.proto.ndp import Advertiser
from vpnkit.proto.tcp.connection import Offer
from vpnkit.wire import icmpv6, ipv6
from vpnkit.wire.ndp import RouterAdvertisement


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Any:
    return monkeypatch.setattr


def test_a_quiet_world_is_fine() -> None:
    outcome = run(scenario6())
    assert not outcome.broken
    for what in ("router", "neighbour", "fragment6", "ping6", "dhcpv6", "dns6"):
        assert outcome.faults[what], what


def test_a_world_whose_ipv6_goes_and_comes_is_fine() -> None:
    plans = [
        TcpPlan(number, start, f"2001:db8:1::{number}", 80, EndPlan([(0.1, 700)], "after"), EndPlan([(0.1, 70)]))
        for number, start in ((1, 0.0), (2, 2.5), (3, 22.0))
    ]
    outcome = run(scenario6(tcp=plans, incidents=[Incident(2.0, "ipv6_changes", 15.0)], calm_at=25.0))
    assert not outcome.broken
    assert outcome.faults["no_router"]
    assert outcome.faults["router"]
    assert outcome.counters["tcp_connect_net_unreachable"] == 1
    assert outcome.counters["tcp_aborted"] == 1


@pytest.mark.parametrize(
    ("number", "counted"),
    [(errno.ENETUNREACH, "net"), (errno.EHOSTUNREACH, "host"), (errno.ENOPROTOOPT, "protocol"), (errno.EACCES, "")],
)
def test_i2_another_reason_than_the_hosts_is_seen(plant: Any, number: int, counted: str) -> None:
    plan = TcpPlan(3, 0.0, "2001:db8:1::3", 80, EndPlan([(0.1, 700)]), EndPlan(), connect_error=number)
    outcome = run(scenario6(tcp=[plan]))
    assert not outcome.broken
    assert outcome.counters[f"tcp_connect_{counted}_unreachable" if counted else "tcp_connect_prohibited"] == 1
    inner = icmpv6.encode_error

    def encode_error(kind: int, code: int, *rest: Any) -> bytes:
        return inner(icmpv6.DEST_UNREACHABLE, 0 if code else 1, *rest)

    plant("vpnkit.wire.icmpv6.encode_error", encode_error)
    assert "the guest saw ICMP" in broken6(tcp=[plan])


def test_i1_a_datagram_that_changes_is_seen(plant: Any) -> None:
    inner = UdpMapping._emit

    def emit(self: UdpMapping, source: Any, train: list[bytes], *rest: Any) -> None:
        inner(self, source, [data[:-1] + b"?" for data in train], *rest)

    plant(UdpMapping, "_emit", emit)
    assert "I1 udp" in broken6(tcp=[])


def test_i5_a_wrong_checksum_is_seen(plant: Any) -> None:
    inner = TcpFlow._send

    def send(self: TcpFlow, segment: Any) -> bool:
        self.template._fixed_sum += self.bytes_to_guest > 4000
        return inner(self, segment)

    plant(TcpFlow, "_send", send)
    assert "I5: transport checksum" in broken6()


def test_i5_a_segment_for_ipv4s_header_is_seen(plant: Any) -> None:
    plant(TcpTable, "_offer", lambda _self, _key: Offer(1460, 1460))
    assert "I5: 1520 octets" in broken6(tcp=[TcpPlan(1, 0.0, "2001:db8:1::1", 80, EndPlan(), EndPlan([(0.1, 9000)]))])


def test_i5_an_atomic_fragment_is_seen(plant: Any) -> None:
    inner = ipv6.fragments

    def fragments(header: Any, payload: Any, mtu: int, identification: int) -> Any:
        return [
            (bytes(frame[0])[:-8] + bytes(frame[0])[-8:-6] + bytes(2) + bytes(frame[0])[-4:], *frame[1:])
            for frame in inner(header, payload, mtu, identification)
        ]

    plant(ipv6, "fragments", fragments)
    assert "I5: an atomic fragment" in broken6(tcp=[])


def test_i8_an_exception_is_seen(plant: Any) -> None:
    def message(*_arguments: Any) -> None:
        raise RuntimeError("planted")

    plant(Neighbours, "message", message)
    assert "I8" in broken6()


# I11: what is told of routers and neighbours


def test_i11_a_router_that_is_not_taken_back_is_seen(plant: Any) -> None:
    plant(Reachability, "check", lambda _self: None)
    assert "I11: a router for" in broken6(incidents=[Incident(1.0, "ipv6_changes", 60.0)], calm_at=30.0)


def test_i11_a_router_that_says_nothing_is_seen(plant: Any) -> None:
    plant(Advertiser, "due", lambda _self, _now: [])
    plant(Advertiser, "next_deadline", lambda _self: float("inf"))
    assert "I11: the guest has no router" in broken6()


def test_i11_a_gateway_that_is_not_found_is_seen(plant: Any) -> None:
    plant(Neighbours, "_asked", lambda *_arguments: None)
    assert "I11: the guest does not find the gateway" in broken6()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mtu": 9000}, "I5: the link's MTU"),
        ({"router_lifetime": 0}, "I11: a router for 0 s"),
        ({"dns_lifetime": 0}, "I5: how long there is DNS"),
        ({"prefixes": ()}, "I5: what is advertised"),
    ],
)
def test_i11_each_lie_of_a_router_is_seen(plant: Any, change: dict[str, Any], said: str) -> None:
    inner = RouterAdvertisement.encode

    def encode(self: RouterAdvertisement, *rest: Any) -> bytes:
        for name, value in change.items():
            object.__setattr__(self, name, value)
        return inner(self, *rest)

    plant(RouterAdvertisement, "encode", encode)
    assert said in broken6()


def test_i12_a_guest_who_has_not_spoken_yet_is_asked(plant: Any) -> None:
    """Who calls the guest's IPv6 address before he used it finds him by a neighbour solicitation."""
    plans = [
        TcpPlan(1, 0.0, "2001:db8:1::1", 2001, EndPlan([(0.1, 100)]), EndPlan([(0.1, 70)], "after"), forward=True),
    ]
    plant("tests.sim.guest6.Guest6.begin", lambda _self: None)
    outcome = run(scenario6(tcp=plans, udp=[], pings=[], lookups=[], dhcpv6=False))
    assert not outcome.broken
    assert outcome.faults["asked"]
    plant("vpnkit.net.lan.Station.ask", lambda *_arguments: None)
    assert "I12" in broken6(tcp=plans, udp=[], pings=[], lookups=[], dhcpv6=False)

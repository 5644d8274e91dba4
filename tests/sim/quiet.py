"""A world with nothing wrong in it, into which tests plant bugs."""

from __future__ import annotations

from typing import Any

from tapdev.link import LinkCapabilities
from tests.sim.scenario import EndPlan, Scenario, TcpPlan, UdpPlan
from tests.sim.world import run


def scenario(**more: Any) -> Scenario:
    made = Scenario(
        1,
        LinkCapabilities(mtu=1500),
        0.0005,
        64,
        {},
        5.0,
        [
            TcpPlan(
                1,
                0.0,
                "10.1.0.1",
                80,
                EndPlan([(0.0, 5000), (0.5, 30_000)], "fin", buffer=4000, reads="slow"),
                EndPlan([(0.0, 9000), (0.2, 20_000)], "after", buffer=3000, reads="slow"),
            ),
            TcpPlan(2, 0.1, "10.1.0.2", 80, EndPlan([(0.1, 700)], "after"), EndPlan([(0.1, 7000)], "fin")),
        ],
        [UdpPlan(1, 0.3, "10.2.0.1", 4001, [(0.0, 400), (0.1, 3000)], 1, 2000)],
        [(0.4, "10.3.0.1", 100)],
        [(0.5, "n1.example.org", False, False)],
        ["answer"],
        [],
    )
    for name, value in more.items():
        setattr(made, name, value)
    return made


def scenario6(**more: Any) -> Scenario:
    """The same by IPv6, and an address from DHCPv6."""
    made = scenario(
        pings=[(0.4, "2001:db8:3::1", 1600), (0.6, "fd65:7670:6e6b::1", 100)],
        lookups=[(0.5, "n1.example.org", False, True)],
        dhcpv6=True,
    )
    for plan in (*made.tcp, *made.udp):
        plan.address = f"2001:db8:1::{plan.number}"
    for name, value in more.items():
        setattr(made, name, value)
    return made


def broken(**more: Any) -> str:
    """What the checker says."""
    outcome = run(scenario(**more))
    assert outcome.broken
    return outcome.broken


def broken6(**more: Any) -> str:
    outcome = run(scenario6(**more))
    assert outcome.broken
    return outcome.broken

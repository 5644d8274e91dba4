"""What one world is made of, drawn from its seed."""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from tapdev.link import LinkCapabilities

SMALL: Final = (0, 1, 10, 100, 1000, 1460, 1461, 3000)
PINGS: Final = (
    *("192.168.65.1", "192.168.65.2", "10.3.0.1", "10.3.0.99"),
    *("fd65:7670:6e6b::1", "fd65:7670:6e6b::2", "fe80::f416:36ff:febc:f9c6", "2001:db8:3::1", "2001:db8:3::99"),
)
CONNECT_ERRORS: Final = {
    "connect_refused": (errno.ECONNREFUSED, errno.ECONNRESET),
    "connect_unreachable": (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENOPROTOOPT, errno.EINVAL),
    "connect_prohibited": (errno.EACCES, errno.EPERM),
    "connect_silent": (errno.ETIMEDOUT,),
}


HOST_ALIAS: Final = "192.168.65.2"
HOST_ALIAS6: Final = "fd65:7670:6e6b::2"
NAT64: Final = "64:ff9b::"


def host_address(called: str) -> str:
    """What the guest's name for a host is on the host."""
    if called.startswith(NAT64):
        return str(IPv4Address(IPv6Address(called).packed[12:]))
    return {HOST_ALIAS: "127.0.0.1", HOST_ALIAS6: "::1"}.get(called, called)


def far_address(rng: random.Random, network: int, number: int, *, nat64: bool) -> str:
    """A host far away, by one of its addresses: 10.NETWORK, the same behind NAT64, or 2001:db8:NETWORK."""
    if rng.random() < 0.4:
        return f"2001:db8:{network}::{number:x}"
    address = IPv4Address((10 << 24) + (network << 16) + number)
    if nat64 and rng.random() < 0.5:
        return str(IPv6Address(NAT64) + int(address))
    return str(address)


@dataclass
class EndPlan:
    """One end of a TCP connection: what it writes when, how it reads, and how it ends."""

    writes: list[tuple[float, int]] = field(default_factory=list)  # seconds after it opened, octets
    end: str = "fin"  # fin; after (the other's FIN); rst; close (both ways at once); silent
    end_at: float = 0.0
    reads: str = "fast"  # fast, slow, stall
    stall: float = 0.0
    buffer: int = 65536
    mss: int = 1460
    scale: int | None = 7
    lazy_ack: bool = False


@dataclass
class TcpPlan:
    number: int
    start: float
    address: str  # by which the guest calls the host; of the family in which the host calls the guest
    port: int
    guest: EndPlan
    host: EndPlan
    forward: bool = False  # the host calls the guest
    answer: str = "accept"  # a forward: accept, refuse, ignore
    connect_error: int = 0
    connect_delay: float = 0.0
    connect_what: str = ""


@dataclass
class UdpPlan:
    number: int
    start: float
    address: str
    port: int
    sends: list[tuple[float, int]]
    replies: int  # to each
    reply_size: int
    behaviour: str = "answer"  # answer, unreachable, silent, stranger


@dataclass
class Incident:
    """Something that happens to the whole world at one moment."""

    at: float
    what: str
    seconds: float = 0.0


@dataclass
class Scenario:
    seed: int
    capabilities: LinkCapabilities
    latency: float
    queue_frames: int
    faults: dict[str, float]
    calm_at: float
    tcp: list[TcpPlan]
    udp: list[UdpPlan]
    pings: list[tuple[float, str, int]]
    lookups: list[tuple[float, str, bool, bool]]  # when, name, over TCP, over IPv6
    resolvers: list[str]  # behaviour of each: answer, dead, lying, refused, servfail
    incidents: list[Incident]
    dhcp: bool = False
    has_ipv6: bool = True  # the host, at the beginning
    offer: str = "auto"  # of IPv6, as the operator says
    nat64: bool = False
    dhcpv6: bool = False
    resolvers6: bool = False  # every other one has an IPv6 address
    small_tables: bool = False
    small_window: bool = False


def end_plan(rng: random.Random, *, host: bool) -> EndPlan:
    plan = EndPlan()
    for _ in range(rng.choice((0, 1, 1, 2, 3, 5))):
        size = rng.choice(SMALL) if rng.random() < 0.7 else rng.randrange(1, 40_000)
        if size:
            plan.writes.append((rng.choice((0.0, 0.0, rng.uniform(0, 0.1), rng.uniform(0, 3))), size))
    plan.writes.sort()
    plan.end = rng.choice(("fin", "fin", "fin", "after", "after", "rst", "silent", "close" if host else "fin"))
    plan.end_at = rng.uniform(0.0, 3.0)
    plan.reads = rng.choice(("fast", "fast", "fast", "slow", "stall"))
    plan.stall = rng.uniform(0.1, 6.0)
    plan.buffer = rng.choice((2000, 8192, 65536, 65536, 300_000)) if not host else rng.choice((1, 500, 4096, 65536))
    plan.mss = rng.choice((1460, 1460, 536, 100))
    plan.scale = rng.choice((None, 0, 2, 7, 14))
    plan.lazy_ack = rng.random() < 0.3
    return plan


def tcp_plan(rng: random.Random, number: int, *, nat64: bool) -> TcpPlan:
    plan = TcpPlan(
        number,
        rng.choice((0.0, rng.uniform(0, 4))),
        far_address(rng, 1, number, nat64=nat64),
        rng.choice((80, 443, 8080)),
        end_plan(rng, host=False),
        end_plan(rng, host=True),
    )
    if rng.random() < 0.15:
        plan.forward = True
        plan.port = 2000 + number
        plan.answer = rng.choice(("accept", "accept", "accept", "refuse", "ignore"))
    elif rng.random() < 0.15:
        plan.address = rng.choice((HOST_ALIAS, HOST_ALIAS6))
        plan.port = 3000 + number
    plan.connect_delay = rng.choice((0.0, rng.uniform(0.001, 0.1), rng.uniform(0.5, 5)))
    if rng.random() < 0.25:
        plan.connect_what = rng.choice(tuple(CONNECT_ERRORS))
        plan.connect_error = rng.choice(CONNECT_ERRORS[plan.connect_what])
        if plan.connect_error == errno.ETIMEDOUT:
            plan.connect_delay = 127.0
    return plan


def udp_plan(rng: random.Random, number: int, *, nat64: bool) -> UdpPlan:
    sizes = (0, 1, 100, 100, 1400, 1472, 1473, 4000)
    return UdpPlan(
        number,
        rng.uniform(0, 4),
        far_address(rng, 2, number, nat64=nat64) if rng.random() < 0.8 else rng.choice((HOST_ALIAS, HOST_ALIAS6)),
        4000 + number,
        [(rng.choice((0.0, rng.uniform(0, 2))), rng.choice(sizes)) for _ in range(rng.randrange(1, 6))],
        rng.choice((0, 1, 1, 3)),
        rng.choice(sizes),
        rng.choice(("answer", "answer", "answer", "unreachable", "silent", "stranger")),
    )


def draw(seed: int) -> Scenario:
    """The world of `seed`."""
    rng = random.Random(f"scenario {seed}")
    offload = rng.random() < 0.25
    faults: dict[str, float] = {}
    for name, worst in (
        ("drop", 0.15),
        ("duplicate", 0.1),
        ("reorder", 0.15),
        ("delay", 0.05),
        ("eagain", 0.2),
        ("short_write", 0.3),
        ("spurious_event", 0.05),
        ("emfile", 0.2),
        ("enobufs", 0.03),
        ("udp_enobufs", 0.1),
        ("corrupt", 0.05),
        ("truncate", 0.03),
    ):
        chance = 0.12 if name in ("emfile", "enobufs") else 0.4
        if rng.random() < chance and not (offload and name in ("corrupt", "truncate")):
            faults[name] = rng.uniform(0.005, worst)
    calm_at = rng.uniform(4, 12)
    incidents = []
    for what, chance in (
        ("link_down", 0.3),
        ("link_stopped", 0.3),
        ("guest_pause", 0.25),
        ("guest_reset", 0.15),
        ("relink", 0.1),
        ("clock_jump", 0.2),
        ("ipv6_changes", 0.2),
        ("too_big", 0.2),
    ):
        while rng.random() < chance:
            seconds = rng.choice((0.01, 0.3, 3.0)) * rng.uniform(0.5, 1.5)
            if what == "clock_jump":
                seconds = rng.choice((0.5, 30.0, 400.0, 4000.0)) * rng.uniform(0.5, 1.0)
            if what == "ipv6_changes":
                seconds = rng.uniform(1.0, 20.0)
            incidents.append(Incident(rng.uniform(0.05, calm_at), what, seconds))
    mtu = rng.choice((1500, 1500, 1500, 1500, 1280))
    nat64 = rng.random() < 0.25
    names = ["gateway.internal", "host.internal", "vm.internal"]
    return Scenario(
        seed,
        LinkCapabilities(mtu=mtu, checksum=True, tso4=True, tso6=rng.random() < 0.7, uso=rng.random() < 0.5)
        if offload
        else LinkCapabilities(mtu=mtu),
        rng.choice((0.0005, 0.0005, 0.01, 0.08)),
        rng.choice((4, 64, 256)),
        faults,
        calm_at,
        [tcp_plan(rng, number, nat64=nat64) for number in range(1, rng.randrange(2, 7))],
        [udp_plan(rng, number, nat64=nat64) for number in range(1, rng.randrange(1, 4))],
        [
            (
                rng.uniform(0, 5),
                rng.choice(PINGS + (("64:ff9b::a03:1", "64:ff9b::a03:63") if nat64 else ())),
                rng.randrange(1500),
            )
            for _ in range(rng.randrange(3))
        ],
        [
            (
                rng.uniform(0, 6),
                rng.choice(names) if rng.random() < 0.2 else f"n{rng.randrange(30)}.example.org",
                rng.random() < 0.3,
                rng.random() < 0.4,
            )
            for _ in range(rng.randrange(5))
        ],
        [
            rng.choice(("answer", "answer", "answer", "dead", "lying", "refused", "servfail"))
            for _ in range(rng.randrange(1, 4))
        ],
        sorted(incidents, key=lambda incident: incident.at),
        dhcp=rng.random() < 0.15,
        has_ipv6=rng.random() < 0.75,
        offer=rng.choice(("auto", "auto", "auto", "auto", "on", "local", "off")),
        nat64=nat64,
        dhcpv6=rng.random() < 0.2,
        resolvers6=rng.random() < 0.3,
        small_tables=rng.random() < 0.15,
        small_window=rng.random() < 0.3,
    )

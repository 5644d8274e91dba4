"""Filters from dice: everything that combines, in every combination."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.pcap.filter.filter_frames import PORTS

if TYPE_CHECKING:
    import random

HOSTS: Final = ["192.168.65.1", "192.168.65.3", "10.0.0.1", "10.1.2.3", "fd65:7670:6e6b::3", "ff02::1"]
NETS: Final = ["10.0.0.0/8", "192.168.65.0/24", "224.0.0.0/4", "fd00::/8", "10", "0.0.0.0/0"]
SIDES: Final = ["", "", "src ", "dst ", "src or dst ", "src and dst "]
LOADS: Final = [
    "ip[{}]", "ip[{}:2]", "ip[{}:4]", "tcp[{}]", "tcp[{}:2]", "udp[{}:2]", "icmp[{}]", "ip6[{}]", "arp[{}:2]",
    "ether[{}]", "ether[{}:4]", "icmp6[{}]",
]  # fmt: skip


def expression(rng: random.Random, depth: int = 3) -> str:
    chance = rng.random()
    if depth and chance < 0.5:
        joined = rng.choice(("and", "or", "&&", "||"))
        left, right = expression(rng, depth - 1), expression(rng, depth - 1)
        if rng.random() < 0.5:
            right = f"({right})"
        return f"{left} {joined} {right}"
    if depth and chance < 0.65:
        return f"not {_primitive(rng)}" if rng.random() < 0.5 else f"not ({expression(rng, depth - 1)})"
    return _primitive(rng)


def _primitive(rng: random.Random) -> str:
    side = rng.choice(SIDES)
    return rng.choice((
        lambda: rng.choice(("ip", "ip6", "arp", "tcp", "udp", "icmp", "icmp6", "sctp", "multicast", "broadcast")),
        lambda: f"{side}host {rng.choice(HOSTS)}",
        lambda: f"{side}net {rng.choice(NETS)}",
        lambda: f"{rng.choice(('', 'tcp ', 'udp '))}{side}port {rng.choice(PORTS)}",
        lambda: f"{rng.choice(('', 'tcp ', 'udp '))}{side}port {rng.choice(PORTS)} or {rng.choice(PORTS)}",
        lambda: f"{rng.choice(('', 'tcp ', 'udp '))}{side}portrange {rng.choice(PORTS)}-{rng.choice(PORTS)}",
        lambda: f"{side}host ({rng.choice(HOSTS[:4])} or {rng.choice(HOSTS[:4])})",
        lambda: f"{rng.choice(('less', 'greater'))} {rng.randrange(40, 120)}",
        lambda: f"{rng.choice(('', 'ip ', 'ip6 '))}proto {rng.choice((6, 17, 1, 58, 44, 132))}",
        lambda: f"{_number(rng, 2)} {rng.choice(('=', '!=', '<', '>', '<=', '>='))} {_number(rng, 2)}",
    ))()  # fmt: skip


def _number(rng: random.Random, depth: int) -> str:
    chance = rng.random()
    if depth and chance < 0.4:
        operator = rng.choice(("+", "-", "*", "&", "|"))
        return f"({_number(rng, depth - 1)} {operator} {_number(rng, depth - 1)})"
    if chance < 0.5:
        return str(rng.choice((0, 1, 2, 5, 6, 17, 53, 64, 80, 255, 1000)))
    if chance < 0.6:
        return "len"
    return rng.choice(LOADS).format(rng.choice((0, 1, 6, 8, 9, 12, 13, 20, 30, 60)))

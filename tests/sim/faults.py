"""What goes wrong in one world: probabilities while it is the time of faults, and a counter for each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random

# Every one of these must have happened when enough seeds were run.
# fmt: off
SOMETIMES: Final = (
    "drop", "duplicate", "reorder", "corrupt", "truncate", "delay", "link_down", "link_full", "relink",
    "guest_pause", "guest_reset", "clock_jump", "connect_refused", "connect_unreachable", "connect_silent",
    "connect_prohibited", "host_reset", "host_half_close", "host_close", "guest_rst", "guest_half_close",
    "emfile", "enobufs", "eagain", "short_write", "spurious_event", "udp_unreachable", "udp_enobufs", "dns_dead",
    "dns_lying", "dns_refused", "dns_servfail", "small_tables", "small_window", "offload", "seq_wrap", "forward",
    "forward_refused", "zero_window", "fragment", "dhcp", "tcp_dns", "ping_lost", "stranger",
    "ipv6", "no_ipv6", "nat64", "ipv6_changes", "router", "no_router", "neighbour", "asked", "fragment6", "ping6",
    "icmp6", "dhcpv6", "too_big", "dns6",
)
# fmt: on


@dataclass
class Faults:
    """Probabilities, of each frame or each call.  0 after `calm`."""

    rng: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    truncate: float = 0.0
    delay: float = 0.0
    emfile: float = 0.0
    enobufs: float = 0.0
    eagain: float = 0.0
    short_write: float = 0.0
    spurious_event: float = 0.0
    udp_enobufs: float = 0.0

    def calm(self) -> None:
        for name in list(vars(self)):
            if isinstance(getattr(self, name), float):
                setattr(self, name, 0.0)

    def happens(self, what: str) -> bool:
        probability: float = getattr(self, what)
        if probability and self.rng.random() < probability:
            self.counts[what] += 1
            return True
        return False

"""The six rules that are always on: the original's names, snaplens and sizes (vpnkit.md 6.1)."""

from __future__ import annotations

from typing import Final

from pcap.predicates import everything, icmp, icmp6, tcp, udp
from pcap.ring import KIB, Rule

SNAPLEN: Final = 128  # of all.pcap


def default_rules(snaplen: int = SNAPLEN) -> list[Rule]:
    """Rings of 2.6 MiB together.  What no parser takes is in bad.pcap only."""
    return [
        Rule("all.pcap", everything(), snaplen, 256 * KIB, malformed=False),
        Rule("dns.pcap", udp(port=53) | tcp(port=53), 1500, 256 * KIB, malformed=False),
        Rule("ntp.pcap", udp(port=123), 1500, 64 * KIB, malformed=False),
        Rule("icmp.pcap", icmp() | icmp6(), 1500, 8 * KIB, malformed=False),
        Rule("http_proxy.pcap", tcp(port=3128) | tcp(port=3129), 1500, 1024 * KIB, malformed=False),
        Rule("bad.pcap", everything(), 1500, 1024 * KIB, malformed=True),
    ]

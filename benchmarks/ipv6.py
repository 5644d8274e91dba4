"""The same guest by IPv6: our own IPv4 is the peer that it is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .contenders import Setup, Vpnkit
from .rows import Bulk, Datagrams, Requests

if TYPE_CHECKING:
    from .rows import Row

BOTH = ("vpnkit", "vpnkit-ipv6")
BAR = "0.95 x IPv4"
WAYS = (True, False)


class VpnkitIpv6(Vpnkit):
    name = "vpnkit-ipv6"
    host_address = "fd65:7670:6e6b::2"
    own_address = "fd65:7670:6e6b::1"

    @staticmethod
    def _argv(setup: Setup) -> list[str]:
        return [*Vpnkit._argv(setup), "--ipv6", "on"]


def rows() -> list[Row]:
    """The bulk, request and datagram rows, by both."""
    found: list[Row] = [
        *(
            Bulk(mtu, offload, 1, up, BAR)
            for mtu, offload in ((1500, True), (65520, True), (1500, False))
            for up in WAYS
        ),
        Requests(1, True, BAR),
        Requests(64, True, BAR),
        Requests(16, False, BAR),
        *(Datagrams(up) for up in WAYS),
    ]
    for row in found:
        row.id = f"{row.id}-ipv6"
        row.label = f"{row.label}, by both families"
        row.contenders = BOTH
    return found

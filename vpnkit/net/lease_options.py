"""What the operator says about DHCP.  Values only: the command line makes them before the network is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ipaddress import IPv4Address
    from pathlib import Path


class StaticLease(NamedTuple):
    """An address that is kept for a MAC address, and the host name that its owner is told."""

    mac: bytes
    ip: IPv4Address
    name: str = ""


@dataclass(frozen=True)
class LeaseOptions:
    static: tuple[StaticLease, ...] = ()
    next_server: IPv4Address | None = None  # who has the boot file; None: the gateway
    boot_file: str = ""
    ntp: tuple[IPv4Address, ...] = ()  # time servers
    dhcp_json: Path | None = None  # the original's file: domainName and searchDomains
    state: Path | None = None  # where leases are kept between runs

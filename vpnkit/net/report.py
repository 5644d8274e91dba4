"""What a running instance says about itself.

These records are the bodies of the control API, so a field keeps its name and its unit for ever.  Frames and octets
are counted as in LinkStatistics, octets of flows are payload only; `to_host` is what guests sent.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class StatusReport(Struct, frozen=True, kw_only=True):
    """One instance at a glance.  Frames and octets are those of all guests since the start, gone guests included."""

    name: str
    version: str
    pid: int
    uptime_seconds: float
    subnet: str  # CIDR
    gateway: str
    host: str | None  # the alias of the host's loopback; None when it is disabled
    prefix6: str | None = None  # CIDR, and the same two in it; None while no IPv6 is offered
    gateway6: str | None = None
    host6: str | None = None
    mtu: int
    dns: list[str]  # the servers that queries are forwarded to, ADDRESS#PORT
    guests: int
    flows: dict[str, int]  # by protocol, those open now
    frames_to_host: int
    frames_to_guest: int
    bytes_to_host: int
    bytes_to_guest: int
    counters: dict[str, int]  # everything else that is counted: drops, refusals, evictions, contained failures
    warnings: list[str]  # what the operator should know: an offload that is missing, a table that overflowed


class GuestReport(Struct, frozen=True, kw_only=True):
    """One guest: a link and what was agreed on it."""

    id: int
    link: str  # as in `--link`, or what `run` made: netns:...
    mac: str | None  # None until the guest has sent a frame
    ip: str | None  # IPv4; None until it has an address
    addresses: list[str] = []  # all of them, of both families
    mtu: int
    offloads: list[str]  # of: checksum, tso4, tso6, uso
    frames_to_host: int
    frames_to_guest: int
    bytes_to_host: int
    bytes_to_guest: int


class FlowReport(Struct, frozen=True, kw_only=True):
    """One connection or association.  Addresses are ADDRESS:PORT, IPv6 in brackets; ICMP has the identifier as port."""

    id: int
    protocol: Literal["tcp", "udp", "icmp"]
    direction: Literal["in", "out"]  # out: the guest opened it
    guest: str
    remote: str  # what the guest addressed, or thinks it was addressed by
    host: str  # what our own socket talks to
    state: str
    bytes_to_host: int
    bytes_to_guest: int
    age_seconds: float
    idle_seconds: float
    rtt_us: int | None  # on the link to the guest; None where it is not measured
    retransmissions: int


class LeaseReport(Struct, frozen=True, kw_only=True):
    """One address of the pool that DHCP gave or promised."""

    ip: str
    mac: str
    hostname: str
    client_id: str  # hexadecimal: option 61, or DHCPv6's DUID; empty when the guest sent none
    expires_in_seconds: float | None  # None: never
    state: str  # offered, bound, declined, ...


class ForwardReport(Struct, frozen=True, kw_only=True):
    """One listening address of one forward: a forward that listens on 127.0.0.1 and ::1 is two of these."""

    protocol: Literal["tcp", "udp", "unix"]  # unix: the host's end is a unix socket
    host_address: str  # empty for a unix socket
    host_port: int  # 0 for a unix socket
    guest_address: str | None  # None: the first guest, whatever its address
    guest_port: int  # of his network or of his vsock; 0 for a unix socket
    connections: int  # open now, on all addresses of the forward; of UDP the clients that are known
    spec: str  # what `unexpose` takes
    host_path: str | None = None  # of a unix socket
    guest_path: str | None = None  # of a unix socket in the guest
    guest_cid: int | None = None  # of a vsock
    accepted: int = 0  # so far
    failures: int = 0  # that could not be delivered; of UDP datagrams
    refused: int = 0  # because there were too many


class NameReport(Struct, frozen=True, kw_only=True):
    """One name that the network has by itself."""

    name: str
    of: Literal["gateway", "host", "asker"]  # asker: each guest is told his own addresses
    addresses: list[str]

"""Who has a busy port: Linux's /proc says, as far as we may look.  Best effort, for error messages only."""

from __future__ import annotations

import os
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

Address: TypeAlias = IPv4Address | IPv6Address

# The states of a socket that has its port to itself, include/net/tcp_states.h: LISTEN; of UDP connected or not.
STATES: Final = {"tcp": {"0A"}, "udp": {"01", "07"}}


def who_listens(address: str, port: int, protocol: str = "tcp") -> str | None:
    """The process in whose way a socket on this address and port would be, as "NAME (pid N)"; None if unknown."""
    try:
        inodes = _listening_inodes(ip_address(address), port, protocol)
        return _holder(inodes) if inodes else None
    except (OSError, ValueError):
        return None


def _listening_inodes(address: Address, port: int, protocol: str) -> set[str]:
    inodes = set()
    for table in (f"/proc/net/{protocol}", f"/proc/net/{protocol}6"):
        try:
            with open(table, encoding="ascii") as lines:
                next(lines)
                rows = [line.split() for line in lines]
        except OSError:
            continue  # no IPv6
        for row in rows:
            bound, _, bound_port = row[1].partition(":")
            if row[3] in STATES[protocol] and int(bound_port, 16) == port and _in_the_way(_decode(bound), address):
                inodes.add(row[9])
    return inodes


def _decode(text: str) -> Address:
    """An address of /proc/net/tcp: words of 32 bits in the byte order of the machine, in hexadecimal."""
    raw = b"".join(bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8))
    return IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)


def _in_the_way(bound: Address, wanted: Address) -> bool:
    if bound == wanted:
        return True
    if bound.version == wanted.version:
        return bound.is_unspecified or wanted.is_unspecified
    return bound.version == 6 and bound.is_unspecified  # [::] without IPV6_V6ONLY has the IPv4 port, too


def _holder(inodes: set[str]) -> str | None:
    links = {f"socket:[{inode}]" for inode in inodes}
    for pid in _pids():
        directory = f"/proc/{pid}/fd"
        try:
            if any(_target(f"{directory}/{fd}") in links for fd in os.listdir(directory)):
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
                    return f"{comm.read().strip()} (pid {pid})"
        except OSError:
            continue  # it ended, or is not ours to look at
    return None


def _pids() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""

"""The forwards as gvproxy has them: by protocol and `local`, with a `remote`, beside those that came otherwise.

A `local` without address is all addresses of the host, which is two forwards here.  A guest may have forwards that lead
to himself, and sees and removes those only; they go when he goes.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from portfwd.errors import ForwardError
from portfwd.spec import SpecError
from vpnkit.control.go import GoError, error_text, split_host_port

if TYPE_CHECKING:
    from vpnkit.control.api import Operator
    from vpnkit.net.report import ForwardReport

MAX_OF_A_GUEST: Final = 128  # forwards that one guest made
MAX_OF_GUESTS: Final = 1024  # and all of them together
WILDCARDS: Final = ("0.0.0.0", "[::]")
NO_SUCH_FAMILY: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})

_PORT: Final = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the table."""

    local: str
    remote: str
    protocol: str
    specs: tuple[str, ...]  # the forwards that it is made of
    peer: str = ""  # the guest who made it

    def __str__(self) -> str:
        return f"{self.protocol} {self.local}"


class GvproxyForwards:
    """gvproxy's table of forwards, over that of an instance."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._entries: dict[tuple[str, str], Entry] = {}  # made here
        self.refused = 0  # of guests that had too many

    def list(self, peer: str = "") -> list[Entry]:
        """Every forward that the asker may see, by `local`, then protocol."""
        reports = self._operator.forwards()
        there = {report.spec for report in reports}
        self._entries = {key: entry for key, entry in self._entries.items() if not there.isdisjoint(entry.specs)}
        entries = [*self._entries.values()]
        ours = {spec for entry in entries for spec in entry.specs}
        others = (report for report in reports if report.spec not in ours and _leads_to_a_port(report))
        entries += map(self._entry_of, others)
        if peer:
            entries = [entry for entry in entries if entry.peer == peer]
        return sorted(entries, key=lambda entry: (entry.local, entry.protocol))

    async def expose(self, protocol: str, local: str, remote: str, peer: str = "") -> None:
        """Raises GoError."""
        if any((entry.protocol, entry.local) == (protocol, local) for entry in self.list()):
            raise GoError(500, f"proxy already running for {protocol} on {local}")
        if protocol == "npipe":
            raise GoError(500, "named pipes are not supported by this platform")
        if protocol not in ("tcp", "udp", "unix"):
            raise GoError(500, f"unknown protocol {protocol}")
        if peer:
            self._check_guest(protocol, remote, peer)
        make = self._expose_unix(local, remote) if protocol == "unix" else self._listen(protocol, local, remote)
        specs = await make
        self._entries[protocol, local] = Entry(local, remote, protocol, specs, peer)

    async def unexpose(self, protocol: str, local: str, peer: str = "") -> None:
        """Raises GoError."""
        found = next((entry for entry in self.list(peer) if (entry.protocol, entry.local) == (protocol, local)), None)
        if found is None:
            raise GoError(500, "proxy not found")
        self._entries.pop((protocol, local), None)
        await self._remove(found.specs)

    async def guests_are(self, addresses: set[str]) -> None:
        """Remove what guests made that are not there any more."""
        for key, entry in list(self._entries.items()):
            if entry.peer and entry.peer not in addresses:
                self._entries.pop(key, None)
                await self._remove(entry.specs)

    def _check_guest(self, protocol: str, remote: str, peer: str) -> None:
        if protocol == "unix":
            raise GoError(500, "a guest may not make sockets in the host's file system")
        if split_host_port(remote)[0] != peer:
            raise GoError(500, f"a guest may forward ports to itself only, which is {peer}")
        made = [entry.peer for entry in self._entries.values() if entry.peer]
        if made.count(peer) >= MAX_OF_A_GUEST or len(made) >= MAX_OF_GUESTS:
            self.refused += 1
            raise GoError(500, f"at most {MAX_OF_A_GUEST} forwards of a guest, and {MAX_OF_GUESTS} of all")

    async def _listen(self, protocol: str, local: str, remote: str) -> tuple[str, ...]:
        guest = _guest_address(remote)
        try:
            host, port = split_host_port(local)
        except ValueError as error:
            raise GoError(500, f"listen {protocol}: {error}" if protocol == "tcp" else str(error)) from None
        if not _PORT.fullmatch(port) or int(port) > 65535:
            raise GoError(500, f"listen {protocol}: address {port}: invalid port")
        suffix = "/udp" if protocol == "udp" else ""
        if host:
            return await self._try(protocol, local, f"{_literal(protocol, host)}:{port}:{guest}{suffix}")
        first = await self._try(protocol, local, f"{WILDCARDS[0]}:{port}:{guest}{suffix}")
        chosen = next(report.host_port for report in self._operator.forwards() if report.spec in first)
        try:
            return first + await self._try(protocol, local, f"{WILDCARDS[1]}:{chosen}:{guest}{suffix}")
        except GoError as error:
            if errno_of(error) in NO_SUCH_FAMILY:
                return first
            await self._remove(first)
            raise

    async def _expose_unix(self, local: str, remote: str) -> tuple[str, ...]:
        scheme, separator, rest = remote.partition("://")
        if not separator:
            raise GoError(500, f"parse {remote!r}: missing protocol scheme")
        if scheme == "ssh-tunnel":
            raise _no_tunnel(rest)
        if scheme != "tcp":
            raise GoError(500, f"remote protocol for unix forwarder is not implemented: {scheme}")
        return await self._try("unix", local, f"unix:{local}:{_guest_address(rest.partition('/')[0])}")

    async def _try(self, protocol: str, local: str, spec: str) -> tuple[str, ...]:
        try:
            return tuple(dict.fromkeys(report.spec for report in await self._operator.expose(spec)))
        except SpecError as error:
            raise GoError(500, str(error)) from error
        except ForwardError as error:
            number = errno_of(error)
            if number is None:
                raise GoError(500, str(error)) from error
            raise GoError(500, f"listen {protocol} {local}: bind: {error_text(number)}") from error

    async def _remove(self, specs: tuple[str, ...]) -> None:
        for spec in specs:
            try:
                await self._operator.unexpose(spec)
            except (ForwardError, SpecError):
                pass  # somebody else was quicker

    def _entry_of(self, report: ForwardReport) -> Entry:
        guest = report.guest_address
        if guest is None:
            guest = next((guest.ip for guest in self._operator.guests() if guest.ip), "")
        remote = f"[{guest}]:{report.guest_port}" if ":" in guest else f"{guest}:{report.guest_port}"
        if report.host_path is not None:
            return Entry(report.host_path, f"tcp://{remote}", report.protocol, (report.spec,))
        host = f"[{report.host_address}]" if ":" in report.host_address else report.host_address
        return Entry(f"{host}:{report.host_port}", remote, report.protocol, (report.spec,))


def _leads_to_a_port(report: ForwardReport) -> bool:
    return report.guest_path is None and report.guest_cid is None


def _guest_address(remote: str) -> str:
    """`remote` as the guest's half of a port spec.  Raises GoError."""
    try:
        host, port = split_host_port(remote)
        address = ip_address(host)
    except ValueError:
        raise GoError(500, "invalid remote addr") from None
    if not _PORT.fullmatch(port):
        raise GoError(500, f'strconv.ParseUint: parsing "{port}": invalid syntax')
    if not 0 < int(port) <= 65535:
        raise GoError(500, f'strconv.ParseUint: parsing "{port}": value out of range')
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _no_tunnel(uri: str) -> GoError:
    """What is wrong with `ssh-tunnel://` and `uri`; if nothing else, that we have no SSH."""
    place, _, query = uri.partition("?")
    if not dict(parse_qsl(query)).get("key"):
        return GoError(500, "key not provided for unix-ssh connection")
    if not place.partition("/")[2]:
        return GoError(500, "remote uri must contain a path to a socket file")
    return GoError(500, "remote protocol for unix forwarder is not implemented: ssh-tunnel")


def _literal(protocol: str, host: str) -> str:
    if host == "localhost":
        return "127.0.0.1"
    try:
        address = ip_address(host)
    except ValueError:
        raise GoError(500, f"listen {protocol}: lookup {host}: no such host") from None
    return f"[{address}]" if address.version == 6 else str(address)


def errno_of(error: BaseException) -> int | None:
    """Of the system call that was the reason."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.errno
        cause = cause.__cause__
    return None

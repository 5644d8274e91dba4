"""Where a guest's forwarder is reached, as people write it.

    unix:PATH                  a unix socket
    tcp:HOST:PORT              TCP, HOST an address, IPv6 in brackets
    vsock:CID[:PORT]           AF_VSOCK
    hyperkit:DIRECTORY[:PORT]  the socket `connect` in HyperKit's directory
    fc-vsock:PATH[:PORT]       the unix socket of Firecracker's hybrid vsock, Cloud Hypervisor's, vhost-device-vsock's

PORT is 62373 (0xf3a5) where it is left out: the original's.  `,handshake=no` at the end is for forwarders of before
2019, which do not greet.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Final, Literal, TypeAlias, cast

from portfwd.options import SpecError

Kind: TypeAlias = Literal["unix", "tcp", "vsock", "hyperkit", "fc-vsock"]

PORT: Final = 62373
GUEST_CID: Final = 3  # HyperKit's guest
OLD: Final = ",handshake=no"
MAX_CID: Final = 2**32 - 2
MAX_PATH: Final = 103  # octets of a sun_path, of those where it is shorter
FORMS: Final = "unix:PATH, tcp:HOST:PORT, vsock:CID[:PORT], hyperkit:DIRECTORY[:PORT], fc-vsock:PATH[:PORT]"
_TCP: Final = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:]+)):([0-9]{1,5})")
_TAIL: Final = re.compile(r"(.+?)(?::([0-9]{1,10}))?")


@dataclass(frozen=True, slots=True)
class ForwarderAddress:
    kind: Kind
    where: str  # a path, or an address
    port: int = PORT
    cid: int = GUEST_CID
    handshake: bool = True

    def __str__(self) -> str:
        return self._place + ("" if self.handshake else OLD)

    @property
    def _place(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.where}"
        if self.kind == "vsock":
            return f"vsock:{self.cid}:{self.port}"
        host = f"[{self.where}]" if self.kind == "tcp" and ":" in self.where else self.where
        return f"{self.kind}:{host}:{self.port}"


def parse_forwarder(text: str) -> ForwarderAddress:
    """Raises SpecError."""
    if text.endswith(OLD):
        return replace(parse_forwarder(text.removesuffix(OLD)), handshake=False)
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        return ForwarderAddress("unix", _path(rest))
    if kind == "tcp" and (found := _TCP.fullmatch(rest)):
        try:
            address = ip_address(found[1] or found[2])
        except ValueError:
            raise SpecError(f"forwarder {text!r}: {found[1] or found[2]!r} is not an IP address") from None
        return ForwarderAddress("tcp", str(address), _port(found[3], 65535))
    if kind == "vsock" and (found := re.fullmatch(r"([0-9]{1,10})(?::([0-9]{1,10}))?", rest)):
        cid = int(found[1])
        if not 1 <= cid <= MAX_CID:
            raise SpecError(f"forwarder {text!r}: CID {cid} is out of range; 3 is the usual first guest")
        return ForwarderAddress("vsock", "", _port(found[2], MAX_CID), cid)
    if kind in ("hyperkit", "fc-vsock") and (found := _TAIL.fullmatch(rest)):
        return ForwarderAddress(cast("Kind", kind), _path(found[1]), _port(found[2], MAX_CID))
    raise SpecError(f"forwarder {text!r} is none of {FORMS}")


def _path(path: str) -> str:
    if "\0" in path or len(os.fsencode(path)) > MAX_PATH:
        raise SpecError(f"forwarder: the path {path!r} is too long for a unix socket, or has a NUL")
    return path


def _port(text: str | None, most: int) -> int:
    port = PORT if text is None else int(text)
    if not 1 <= port <= most:
        raise SpecError(f"forwarder: port {port} is out of range: 1 to {most}")
    return port

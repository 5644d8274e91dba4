"""What is written into a `ctl` file, and what is said back: the texts of VPNkit, which its clients look for.

tcp:HOST_IP:HOST_PORT:tcp:GUEST_IP:GUEST_PORT     udp likewise; IPv6 addresses in brackets, which is ours
unix:BASE64:unix:BASE64
"""

from __future__ import annotations

import base64
import binascii
import errno
import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

FORMS: Final = """\
tcp:<local IP>:<local port>:tcp:<remote IP>:<remote port>
udp:<local IP>:<local port>:udp:<remote IP>:<remote port>
unix:<base64-encoded local path>:unix:<base64-encoded remote path>"""

_FIELD: Final = re.compile(r"\[[^\[\]]*\]|[^:\[\]]*")


class RequestError(Exception):
    """The text of an ERROR."""


@dataclass(frozen=True, slots=True)
class Request:
    """One forward that is asked for."""

    protocol: str  # tcp, udp or unix
    local: str  # an address as it was written, or a path
    port: int  # of the host; 0 for unix
    remote: str  # the other half, as it was written

    @property
    def text(self) -> str:
        """As a port spec."""
        return self.with_port(self.port)

    def with_port(self, port: int) -> str:
        """With the port that was chosen for 0."""
        if self.protocol == "unix":
            return f"unix:{base64.b64encode(self.local.encode()).decode()}:{self.remote}"
        return f"{self.protocol}:{self.local}:{port}:{self.remote}"

    def refusal(self, error: BaseException, number: int | None) -> str:
        """Docker's words for a port that cannot be had; `number` is the errno, if there is one."""
        place = self.local if self.protocol == "unix" else f"{self.local}:{self.port}"
        if number == errno.EADDRINUSE:
            return f"Bind for {place} failed: port is already allocated"
        if number == errno.EADDRNOTAVAIL:
            how = "" if self.protocol == "unix" else f"{self.protocol} "
            return f"listen {how}{place}: bind: cannot assign requested address"
        if number in (errno.EPERM, errno.EACCES):
            return f"Bind for {place} failed: permission denied"
        return f"Bind for {place}: unexpected error {error}"


def parse(data: bytes) -> Request:
    """What `data` asks for; white space around it does not count.  Raises RequestError."""
    text = data.decode(errors="replace").strip()
    fields = _split(text)
    match fields:
        case [protocol, local, port, remote_protocol, remote, remote_port]:
            number = _port(protocol, local, port)
            _port(remote_protocol, remote, remote_port)
            if protocol.lower() != remote_protocol.lower():
                raise RequestError(f"{protocol} cannot be forwarded to {remote_protocol}")
            name = protocol.lower()
            return Request(name, local, number, f"{name}:{remote}:{remote_port}")
        case ["unix", local, "unix", remote]:
            path = _path(local)
            _path(remote)
            return Request("unix", path, 0, f"unix:{remote}")
        case _:
            raise RequestError(f"Failed to parse request [{text}], expected {FORMS}")


def _split(text: str) -> list[str]:
    """The parts between colons that are not in brackets; nothing where brackets do not close."""
    fields: list[str] = []
    at = 0
    while True:
        found = _FIELD.match(text, at)
        assert found is not None  # it matches nothing at all
        fields.append(found.group())
        at = found.end()
        if at == len(text):
            return fields
        if text[at] != ":":
            return []
        at += 1


def _port(protocol: str, address: str, port: str) -> int:
    if protocol.lower() not in ("tcp", "udp"):
        raise RequestError("unknown protocol: should be tcp or udp")
    try:
        bracketed = address.startswith("[")
        parsed = ip_address(address[1:-1] if bracketed else address)
        if bracketed == (parsed.version == 6) and port.isascii() and port.isdigit() and int(port[:9]) <= 65535:
            return int(port[:9])
    except ValueError:
        pass
    raise RequestError(f"port is not a proto:IP:port or unix:path: '{protocol}:{address}:{port}'")


def _path(text: str) -> str:
    try:
        path = base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError):
        path = ""
    if not path or "\0" in path:
        raise RequestError(f"port is not a proto:IP:port or unix:path: 'unix:{text}'")
    return path

"""What to forward, as people write it: docker's form and the original's.

    [HOST_IP:]HOST_PORT:[GUEST_IP:]GUEST_PORT[/tcp|udp]        IPv6 in brackets; ranges FIRST-LAST of the same length
    PORT[/tcp|udp]                                             the same port on both sides
    tcp:HOST_IP:HOST_PORT:tcp:GUEST_IP:GUEST_PORT              the original's; or udp

Host port 0 (or empty after an address, as docker has it) lets the system choose one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final, Literal, TypeAlias, cast

Protocol: TypeAlias = Literal["tcp", "udp"]

PROTOCOLS: Final = ("tcp", "udp")
FORM: Final = "[HOST_IP:]HOST_PORT:[GUEST_IP:]GUEST_PORT[/tcp|udp]"

_PORTS: Final = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_PIECES: Final = re.compile(r"\[[^\[\]]*\]|[^:\[\]]*")


class SpecError(ValueError):
    """The text is no forward.  The message says what is wrong and what would be right."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One port of the host that leads to one port of a guest."""

    host_port: int  # 0: the system chooses
    guest_port: int
    protocol: Protocol = "tcp"
    host_address: str | None = None  # None: the loopback addresses
    guest_address: str | None = None  # None: the first guest, whatever its address

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise SpecError(f"protocol {self.protocol!r} is neither tcp nor udp")
        if not 0 <= self.host_port <= 65535:
            raise SpecError(f"host port {self.host_port} is out of range: 0 to 65535")
        if not 1 <= self.guest_port <= 65535:
            raise SpecError(f"guest port {self.guest_port} is out of range: 1 to 65535")
        for name in ("host_address", "guest_address"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _normal(getattr(self, name)))
        if self.guest_address is not None and ip_address(self.guest_address).is_unspecified:
            raise SpecError(f"guest address {self.guest_address} is no guest; leave it out for the first guest")

    def __str__(self) -> str:
        host = f"{_bracketed(self.host_address)}:" if self.host_address is not None else ""
        guest = f"{_bracketed(self.guest_address)}:" if self.guest_address is not None else ""
        suffix = "" if self.protocol == "tcp" else f"/{self.protocol}"
        return f"{host}{self.host_port}:{guest}{self.guest_port}{suffix}"


def parse(text: str) -> list[Spec]:
    """The forwards that `text` asks for: one, or one per port of its ranges.  Raises SpecError and nothing else."""
    try:
        return _parse(text)
    except SpecError as error:
        raise SpecError(f"forward {text!r}: {error}") from None


def _parse(text: str) -> list[Spec]:
    _refuse_later_forms(text)
    if text.startswith(("tcp:", "udp:")):
        return [_parse_original(text)]
    body, protocol = _split_protocol(text)
    host_address: str | None = None
    guest_address: str | None = None
    match _split(body):
        case [ports]:
            host_ports = guest_ports = ports
        case [host_ports, guest_ports]:
            pass
        case [first, middle, guest_ports] if not _PORTS.fullmatch(first):
            host_address, host_ports = _address(first), middle or "0"
        case [host_ports, middle, guest_ports]:
            guest_address = _address(middle)
        case [first, host_ports, middle, guest_ports]:
            host_address, guest_address = _address(first), _address(middle)
            host_ports = host_ports or "0"
        case _:
            raise SpecError(f"too many parts; {FORM} is the form, with IPv6 addresses in brackets")
    hosts, guests = _ports(host_ports), _ports(guest_ports)
    if len(hosts) != len(guests):
        raise SpecError(f"the ranges {host_ports} and {guest_ports} differ in length: {len(hosts)} and {len(guests)}")
    return [Spec(host, guest, protocol, host_address, guest_address) for host, guest in zip(hosts, guests, strict=True)]


def _parse_original(text: str) -> Spec:
    match _split(text):
        case [protocol, host_address, host_port, guest_protocol, guest_address, guest_port]:
            pass
        case _:
            raise SpecError("tcp:HOST_IP:HOST_PORT:tcp:GUEST_IP:GUEST_PORT is the form, IPv6 addresses in brackets")
    if guest_protocol != protocol:
        raise SpecError(f"{protocol} cannot be forwarded to {guest_protocol!r}; both sides are the same")
    return Spec(
        _port(host_port), _port(guest_port), cast("Protocol", protocol), _address(host_address), _address(guest_address)
    )


def _refuse_later_forms(text: str) -> None:
    if text == "auto" or text.startswith("unix:") or re.search(r":(vsock|unix):", text):
        raise SpecError(f"this form is not there yet; {FORM} is")


def _split_protocol(text: str) -> tuple[str, Protocol]:
    body, slash, protocol = text.rpartition("/")
    if not slash:
        return text, "tcp"
    if protocol not in PROTOCOLS:
        raise SpecError(f"protocol {protocol!r} is neither tcp nor udp")
    return body, cast("Protocol", protocol)


def _split(text: str) -> list[str]:
    """The parts between colons, where those inside brackets do not count."""
    parts = []
    position = 0
    while True:
        found = _PIECES.match(text, position)
        assert found is not None  # the second alternative matches nothing at all
        parts.append(found.group())
        position = found.end()
        if position == len(text):
            return parts
        if text[position] != ":":
            raise SpecError(f"unexpected {text[position]!r}; IPv6 addresses are written [ADDRESS]")
        position += 1


def _address(part: str) -> str:
    bracketed = part.startswith("[")
    address = _normal(part[1:-1] if bracketed else part)
    if bracketed != (":" in address):
        raise SpecError(f"IPv6 addresses and only they have brackets: {_bracketed(address)}")
    return address


def _normal(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        raise SpecError(f"{text!r} is not an IP address; {FORM} is the form") from None
    if address.is_multicast:
        raise SpecError(f"{text} is a multicast address")
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise SpecError(f"{text} has a zone; forwards take addresses without one")
    return str(address)


def _ports(part: str) -> range:
    found = _PORTS.fullmatch(part)
    if not found:
        raise SpecError(f"{part!r} is not a port or a range of ports like 8000-8010; {FORM} is the form")
    first = _checked(int(found[1]))
    last = _checked(int(found[2])) if found[2] else first
    if last < first:
        raise SpecError(f"the range {part} runs backwards; {last}-{first} would not")
    if first == 0 and last > 0:
        raise SpecError(f"the range {part} begins at 0, which is no port")
    return range(first, last + 1)


def _port(part: str) -> int:
    ports = _ports(part)
    if len(ports) != 1:
        raise SpecError(f"the original's form has no ranges; {FORM} has")
    return ports[0]


def _checked(port: int) -> int:
    if port > 65535:
        raise SpecError(f"port {port} is out of range: 1 to 65535")
    return port


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address

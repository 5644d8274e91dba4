"""What to forward, as people write it: docker's form, the original's, and what they have no form for.

    [HOST_IP:]HOST_PORT:[GUEST_IP:]GUEST_PORT[/tcp|udp]        IPv6 in brackets; ranges FIRST-LAST of the same length
    PORT[/tcp|udp]                                             the same port on both sides
    tcp:HOST_IP:HOST_PORT:tcp:GUEST_IP:GUEST_PORT              the original's; or udp
    unix:BASE64:unix:BASE64                                    the original's, of the paths
    unix:HOST_PATH:...                                         a unix socket of the host, with any of the right sides
    ...:vsock:CID:PORT                                         a vsock port of a guest, with any of the left sides
    ...:unix:GUEST_PATH                                        a unix socket in the guest, by the forwarder there
    ...:127.0.0.1:GUEST_PORT                                   a port of the guest's own loopback, likewise

Host port 0 (or empty after an address, as docker has it) lets the system choose one.  Options follow each of them,
`,key=value`; see `portfwd.options`.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_address
from typing import Final, Literal, TypeAlias, cast

from portfwd.options import DEFAULT, Options, SpecError, parse_options

__all__ = ["Options", "Protocol", "Spec", "SpecError", "Target", "is_rule", "parse"]

Protocol: TypeAlias = Literal["tcp", "udp"]
Target: TypeAlias = Literal["net", "vsock", "unix", "forwarder"]

PROTOCOLS: Final = ("tcp", "udp")
FORM: Final = "[HOST_IP:]HOST_PORT:[GUEST_IP:]GUEST_PORT[/tcp|udp]"
MAX_CID: Final = 2**32 - 2  # the one above means any
MAX_VSOCK_PORT: Final = 2**32 - 2
MAX_PATH: Final = 107  # octets of sun_path without the final NUL

_PORTS: Final = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_NUMBER: Final = re.compile(r"[0-9]{1,10}")
_RULE: Final = re.compile(r"(?:\[[^\[\]]*\]:|[0-9.]*:)?auto(?:[:,/].*)?", re.DOTALL)
_PIECES: Final = re.compile(r"\[[^\[\]]*\]|[^:\[\]]*")


@dataclass(frozen=True, slots=True)
class Spec:
    """One port or unix socket of the host that leads to one of a guest.  A stream unless `protocol` is udp."""

    host_port: int = 0  # 0: the system chooses, or `host_path` says where
    guest_port: int = 0  # 0: `guest_path` says where
    protocol: Protocol = "tcp"
    host_address: str | None = None  # None: the loopback addresses
    guest_address: str | None = None  # None: the first guest, whatever its address
    host_path: str | None = None  # listen on this unix socket instead
    guest_path: str | None = None  # a unix socket in the guest
    guest_cid: int | None = None  # a vsock of this context, where `guest_port` is the port
    options: Options = DEFAULT

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise SpecError(f"protocol {self.protocol!r} is neither tcp nor udp")
        self._check_host()
        self._check_guest()
        self._check_options()

    def _check_host(self) -> None:
        if not 0 <= self.host_port <= 65535:
            raise SpecError(f"host port {self.host_port} is out of range: 0 to 65535")
        if self.host_address is not None:
            object.__setattr__(self, "host_address", _normal(self.host_address))
        if self.host_path is not None:
            _check_path(self.host_path, plain=self.guest_path is None)
            if self.host_port or self.host_address is not None:
                raise SpecError(f"unix socket {self.host_path} has neither address nor port")

    def _check_guest(self) -> None:
        if self.guest_address is not None:
            object.__setattr__(self, "guest_address", _normal(self.guest_address))
        target = self.target
        most = MAX_VSOCK_PORT if target == "vsock" else 65535
        if target != "unix" and not 1 <= self.guest_port <= most:
            raise SpecError(f"guest port {self.guest_port} is out of range: 1 to {most}")
        if target in ("unix", "vsock") and self.guest_address is not None:
            raise SpecError(f"guest address {self.guest_address} and {target} exclude each other")
        if self.guest_address is not None and ip_address(self.guest_address).is_unspecified:
            raise SpecError(f"guest address {self.guest_address} is no guest; leave it out for the first guest")
        if self.guest_cid is not None and not 1 <= self.guest_cid <= MAX_CID:
            raise SpecError(f"vsock CID {self.guest_cid} is out of range: 1 to {MAX_CID}, 3 is the usual first guest")
        if self.guest_path is not None:
            _check_path(self.guest_path, plain=self.host_path is None)
            if self.guest_port or self.guest_cid is not None:
                raise SpecError(f"unix socket {self.guest_path} has neither CID nor port")

    def _check_options(self) -> None:
        options = self.options
        is_udp = self.protocol == "udp"
        if is_udp and (self.host_path is not None or self.target in ("unix", "vsock")):
            raise SpecError("udp goes from a port of the host to a port of the guest; unix and vsock are streams")
        if is_udp and options.proxy:
            raise SpecError(f"proxy={options.proxy} is for tcp; source=client keeps the client's address with udp")
        if is_udp and options.backlog != DEFAULT.backlog:
            raise SpecError(f"backlog={options.backlog} is for tcp; udp has no connections that wait")
        if options.source == "client" and self.host_path is not None:
            raise SpecError("source=client needs clients with addresses, which those of a unix socket have not")
        if options.source == "client" and self.target != "net":
            raise SpecError(f"source=client goes to a guest's address, not by {self.target}; proxy=v2 does")

    @property
    def target(self) -> Target:
        """What the guest's end is: a port of its network, a vsock port, a unix socket, or a port of its own loopback,
        which only the forwarder there reaches."""
        if self.guest_path is not None:
            return "unix"
        if self.guest_cid is not None:
            return "vsock"
        if self.guest_address is not None and ip_address(self.guest_address).is_loopback:
            return "forwarder"
        return "net"

    @property
    def bare(self) -> Spec:
        """The same ends, without options: what tells one forward from another."""
        return replace(self, options=DEFAULT)

    def __str__(self) -> str:
        if self.host_path is not None and self.guest_path is not None:
            return f"unix:{_encoded(self.host_path)}:unix:{_encoded(self.guest_path)}{self.options}"
        if self.host_path is not None:
            host = f"unix:{self.host_path}"
        else:
            address = f"{_bracketed(self.host_address)}:" if self.host_address is not None else ""
            host = f"{address}{self.host_port}"
        if self.guest_path is not None:
            guest = f"unix:{self.guest_path}"
        elif self.guest_cid is not None:
            guest = f"vsock:{self.guest_cid}:{self.guest_port}"
        else:
            address = f"{_bracketed(self.guest_address)}:" if self.guest_address is not None else ""
            guest = f"{address}{self.guest_port}"
        suffix = "" if self.protocol == "tcp" else f"/{self.protocol}"
        return f"{host}:{guest}{suffix}{self.options}"


def parse(text: str) -> list[Spec]:
    """The forwards that `text` asks for: one, or one per port of its ranges.  Raises SpecError and nothing else."""
    try:
        return _parse(text)
    except SpecError as error:
        raise SpecError(f"forward {text!r}: {error}") from None


def _parse(text: str) -> list[Spec]:
    text, comma, rest = text.partition(",")
    options = parse_options(rest) if comma else DEFAULT
    if is_rule(text):
        raise SpecError(
            "it is no forward but a rule that makes some; `vpnkit run -p` takes it, `serve --allow-agent` too"
        )
    parts = _split(text)
    if parts[0] in PROTOCOLS:
        return [_parse_original(parts, options)]
    protocol = _take_protocol(parts)
    if parts[0] == "unix" or (len(parts) > 2 and not {"unix", "vsock"}.isdisjoint(parts[1:3])):
        return [_parse_special(parts, protocol, options)]
    return _parse_ports(parts, protocol, options)


def is_rule(text: str) -> bool:
    """Whether it follows what listens in a guest (portfwd.auto.rules)."""
    return _RULE.fullmatch(text) is not None


def _parse_ports(parts: list[str], protocol: Protocol, options: Options) -> list[Spec]:
    host_address: str | None = None
    guest_address: str | None = None
    match parts:
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
    return [
        Spec(host, guest, protocol, host_address, guest_address, options=options)
        for host, guest in zip(hosts, guests, strict=True)
    ]


def _parse_special(parts: list[str], protocol: Protocol, options: Options) -> Spec:
    """A forward with a unix socket or a vsock port at one of its ends."""
    host_path = host_address = guest_address = guest_path = guest_cid = None
    host_port = guest_port = 0
    match parts:
        case ["unix", path, *rest]:
            host_path = path
        case [port, *rest] if _PORTS.fullmatch(port):
            host_port = _port(port)
        case [address, port, *rest]:
            host_address, host_port = _address(address), _port(port or "0")
        case _:
            rest = []
    match rest:
        case ["unix", path]:
            guest_path = path
        case ["vsock", cid, port]:
            guest_cid, guest_port = _number(cid, "vsock CID"), _number(port, "vsock port")
        case [port]:
            guest_port = _port(port)
        case [address, port]:
            guest_address, guest_port = _address(address), _port(port)
        case _:
            raise SpecError(
                "unix:HOST_PATH:[GUEST_IP:]GUEST_PORT, HOST_PORT:vsock:CID:PORT and HOST_PORT:unix:GUEST_PATH are the"
                " forms with other sockets"
            )
    if host_path is not None and guest_path is not None and not host_path.startswith("/"):
        host_path, guest_path = _decoded(host_path), _decoded(guest_path)
    return Spec(host_port, guest_port, protocol, host_address, guest_address, host_path, guest_path, guest_cid, options)


def _parse_original(parts: list[str], options: Options) -> Spec:
    match parts:
        case [protocol, host_address, host_port, guest_protocol, guest_address, guest_port]:
            pass
        case _:
            raise SpecError("tcp:HOST_IP:HOST_PORT:tcp:GUEST_IP:GUEST_PORT is the form, IPv6 addresses in brackets")
    if guest_protocol != protocol:
        raise SpecError(f"{protocol} cannot be forwarded to {guest_protocol!r}; both sides are the same")
    return Spec(
        _port(host_port, "the original's form has"),
        _port(guest_port, "the original's form has"),
        cast("Protocol", protocol),
        _address(host_address),
        _address(guest_address),
        options=options,
    )


def _take_protocol(parts: list[str]) -> Protocol:
    """Cut the `/tcp` or `/udp` off the last part, unless that is a path."""
    if "/" not in parts[-1] or parts[-1].startswith("/") or (len(parts) > 1 and parts[-2] == "unix"):
        return "tcp"
    parts[-1], _, protocol = parts[-1].rpartition("/")
    if protocol not in PROTOCOLS:
        raise SpecError(f"protocol {protocol!r} is neither tcp nor udp")
    return cast("Protocol", protocol)


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


def _port(part: str, who: str = "unix and vsock have") -> int:
    ports = _ports(part)
    if len(ports) != 1:
        raise SpecError(f"{who} no ranges; {FORM} has")
    return ports[0]


def _checked(port: int) -> int:
    if port > 65535:
        raise SpecError(f"port {port} is out of range: 1 to 65535")
    return port


def _number(part: str, what: str) -> int:
    if not _NUMBER.fullmatch(part):
        raise SpecError(f"{what} {part!r} is not a number; HOST_PORT:vsock:CID:PORT is the form")
    return int(part)


def _check_path(path: str, *, plain: bool) -> None:
    """Raises SpecError for what no unix socket can be called; with `plain` also for what cannot be written plainly."""
    if not path.startswith("/"):
        raise SpecError(f"{path!r} is not the absolute path of a unix socket")
    if "\0" in path:
        raise SpecError(f"the path {path!r} has a NUL")
    try:
        length = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise SpecError(f"the path {path!r} cannot be encoded") from None
    if length > MAX_PATH:
        raise SpecError(f"the path {path!r} has {length} octets, at most {MAX_PATH} fit a unix socket")
    if plain and not ({",", ":", "[", "]"}.isdisjoint(path) and path.isprintable()):
        raise SpecError(f"the path {path!r} has one of , : [ ] in it, which have a meaning here, or is unprintable")


def _encoded(path: str) -> str:
    return base64.b64encode(os.fsencode(path)).decode()


def _decoded(part: str) -> str:
    try:
        return os.fsdecode(base64.b64decode(part, validate=True))
    except (binascii.Error, ValueError):
        raise SpecError(f"{part!r} is neither an absolute path nor one in base64") from None


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address

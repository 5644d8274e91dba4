"""DHCP for IPv6, RFC 8415 sections 8 and 21: messages between clients and servers, and their options.

msg-type 1 | transaction-id 3 | options: code 2, length 2, value ...
IA_NA, IA_PD: IAID 4 | T1 4 | T2 4 | options    IA_TA: IAID 4 | options
IAADDR: address 16 | preferred lifetime 4 | valid lifetime 4 | options

Options stay in their order, as one code may occur many times.  What is inside an IAADDR is not looked at.  Messages
of relays (section 9) have another header, and are not decoded here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from vpnkit.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Iterable

Buffer: TypeAlias = bytes | bytearray | memoryview

CLIENT_PORT: Final = 546
SERVER_PORT: Final = 547

# RFC 8415 section 7.3
SOLICIT: Final = 1
ADVERTISE: Final = 2
REQUEST: Final = 3
CONFIRM: Final = 4
RENEW: Final = 5
REBIND: Final = 6
REPLY: Final = 7
RELEASE: Final = 8
DECLINE: Final = 9
RECONFIGURE: Final = 10
INFORMATION_REQUEST: Final = 11
RELAY_FORW: Final = 12
RELAY_REPL: Final = 13

# RFC 8415 section 21, RFC 3646 (23, 24), RFC 4704 (39), RFC 5908 (56)
CLIENTID: Final = 1
SERVERID: Final = 2
IA_NA: Final = 3
IA_TA: Final = 4
IAADDR: Final = 5
ORO: Final = 6
PREFERENCE: Final = 7
ELAPSED_TIME: Final = 8
STATUS_CODE: Final = 13
RAPID_COMMIT: Final = 14
DNS_SERVERS: Final = 23
DOMAIN_LIST: Final = 24
IA_PD: Final = 25
CLIENT_FQDN: Final = 39
NTP_SERVER: Final = 56
SOL_MAX_RT: Final = 82
INF_MAX_RT: Final = 83
ASSOCIATIONS: Final = frozenset({IA_NA, IA_TA, IA_PD})
SINGLETONS: Final = frozenset({CLIENTID, SERVERID, ORO, ELAPSED_TIME, RAPID_COMMIT, CLIENT_FQDN})

# RFC 8415 section 21.13
SUCCESS: Final = 0
UNSPEC_FAIL: Final = 1
NO_ADDRS_AVAIL: Final = 2
NO_BINDING: Final = 3
NOT_ON_LINK: Final = 4
USE_MULTICAST: Final = 5
NO_PREFIX_AVAIL: Final = 6

DUID_LL: Final = b"\0\3\0\1"  # section 11.4, for Ethernet; then the MAC address
SMALLEST_DUID: Final = 3  # octets: a type of two and something of that type
LARGEST_DUID: Final = 130  # section 11.1
MAX_OPTIONS: Final = 64  # of one message; nobody honest has more

_OPTION: Final = struct.Struct("!HH")
_LIFETIMES: Final = struct.Struct("!II")


class Association(NamedTuple):
    """An IA_NA, IA_TA or IA_PD of a client: its identifier and the addresses in it (none in an IA_PD)."""

    code: int
    iaid: bytes  # 4 octets
    addresses: tuple[bytes, ...] = ()


@dataclass(slots=True)
class Dhcpv6Message:
    """One message.  `associations` are what `decode` found among the options; they are not encoded."""

    kind: int
    transaction: bytes  # 3 octets
    options: list[tuple[int, bytes]] = field(default_factory=list)
    associations: tuple[Association, ...] = field(default=(), compare=False)

    def get(self, code: int) -> bytes | None:
        """The value of the first option `code`."""
        return next((value for other, value in self.options if other == code), None)

    def requests(self, code: int) -> bool:
        """Whether the Option Request option asks for `code`."""
        asked = self.get(ORO) or b""
        wanted = code.to_bytes(2, "big")
        return any(asked[at : at + 2] == wanted for at in range(0, len(asked), 2))

    def encode(self) -> bytes:
        """The octets.  Raises struct.error when a value is longer than 65535 octets."""
        return bytes((self.kind,)) + self.transaction + encode_options(self.options)


def decode(data: Buffer) -> Dhcpv6Message:
    """The message in `data`.  Raises WireError when it is a relay's, or an option passes the end of what holds it,
    or is there twice though it may not."""
    raw = bytes(data)
    if len(raw) < 4:
        raise WireError(f"DHCPv6 message of {len(raw)} octets")
    if raw[0] in (RELAY_FORW, RELAY_REPL):
        raise WireError("DHCPv6 message of a relay")
    options = _options(raw[4:])
    codes = [code for code, _ in options if code in SINGLETONS]
    if len(set(codes)) != len(codes):
        raise WireError("DHCPv6 option that may occur only once")
    for code, value in options:
        if code in (CLIENTID, SERVERID) and not SMALLEST_DUID <= len(value) <= LARGEST_DUID:
            raise WireError(f"DUID of {len(value)} octets")
        if code == ORO and len(value) % 2:
            raise WireError(f"DHCPv6 option request of {len(value)} octets")
    found = tuple(_association(code, value) for code, value in options if code in ASSOCIATIONS)
    return Dhcpv6Message(raw[0], raw[1:4], options, found)


def _options(data: bytes) -> list[tuple[int, bytes]]:
    options: list[tuple[int, bytes]] = []
    at, end = 0, len(data)
    while at < end:
        if end - at < _OPTION.size:
            raise WireError("cut DHCPv6 option")
        code, length = _OPTION.unpack_from(data, at)
        at += _OPTION.size
        if length > end - at:
            raise WireError(f"length of DHCPv6 option {code}")
        if len(options) >= MAX_OPTIONS:
            raise WireError("too many DHCPv6 options")
        options.append((code, data[at : at + length]))
        at += length
    return options


def _association(code: int, value: bytes) -> Association:
    fixed = 4 if code == IA_TA else 12
    if len(value) < fixed:
        raise WireError(f"DHCPv6 option {code} of {len(value)} octets")
    addresses = []
    for inner, data in _options(value[fixed:]):
        if inner == IAADDR:
            if len(data) < 24:
                raise WireError(f"IA address of {len(data)} octets")
            addresses.append(data[:16])
    return Association(code, value[:4], tuple(addresses))


def encode_options(options: Iterable[tuple[int, bytes]]) -> bytes:
    return b"".join(_OPTION.pack(code, len(value)) + value for code, value in options)


def encode_association(
    code: int, iaid: bytes, options: Iterable[tuple[int, bytes]], t1: int = 0, t2: int = 0
) -> tuple[int, bytes]:
    """An IA_NA, IA_TA or IA_PD; `t1` and `t2` in seconds, 0 leaves them to the client.  An IA_TA has neither."""
    times = b"" if code == IA_TA else _LIFETIMES.pack(t1, t2)
    return code, iaid + times + encode_options(options)


def encode_address(address: bytes, preferred: int, valid: int) -> tuple[int, bytes]:
    """An IAADDR; lifetimes in seconds."""
    return IAADDR, address + _LIFETIMES.pack(preferred, valid)


def encode_status(code: int, text: str) -> tuple[int, bytes]:
    """A Status Code; `text` is for people."""
    return STATUS_CODE, code.to_bytes(2, "big") + text.encode()


def host_name(value: bytes) -> bytes:
    """The name in a Client FQDN option (RFC 4704 section 4.1), its labels with dots between, unchecked octets;
    what is cut or compressed ends it."""
    labels = []
    at = 1
    while at < len(value) and 0 < value[at] <= 63 and at + 1 + value[at] <= len(value):
        labels.append(value[at + 1 : at + 1 + value[at]])
        at += 1 + value[at]
    return b".".join(labels)

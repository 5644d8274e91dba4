"""DHCP for IPv4: the BOOTP message of RFC 2131 section 2 and the options of RFC 2132, by hand.

op 1 | htype 1 | hlen 1 | hops 1 | xid 4 | secs 2 | flags 2 | ciaddr 4 | yiaddr 4 | siaddr 4 | giaddr 4 |
chaddr 16 | sname 64 | file 128 | magic cookie 4 | options: code 1, length 1, value ... 255

Options are one mapping from code to value.  A code that occurs more than once is one long value (RFC 3396), and the
options that a sender laid into `file` and `sname` (option 52) are options like the others.  The order of the mapping
is the order on the wire, because some clients look for option 53 at a fixed place.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from vpnkit.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Iterable

Buffer: TypeAlias = bytes | bytearray | memoryview

HEADER: Final = struct.Struct("!BBBBIHH4s4s4s4s6s10x64s128s4s")
MINIMUM: Final = 300  # octets; what BOOTP (RFC 951) sent and what some clients still insist on
COOKIE: Final = b"\x63\x82\x53\x63"
ANY: Final = bytes(4)  # 0.0.0.0
BROADCAST_FLAG: Final = 0x8000

BOOTREQUEST: Final = 1
BOOTREPLY: Final = 2

# Values of option 53, RFC 2132 section 9.6
DISCOVER: Final = 1
OFFER: Final = 2
REQUEST: Final = 3
DECLINE: Final = 4
ACK: Final = 5
NAK: Final = 6
RELEASE: Final = 7
INFORM: Final = 8

PAD: Final = 0
SUBNET_MASK: Final = 1
ROUTER: Final = 3
DNS_SERVER: Final = 6
HOST_NAME: Final = 12
DOMAIN_NAME: Final = 15
INTERFACE_MTU: Final = 26
BROADCAST_ADDRESS: Final = 28
NTP_SERVER: Final = 42
REQUESTED_ADDRESS: Final = 50
LEASE_TIME: Final = 51
OVERLOAD: Final = 52
MESSAGE_TYPE: Final = 53
SERVER_ID: Final = 54
PARAMETER_LIST: Final = 55
MESSAGE: Final = 56
MAXIMUM_SIZE: Final = 57
RENEWAL_TIME: Final = 58
REBINDING_TIME: Final = 59
CLIENT_ID: Final = 61
TFTP_SERVER: Final = 66
BOOT_FILE: Final = 67
DOMAIN_SEARCH: Final = 119
CLASSLESS_ROUTES: Final = 121
END: Final = 255


@dataclass(slots=True)
class DhcpMessage:
    """One message.  Addresses are 4 octets, `chaddr` the 6 of a MAC address, `secs` seconds."""

    op: int
    xid: int
    chaddr: bytes
    options: dict[int, bytes] = field(default_factory=dict)
    secs: int = 0
    flags: int = 0
    ciaddr: bytes = ANY
    yiaddr: bytes = ANY
    siaddr: bytes = ANY
    giaddr: bytes = ANY
    sname: bytes = b""
    file: bytes = b""
    hops: int = 0

    @property
    def kind(self) -> int:
        """The value of option 53; 0 when there is none (BOOTP) or it is not one octet."""
        value = self.options.get(MESSAGE_TYPE, b"")
        return value[0] if len(value) == 1 else 0

    def encode(self) -> bytes:
        """The octets, padded to MINIMUM.  Raises ValueError when a field does not fit its place."""
        if len(self.sname) > 64 or len(self.file) > 128 or len(self.chaddr) != 6:
            raise ValueError("sname, file or chaddr does not fit")
        out = bytearray(
            HEADER.pack(
                self.op,
                1,
                6,
                self.hops,
                self.xid,
                self.secs,
                self.flags,
                self.ciaddr,
                self.yiaddr,
                self.siaddr,
                self.giaddr,
                self.chaddr,
                self.sname,
                self.file,
                COOKIE,
            )
        )
        for code, value in self.options.items():
            out += encode_option(code, value)
        out.append(END)
        if len(out) < MINIMUM:
            out += bytes(MINIMUM - len(out))
        return bytes(out)


def encode_option(code: int, value: bytes) -> bytes:
    """One option, in as many pieces of at most 255 octets as it takes (RFC 3396 section 5)."""
    if len(value) <= 255:
        return bytes((code, len(value))) + value
    pieces = (value[start : start + 255] for start in range(0, len(value), 255))
    return b"".join(bytes((code, len(piece))) + piece for piece in pieces)


def decode(data: Buffer) -> DhcpMessage:
    """The message in `data`.  Raises WireError when it is not one for Ethernet, or an option passes its area's end.

    A missing END is forgiven: it is the last octet of a message that somebody cut, and nothing depends on it.
    """
    if len(data) < HEADER.size:
        raise WireError(f"DHCP message of {len(data)} octets")
    op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file, cookie = (
        HEADER.unpack_from(data)
    )
    if cookie != COOKIE:
        raise WireError("BOOTP without the DHCP cookie")
    if op not in (BOOTREQUEST, BOOTREPLY) or htype != 1 or hlen != 6:
        raise WireError(f"DHCP op {op} for hardware type {htype} with addresses of {hlen} octets")
    areas: dict[int, bytearray] = {}
    _read_options(bytes(data[HEADER.size :]), areas)
    overload = areas.pop(OVERLOAD, None)
    if overload is not None:
        if len(overload) != 1 or not 1 <= overload[0] <= 3:
            raise WireError("value of DHCP option 52")
        if overload[0] & 1:
            _read_options(file, areas)
            file = b""
        if overload[0] & 2:
            _read_options(sname, areas)
            sname = b""
        areas.pop(OVERLOAD, None)  # of no meaning there
    return DhcpMessage(
        op=op,
        xid=xid,
        chaddr=chaddr,
        options={code: bytes(value) for code, value in areas.items()},
        secs=secs,
        flags=flags,
        ciaddr=ciaddr,
        yiaddr=yiaddr,
        siaddr=siaddr,
        giaddr=giaddr,
        sname=sname.rstrip(b"\0"),
        file=file.rstrip(b"\0"),
        hops=hops,
    )


def _read_options(area: bytes, options: dict[int, bytearray]) -> None:
    """Add the options of one area up to its END.  Raises WireError when one reaches past it."""
    i, end = 0, len(area)
    while i < end:
        code = area[i]
        if code == END:
            return
        i += 1
        if code == PAD:
            continue
        if i >= end or i + 1 + area[i] > end:
            raise WireError(f"length of DHCP option {code}")
        value = area[i + 1 : i + 1 + area[i]]
        i += 1 + len(value)
        known = options.get(code)
        if known is None:
            options[code] = bytearray(value)
        else:
            known += value


def encode_domains(domains: Iterable[str]) -> bytes:
    """The value of option 119, RFC 3397, without compression.  Raises ValueError for what cannot be a domain name."""
    out = bytearray()
    for domain in domains:
        length = 1
        for label in domain.rstrip(".").split("."):
            raw = label.encode("ascii") if label.isascii() else label.encode("idna")
            if not 1 <= len(raw) <= 63:
                raise ValueError(f"{domain!r} is not a domain name")
            out.append(len(raw))
            out += raw
            length += 1 + len(raw)
        if length > 255:
            raise ValueError(f"{domain!r} is longer than 255 octets")
        out.append(0)
    return bytes(out)


def encode_routes(routes: Iterable[tuple[bytes, int, bytes]]) -> bytes:
    """The value of option 121, RFC 3442, from (network, prefix length, router)."""
    return b"".join(bytes((prefix,)) + network[: (prefix + 7) // 8] + router for network, prefix, router in routes)

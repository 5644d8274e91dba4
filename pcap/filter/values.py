"""What a number, an address or a name means behind its qualifiers, and what cannot be."""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final

from pcap.errors import FilterError
from pcap.filter.lexer import Kind, Token
from pcap.filter.nodes import (
    ARP,
    IPV4,
    IPV6,
    RARP,
    Address4,
    Address6,
    EtherType,
    Group,
    Mac,
    Node,
    Ports,
    Protocol,
)

if TYPE_CHECKING:
    from pcap.filter.parser import Qualifiers

TCP: Final = 6
UDP: Final = 17
SCTP: Final = 132
EITHER: Final = (IPV4, IPV6)
ALL: Final = 0xFFFFFFFF

ETHERTYPES: Final = {"ip": IPV4, "arp": ARP, "rarp": RARP, "ip6": IPV6}
IP_PROTOCOLS: Final = {
    "icmp": (1, (IPV4,)),
    "igmp": (2, (IPV4,)),
    "tcp": (TCP, EITHER),
    "udp": (UDP, EITHER),
    "esp": (50, EITHER),
    "ah": (51, EITHER),
    "icmp6": (58, (IPV6,)),
    "pim": (103, EITHER),
    "vrrp": (112, (IPV4,)),
    "sctp": (SCTP, EITHER),
}
PROTOCOLS: Final = ("ether", *ETHERTYPES, *IP_PROTOCOLS)
HEADERS: Final = (*PROTOCOLS[:5], *(name for name in IP_PROTOCOLS if name not in ("ah", "esp")))
CARRIERS: Final = {"": (TCP, UDP, SCTP), "tcp": (TCP,), "udp": (UDP,), "sctp": (SCTP,)}

CONSTANTS: Final = {
    "tcpflags": 13, "tcp-fin": 1, "tcp-syn": 2, "tcp-rst": 4, "tcp-push": 8, "tcp-ack": 16, "tcp-urg": 32,
    "tcp-ece": 64, "tcp-cwr": 128,
    "icmptype": 0, "icmpcode": 1, "icmp-echoreply": 0, "icmp-unreach": 3, "icmp-sourcequench": 4, "icmp-redirect": 5,
    "icmp-echo": 8, "icmp-routeradvert": 9, "icmp-routersolicit": 10, "icmp-timxceed": 11, "icmp-paramprob": 12,
    "icmp-tstamp": 13, "icmp-tstampreply": 14, "icmp-ireq": 15, "icmp-ireqreply": 16, "icmp-maskreq": 17,
    "icmp-maskreply": 18,
    "icmp6type": 0, "icmp6code": 1, "icmp6-destinationrunreach": 1, "icmp6-packettoobig": 2, "icmp6-timeexceeded": 3,
    "icmp6-parameterproblem": 4, "icmp6-echo": 128, "icmp6-echoreply": 129, "icmp6-multicastlistenerquery": 130,
    "icmp6-multicastlistenerreportv1": 131, "icmp6-multicastlistenerdone": 132, "icmp6-routersolicit": 133,
    "icmp6-routeradvert": 134, "icmp6-neighborsolicit": 135, "icmp6-neighboradvert": 136, "icmp6-redirect": 137,
}  # fmt: skip

# Of the service names of IANA those that people type, with the protocols that Debian's /etc/services has for them.
SERVICES: Final = {
    "ftp": (21, (TCP,)), "ssh": (22, (TCP,)), "telnet": (23, (TCP,)), "smtp": (25, (TCP,)), "domain": (53, (TCP, UDP)),
    "bootps": (67, (UDP,)), "bootpc": (68, (UDP,)), "tftp": (69, (UDP,)), "http": (80, (TCP,)), "pop3": (110, (TCP,)),
    "ntp": (123, (UDP,)), "imap2": (143, (TCP,)), "snmp": (161, (TCP, UDP)), "ldap": (389, (TCP, UDP)),
    "https": (443, (TCP, UDP)), "submission": (587, (TCP,)), "ldaps": (636, (TCP, UDP)), "imaps": (993, (TCP,)),
    "pop3s": (995, (TCP,)), "mdns": (5353, (UDP,)),
}  # fmt: skip
NUMBERS: Final = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}

EXPECTED: Final = {
    "": "an address",
    "host": "an address",
    "net": "a network like 10.0.0.0/8",
    "port": "a port",
    "portrange": "two ports like 8000-8010",
    "proto": "the number of a protocol, or its name behind a backslash",
}
NAME: Final = re.compile(r"(\*\.)?[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?|\*")


def value(qualifiers: Qualifiers, token: Token, text: str) -> Node:
    """What `token` says alone.  Raises FilterError, as all of these do."""
    kind = qualifiers.kind
    if kind in ("port", "portrange"):
        return _ports(qualifiers, token, text)
    if kind == "proto":
        return _protocol(qualifiers, token, text)
    if token.kind is Kind.MAC:
        if qualifiers.protocol != "ether" or kind == "net":
            raise FilterError("a MAC address needs `ether host`, `ether src` or `ether dst`", text, token.column)
        octets = bytes(int(part, 16) for part in re.split(r"[:.-]", token.text))
        return Mac(octets, qualifiers.side)
    if token.kind is Kind.IPV6:
        return _address6(qualifiers, int(IPv6Address(token.text)), (1 << 128) - 1, token, text)
    if token.kind is Kind.DOTTED:
        number, bits = _dotted(token, text)
        return _address4(qualifiers, number << 32 - bits, ALL << 32 - bits & ALL, token, text)
    if token.kind is not Kind.NUMBER:
        hint = "`name` finds flows by name" if kind != "net" else "10.0.0.0/8 is one"
        raise FilterError(f"{token} is no address, and names are not looked up; {hint}", text, token.column)
    number, mask = token.number, ALL
    while kind == "net" and number and not number & 0xFF000000:
        number, mask = number << 8, mask << 8 & ALL
    return _address4(qualifiers, number, mask, token, text)


def prefix(qualifiers: Qualifiers, token: Token, length: Token, text: str) -> Node:
    """An address and the length of its prefix."""
    bits = 128 if token.kind is Kind.IPV6 else 32
    if qualifiers.kind != "net" and not (bits == length.number == 128 and qualifiers.kind in ("", "host")):
        raise FilterError("a network needs `net` before it", text, token.column)
    if length.number > bits:
        raise FilterError(f"a prefix has at most {bits} bits", text, length.column)
    mask = (1 << bits) - (1 << bits - length.number)
    if bits == 128:
        number = int(IPv6Address(token.text))
        _check_network(number, mask, token, f"{token.text}/{length.text}", text)
        return _address6(qualifiers, number, mask, token, text)
    number, known = _dotted(token, text)
    number <<= 32 - known
    _check_network(number, mask, token, f"{token.text}/{length.text}", text)
    return _address4(qualifiers, number, mask, token, text)


def masked(qualifiers: Qualifiers, token: Token, mask_token: Token, text: str) -> Node:
    """An address and a mask."""
    if qualifiers.kind != "net":
        raise FilterError("a network needs `net` before it", text, token.column)
    number, known = _dotted(token, text)
    mask, mask_known = _dotted(mask_token, text)
    number, mask = number << 32 - known, mask << 32 - mask_known
    _check_network(number, mask, token, f"{token.text} mask {mask_token.text}", text)
    return _address4(qualifiers, number, mask, token, text)


def name_pattern(token: Token, text: str) -> str:
    """A domain name, perhaps with `*.` before it; lower case, no final dot."""
    if not NAME.fullmatch(token.text):
        raise FilterError(f"{token} is no name like www.example.com or *.example.com", text, token.column)
    return token.text.lower().removesuffix(".")


def group(protocol: str, token: Token, text: str) -> Node:
    """`broadcast` or `multicast` of a protocol."""
    if protocol == "ether":
        return Group("broadcast" if token.text == "broadcast" else "multicast")
    if token.text == "multicast" and protocol in ("ip", "ip6"):
        return Group("ip" if protocol == "ip" else "ip6")
    if protocol == "ip":
        raise FilterError("which addresses are broadcast is not known; `ether broadcast` is", text, token.column)
    raise FilterError(f"{protocol} has no {token.text}", text, token.column)


def whole_protocol(protocol: str, token: Token, text: str) -> Node:
    """All of a protocol."""
    if protocol in ETHERTYPES:
        return EtherType(ETHERTYPES[protocol])
    if protocol not in IP_PROTOCOLS:
        raise FilterError("every frame is `ether`: host, src, dst, proto, broadcast?", text, token.column)
    return Protocol(*IP_PROTOCOLS[protocol])


def _dotted(token: Token, text: str) -> tuple[int, int]:
    """The number, and how many bits of an address it is."""
    number = 0
    parts = token.text.split(".")
    for part in parts:
        if int(part) > 255:
            raise FilterError(f"{part} is no octet of an address", text, token.column)
        number = number << 8 | int(part)
    return number, 8 * len(parts)


def _check_network(number: int, mask: int, token: Token, shown: str, text: str) -> None:
    if number & ~mask:
        raise FilterError(f"{shown} is an address inside its network", text, token.column)


def _address4(qualifiers: Qualifiers, number: int, mask: int, token: Token, text: str) -> Node:
    protocol = qualifiers.protocol
    if protocol == "":
        return Address4(number, mask, qualifiers.side, (IPV4, ARP, RARP))
    if protocol not in ("ip", "arp", "rarp"):
        raise FilterError(f"`{protocol}` has no IPv4 addresses; `{protocol} and host`?", text, token.column)
    return Address4(number, mask, qualifiers.side, (ETHERTYPES[protocol],))


def _address6(qualifiers: Qualifiers, number: int, mask: int, token: Token, text: str) -> Node:
    if qualifiers.protocol not in ("", "ip6"):
        raise FilterError(f"`{qualifiers.protocol}` has no IPv6 addresses", text, token.column)
    return Address6(number, mask, qualifiers.side)


def _ports(qualifiers: Qualifiers, token: Token, text: str) -> Node:
    protocols = CARRIERS.get(qualifiers.protocol)
    if protocols is None:
        raise FilterError(f"`{qualifiers.protocol}` has no ports", text, token.column)
    if qualifiers.kind == "port" or token.kind is Kind.NUMBER:
        low = high = _port(token.text, protocols, token, text) if token.kind is Kind.WORD else (token.number, protocols)
    else:
        first, dash, last = token.text.partition("-")
        if token.kind is not Kind.WORD or not dash:
            raise FilterError(f"{token} are no ports like 8000-8010", text, token.column)
        low, high = _port(first, protocols, token, text), _port(last, protocols, token, text)
    if max(low[0], high[0]) > 0xFFFF or token.kind not in (Kind.WORD, Kind.NUMBER):
        raise FilterError(f"{token} is no port: 0 to 65535", text, token.column)
    protocols = low[1] if low[1] == high[1] else protocols
    if low[0] > high[0]:
        low, high = high, low
    return Ports(low[0], high[0], qualifiers.side, protocols)


def _port(word: str, protocols: tuple[int, ...], token: Token, text: str) -> tuple[int, tuple[int, ...]]:
    if word.isascii() and word.isdigit():
        return int(word, 8 if word[0] == "0" and word.strip("01234567") == "" else 10), protocols
    known = SERVICES.get(word)
    if known is None:
        raise FilterError(f"{word!r} is no port that is known here; its number is", text, token.column)
    number, carriers = known
    if len(protocols) == 1:
        if protocols[0] not in carriers:
            raise FilterError(f"{word} is {NUMBERS[carriers[0]]}", text, token.column)
        return number, protocols
    return number, carriers if len(carriers) == 1 else protocols


def _protocol(qualifiers: Qualifiers, token: Token, text: str) -> Node:
    protocol = qualifiers.protocol
    if protocol == "ether":
        number = ETHERTYPES.get(token.text, -1) if token.kind is Kind.WORD else token.number
        if token.kind not in (Kind.WORD, Kind.NUMBER) or not 0x600 <= number <= 0xFFFF:
            raise FilterError(f"{token} is no EtherType from 0x600", text, token.column)
        return EtherType(number)
    families = {"": EITHER, "ip": (IPV4,), "ip6": (IPV6,)}.get(protocol)
    if families is None:
        raise FilterError(f"`{protocol}` has no protocols inside", text, token.column)
    if token.kind is Kind.KEYWORD:
        raise FilterError(f"a backslash makes {token} a name here: \\{token.text}", text, token.column)
    if token.kind is Kind.WORD and token.text in IP_PROTOCOLS:
        return Protocol(IP_PROTOCOLS[token.text][0], families)
    if token.kind is not Kind.NUMBER or token.number > 255:
        raise FilterError(f"{token} is no protocol: 0 to 255", text, token.column)
    return Protocol(token.number, families)

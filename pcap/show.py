"""A line for each packet, for people.

dpkt reads the packets.  It raises more than its own exceptions on odd input, cannot read an answer with a record type
that it does not know, and was not written for hostile bytes; so it works behind a guard, layer by layer, and what it
cannot read is shown by the layer below.  Text that came in a packet is made printable: a guest must not be able to
write to the operator's terminal.
"""

from __future__ import annotations

from datetime import datetime, tzinfo
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pcap.ring import Packet

DNS_PORT: Final = 53
DNS_TYPES: Final = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 35: "NAPTR",
    41: "OPT", 43: "DS", 46: "RRSIG", 48: "DNSKEY", 64: "SVCB", 65: "HTTPS", 252: "AXFR", 255: "ANY", 257: "CAA",
}  # fmt: skip
DNS_CODES: Final = {1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
TCP_FLAGS: Final = ((0x02, "S"), (0x01, "F"), (0x04, "R"), (0x08, "P"), (0x20, "U"), (0x10, "."))  # as tcpdump
ICMP_TYPES: Final = {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"}
ICMP6_TYPES: Final = {
    1: "unreachable", 2: "packet too big", 3: "time exceeded", 128: "echo request", 129: "echo reply",
    133: "router solicitation", 134: "router advertisement",
    135: "neighbor solicitation", 136: "neighbor advertisement",
}  # fmt: skip
MAX_LINE: Final = 400


def show(packets: Iterable[Packet], *, zone: tzinfo | None = None) -> Iterator[str]:
    """One line for each packet; times are local unless `zone` is given."""
    for packet in packets:
        yield f"{clock(packet.timestamp_ns, zone)} {describe(packet)}"


def clock(timestamp_ns: int, zone: tzinfo | None = None) -> str:
    """The time of day, to the microsecond."""
    seconds, nanoseconds = divmod(timestamp_ns, 1_000_000_000)
    try:
        return f"{datetime.fromtimestamp(seconds, zone):%H:%M:%S}.{nanoseconds // 1000:06}"
    except (ValueError, OverflowError, OSError):
        return f"@{seconds}.{nanoseconds // 1000:06}"


def describe(packet: Packet) -> str:
    """What `packet` is, in one printable line without its time.  Never raises."""
    try:
        text = _frame(packet)
    except Exception:  # dpkt on bytes from outside: the guard that the module's text promises
        text = f"{packet.length} octets that cannot be read: {packet.data[:32].hex()}"
    return _printable(text)[:MAX_LINE]


def _frame(packet: Packet) -> str:
    import dpkt  # 75 ms: only who prints packets pays for it

    frame = dpkt.ethernet.Ethernet(packet.data)
    inner = frame.data
    if isinstance(inner, dpkt.arp.ARP):
        return _arp(inner)
    if isinstance(inner, dpkt.ip.IP | dpkt.ip6.IP6):
        return _ip(inner)
    return f"{frame.src.hex(':')} > {frame.dst.hex(':')} ethertype {frame.type:#06x}, {packet.length} octets"


def _arp(message: Any) -> str:
    sender, target = ip_address(message.spa), ip_address(message.tpa)
    if message.op == 1:
        return f"ARP who has {target}, tell {sender}"
    return f"ARP {sender} is at {message.sha.hex(':')}"


def _ip(datagram: Any) -> str:
    import dpkt

    source, destination = ip_address(datagram.src), ip_address(datagram.dst)
    inner = datagram.data
    if isinstance(inner, dpkt.udp.UDP | dpkt.tcp.TCP):
        if DNS_PORT in (inner.sport, inner.dport):
            try:
                return f"{source} > {destination} DNS {_dns(inner)}"
            except Exception:  # not DNS, or not all of it
                pass
        ends = f"{_end(source, inner.sport)} > {_end(destination, inner.dport)}"
        return f"{ends} {_tcp(inner) if isinstance(inner, dpkt.tcp.TCP) else f'UDP length {inner.ulen - 8}'}"
    return f"{source} > {destination} {_upper(datagram, inner)}"


def _end(address: Any, port: int) -> str:
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def _upper(datagram: Any, inner: Any) -> str:
    import dpkt

    for layer, name, types in ((dpkt.icmp.ICMP, "ICMP", ICMP_TYPES), (dpkt.icmp6.ICMP6, "ICMPv6", ICMP6_TYPES)):
        if isinstance(inner, layer):
            kind = types.get(inner.type, f"type {inner.type}")
            code = f" code {inner.code}" if inner.code else ""
            body = bytes(inner.data)
            echo = f" id {int.from_bytes(body[:2])} seq {int.from_bytes(body[2:4])}" if kind.startswith("echo") else ""
            return f"{name} {kind}{code}{echo}"
    return f"IP protocol {datagram.p}, {len(inner)} octets"


def _tcp(segment: Any) -> str:
    flags = "".join(letter for bit, letter in TCP_FLAGS if segment.flags & bit)
    acknowledged = f" ack {segment.ack}" if segment.flags & 0x10 else ""
    return f"TCP {flags or 'none'} seq {segment.seq}{acknowledged} win {segment.win} length {len(segment.data)}"


def _dns(carrier: Any) -> str:
    import dpkt

    message = bytes(carrier.data)
    if isinstance(carrier, dpkt.tcp.TCP):
        message = message[2:]  # a length
    if len(message) < 12:
        raise ValueError("no DNS header")
    try:
        decoded = dpkt.dns.DNS(message)
    except Exception:  # a record that dpkt does not know: the question alone, then
        decoded = dpkt.dns.DNS(message[:6] + bytes(6) + message[12:])
    question = " ".join(f"{_dns_type(question.type)} {question.name or '.'}" for question in decoded.qd)
    if not message[2] & 0x80:
        return f"query {question}"
    code = message[3] & 0x0F
    if code:
        return f"answer {question} {DNS_CODES.get(code, f'code {code}')}"
    records = [_dns_record(record) for record in decoded.an]
    if not records:
        count = int.from_bytes(message[6:8])
        records = [f"{count} record{'' if count == 1 else 's'}"]
    return f"answer {question} {', '.join(records)}"


def _dns_record(record: Any) -> str:
    kind = _dns_type(record.type)
    if kind in ("A", "AAAA"):
        return str(ip_address(record.rdata))
    name = {"CNAME": "cname", "PTR": "ptrname", "NS": "nsname", "MX": "mxname"}.get(kind)
    return f"{kind} {getattr(record, name)}" if name else kind


def _dns_type(number: int) -> str:
    return DNS_TYPES.get(number, f"TYPE{number}")


def _printable(text: str) -> str:
    return "".join(c if c.isascii() and c.isprintable() else c.encode("unicode_escape").decode() for c in text)

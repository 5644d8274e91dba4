"""Frames and filters that look at the same things: few addresses and ports, every header, cut ends, damaged octets."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, Final

from tests.pcap.frames import FRAMES

if TYPE_CHECKING:
    from collections.abc import Iterator

MACS: Final = [bytes.fromhex(mac) for mac in ("025000000001", "f61636bcf9c6", "ffffffffffff", "333300000001")]
ADDRESSES: Final = [bytes(map(int, a.split("."))) for a in (
    "192.168.65.1", "192.168.65.3", "10.0.0.1", "10.1.2.3", "224.0.0.251", "8.8.8.8", "255.255.255.255",
)]  # fmt: skip
ADDRESSES6: Final = [
    bytes.fromhex(a) for a in (
        "fd6576706e6b00000000000000000001", "fd6576706e6b00000000000000000003", "fe800000000000000050000000000001",
        "ff020000000000000000000000000001", "20010db8000000000000000000000001",
    )
]  # fmt: skip
PORTS: Final = [53, 80, 443, 123, 8000, 40000, 65535, 0]
PROTOCOLS: Final = [6, 6, 6, 17, 17, 17, 1, 58, 132, 2, 44, 50, 51, 103, 112, 0, 255]

EXPRESSIONS: Final = [
    "", "ip", "ip6", "arp", "rarp", "tcp", "udp", "icmp", "icmp6", "sctp", "igmp", "esp", "ah", "pim", "vrrp",
    "not tcp", "not ip", "! udp", "not not tcp", "tcp or udp", "tcp && not port 80", "ip and not tcp or arp",
    "tcp or udp and port 53", "not tcp and udp or arp", "not (tcp or arp)", "(tcp or udp) and (port 53 or port 80)",
    "host 192.168.65.3", "src host 192.168.65.3", "dst host 192.168.65.3", "src 10.0.0.1", "dst 10.0.0.1",
    "src and dst host 10.0.0.1", "src or dst host 10.0.0.1", "dst or src host 10.0.0.1", "not host 192.168.65.1",
    "ip host 192.168.65.1", "arp host 192.168.65.1", "rarp host 10.0.0.1", "ip host 192.168.65.1 or arp",
    "host 192.168.65.1 or 10.0.0.1", "host (192.168.65.1 or 10.0.0.1)", "host 192.168.65.1 and 192.168.65.3",
    "not host 192.168.65.1 and 192.168.65.3", "src 10.0.0.1 or dst 10.1.2.3", "host 10.1", "host 167772161",
    "host 0x0a000001", "host fd65:7670:6e6b::3", "src host fd65:7670:6e6b::3", "dst ff02::1", "ip6 host fe80::50:0:0:1",
    "not host fd65:7670:6e6b::1", "src and dst host fd65:7670:6e6b::1",
    "net 10.0.0.0/8", "net 10", "net 192.168.65", "src net 10.0.0.0 mask 255.0.0.0", "dst net 192.168.0.0/16",
    "net 224.0.0.0/4", "net 0.0.0.0/0", "not net 10.0.0.0/8", "net fd00::/8", "src net fd65:7670:6e6b::/64",
    "dst net ff00::/8", "net ::/0", "ip6 net 2001:db8::/33", "ip net 192.168.64.0/23", "arp net 192.168.65.0/24",
    "port 53", "src port 53", "dst port 53", "src and dst port 53", "port 53 or 80", "port (53 or 80)", "not port 53",
    "tcp port 80", "udp port 53", "tcp src port 80", "udp dst port 53 or 123", "tcp port 80 or 443 or 8000",
    "portrange 1-1023", "tcp portrange 80-443", "udp src portrange 40000-65535", "portrange 8000", "port 0",
    "port 0x35", "port 065", "port domain", "tcp port http", "port ntp", "port http", "portrange domain-http",
    "tcp port not 80", "udp and not port (53 or 123)", "sctp port 80", "src port 80 or dst port 443",
    "ip proto 17", "ip6 proto 58", "proto 6", "proto \\udp", "ip proto \\icmp", "ip6 proto \\tcp", "not proto 17",
    "ether proto 0x0806", "ether proto \\ip6", "ether proto 0x8100",
    "ether host 02:50:00:00:00:01", "ether src 2:50:0:0:0:1", "ether dst f6-16-36-bc-f9-c6",
    "not ether src host 02:50:00:00:00:01", "ether src and dst host ff:ff:ff:ff:ff:ff",
    "broadcast", "multicast", "ether broadcast", "ether multicast", "ip multicast", "ip6 multicast", "not multicast",
    "less 60", "greater 60", "not less 100", "len > 100", "len <= 60", "len = 54", "len + 1 > 60", "len >= 1514",
    "len / 10 = 6", "len % 2 = 0", "100 < len", "len - 14 != 40", "len & 1 = 1", "len << 1 > 200", "len >> 3 = 7",
    "1 = 1", "1 > 2", "len * 2 = 120 or arp", "-1 > len", "-len + len = 0",
    "ether[0] & 1 = 0", "ether[12:2] = 0x0800", "ether[6:4] = 0x02500000", "ip[0] = 0x45", "ip[0] & 0xf != 5",
    "ip[2:2] > 60", "ip[6:2] & 0x1fff != 0", "ip[6] & 0x20 != 0", "ip[8] < 64", "ip[9] = 6", "ip[12:4] = 0x0a000001",
    "ip[16:4] & 0xff000000 = 0x0a000000", "ip6[6] = 17", "ip6[4:2] > 20", "ip6[8:4] = 0xfd657670",
    "tcp[13] & 2 != 0", "tcp[tcpflags] = tcp-syn", "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "tcp[tcpflags] & (tcp-syn|tcp-ack) = tcp-syn", "tcp[0:2] = 80", "tcp[4:4] > 1000", "tcp[12] >> 4 = 5",
    "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x68656c6c", "not tcp[13] & 4 != 0", "tcp[14:2] < 1000", "(tcp[13] & 16) != 0",
    "udp[4:2] > 20", "udp[8:2] = 1", "udp[0:2] = udp[2:2]", "not udp[4:2] > 20", "icmp[0] = 8",
    "icmp[icmptype] = icmp-echo", "icmp[icmptype] != icmp-echo", "icmp[icmpcode] = 3", "icmp6[0] = 135",
    "icmp6[icmp6type] = icmp6-echo", "icmp6[0] > 127", "arp[6:2] = 1", "arp[14:4] = 0xc0a84103", "arp[7] = 2",
    "tcp[100] = 0", "not tcp[100] = 0", "udp[200:4] = 0 or tcp", "ip[ip[0] & 15] = 0", "ether[len - 1] = 0",
    "not ether[len - 1] = 0", "ether[len] = 0 or ip", "ip[200] / ip[201] = 1", "100 / ip[1] = 1",
    "not 100 / ip[1] = 1", "tcp[2:2] - tcp[0:2] > 0", "ip[1] | 3 = 3", "ip[9] ^ 6 = 0", "ip[0] << 24 >> 28 = 4",
    "(ip[9] = 6 or ip[9] = 17) and (ip[20:2] = 80)", "sctp[0:2] = 80", "igmp[0] = 1 or pim[0] = 1 or vrrp[0] = 1",
    "udp port 53 and not host 192.168.65.1", "tcp port 80 and (tcp[tcpflags] & tcp-syn != 0)",
    "tcp and dst port 443 and src net 192.168.65.0/24", "(ip or ip6) and not (port 22 or port 53 or arp)",
    "icmp or icmp6 or arp or igmp", "src host 192.168.65.3 and dst portrange 1-1023 and tcp",
    "host 192.168.65.3 and (tcp port 80 or 443) and len > 60",
    "net 192.168.65.0/24 and not (host 192.168.65.1 or 10.0.0.1)",
]  # fmt: skip


def frames(seed: int, count: int, *, damage: float = 0.0) -> Iterator[tuple[bytes, int]]:
    """`count` frames as they were captured, and their whole lengths: some cut or changed, with this probability."""
    rng = random.Random(seed)
    for _ in range(count):
        frame = _frame(rng)
        length = len(frame)
        if rng.random() < damage:
            frame = frame[: rng.randint(14, length)]
        if rng.random() < damage:
            changed = bytearray(frame)
            changed[rng.randrange(len(changed))] = rng.randrange(256)
            frame = bytes(changed)
        yield frame, length


def _frame(rng: random.Random) -> bytes:
    chance = rng.random()
    macs = rng.choice(MACS) + rng.choice(MACS)
    if chance < 0.1:
        return macs + rng.choice(list(FRAMES.values()))[12:]
    if chance < 0.2:
        kind = rng.choice((0x0806, 0x0806, 0x8035))
        operation = struct.pack(">HHHBBH", kind, 1, 0x0800, 6, 4, rng.choice((1, 2)))
        return macs + operation + MACS[0] + rng.choice(ADDRESSES) + MACS[1] + rng.choice(ADDRESSES) + bytes(18)
    protocol = rng.choice(PROTOCOLS)
    inner = _transport(rng, protocol)
    if chance < 0.65:
        options = bytes(rng.choice((0, 0, 0, 0, 4, 20)))
        fragment = rng.choice((0, 0, 0x4000, 0x4000, 0x4000, 0x2000, 0x2005, 0x0005))
        header = struct.pack(
            ">BBHHHBBH", 0x45 + len(options) // 4, rng.randrange(8), 20 + len(options) + len(inner),
            rng.randrange(65536), fragment, rng.choice((1, 64, 255)), protocol, rng.randrange(65536),
        )  # fmt: skip
        packet = b"\x08\x00" + header + rng.choice(ADDRESSES) + rng.choice(ADDRESSES) + options + inner
    else:
        if protocol == 44:
            inner = bytes((rng.choice((6, 17, 58)), 0, 0, rng.choice((0, 1)), 0, 0, 0, 1)) + inner
        header = struct.pack(">LHBB", 0x60000000, len(inner), protocol, 64)
        packet = b"\x86\xdd" + header + rng.choice(ADDRESSES6) + rng.choice(ADDRESSES6) + inner
    if rng.random() < 0.03:
        packet = b"\x81\x00\x00\x05" + packet
    return macs + packet


def _transport(rng: random.Random, protocol: int) -> bytes:
    payload = rng.choice((b"", b"hello", bytes(40), rng.randbytes(300)))
    ports = struct.pack(">HH", rng.choice(PORTS), rng.choice(PORTS))
    if protocol == 6:
        flags = rng.choice((2, 18, 16, 24, 17, 4, 20))
        return ports + struct.pack(">LLBBHHH", rng.randrange(5000), 1, 0x50, flags, rng.randrange(4000), 0, 0) + payload
    if protocol == 17:
        return ports + struct.pack(">HH", 8 + len(payload), 0) + payload
    if protocol in (1, 58):
        return bytes((rng.choice((0, 3, 8, 128, 129, 135)), rng.choice((0, 3)), 0, 0)) + payload
    return ports + payload

"""Whatever the guest sends, no exception escapes, nothing grows beyond its bound, and the next good frame works."""

from __future__ import annotations

import gc
import random
import struct
import tracemalloc

import pytest
import trio
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.l2 import ARP, Ether
from trio.testing import MockClock

from tests.vpnkit.net.still_guest import MAC, StillGuest
from vpnkit.net import icmp, tcp, udp
from vpnkit.net.plan import SERVER_MAC
from vpnkit.wire.checksum import checksum, ones_sum

GUEST, GATEWAY, HOST, REMOTE = "192.168.65.3", "192.168.65.1", "192.168.65.2", "9.9.9.9"
BATCH = 50


def seeds() -> list[bytes]:
    """One good frame of each kind."""
    ether = Ether(src=MAC, dst=SERVER_MAC)
    discover = BOOTP(chaddr=MAC + bytes(10)) / DHCP(options=[("message-type", "discover"), "end"])
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]
    packets = [
        Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(psrc=GUEST, pdst=GATEWAY),
        Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff")
        / IP(src="0.0.0.0", dst="255.255.255.255")
        / UDP(sport=68, dport=67)
        / discover,
        ether / IP(src=GUEST, dst=GATEWAY) / UDP(sport=4000, dport=53) / DNS(qd=DNSQR(qname="host.internal")),
        ether / IP(src=GUEST, dst=GATEWAY) / ICMP() / b"ping",
        ether / IP(src=GUEST, dst=REMOTE) / ICMP(id=9) / b"ping",
        ether / IP(src=GUEST, dst=REMOTE) / UDP(sport=5000, dport=443) / bytes(300),
        ether / IP(src=GUEST, dst=HOST) / UDP(sport=5001, dport=53) / b"hello",
        ether / IP(src=GUEST, dst=GATEWAY) / ICMP(type=3, code=3) / IP(src=GATEWAY, dst=GUEST) / TCP(sport=1, dport=2),
        ether / IP(src=GUEST, dst=GATEWAY, proto=132) / bytes(40),
        ether / IP(src=GUEST, dst=REMOTE, options=b"\x07\x07\x04\0\0\0\0\0") / UDP(sport=1, dport=2) / b"x",
    ]
    for flags in ("S", "SA", "A", "FA", "R", "RA", "PA", "FSRPAUEC", ""):
        segment = TCP(sport=6000, dport=8080, flags=flags, seq=1000, ack=2000, options=options if "S" in flags else [])
        packets.append(ether / IP(src=GUEST, dst=REMOTE) / segment / (b"data" if "P" in flags else b""))
    packets += [ether / part for part in fragment(IP(src=GUEST, dst=REMOTE) / UDP(dport=9) / bytes(3000), 1000)]
    return [bytes(packet) for packet in packets]


def repaired(frame: bytearray) -> bytearray:
    """Right checksums again, so that the fault lies deeper."""
    if len(frame) < 34 or frame[12:14] != b"\x08\x00":
        return frame
    length = (frame[14] & 15) * 4
    frame[24:26] = bytes(2)
    frame[24:26] = checksum(ones_sum(frame[14 : 14 + length])).to_bytes(2, "big")
    if frame[23] == 1 and len(frame) > 14 + length + 8:
        total = struct.unpack_from("!H", frame, 16)[0]
        message = frame[14 + length : 14 + total]
        message[2:4] = bytes(2)
        frame[16 + length : 18 + length] = checksum(ones_sum(message)).to_bytes(2, "big")
    return frame


def mutated(rng: random.Random, good: list[bytes], learned: list[bytes]) -> bytes:
    """Something between a good frame and noise."""
    kind = rng.random()
    if kind < 0.05:
        return rng.randbytes(rng.choice([0, 1, 13, 14, 20, 34, 60, 1500])).ljust(14, b"\0")
    frame = bytearray(rng.choice(learned if learned and kind < 0.3 else good))
    for _ in range(rng.choice([0, 0, 1, 1, 2, 5])):
        place = rng.choice([rng.randrange(14, len(frame)), rng.randrange(len(frame))])
        frame[place] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256), frame[place] ^ 1])
    if rng.random() < 0.3 and len(frame) >= 38:  # another flow
        frame[34:38] = struct.pack("!HH", rng.randrange(65536), rng.choice([8080, 8081, 8082, 8083, 53, 0]))
    if rng.random() < 0.1:
        frame = frame[: rng.randrange(14, len(frame) + 1)]
    elif rng.random() < 0.1:
        frame += rng.randbytes(rng.randrange(100))
    return bytes(repaired(frame) if rng.random() < 0.8 else frame)


def answer(frame: bytes, rng: random.Random) -> bytes | None:
    """What a guest might say to a segment of ours: so that connections open, and are then maltreated."""
    if len(frame) < 54 or frame[12:14] != b"\x08\x00" or frame[23] != 6:
        return None
    sport, dport, sequence, acknowledgement, _, flags = struct.unpack_from("!HHIIBB", frame, 34)
    length = struct.unpack_from("!H", frame, 16)[0] - 20 - (frame[46] >> 4) * 4
    if flags & 4:
        return None
    ip = IP(src=GUEST, dst=".".join(map(str, frame[26:30])))
    segment = TCP(
        sport=dport,
        dport=sport,
        seq=acknowledgement,
        ack=(sequence + length + (flags & 2 != 0) + (flags & 1)) & 0xFFFFFFFF,
        flags="PA",
        window=rng.choice([0, 1, 500, 65535]),
    )
    return bytes(Ether(src=MAC, dst=SERVER_MAC) / ip / segment / rng.randbytes(rng.choice([0, 1, 100])))


async def storm(clock: MockClock, frames: int, *, verify_checksums: bool, seed: int) -> None:
    rng = random.Random(seed)
    good, learned = seeds(), []
    async with trio.open_nursery() as nursery:
        still = StillGuest(nursery, verify_checksums=verify_checksums)
        guest = still.guest
        middle = 0
        try:
            for count in range(0, frames, BATCH):
                output = still.feed(*(mutated(rng, good, learned) for _ in range(BATCH)))
                errors = sum(frame[12:14] == b"\x08\x00" and frame[23] == 1 and frame[34] == 3 for frame in output)
                assert errors <= BATCH
                for frame in output:
                    said = answer(frame, rng) if rng.random() < 0.5 else None
                    if said is not None:
                        learned.append(said)
                        del learned[:-20]
                clock.jump(rng.choice([0.0001, 0.01, 0.5]))
                still.deadlines()
                still.output()
                await trio.lowlevel.checkpoint()
                assert guest.counters["internal_error"] == 0
                if count == frames // 2:
                    gc.collect()
                    middle = tracemalloc.get_traced_memory()[0]
            assert len(guest.tcp.flows) <= tcp.MAX_FLOWS
            assert len(guest.tcp._held) <= tcp.MAX_HELD
            assert len(guest.tcp._time_wait) <= tcp.MAX_TIME_WAIT
            assert len(guest.udp.mappings) <= udp.MAX_MAPPINGS
            assert len(guest.icmp.sessions) <= icmp.MAX_SESSIONS
            assert len(guest.counters) < 60
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] - middle < 1_500_000
            clock.jump(1.0)  # the rate limit of errors forgets
            (reply,) = [f for f in still.feed(seeds()[0]) if f[12:14] == b"\x08\x06"]
            assert Ether(reply)[ARP].psrc == GATEWAY
            ping = Ether(src=MAC, dst=SERVER_MAC) / IP(src=GUEST, dst=GATEWAY) / ICMP(id=4711) / b"alive?"
            assert any(bytes(Ether(f)[ICMP].payload) == b"alive?" for f in still.feed(bytes(ping)) if f[23] == 1)
        finally:
            still.close()
            nursery.cancel_scope.cancel()


def run_storm(monkeypatch: pytest.MonkeyPatch, frames: int, *, verify_checksums: bool, seed: int) -> None:
    monkeypatch.setattr(tcp, "MAX_FLOWS", 100)
    monkeypatch.setattr(tcp, "MAX_HELD", 20)
    monkeypatch.setattr(tcp, "MAX_TIME_WAIT", 50)
    monkeypatch.setattr(udp, "MAX_MAPPINGS", 50)
    monkeypatch.setattr(icmp, "MAX_SESSIONS", 20)
    clock = MockClock()

    async def main() -> None:
        await storm(clock, frames, verify_checksums=verify_checksums, seed=seed)

    tracemalloc.start()
    try:
        trio.run(main, clock=clock)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("verify_checksums", [False, True])
def test_ten_thousand_frames(monkeypatch, verify_checksums):
    run_storm(monkeypatch, 10_000, verify_checksums=verify_checksums, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 7))
def test_a_hundred_thousand_frames(monkeypatch, seed):
    run_storm(monkeypatch, 20_000, verify_checksums=bool(seed % 2), seed=seed)

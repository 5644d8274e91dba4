"""Fragments of the guest: RFC 791 section 3.2, RFC 1122 section 3.3.2, RFC 5722, RFC 4787 REQ-14."""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet import ICMP, IP, UDP, fragment

from tests.conformance.wire import GATEWAY, GUEST, HOST, datagram, errors, octets, ping
from vpnkit.proto import reassembly


def part(start: int, payload: bytes, *, more: bool, identification: int = 7, protocol: int = 1, **ip: object) -> IP:
    """One fragment, octets `start` and on of a datagram to the gateway."""
    assert start % 8 == 0
    flags = "MF" if more else 0
    return IP(src=GUEST, dst=GATEWAY, id=identification, frag=start // 8, flags=flags, proto=protocol, **ip) / payload


def echo(length: int) -> bytes:
    """An echo request of `length` octets."""
    return bytes(ICMP(type=8, id=1, seq=1) / bytes(i % 251 for i in range(length - 8)))


def reassembler(wire):
    return wire.guest.intake._reassembler


@pytest.mark.parametrize("size", [576, 1480, 2000, 8192, 65_000])
async def test_rfc1122_3_3_2_datagrams_of_576_octets_and_more_become_whole(wire, size):
    message = echo(size - 20)
    pieces = [part(i, message[i : i + 552], more=i + 552 < len(message)) for i in range(0, len(message), 552)]
    found = wire.send(*pieces)
    assert wire.counters["fragment_reassembled"] == 1
    reply = b"".join(bytes(frame[IP].payload) for frame in found)
    assert reply[0] == 0
    assert reply[4:] == message[4:]


async def test_rfc1122_3_3_2_a_datagram_goes_on_to_the_host_in_one_piece(wire):
    data = bytes(i % 251 for i in range(4000))
    with wire.server() as server:
        wire.send(*fragment(datagram(data, server.getsockname()[1], id=9), 600))
        assert server.recvfrom(65536)[0] == data


async def test_rfc1122_3_3_2_it_is_given_up_in_time_and_told(wire):
    """Time exceeded, code 1, with the first fragment quoted."""
    first = part(0, echo(1000)[:600], more=True)
    wire.send(first)
    assert not wire.pass_time(reassembly.TIMEOUT - 0.1)
    [frame] = wire.pass_time(0.2)
    assert errors([frame]) == [(11, 1)]
    assert bytes(frame)[42:] == bytes(first)[: 576 - 28]
    assert not len(reassembler(wire))


async def test_rfc1122_3_3_2_without_its_first_fragment_nothing_is_told(wire):
    wire.send(part(600, bytes(600), more=True))
    assert not wire.pass_time(reassembly.TIMEOUT + 1)
    assert not len(reassembler(wire))


async def test_rfc1122_3_3_2_a_late_fragment_does_not_prolong(wire):
    """The time counts from the first that came, and is the same for who sends one fragment a second."""
    message = echo(8 * 100)
    for i in range(29):
        wire.send(part(8 * i, message[8 * i : 8 * i + 8], more=True))
        assert not wire.pass_time(1)
    assert errors(wire.pass_time(1.1)) == [(11, 1)]


async def test_rfc1122_3_3_2_time_the_timeout_is_30_seconds(wire):
    message = echo(100)
    wire.send(part(0, message[:48], more=True))
    wire.pass_time(29.9)
    [reply] = wire.send(part(48, message[48:], more=False))
    assert reply[ICMP].type == 0


@pytest.mark.parametrize(
    "apart", [{"identification": 8}, {"protocol": 17}, {"dst": HOST}, {"src": "192.168.65.9"}], ids=str
)
async def test_rfc1122_3_3_2_fragments_of_different_datagrams_do_not_mix(wire, apart):
    message = echo(100)
    other = part(48, message[48:], more=False)
    for name, value in apart.items():
        setattr(other, {"identification": "id", "protocol": "proto"}.get(name, name), value)
    assert not wire.send(part(0, message[:48], more=True), other)
    assert len(reassembler(wire)) == 2


OVERLAPS = {
    "teardrop": [(0, 40, True), (24, 8, False)],
    "inside": [(0, 80, True), (16, 24, True), (80, 8, False)],
    "rewrites the head": [(0, 80, True), (0, 40, True), (80, 8, False)],
    "from the left": [(40, 40, True), (0, 48, True), (80, 8, False)],
    "from the right": [(0, 40, True), (80, 8, False), (32, 48, True)],
    "around": [(16, 16, True), (0, 80, True), (80, 8, False)],
    "by one block": [(0, 48, True), (40, 40, True), (80, 8, False)],
}


@pytest.mark.parametrize("pieces", OVERLAPS.values(), ids=OVERLAPS)
async def test_rfc5722_4_overlapping_fragments_drop_the_datagram_silently(wire, pieces):
    """With other content, or with more than what was there."""
    dice = random.Random(1)
    assert not wire.send(*(part(start, dice.randbytes(size), more=more) for start, size, more in pieces))
    assert not wire.counters["fragment_reassembled"]
    assert not wire.pass_time(40)
    assert not len(reassembler(wire))


async def test_rfc5722_4_what_comes_after_an_overlap_is_dropped_too(wire):
    """Else the rest would be a datagram of its own."""
    message = echo(96)
    wire.send(part(0, message[:48], more=True), part(40, b"x" * 16, more=True))
    assert not wire.send(part(0, message[:48], more=True), part(48, message[48:], more=False))
    assert wire.counters["fragment_of_dropped"] == 2


async def test_rfc5722_4_an_exact_duplicate_is_no_overlap(wire):
    message = echo(96)
    first, last = part(0, message[:48], more=True), part(48, message[48:], more=False)
    [reply] = wire.send(first, first, last)
    assert reply[ICMP].type == 0


async def test_rfc5722_4_two_ends_are_a_contradiction(wire):
    message = echo(96)
    assert not wire.send(part(48, message[48:], more=False), part(56, b"12345678", more=False))
    assert not wire.send(part(0, message[:48], more=True))
    assert not wire.counters["fragment_reassembled"]


@pytest.mark.parametrize(("start", "size"), [(65_528, 1400), (65_520, 9), (65_512, 24), (65_528, 8)])
async def test_rfc791_3_1_nothing_becomes_larger_than_65535_octets(wire, start, size):
    """The ping of death."""
    assert not wire.send(part(start, bytes(size), more=False), part(0, bytes(1400), more=True))
    assert wire.counters["fragment_too_large"] == 1


@pytest.mark.parametrize(("start", "size", "more"), [(0, 0, True), (8, 0, False), (0, 7, True), (8, 9, True)])
async def test_rfc791_3_1_a_fragment_of_an_impossible_length_is_dropped(wire, start, size, more):
    assert not wire.send(part(start, bytes(size), more=more))
    assert wire.counters["fragment_malformed"] == 1
    assert not len(reassembler(wire))


@pytest.mark.parametrize("seed", range(5))
async def test_rfc4787_req_14_fragments_in_any_order_are_reassembled(wire, seed):
    data = random.Random(seed).randbytes(9000)
    with wire.server() as server:
        pieces = fragment(datagram(data, server.getsockname()[1], id=9), 512)
        random.Random(seed).shuffle(pieces)
        wire.send(*pieces)
        assert server.recvfrom(65536)[0] == data


async def test_rfc4787_req_14_two_datagrams_at_the_same_time(wire):
    with wire.server() as server:
        port = server.getsockname()[1]
        one = fragment(datagram(b"1" * 3000, port, id=1), 512)
        two = fragment(datagram(b"2" * 3000, port, id=2), 512)
        wire.send(*(piece for pair in zip(one, reversed(two), strict=True) for piece in pair))
        assert sorted(server.recvfrom(65536)[0][:1] for _ in range(2)) == [b"1", b"2"]


async def test_rfc4787_req_14_a_wrong_checksum_of_the_whole_is_dropped(wire):
    """Fragments of two datagrams with the same identification (RFC 4963)."""
    with wire.server() as server:
        port = server.getsockname()[1]
        one = fragment(datagram(b"1" * 3000, port, id=1), 512)
        two = fragment(datagram(b"2" * 3000, port, id=1), 512)
        wire.send(*one[:3], *two[3:])
        assert wire.counters["malformed"] == 1
        wire.send(datagram(b"whole", port))
        assert server.recvfrom(65536)[0] == b"whole"


def many(count: int, *, start: int = 0, step: int = 0, payload: bytes = bytes(8), fresh: bool = True) -> list[bytes]:
    """Fragments from `start`, each `step` further, with more to come; `fresh` ones are each of another datagram."""
    frame = bytearray(octets(part(0, payload, more=True)))
    made = []
    for i in range(count):
        if fresh:
            frame[18:20] = i.to_bytes(2, "big")
        frame[20:22] = (0x2000 | (start + i * step) // 8).to_bytes(2, "big")
        frame[24:26] = bytes(2)
        frame[24:26] = (0xFFFF - int.from_bytes(frame[14:34], "big") % 0xFFFF).to_bytes(2, "big")
        made.append(bytes(frame))
    return made


async def test_rfc4787_req_14a_first_fragments_without_end_are_bounded(wire):
    frames = many(20_000)
    for i in range(0, len(frames), 4000):
        wire.exchange(*frames[i : i + 4000])
        assert reassembler(wire).octets <= reassembly.HIGH_WATER
    assert len(reassembler(wire)) <= reassembly.HIGH_WATER // reassembly.OVERHEAD
    assert wire.counters["fragment_evicted"] > 15_000


async def test_rfc4787_req_14a_large_datagrams_are_bounded(wire):
    for frame in many(2000, start=64_000, payload=bytes(1200)):
        wire.exchange(frame)
        assert reassembler(wire).octets <= reassembly.HIGH_WATER
    assert wire.counters["fragment_evicted"]


async def test_rfc4787_req_14a_holes_without_end_are_bounded(wire):
    """Every other block of one datagram."""
    assert not wire.exchange(*many(4000, step=16, fresh=False))
    assert wire.counters["fragment_holes"] == 1
    assert reassembler(wire).octets == reassembly.OVERHEAD


async def test_rfc4787_req_14a_whole_datagrams_pass_meanwhile(wire):
    wire.exchange(*many(4000))
    assert wire.send(ping(GATEWAY))[0][ICMP].type == 0
    message = echo(96)
    [reply] = wire.send(
        part(0, message[:48], more=True, identification=65_000),
        part(48, message[48:], more=False, identification=65_000),
    )
    assert reply[ICMP].type == 0


async def test_rfc4787_req_14a_its_time_over_nothing_is_left(wire):
    wire.exchange(*many(1000))
    wire.pass_time(31)
    assert not len(reassembler(wire))
    assert not reassembler(wire).octets


async def test_rfc4787_req_13a_large_datagrams_of_the_host_come_in_fragments_in_order(wire):
    """No DF, not larger than the link's MTU, and in the order of their offsets."""
    data = random.Random(3).randbytes(6000)
    with wire.server() as server:
        wire.send(datagram(b"?", server.getsockname()[1]))
        _, peer = server.recvfrom(100)
        server.sendto(data, peer)
        pieces = [frame[IP] for frame in wire.until(IP, count=5)]
    assert [piece.frag for piece in pieces] == sorted(piece.frag for piece in pieces)
    assert [bool(piece.flags.MF) for piece in pieces] == [True] * 4 + [False]
    assert all(len(piece) <= 1500 and not piece.flags.DF for piece in pieces)
    assert len({piece.id for piece in pieces}) == 1
    assert b"".join(bytes(piece.payload) for piece in pieces)[8:] == data
    assert pieces[0][UDP].len == 6008

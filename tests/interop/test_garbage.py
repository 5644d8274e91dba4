"""Whatever the guest sends, the process survives, does not grow, and the next good frame works."""

from __future__ import annotations

import errno
import json
import random
import select
import socket
import struct
import time

import pytest

from tests.interop.frames import (
    arp_request,
    checksum,
    dhcp_discover,
    echo_request,
    ethernet,
    ipv4,
    tcp_segment,
    udp_datagram,
)
from tests.interop.guest_tools import ALIAS, GATEWAY, REMOTE, Server, echo, receive_exactly, running
from tests.interop.test_errors import udp_outcome

ETH_P_ALL = 0x0003
BATCH = 100  # frames between two good ones; the device's queue holds 1000
MAX_GROWTH = 20 << 20
MAX_DESCRIPTORS = 2048  # what a guest can make us hold: 1024 UDP mappings, pings, connections on their way out


def valid_frames(port):
    """One of each kind, made by hand."""
    data = bytes(range(256)) * 5
    gateway, remote = socket.inet_aton(GATEWAY), socket.inet_aton(REMOTE)
    question = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + b"\x04host\x08internal\0\0\1\0\1"
    syn_options = bytes.fromhex("020405b4 0402080a 00000001 00000000 01030307")
    yield ethernet(arp_request(GATEWAY), 0x0806, b"\xff" * 6)
    yield dhcp_discover(5)
    yield ethernet(ipv4(6, tcp_segment(40001, port, 1000, 0, 2, options=syn_options)))
    yield ethernet(ipv4(6, tcp_segment(40001, port, 1001, 1, 0x18, data)))
    yield ethernet(ipv4(6, tcp_segment(40001, port, 1001, 1, 0x11)))
    yield ethernet(ipv4(6, tcp_segment(40001, port, 1001, 1, 4)))
    yield ethernet(ipv4(6, tcp_segment(40002, 53, 1000, 0, 2, destination=gateway), destination=gateway))
    yield ethernet(ipv4(6, tcp_segment(40003, 80, 1000, 0, 2, destination=remote), destination=remote))
    yield ethernet(ipv4(17, udp_datagram(40004, port, data)))
    yield ethernet(ipv4(17, udp_datagram(40005, 53, question, destination=gateway), destination=gateway))
    yield ethernet(ipv4(17, udp_datagram(40006, 9, data, destination=remote), destination=remote))
    yield ethernet(ipv4(1, echo_request(data)))
    yield ethernet(ipv4(1, echo_request(data, 9), destination=remote))
    quoted = ipv4(6, tcp_segment(40001, port, 1000, 0, 2))[:28]
    yield ethernet(ipv4(1, struct.pack("!BBHI", 3, 1, 0xFCFE, 0) + quoted))
    whole = udp_datagram(40007, port, data * 2)
    yield ethernet(ipv4(17, whole[:1280], flags_offset=0x2000, identification=99))
    yield ethernet(ipv4(17, whole[1280:], flags_offset=160, identification=99))
    yield ethernet(ipv4(17, udp_datagram(40004, port, b"options"), options=bytes.fromhex("0725040000000000")))
    yield ethernet(bytes.fromhex("6000000000083aff") + bytes(32) + bytes(8), 0x86DD)


def captured_frames(guest, link, port):
    """What the guest's own kernel sends for a connection, a datagram and a ping."""
    with guest.connect(port) as connection:
        for size in (1, 1000, 20000):
            connection.sendall(bytes(size))
            receive_exactly(connection, size)
    udp_outcome(guest.namespace, ALIAS, port)
    frames = []
    while select.select([link], [], [], 0)[0]:
        frame, (_, _, kind, _, _) = link.recvfrom(70000)
        if kind == socket.PACKET_OUTGOING:
            frames.append(frame)
    assert len(frames) > 5
    return frames


def mutated(frame, seeds, dice):
    """`frame` with one to four faults; half of the time with a valid IP header checksum, to get further."""
    data = bytearray(frame)
    for _ in range(dice.randrange(1, 5)):
        if not data:
            break
        fault = dice.randrange(7)
        place = min(int(dice.expovariate(1 / 24)), len(data) - 1)  # mostly in the headers
        if fault == 0:
            data[place] ^= 1 << dice.randrange(8)
        elif fault == 1:
            data[place] = dice.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif fault == 2:
            data[place : place + 2] = dice.randbytes(2)
        elif fault == 3:
            del data[dice.randrange(len(data)) :]
        elif fault == 4:
            data += dice.randbytes(dice.randrange(64))
        elif fault == 5:
            other = dice.choice(seeds)
            data[place:] = other[place:]
        else:
            data[place:place] = dice.randbytes(dice.randrange(8))
    if dice.random() < 0.5 and len(data) >= 34 and data[12:14] == b"\x08\0":
        length = (data[14] & 15) * 4
        if 20 <= length <= len(data) - 14:
            data[24:26] = b"\0\0"
            data[24:26] = checksum(bytes(data[14 : 14 + length])).to_bytes(2, "big")
    return bytes(data)


def garbage(seeds, dice):
    if dice.random() < 0.1:
        frame = dice.randbytes(min(int(dice.expovariate(1 / 200)) + 14, 60000))
        if dice.random() < 0.8:  # for us
            frame = seeds[0][6:12] + frame[6:] if dice.random() < 0.1 else seeds[2][:12] + frame[12:]
        return frame
    return mutated(dice.choice(seeds), seeds, dice)


def synchronize(link, number):
    """Return when everything that was sent before has been taken in: a good frame, the `number`-th, is answered."""
    marker = b"frame number " + number.to_bytes(4, "big")
    link.send(ethernet(ipv4(1, echo_request(marker), destination=socket.inet_aton(GATEWAY))))
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        assert select.select([link], [], [], 5)[0], "no answer to a good frame"
        frame, (_, _, kind, _, _) = link.recvfrom(70000)
        if kind != socket.PACKET_OUTGOING and frame[34:35] == b"\0" and frame[42:] == marker:
            return
    raise AssertionError("no answer to a good frame")


def lost_by_the_device(guest):
    [device] = json.loads(guest.namespace.run("ip", "-s", "-j", "link", "show", "tap0"))
    return device["stats64"]["tx"]["dropped"]


def survives(lab, count, *options):
    dice = random.Random(count)
    # The guest ends before the server does, and with it the connections that garbage made.
    with Server(lab.host.listen(), echo) as server, running(lab.host, "root", *options) as guest:
        faithful = guest.connect(server.port)  # before the capture: its own frames are no garbage
        with guest.namespace.entered():
            link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        with link, faithful:
            link.bind(("tap0", ETH_P_ALL))
            seeds = [*valid_frames(server.port), *captured_frames(guest, link, server.port)]
            before = guest.vpnkit.rss()
            most = 0
            for number in range(count):
                frame = garbage(seeds, dice)
                if len(frame) < 14:
                    frame += bytes(14 - len(frame))  # the kernel does not send less than a header
                try:
                    link.send(frame)
                except OSError as error:
                    assert error.errno == errno.EMSGSIZE  # noqa: PT017 (longer than the device takes)
                if number % BATCH == 0:
                    synchronize(link, number)
                    most = max(most, guest.vpnkit.descriptors())
            synchronize(link, count)
            growth = guest.vpnkit.rss() - before
            print(f"{count} frames: grew by {growth / 2**20:.1f} MiB, at most {most} descriptors")
            assert growth < MAX_GROWTH
            assert lost_by_the_device(guest) == 0
            assert most < MAX_DESCRIPTORS
            # A connection that was there before lives, and a new one works.
            with guest.connect(server.port) as new:
                for connection in (new, faithful):
                    connection.sendall(b"still here")
                    assert receive_exactly(connection, 10) == b"still here"
            assert udp_outcome(guest.namespace, ALIAS, server.port) == "ECONNREFUSED"


LINKS = [(), ("--no-offload", "--mtu", "1500", "--verify-checksums")]


@pytest.mark.parametrize("options", LINKS, ids=["offload", "no offload"])
def test_hundred_thousand_frames(lab, options):
    survives(lab, 100_000, *options)


@pytest.mark.slow
@pytest.mark.parametrize("options", LINKS, ids=["offload", "no offload"])
def test_million_frames(lab, options):
    survives(lab, 1_000_000, *options)

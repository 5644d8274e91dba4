"""Captured super-frames and partial checksums, as others read them."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from pcap.pcapng import dump
from pcap.ring import Direction, Packet
from tests.pcap.frames import ANY_BYTES
from vpnkit.net.ordinary import ordinary
from vpnkit.wire.offload import partial_checksum

ETHER = Ether(src="02:50:00:00:00:01", dst="f6:16:36:bc:f9:c6")
NETWORKS = {4: IP(src="192.168.65.3", dst="192.168.65.1"), 6: IPv6(src="fd00::3", dst="fd00::1")}
PAYLOAD = bytes(range(256)) * 40


def super_frame(version: int, protocol: str, *, size: int = 1000, captured: int | None = None) -> Packet:
    """A super-frame with the checksum that a guest's kernel leaves in it."""
    transport = TCP(sport=1000, dport=80, flags="PA", seq=77) if protocol == "tcp" else UDP(sport=1000, dport=5555)
    whole = bytes(ETHER / NETWORKS[version] / transport / PAYLOAD)
    frame, _, _ = partial_checksum(whole)
    return Packet(5, len(frame), bytes(frame[:captured]), Direction.IN, size, True, 3)


def complaints(packets: list[Packet]) -> list[bytes]:
    """What tshark says that is wrong."""
    checks = [f"{name}.check_checksum:TRUE" for name in ("ip", "tcp", "udp")]
    arguments = ["tshark", "-r", "-", "-n", *(part for check in checks for part in ("-o", check)), "-T", "fields"]
    for field in ("_ws.malformed", "tcp.checksum.status", "udp.checksum.status", "ip.checksum.status", "_ws.expert"):
        arguments += ["-e", field]
    arguments += ["-Y", "_ws.malformed || tcp.checksum.status==0 || udp.checksum.status==0 || ip.checksum.status==0"]
    done = subprocess.run(arguments, input=dump(packets, "guest"), capture_output=True, timeout=60, check=True)
    return done.stdout.splitlines()


@pytest.mark.program("tshark")
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_whole_super_frame_is_cut_and_nothing_is_wrong_with_it(version, protocol):
    packet = super_frame(version, protocol)
    assert complaints([packet])
    segments = ordinary(packet)
    assert not complaints(segments)
    layer = TCP if protocol == "tcp" else UDP
    assert b"".join(bytes(Ether(segment.data)[layer].payload) for segment in segments) == PAYLOAD
    assert {(s.timestamp_ns, s.direction, s.interface, s.gso_size, s.checksum_partial) for s in segments} == {
        (5, Direction.IN, 3, 0, False)
    }
    assert all(segment.length == len(segment.data) for segment in segments)


@pytest.mark.program("tshark")
@pytest.mark.parametrize("captured", [54, 60, 128, 1500, 3000])
def test_of_a_cut_super_frame_later_segments_have_headers(captured):
    whole = ordinary(super_frame(4, "tcp"))
    segments = ordinary(super_frame(4, "tcp", captured=captured))
    assert [segment.length for segment in segments] == [segment.length for segment in whole]
    header = 54
    expected = captured - header
    for number, segment in enumerate(segments):
        there = min(max(expected - 1000 * number, 0), segment.length - header)
        assert len(segment.data) == header + there
        if number:
            assert segment.data[:50] == whole[number].data[:50]  # up to the checksum, which is of all of it
    assert not complaints(segments)


@pytest.mark.program("tshark")
@pytest.mark.parametrize("version", [4, 6])
def test_a_partial_checksum_is_completed(version):
    [whole] = ordinary(super_frame(version, "tcp")._replace(gso_size=0))
    assert not complaints([whole])
    assert not whole.checksum_partial


@pytest.mark.program("tshark")
@pytest.mark.parametrize("version", [4, 6])
def test_a_partial_checksum_that_nobody_told_of_is_completed(version):
    packet = super_frame(version, "tcp")._replace(gso_size=0, checksum_partial=False)
    assert complaints([packet])
    assert not complaints(ordinary(packet))
    assert ordinary(packet._replace(direction=Direction.OUT))[0].data == packet.data


def test_what_was_not_captured_whole_keeps_its_checksum():
    packet = super_frame(4, "tcp", captured=100)._replace(gso_size=0)
    assert ordinary(packet) == [packet]


def test_what_has_no_headers_stays():
    packet = super_frame(4, "tcp", captured=50)
    assert ordinary(packet) == [packet]


@given(ANY_BYTES, st.integers(0, 70000), st.integers(0, 65535), st.booleans())
def test_whatever_was_captured_there_is_something(data, more, gso_size, partial):
    packet = Packet(0, len(data) + more, data, Direction.OUT, gso_size, partial)
    found = ordinary(packet)
    assert found
    assert all(len(one.data) <= one.length for one in found)

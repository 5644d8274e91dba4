from __future__ import annotations

import io
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcap.pcapng import dump, file_header, packet_block
from pcap.ring import Direction, Packet
from tests.pcap.frames import FRAMES

START = 1_700_000_000_123_456_789


def packets() -> list[Packet]:
    return [
        Packet(START + number, len(frame) + number % 2, frame, Direction.IN if number % 3 else Direction.OUT)
        for number, frame in enumerate(FRAMES.values())
    ]


def blocks(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        length = struct.unpack_from("<L", data, at + 4)[0]
        assert length % 4 == 0
        assert struct.unpack_from("<L", data, at + length - 4)[0] == length
        found.append(data[at : at + length])
        at += length
    assert at == len(data)
    return found


def tshark(data: bytes, *fields: str) -> list[list[str]]:
    arguments = ["tshark", "-r", "-", "-n", "-T", "fields"]
    for field in fields:
        arguments += ["-e", field]
    done = subprocess.run(arguments, input=data, capture_output=True, timeout=60, check=True)
    return [line.split("\t") for line in done.stdout.decode().splitlines()]


@pytest.mark.program("tshark")
def test_tshark_reads_every_field():
    written = packets()
    rows = tshark(
        dump(written, "guest ä", snaplen=1500),
        "frame.time_epoch", "frame.cap_len", "frame.len", "frame.interface_name", "frame.packet_flags_direction",
        "_ws.malformed",
    )  # fmt: skip
    assert rows == [
        [
            f"{packet.timestamp_ns // 10**9}.{packet.timestamp_ns % 10**9:09}",
            str(len(packet.data)),
            str(packet.length),
            "guest ä",
            f"0x{packet.direction:08x}",
            "",
        ]
        for packet in written
    ]


@pytest.mark.program("tshark")
def test_tshark_sees_what_the_frames_are():
    rows = tshark(dump(packets(), "guest"), "dns.qry.name")
    assert [row[0] for row in rows[:3]] == ["host.internal"] * 3


def test_scapy_reads_it():
    from scapy.utils import PcapNgReader

    written = packets()
    read = list(PcapNgReader(io.BytesIO(dump(written, "guest 1"))))
    assert [bytes(packet) for packet in read] == [packet.data for packet in written]
    assert [int(packet.time * 10**9) for packet in read] == [packet.timestamp_ns for packet in written]
    assert [packet.direction for packet in read] == [packet.direction for packet in written]
    assert {packet.sniffed_on for packet in read} == {"guest 1"}


@pytest.mark.program("tshark")
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_file_is_readable_after_any_block(count):
    data = b"".join(blocks(dump(packets(), "guest"))[: 2 + count])
    assert len(tshark(data, "frame.number")) == count


def test_a_file_is_its_header_and_its_packets():
    data = dump(packets(), "guest")
    assert data == file_header("guest") + b"".join(packet_block(packet) for packet in packets())
    assert len(blocks(data)) == 2 + len(FRAMES)


@given(
    st.builds(
        Packet,
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=70),
        st.sampled_from(Direction),
    ),
    st.text(max_size=20),
)
def test_blocks_are_whole_for_any_packet_and_name(packet, name):
    assert len(blocks(dump([packet, packet], name, application=name))) == 4


@pytest.mark.program("tshark")
def test_the_application_is_named():
    done = subprocess.run(
        ["capinfos", "-"], input=dump(packets(), "guest", application="vpnkit 0.1.0"), capture_output=True, timeout=60
    )
    assert b"vpnkit 0.1.0" in done.stdout

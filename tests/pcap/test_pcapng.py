from __future__ import annotations

import io
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcap.classic import Classic
from pcap.pcapng import Pcapng, dump, file_header, names_block, packet_block
from pcap.reader import read
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


@pytest.mark.program("tshark")
def test_links_comments_losses_and_counts_are_written():
    writer = Pcapng(
        lambda number: f"link:{number}", snaplen=128, filter_text="udp port 53", comment=lambda p: f"flow {p.length}"
    )
    first, second = packets()[:2]
    pieces = [writer.begin(), writer.packets([first._replace(interface=7)])]
    writer.lost(3)
    pieces += [writer.packets([second._replace(interface=9), first._replace(interface=7)]), writer.end(10, 4)]
    data = b"".join(pieces)
    for piece in pieces:
        blocks(piece)
    rows = tshark(data, "frame.interface_name", "frame.comment", "frame.packet_flags_direction")
    assert [row[:2] for row in rows] == [
        ["link:7", f"flow {first.length}"], ["link:9", f"flow {second.length}"], ["link:7", f"flow {first.length}"],
    ]  # fmt: skip
    shown = subprocess.run(["capinfos", "-M", "-"], input=data, capture_output=True, timeout=60, check=True).stdout
    assert b"Filter string = udp port 53" in shown
    assert b"Number of stat entries = 1" in shown
    assert struct.pack("<HHQ", 4, 8, 3) in data  # epb_dropcount
    assert struct.pack("<HHQHHQ", 5, 8, 4, 6, 8, 10) in data  # isb_ifdrop, isb_filteraccept


@pytest.mark.program("tshark")
def test_names_of_addresses_are_shown():
    data = file_header("guest") + names_block([(bytes((192, 168, 65, 3)), ["me.example"])]) + packet_block(packets()[0])
    done = subprocess.run(["tshark", "-N", "n", "-r", "-"], input=data, capture_output=True, timeout=60, check=True)
    assert b"me.example" in done.stdout


@pytest.mark.program("tshark")
def test_a_file_without_packets_is_one():
    writer = Pcapng()
    assert tshark(writer.begin() + writer.end(0, 0), "frame.number") == []


def test_what_was_written_is_read():
    writer = Pcapng(lambda number: f"link:{number}", comment=lambda packet: "said")
    written = [packet._replace(interface=number % 3) for number, packet in enumerate(packets())]
    data = writer.begin() + writer.packets(written) + writer.end(5, 1)
    found = list(read(data))
    assert [packet._replace(interface=0) for packet, _ in found] == [packet._replace(interface=0) for packet in written]
    assert [name for _, name in found] == [f"link:{packet.interface}" for packet in written]
    for cut in range(0, len(data), 7):
        assert list(read(data[:cut])) == found[: len(list(read(data[:cut])))]


@given(at=st.integers(0, 4000), octet=st.integers(0, 255), cut=st.integers(0, 4000))
def test_a_damaged_file_is_read_as_far_as_it_goes(at, octet, cut):
    data = bytearray(dump(packets(), "guest"))
    data[at % len(data)] = octet
    assert len(list(read(bytes(data[: cut % len(data)])))) <= len(FRAMES)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_an_error(data):
    list(read(data))


@pytest.mark.program("tshark")
def test_classic_files_are_read():
    writer = Classic(snaplen=1500)
    data = writer.begin() + writer.packets(packets()) + writer.end(1, 0)
    rows = tshark(data, "frame.time_epoch", "frame.cap_len", "frame.len")
    times = [divmod(packet.timestamp_ns, 10**9) for packet in packets()]
    assert [row[0] for row in rows] == [f"{seconds}.{rest // 1000:06}000" for seconds, rest in times]
    assert [row[1:] for row in rows] == [[str(len(packet.data)), str(packet.length)] for packet in packets()]
    import dpkt

    assert [frame for _, frame in dpkt.pcap.Reader(io.BytesIO(data))] == list(FRAMES.values())

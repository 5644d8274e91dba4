"""What a filter says of a frame is what libpcap says of it."""

from __future__ import annotations

import random
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from pcap.filter import FilterError, compile_filter
from tests.pcap.filter.filter_frames import EXPRESSIONS, frames
from tests.pcap.filter.generated import expression

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.program("tcpdump")

UNOPTIMIZED = "-O"

FILE = struct.Struct("<LHHlLLL")
RECORD = struct.Struct("<LLLL")


def write(path: Path, recorded: list[tuple[bytes, int]]) -> None:
    with path.open("wb") as file:
        file.write(FILE.pack(0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for number, (frame, length) in enumerate(recorded):
            file.write(RECORD.pack(number, 0, len(frame), length) + frame)


def chosen_by_tcpdump(path: Path, filter_text: str, *options: str) -> set[int]:
    """The numbers of the frames that are wanted."""
    done = subprocess.run(
        ["tcpdump", "-n", "-r", path, "-w", "-", *options, "--", filter_text], capture_output=True, timeout=60
    )
    if b"expression rejects all packets" in done.stderr:
        return set()
    assert not done.returncode, f"{filter_text!r}: {done.stderr!r}"
    found, at = set(), FILE.size
    while at < len(done.stdout):
        number, _, captured, _ = RECORD.unpack_from(done.stdout, at)
        found.add(number)
        at += RECORD.size + captured
    return found


def is_accepted_by_tcpdump(filter_text: str) -> bool:
    return not subprocess.run(
        ["tcpdump", "-y", "EN10MB", "-d", "--", filter_text], capture_output=True, timeout=60
    ).returncode


def compare(path: Path, recorded: list[tuple[bytes, int]], filters: list[str], *options: str) -> int:
    """Returns how many frames were wanted in all."""
    write(path, recorded)
    count = 0
    for text in filters:
        wanted = compile_filter(text)
        ours = {number for number, (frame, length) in enumerate(recorded) if wanted(frame, length)}
        different = sorted(ours ^ chosen_by_tcpdump(path, text, *options))
        shown = [(number, number in ours, recorded[number][0].hex()) for number in different[:3]]
        assert not different, f"{text!r}: {shown}"
        count += len(ours)
    return count


def test_a_filter_says_what_libpcap_says(tmp_path):
    assert compare(tmp_path / "frames", list(frames(1, 800)), EXPRESSIONS[::2]) > 1000


def test_a_filter_says_what_libpcap_says_of_frames_that_were_cut_or_damaged(tmp_path):
    """Not what its optimizer makes of a filter: that looks at things in another order."""
    recorded = list(frames(2, 800, damage=0.3))
    assert compare(tmp_path / "frames", recorded, EXPRESSIONS[1::2], UNOPTIMIZED) > 1000


@pytest.mark.slow
def test_a_filter_says_what_libpcap_says_of_many_frames(tmp_path):
    assert compare(tmp_path / "frames", list(frames(3, 50_000)), EXPRESSIONS) > 100_000
    recorded = list(frames(4, 50_000, damage=0.2))
    assert compare(tmp_path / "frames", recorded, EXPRESSIONS, UNOPTIMIZED) > 100_000


def test_generated_filters_say_what_libpcap_says(tmp_path):
    rng = random.Random(5)
    recorded = list(frames(5, 500, damage=0.1))
    assert compare(tmp_path / "frames", recorded, [expression(rng) for _ in range(60)], UNOPTIMIZED) > 1000


@pytest.mark.slow
def test_many_generated_filters_say_what_libpcap_says(tmp_path):
    rng = random.Random(6)
    recorded = list(frames(6, 3000, damage=0.1))
    filters = [expression(rng) for _ in range(2000)]
    assert compare(tmp_path / "frames", recorded, filters, UNOPTIMIZED) > 100_000


WRONG = [
    "tcp and 1.2.3.4", "1.2.3.4", "ip 1.2.3.4", "tcp src 80", "src host fd00::/8", "len-5>3", "ip proto tcp",
    "tcp or 53", "icmp host 1.2.3.4", "tcp port 80 or udp 53", "host 1.2.3.4 and port 80 or 1.2.3.4", "port 080",
    "ip[0:3]=1", "ip6 host 1.2.3.4", "ip net fd00::/8", "tcp host 1.2.3.4", "len / 0 = 1", "net 10.1.0.0/8",
    "tcp port 70000", "ip[0-1] = 5", "dst 10.0.0.0/8", "net fd00::1/8", "host 1.2.3.4/32", "gateway x", "udp port http",
    "ip[5", "tcp port", "tcp &&", "and", "()", "(tcp", "tcp)", "tcp udp", "host", "host host", "net 10.0.0.0/33",
    "port 1 2", "tcp[", "tcp[]", "tcp[1] =", "= 1", "len", "len >", "host 1.2.3.4.5", "host 256.1.1.1", "portrange 1-",
    "portrange 1-70000", "portrange http-nothing", "ether", "ether net 10.0.0.0/8", "ether port 5",
    "ether host 1.2.3.4",
    "host 02:50:00:00:00:01", "ip host 02:50:00:00:00:01", "src tcp", "src proto 6", "not", "tcp not", "port 53 and",
    "ah[0] = 1", "esp[0] = 1", "less", "greater tcp", "ip6 broadcast", "tcp multicast", "arp proto 1", "tcp proto 1",
    "port 1.2", "proto", "net", "icmp port 5", "ip src port 5", "tcp[0] & = 1", "1 + = 1", "src src host 1.2.3.4",
    "net 10.0.0.0 mask 255", "net 10.1.0.0 mask 255.0.0.0", "len << > 1", "~tcp", "tcp; udp", "host 1.2.3.4 5.6.7.8",
]  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_what_libpcap_refuses_is_refused(text):
    assert not is_accepted_by_tcpdump(text)
    with pytest.raises(FilterError):
        compile_filter(text)


# More than libpcap, or less.
OURS = ["name www.example.com", "name *.example.com or arp"]
THEIRS = ["vlan", "mpls", "host localhost", "port nfs", "ether proto 100", "gateway", "ip broadcast", "protochain 6"]


@pytest.mark.parametrize("text", OURS)
def test_what_is_ours(text):
    compile_filter(text)
    assert not is_accepted_by_tcpdump(text)


@pytest.mark.parametrize("text", THEIRS)
def test_what_is_theirs(text):
    with pytest.raises(FilterError):
        compile_filter(text)

"""Rings of a network: who may add some, and what a reader gets."""

from __future__ import annotations

import itertools

import pytest
import trio
import trio.lowlevel
import trio.testing
from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from pcap.classic import Classic
from pcap.filter import FilterError
from pcap.reader import read
from pcap.ring import Direction
from tests.pcap.frames import FRAMES
from vpnkit.net.capture_reading import BATCH, read_ring, writer_for
from vpnkit.net.capture_report import CaptureRequest
from vpnkit.net.captures import MAX_AUDIT, MAX_MEMORY, MAX_RING, CaptureError, CaptureExists, Captures, NoCapture

ETHER = Ether(src="02:50:00:00:00:01", dst="f6:16:36:bc:f9:c6")
SYN = bytes(ETHER / IP(src="192.168.65.3", dst="192.0.2.1") / TCP(sport=1000, dport=443, flags="S"))
ANSWER = bytes(
    ETHER
    / IP(src="192.168.65.1", dst="192.168.65.3")
    / UDP(sport=53, dport=4000)
    / DNS(qr=1, qd=DNSQR(qname="www.example.com"), an=DNSRR(rrname="www.example.com", rdata="192.0.2.1"))
)


def captures() -> Captures:
    clock = itertools.count(1_700_000_000_000_000_000, 1000)
    return Captures(clock_ns=lambda: next(clock))


class Reader:
    """Who takes a file, when the test lets him."""

    def __init__(self, made: Captures, name: str, *, form: str = "pcapng", follow: bool = False) -> None:
        self.captures = made
        self.ring = made.ring(name)
        self.line = made.audited("follow" if follow else "read", name, (12, 34))
        self.writer = writer_for(made, self.ring, form)
        self.follow = follow
        self.data = b""
        self.may = trio.CapacityLimiter(1)

    async def send(self, data: bytes) -> None:
        async with self.may:
            self.data += data

    async def run(self) -> None:
        await read_ring(self.captures, self.ring, self.writer, self.send, self.line, follow=self.follow)

    @property
    def frames(self) -> list[bytes]:
        return [packet.data for packet, _ in read(self.data)]


def feed(made: Captures, *frames: bytes, link: str = "qemu:/tmp/x", direction: int = Direction.IN) -> None:
    tap = made.capture.tap(link)
    for frame in frames:
        tap((frame,), direction, 0, 0, False)


async def test_what_a_ring_holds_is_a_file(autojump_clock):
    made = captures()
    feed(made, *FRAMES.values())
    reader = Reader(made, "dns")
    await reader.run()
    assert reader.frames == [packet.data for packet in made.ring("dns.pcap")]
    assert {name for _, name in read(reader.data)} == {"qemu:/tmp/x"}
    assert (reader.line.packets, reader.line.bytes, reader.line.lost, reader.line.ended) == (
        5, len(reader.data), 0, True,
    )  # fmt: skip
    assert (reader.line.uid, reader.line.pid) == (34, 12)


async def test_the_same_as_classic_pcap(autojump_clock):
    made = captures()
    feed(made, *FRAMES.values())
    reader = Reader(made, "dns", form="pcap")
    await reader.run()
    classic = Classic(snaplen=1500)
    assert reader.data == classic.begin() + classic.packets(made.ring("dns.pcap"))


async def test_who_follows_gets_what_was_there_and_what_comes(autojump_clock, nursery):
    made = captures()
    feed(made, FRAMES["udp"])
    reader = Reader(made, "all", follow=True)
    nursery.start_soon(reader.run)
    await trio.testing.wait_all_tasks_blocked()
    assert reader.frames == [FRAMES["udp"]]
    feed(made, FRAMES["syn"], FRAMES["arp"])
    await trio.sleep(1)
    assert reader.frames == [FRAMES["udp"], FRAMES["syn"], FRAMES["arp"]]
    assert not reader.line.ended
    nursery.cancel_scope.cancel()


async def test_a_slow_reader_misses_packets_and_is_told(autojump_clock, nursery):
    made = captures()
    reader = Reader(made, "icmp", follow=True)
    nursery.start_soon(reader.run)
    await trio.testing.wait_all_tasks_blocked()
    await reader.may.acquire()
    feed(made, *[FRAMES["ping"]] * 1000)
    await trio.sleep(5)
    feed(made, *[FRAMES["ping"]] * 1000)
    reader.may.release()
    await trio.sleep(5)
    assert reader.line.packets + reader.line.lost == 2000
    assert reader.line.lost > 1500
    assert len(reader.frames) == reader.line.packets
    assert (4).to_bytes(2, "little") + (8).to_bytes(2, "little") in reader.data  # epb_dropcount
    nursery.cancel_scope.cancel()


async def test_many_packets_are_prepared_with_pauses(nursery):
    """Between two batches others have their turn."""
    made = captures()
    feed(made, *[FRAMES["udp"]] * (4 * BATCH))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    nursery.start_soon(other)
    await Reader(made, "all").run()
    assert turns >= 4
    nursery.cancel_scope.cancel()


async def test_packets_say_their_flow_and_its_name(autojump_clock):
    made = captures()
    asked = []

    def flow_number(protocol: int, key: bytes) -> int:
        asked.append((protocol, key))
        return 7

    made.flow_number = flow_number
    feed(made, ANSWER, direction=Direction.OUT)
    feed(made, SYN)
    feed(made, bytes(ETHER / IP(dst="192.168.65.3", src="192.0.2.1") / TCP(dport=1000, sport=443)), direction=2)
    reader = Reader(made, "all")
    await reader.run()
    assert reader.data.count(b"flow 7 www.example.com") == 2
    assert asked == [(17, bytes.fromhex("c0a84103c0a841010fa00035")), (6, bytes.fromhex("c0a84103c000020103e801bb"))]


async def test_a_private_ring_says_no_names(autojump_clock):
    made = captures()
    made.add(CaptureRequest("p", "", private=True))
    feed(made, ANSWER, direction=Direction.OUT)
    feed(made, SYN)
    reader = Reader(made, "p")
    await reader.run()
    assert b"example" not in reader.data
    assert len(reader.frames) == 2


def test_a_name_is_known_from_before_the_rule_and_from_then_on():
    made = captures()
    feed(made, ANSWER, direction=Direction.OUT)
    made.add(CaptureRequest("web", "name *.example.com"))
    feed(made, SYN, SYN.replace(bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))))
    assert [packet.data for packet in made.ring("web")] == [SYN]
    other = ANSWER.replace(bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2)))
    feed(made, other, direction=Direction.OUT)
    feed(made, SYN.replace(bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))))
    assert made.ring("web").packets == 2


def test_a_filter_has_a_ring_for_as_long_as_it_is_read():
    made = captures()
    with made.filtered("tcp", snaplen=20) as ring:
        feed(made, SYN, FRAMES["udp"])
        assert [packet.data for packet in ring] == [SYN[:20]]
        assert "follow" not in [report.name for report in made.reports()]
    feed(made, SYN)
    assert ring.seen == 1


def test_reports():
    made = captures()
    feed(made, *FRAMES.values())
    report = made.add(CaptureRequest("web", "tcp port 80", 60, 4000, "in"))
    assert (report.filter, report.direction, report.snaplen, report.ring) == ("tcp port 80", "in", 60, 4000)
    reports = {report.name: report for report in made.reports()}
    assert list(reports) == [
        "all.pcap", "dns.pcap", "ntp.pcap", "icmp.pcap", "http_proxy.pcap", "bad.pcap", "web",
    ]  # fmt: skip
    assert reports["dns.pcap"].packets == 5
    assert reports["bad.pcap"].filter == "malformed"
    assert made.remove("dns").name == "dns.pcap"
    with pytest.raises(NoCapture, match="no capture is called 'dns'; there are all"):
        made.ring("dns")


@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        (CaptureRequest("../x", ""), CaptureError, "capture name '../x' is wrong"),
        (CaptureRequest("x", "tcp prot"), FilterError, "column 5"),
        (CaptureRequest("dns.pcap", ""), CaptureExists, "there is a capture named dns.pcap already"),
        (CaptureRequest("dns", ""), CaptureExists, "there is a capture named dns already"),
        (CaptureRequest("x", "", 0), CaptureError, "snaplen 0 is wrong"),
        (CaptureRequest("x", "", 1500, 1500), CaptureError, "one packet"),
        (CaptureRequest("x", "", 1500, MAX_RING + 1), CaptureError, "ring"),
        (CaptureRequest("x", "", direction="up"), CaptureError, "direction 'up' is none of both, in, out"),
    ],
)
def test_what_cannot_be_added(request_, kind, message):
    with pytest.raises(kind, match=message):
        captures().add(request_)


def test_the_memory_of_added_rings_is_bounded():
    made = captures()
    for number in range(MAX_MEMORY // MAX_RING):
        made.add(CaptureRequest(str(number), "", ring=MAX_RING))
    with pytest.raises(CaptureExists, match="no place"):
        made.add(CaptureRequest("more", ""))
    made.remove("0")
    made.add(CaptureRequest("more", ""))


def test_the_audit_log_is_bounded():
    made = captures()
    for number in range(MAX_AUDIT + 5):
        made.audited("read", str(number), None)
    assert len(made.audit()) == MAX_AUDIT
    assert made.audit()[-1].rule == str(MAX_AUDIT + 4)
    assert made.audit()[-1].uid is None

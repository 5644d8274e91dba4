"""`capture/`: the rings as pcap files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from trio.testing import memory_stream_pair

from pcap.classic import Classic
from pcap.ring import Direction
from tests.pcap.frames import FRAMES
from tests.vpnkit.control.p9.client import P9Client, Refusal
from vpnkit.control.p9.server import serve_stream
from vpnkit.control.p9.tree import instance_tree
from vpnkit.net.capture_report import CaptureRequest
from vpnkit.net.captures import Captures
from vpnkit.net.network import Network, NetworkOptions
from vpnkit.net.plan import Plan

if TYPE_CHECKING:
    import trio


async def test_the_rings_are_files(nursery: trio.Nursery) -> None:
    captures = Captures()
    ours, theirs = memory_stream_pair()
    nursery.start_soon(serve_stream, theirs, instance_tree(Network(Plan(), NetworkOptions(captures=captures))))
    client = await P9Client(ours).begin()
    assert "capture" in await client.listing()
    names = ["all.pcap", "dns.pcap", "ntp.pcap", "icmp.pcap", "http_proxy.pcap", "bad.pcap"]
    assert await client.listing("capture") == [".", "..", *names]
    classic = Classic(snaplen=1500)
    assert await client.content("capture", "dns.pcap") == classic.begin()
    tap = captures.capture.tap("memory")
    for frame in FRAMES.values():
        tap((frame,), Direction.IN, 0, 0, False)
    assert await client.content("capture", "dns.pcap") == classic.begin() + classic.packets(captures.ring("dns"))
    captures.add(CaptureRequest("web", "tcp port 80"))
    assert (await client.listing("capture"))[-1] == "web.pcap"
    captures.remove("web")
    with pytest.raises(Refusal, match="file not found"):
        await client.content("capture", "web.pcap")
    assert [(line.rule, line.packets, line.ended) for line in captures.audit()] == [
        ("dns.pcap", 0, True), ("dns.pcap", 5, True),
    ]  # fmt: skip
    await ours.aclose()

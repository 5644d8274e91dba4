"""RFC 9293 section 3.9.2.3 and 3.9.2.1: addresses and IP options."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conformance.script import Script


@pytest.mark.parametrize(
    "source",
    ["0.0.0.0", "255.255.255.255", "224.0.0.1", "240.0.0.1", "127.0.0.1", "192.168.65.1", "192.168.65.2",
     "192.168.65.255", "192.168.65.0", "8.8.8.8"],
)  # fmt: skip
async def test_rfc9293_must_63_a_syn_from_no_address_of_a_guest_is_ignored(script: Script, source: str) -> None:
    """Invalid ones, ours, and any that is not of this network."""
    script.inject("S", source=bytes(map(int, source.split("."))))
    script.silence()
    assert not script.guest.tcp.flows


@pytest.mark.parametrize("kind", [0x82, 0x44, 0x07, 0x94, 0x99, 0xDE, 0x1E, 0x56])
async def test_rfc9293_must_50_ip_options_are_skipped(script: Script, kind: int) -> None:
    """Security, timestamp, record route, router alert, and such that nobody knows."""
    script.inject("S", ip_options=bytes([kind, 8, 5, 0, 0, 0, 0, 0]))
    script.expect("S.", ack=1)


async def test_rfc9293_must_50_any_kind_in_an_open_connection(script: Script) -> None:
    script.open()
    kinds = [kind for kind in range(2, 256) if kind not in (0x83, 0x89)]
    for kind in kinds:
        script.inject(".", "x", ip_options=bytes([kind, 4, 4, 0]))
    assert script.host_reads() == b"x" * len(kinds)


@pytest.mark.parametrize("options", [b"\x44\0\0\0", b"\x44\1\0\0", b"\x44\5\0\0", b"\1\1\1\7"])
async def test_rfc9293_must_50_bad_lengths_do_no_harm(script: Script, options: bytes) -> None:
    script.open()
    script.inject(".", "x", ip_options=options, seq=1)
    script.everything()
    script.inject(".", "x", seq=1)
    script.expect(".", ack=2)


@pytest.mark.parametrize("kind", [0x83, 0x89])
@pytest.mark.requirement("RFC9293 MUST-53")
async def test_source_routed_packets_are_dropped(script: Script, kind: int) -> None:
    script.inject("S", ip_options=bytes([kind, 7, 4, 9, 9, 9, 9, 0]))
    assert not script.guest.tcp.flows


@pytest.mark.parametrize(("tos", "passed"), [(0, 0), (0xB8, 0xB8), (0x2B, 0x28)])
@pytest.mark.requirement("RFC9293 MUST-48")
async def test_rfc9293_shld_22_the_dscp_of_a_syn_is_the_hosts_sockets(script: Script, tos: int, passed: int) -> None:
    """Its ECN bits are not: they are between the two ends of a path."""
    script.host.held = True
    made = socket.socket()
    made.setblocking(False)
    script.host.tcp_socket = lambda family: made
    script.inject("S", tos=tos)
    assert made.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == passed


async def test_rfc9293_shld_22_the_dscp_of_our_segments_is_ours_throughout(script: Script) -> None:
    """The guest's own marks do not change it."""
    script.inject("S", tos=0xB8)
    script.expect("S.", tos=0)
    script.inject(".", "x", tos=0x28)
    script.expect(".", tos=0)
    script.host_writes("y")
    script.expect(".", "y", tos=0)


@pytest.mark.requirement("RFC9293 MAY-4")
async def test_segments_are_atomic_datagrams(script: Script) -> None:
    """RFC 6864: DF, so that the identification means nothing."""
    script.open()
    script.host_writes("x")
    script.wait()
    assert all(heard.dont_fragment and heard.identification == 0 for heard in map(script.read, script.log))

"""RFC 1191 section 6.4 on the guest's leg: a guest behind whose link something takes less than the link."""

from __future__ import annotations

import struct

import pytest

from tapdev.link import LinkCapabilities
from tests.conformance.script import MSS, Script, internet_sum, ip_frame
from vpnkit.proto.tcp.state import State


def too_big(script: Script, about: bytes, mtu: int) -> None:
    """The guest's "fragmentation needed" about the frame `about`."""
    body = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + about[14 : 14 + 28]
    body = body[:2] + struct.pack("!H", internet_sum(body)) + body[4:]
    script.burst(ip_frame(1, body, destination=script.remote))


async def test_rfc1191_6_4_segments_become_smaller_and_the_data_is_sent_again(script: Script) -> None:
    script.open()
    script.host_writes(bytes(5 * MSS))
    script.everything()
    too_big(script, script.log[-5], 1000)
    assert script.connection.sender.mss == 960
    if not script.frames:
        script.wait()
    heard = script.everything()
    assert heard[0].seq == 1
    assert all(len(h.payload) <= 960 for h in heard)


@pytest.mark.parametrize("mtu", [0, 1, 68, 295, 575])
async def test_rfc1191_6_4_not_below_576(script: Script, mtu: int) -> None:
    script.open()
    script.host_writes(bytes(5 * MSS))
    too_big(script, script.log[-1], mtu)
    assert script.connection.sender.mss == 536


@pytest.mark.parametrize("mtu", [1500, 1501, 9000, 65535])
async def test_rfc1191_6_4_never_more(script: Script, mtu: int) -> None:
    script.open()
    script.host_writes(bytes(5 * MSS))
    too_big(script, script.log[-1], mtu)
    assert script.connection.sender.mss == MSS


async def test_rfc1191_6_4_only_about_what_is_in_flight(script: Script) -> None:
    """RFC 5927 section 7: the quoted number must be one that is not acknowledged yet."""
    script.open()
    script.host_writes(bytes(5 * MSS))
    about = script.log[-1]
    script.everything()
    script.inject(ack=5 * MSS + 1)
    too_big(script, about, 1000)
    forged = bytearray(about)
    forged[38:42] = struct.pack("!I", (script.irs + 50_000_000) % 2**32)
    too_big(script, bytes(forged), 1000)
    assert script.connection.sender.mss == MSS


async def test_rfc1191_6_4_super_frames_are_cut_smaller(make_script) -> None:
    script = make_script(capabilities=LinkCapabilities(mtu=1500, checksum=True, tso4=True))
    script.open()
    script.host_writes(bytes(9 * MSS + 100))
    too_big(script, script.log[-1], 1240)
    script.everything()
    script.wait()
    assert all(len(h.payload) % 1200 == 0 for h in script.everything()[:-1])
    assert script.connection.sender.limit % 1200 == 0


async def test_rfc1191_6_4_a_finished_stream_arrives_whole(script: Script) -> None:
    script.open()
    data = bytes(i * 7 % 251 for i in range(4 * MSS))
    script.host_writes(data)
    script.host_finishes()
    too_big(script, script.log[0 if "S" not in script.read(script.log[0]).flags else 1], 700)
    got = bytearray(len(data))
    script.acked = 1
    for _ in range(20):
        for h in script.everything():
            got[h.seq - 1 : h.seq - 1 + len(h.payload)] = h.payload
            if h.seq <= script.acked:
                script.acked = max(script.acked, h.seq + len(h.payload) + ("F" in h.flags))
        script.inject()
        if script.acked == len(data) + 2:
            break
    assert script.state is State.FIN_WAIT_2
    assert got == data

"""A guest asks the gateway for the time."""

from __future__ import annotations

import time

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.ntp import NTPHeader

from tests.vpnkit.net.scripted_guest import GATEWAY, GATEWAY6, HOST, OFFLOADS, PLAIN, ROUTER6, checksums_hold, world
from vpnkit.wire import ntp
from vpnkit.wire.ntp import NtpPacket

QUESTION = NtpPacket(0, 4, ntp.CLIENT, transmit=1234 << 32).encode()


@pytest.mark.parametrize("capabilities", [PLAIN, OFFLOADS], ids=["plain", "offloads"])
@pytest.mark.parametrize("address", [GATEWAY, GATEWAY6, ROUTER6])
async def test_the_time(capabilities, address):
    async with world(capabilities=capabilities) as w:
        before = time.time()
        w.scripted.datagram(QUESTION, 123, address, 123)
        source, port, to, payload = await w.scripted.answer()
        after = time.time()
        assert (source, port, to) == (address, 123, 123)
        answer = NTPHeader(payload)
        assert (answer.mode, answer.version, answer.getfieldval("orig")) == (4, 4, 1234 << 32)
        received, sent = (stamp / 2**32 - ntp.EPOCH for stamp in map(answer.getfieldval, ("recv", "sent")))
        assert before - 1e-3 <= received <= sent <= after + 1e-3
        assert not w.guest.udp.mappings
        if not capabilities.checksum:
            assert checksums_hold(w.scripted.log[-1])


async def test_a_guest_without_end():
    """Beyond its rate a guest is told so once, and nothing more."""
    async with world() as w:
        for _ in range(100):
            w.scripted.datagram(QUESTION, 123, GATEWAY)
        answers = [NTPHeader((await w.scripted.answer())[3]) for _ in range(33)]
        assert [answer.stratum for answer in answers] == [10] * 32 + [0]
        await w.scripted.silence()
        assert w.guest.counters["ntp_ignored"] >= 60


async def test_the_host_alias_is_no_time_server():
    async with world() as w:
        w.scripted.datagram(QUESTION, 123, HOST)
        reply = await w.scripted.frame(IP)
        assert ICMP in reply or reply[UDP].sport == 123  # that is for the host's own server, if it has one
        assert not w.guest.gateway.ntp.received


async def test_not_by_tcp():
    async with world() as w:
        with pytest.raises(ConnectionRefusedError):
            await w.scripted.connect(123, GATEWAY)

"""Datagrams to the time server, several in a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz.targets.common import Octets, timed
from vpnkit.services.ntp import NtpService
from vpnkit.wire import ntp
from vpnkit.wire.ntp import NtpPacket

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from trio.testing import MockClock

QUESTION = NtpPacket(0, 4, ntp.CLIENT, transmit=1 << 63).encode()
SEEDS = [
    b"\0\x30" + QUESTION,
    (b"\0\x30" + QUESTION) * 3,
    b"\x08\x30" + NtpPacket(3, 3, ntp.SYMMETRIC_ACTIVE).encode() + b"\0\x44" + QUESTION + bytes(20),
    b"\0\x2f" + QUESTION[:47],
    b"\0\x0c\x17\0\x03\x2a" + bytes(8),
]


def start(nursery: trio.Nursery, clock: MockClock) -> Callable[[bytes], None]:
    def one(data: bytes) -> None:
        octets = Octets(data)
        service = NtpService(lambda: 10**18, lambda: 0)
        now = 0.0
        while octets:
            now += octets.byte() / 16
            question = octets.block()
            answer = service.datagram(memoryview(question), now)
            if answer is not None:
                assert len(answer) <= len(question)
                said = ntp.decode(answer)
                assert said.mode in (ntp.SERVER, ntp.SYMMETRIC_PASSIVE)
                assert said.origin == ntp.decode(question).transmit
                assert service.datagram(answer, now) is None, "an answer is never answered"
        assert len(service.dropped) <= 4, "reasons are few"

    return timed(one)

"""The time service for one guest: octets in, octets out, from the host's clock.  The caller builds UDP."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vpnkit.errors import WireError
from vpnkit.proto.leases import Drop
from vpnkit.proto.ntp import NtpServer
from vpnkit.wire import ntp

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEX_OCTETS: Final = 512  # more than any platform's struct timex
LEAPS: Final = {1: ntp.LEAP_INSERT, 2: ntp.LEAP_DELETE}  # adjtimex(2): TIME_INS, TIME_DEL


class NtpService:
    """One server and what happened to it.  `dropped` counts by reason; the reasons are a fixed set."""

    def __init__(self, clock: Callable[[], int] = time.time_ns, leap: Callable[[], int] | None = None) -> None:
        """`clock` counts nanoseconds since 1970; `leap` is the leap indicator of the host."""
        self._clock = clock
        self._leap = leap or host_leap
        self._server = NtpServer()
        self.received = 0
        self.answered = 0
        self.dropped: Counter[str] = Counter()

    def datagram(self, payload: bytes | memoryview, now: float) -> bytes | None:
        """Answer a datagram to port 123, or count why not.  `now` is in seconds."""
        arrived = ntp.timestamp(self._clock())
        self.received += 1
        try:
            request = ntp.decode(payload)
        except WireError:
            self.dropped["malformed"] += 1
            return None
        answer = self._server.receive(request, arrived, self._leap(), now)
        if isinstance(answer, Drop):
            self.dropped[answer.reason] += 1
            return None
        self.answered += 1
        return replace(answer, transmit=ntp.timestamp(self._clock())).encode()


def host_leap() -> int:
    """What the host's kernel knows of a leap second today.  Whether its clock is right it cannot say: nothing else
    here would be better, so it counts as right."""
    if sys.platform != "linux":
        return ntp.LEAP_NONE
    import ctypes  # which most guests never need

    state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(TIMEX_OCTETS))  # modes 0: it only reads
    return LEAPS.get(state, ntp.LEAP_NONE)

"""The rules of an SNTP server, RFC 4330 section 6: who is told the time, and who is told to ask less often.

The server has no state but how much it has said.  An answer is as long as the shortest question, and goes only to
what asks, so nothing is amplified and two servers do not talk to each other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from vpnkit.proto.leases import Drop
from vpnkit.wire import ntp
from vpnkit.wire.ntp import NtpPacket

STRATUM: Final = 10  # of a clock that nobody vouches for: what ntpd and chrony use for their own
REFERENCE_ID: Final = bytes((127, 127, 1, 0))  # ntpd's name for the local clock
PRECISION: Final = -20  # 2**-20 s, a microsecond
ROOT_DISPERSION: Final = 655  # 10 ms in 1/65536 s
VERSIONS: Final = range(1, 5)
ANSWERS: Final = {ntp.CLIENT: ntp.SERVER, ntp.SYMMETRIC_ACTIVE: ntp.SYMMETRIC_PASSIVE}

BURST: Final = 32  # questions that one guest may ask at once
PER_SECOND: Final = 2.0  # and then
KISS_SECONDS: Final = 1.0  # between two kisses of death; what else is too much has no answer


class NtpServer:
    """The server for one guest."""

    def __init__(self) -> None:
        self._allowance = float(BURST)
        self._seen = 0.0
        self._kissed = float("-inf")

    def receive(self, request: NtpPacket, received: int, leap: int, now: float) -> NtpPacket | Drop:
        """The answer, without its transmit timestamp, to what came at the timestamp `received`; or why there is none.

        `leap` is the host's leap indicator; `now` is in seconds, of any clock that only goes forward.
        """
        mode = ANSWERS.get(request.mode)
        if mode is None:
            return Drop("mode")
        if request.version not in VERSIONS:
            return Drop("version")
        answer = NtpPacket(
            leap,
            request.version,
            mode,
            stratum=STRATUM,
            poll=request.poll,
            precision=PRECISION,
            root_dispersion=ROOT_DISPERSION,
            reference_id=REFERENCE_ID,
            reference=received,
            origin=request.transmit,
            receive=received,
        )
        if self._is_allowed(now):
            return answer
        if now - self._kissed < KISS_SECONDS:
            return Drop("rate")
        self._kissed = now
        return replace(answer, leap=ntp.LEAP_UNKNOWN, stratum=0, reference_id=b"RATE")  # RFC 5905 section 7.4

    def _is_allowed(self, now: float) -> bool:
        self._allowance = min(self._allowance + (now - self._seen) * PER_SECOND, float(BURST))
        self._seen = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

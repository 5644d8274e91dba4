"""The retransmission timeout, RFC 6298.  Seconds."""

from __future__ import annotations

from typing import Final

INITIAL: Final = 1.0  # section 2.1
MINIMUM: Final = 0.2  # section 2.4 says 1 s; Linux's value, as the guest is less than a millisecond away
MAXIMUM: Final = 60.0  # section 2.5
GRANULARITY: Final = 0.001


class RttEstimator:
    """Smoothed round-trip time and the timeout that follows from it."""

    __slots__ = ("rto", "rttvar", "srtt")

    def __init__(self) -> None:
        self.srtt = 0.0  # 0 until the first sample
        self.rttvar = 0.0
        self.rto = INITIAL

    def sample(self, rtt: float) -> None:
        """One measured round trip, never of a retransmitted segment (Karn)."""
        if self.srtt == 0.0:
            self.srtt = rtt or 1e-9
            self.rttvar = rtt / 2
        else:
            error = rtt - self.srtt
            self.rttvar += (abs(error) - self.rttvar) / 4
            self.srtt += error / 8
        self.restart()

    def restart(self) -> None:
        """The guest answers again: forget the back-off."""
        if self.srtt:
            self.rto = min(max(self.srtt + max(GRANULARITY, 4 * self.rttvar), MINIMUM), MAXIMUM)
        else:
            self.rto = INITIAL

    def back_off(self) -> None:
        """A timeout: double it (section 5.5)."""
        self.rto = min(self.rto * 2, MAXIMUM)

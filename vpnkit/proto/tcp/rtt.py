"""The retransmission timeout, RFC 6298.  Seconds."""

from __future__ import annotations

from typing import Final

INITIAL: Final = 1.0  # section 2.1
MINIMUM: Final = 0.2  # section 2.4 says 1 s; Linux's value, as the guest is less than a millisecond away
MAXIMUM: Final = 60.0  # section 2.5
GRANULARITY: Final = 0.001
AFTER_LOST_SYN: Final = 3.0  # section 5.7
LEAST_PROBE: Final = 0.02  # of a tail-loss probe; RFC 8985 leaves it to us, and a timer that rings costs us 50 us


class RttEstimator:
    """Smoothed round-trip time and the timeouts that follow from it."""

    __slots__ = ("_initial", "_probes", "first", "rto", "rttvar", "srtt")

    def __init__(self, *, probes: bool = False) -> None:
        """`probes`: the first timer is that of a tail-loss probe, not that of a retransmission."""
        self._initial = INITIAL
        self._probes = probes
        self.srtt = 0.0  # 0 until the first sample
        self.rttvar = 0.0
        self.rto = INITIAL
        self.first = INITIAL  # how long the first ACK may take before something is done

    def lost_syn(self) -> None:
        """The SYN had to be sent again, and nothing was measured yet."""
        self._initial = self.rto = self.first = AFTER_LOST_SYN

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
            self.rto = rto = min(max(self.srtt + max(GRANULARITY, 4 * self.rttvar), MINIMUM), MAXIMUM)
            self.first = min(max(2 * self.srtt, LEAST_PROBE), rto) if self._probes else rto
        else:
            self.rto = self.first = self._initial

    def back_off(self) -> None:
        """A timeout: double it (section 5.5)."""
        self.rto = self.first = min(self.rto * 2, MAXIMUM)

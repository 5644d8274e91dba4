"""Congestion control: slow start, congestion avoidance and NewReno's window arithmetic, RFC 5681 and RFC 6582.

The guest's link loses frames only when the guest's own queue overflows, so the MUSTs are enough; what happens beyond
the host is the host kernel's business.  Octets.
"""

from __future__ import annotations

from typing import Final

from vpnkit.proto.deadlines import NEVER

INITIAL_WINDOW_SEGMENTS: Final = 10  # RFC 6928


class NewReno:
    __slots__ = ("mss", "ssthresh", "window")

    def __init__(self, mss: int) -> None:
        self.mss = mss
        self.window = max(INITIAL_WINDOW_SEGMENTS * mss, 14600)
        self.ssthresh = NEVER

    def acknowledged(self, octets: int) -> None:
        """New data was acknowledged outside of recovery; the caller says so only when the window was the limit."""
        if self.window < self.ssthresh:
            self.window += (
                octets  # slow start, by octets: RFC 3465 with no limit, as super-frames are acknowledged whole
            )
        else:
            self.window += max(self.mss * octets // self.window, 1)

    def lost(self, in_flight: int) -> None:
        """A segment was lost: halve (RFC 5681 section 3.2 step 2)."""
        self.ssthresh = max(in_flight // 2, 2 * self.mss)
        self.window = int(self.ssthresh)

    def deflated(self, acked: int) -> None:
        """A partial ACK of NewReno: what it acknowledges was counted by the duplicates (RFC 6582 section 3.2)."""
        self.window = max(self.window - acked + (self.mss if acked >= self.mss else 0), self.mss)

    def recovered(self) -> None:
        """NewReno's recovery is over: the duplicates count no more."""
        self.window = int(self.ssthresh)

    def idle(self) -> None:
        """Nothing was sent for longer than the timeout: the ACKs that clock us are gone (RFC 5681 section 4.1)."""
        self.window = min(self.window, max(INITIAL_WINDOW_SEGMENTS * self.mss, 14600))

    def timed_out(self, in_flight: int) -> None:
        """A retransmission timeout: one segment, then slow start (RFC 5681 section 3.1)."""
        self.ssthresh = max(in_flight // 2, 2 * self.mss)
        self.window = self.mss

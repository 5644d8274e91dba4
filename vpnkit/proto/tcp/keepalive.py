"""Is an idle guest still there?  RFC 9293 section 3.8.4, in place of ending idle connections blindly.

Nothing is done for a segment: whether the connection was idle is looked up when its deadline comes, hours later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vpnkit.proto.deadlines import NEVER

if TYPE_CHECKING:
    from vpnkit.proto.tcp.receiver import Receiver
    from vpnkit.proto.tcp.sender import Sender


class Keepalive(NamedTuple):
    """When a guest who says nothing, and to whom nothing is to be said, is asked whether he is there.  Seconds."""

    idle: float = 7200.0  # MUST-28
    interval: float = 75.0
    probes: int = 9  # without an answer, then he is gone (MUST-29)


class IdleWatch:
    """The keep-alive of one connection."""

    __slots__ = ("_keepalive", "deadline", "heard_at", "probe_due", "probes")

    def __init__(self, keepalive: Keepalive | None) -> None:
        """Without `keepalive` nobody is asked."""
        self._keepalive = keepalive
        self.deadline = NEVER
        self.heard_at = 0.0  # when an ACK came the general way
        self.probes = 0  # sent and not answered
        self.probe_due = False  # the next ACK is a probe

    def begin(self, now: float) -> None:
        if self._keepalive is not None:
            self.heard_at = now
            self.deadline = now + self._keepalive.idle

    def answered(self, receiver: Receiver) -> None:
        """The guest is there."""
        self.probes = 0
        receiver.early = bool(receiver.assembler) or receiver.fin_sequence is not None

    def on_deadline(self, sender: Sender, receiver: Receiver, now: float) -> bool:
        """Look, and ask.  False when the guest did not answer for too long."""
        keepalive = self._keepalive
        assert keepalive is not None
        silent_since = max(self.heard_at, receiver.heard_at, sender.last_sent)
        if sender.una != sender.top or sender.unsent:
            self.deadline = now + keepalive.idle  # the timer of what is outstanding finds out (MUST-26)
        elif not self.probes and now < silent_since + keepalive.idle:
            self.deadline = silent_since + keepalive.idle
        elif self.probes >= keepalive.probes:
            return False
        else:
            self.probes += 1
            self.probe_due = True
            receiver.ack_due = True
            receiver.early = True  # no header prediction, so that the answer is noticed
            self.deadline = now + keepalive.interval
        return True

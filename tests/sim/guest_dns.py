"""Questions to the gateway over TCP, as a program in the guest asks them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.guest_tcp import GuestTcp
from tests.sim.history import Side
from tests.sim.resolver import question
from tests.sim.scenario import EndPlan, TcpPlan

if TYPE_CHECKING:
    from tests.sim.guest import SimGuest


class DnsConnection(GuestTcp):
    """One question over TCP, and the end."""

    def __init__(self, stack: SimGuest, name: str, local: bytes, lport: int, remote: bytes, rport: int) -> None:
        plan = TcpPlan(0, stack.now(), "192.168.65.1", 53, EndPlan(end=stack.rng.choice(("fin", "after"))), EndPlan())
        super().__init__(stack, plan, Side(0, 0, stack.now()), local, lport, remote, rport)
        self.name = name
        self.ident = stack.rng.randrange(65536)
        message = question(self.ident, name)
        self.message = len(message).to_bytes(2, "big") + message
        self.side.wrote = len(self.message)

    def content(self, offset: int, count: int) -> bytes:
        return self.message[offset : offset + count]

    def check(self) -> None:
        """What came, once it is over."""
        read = bytes(self.side.read)
        if len(read) >= 2 and len(read) >= 2 + int.from_bytes(read[:2], "big"):
            message = read[2 : 2 + int.from_bytes(read[:2], "big")]
            self.stack.check_answer(self.ident, self.name, message, six=len(self.remote) == 16)

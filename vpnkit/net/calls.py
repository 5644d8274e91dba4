"""Calls to one guest: connections of the host's side that are to reach a port of his."""

from __future__ import annotations

import errno
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import trio

from vpnkit.flow import host as host_sockets
from vpnkit.proto.tcp.state import State

if TYPE_CHECKING:
    import socket

    from vpnkit.flow.splice import SpliceFlow
    from vpnkit.net.guest import Guest

MAX_UNANSWERED: Final = 512  # calls that the guest has not answered; the oldest makes place


class Calls:
    """Every call that waits for a guest's answer, the oldest first."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._waiting: OrderedDict[SpliceFlow, None] = OrderedDict()

    async def join(
        self,
        host: socket.socket,
        destination: bytes,
        port: int,
        *,
        caller: tuple[bytes, int] | None = None,
        first: bytes = b"",
        idle: float | None = None,
        patience: float | None = None,
        name: str = "",
    ) -> None:
        """Join the connected, non-blocking `host` with `port` at the guest's `destination`; return when both are
        closed.

        The guest is called from `caller`, an address and a port that may be replaced if it is taken, or from ours;
        `first` is what he is told first.  After `idle` seconds without an octet, or `patience` without an answer, both
        are reset.  `name` is what the other end is, for people, where it has no address.  Takes over `host`.  Raises
        OSError when there is no room.
        """
        guest = self._guest
        source, source_port = caller or (guest.plan.caller(destination), None)
        try:
            if not guest.admit():
                guest.count("tcp_limit")
                raise OSError(errno.ENOBUFS, f"guest {guest.number} has as many connections as he may")
            flow = guest.tcp.call(
                source, destination, port, host, guest.mac_of(destination), source_port=source_port, first=first
            )
        except BaseException:
            host_sockets.reset(host)  # not an end: nobody was there
            raise
        if name:
            flow.remote = name
        if len(self._waiting) >= MAX_UNANSWERED:
            self._make_place()
        self._waiting[flow] = None
        guest.settle_now(flow)
        try:
            if patience is None or await self._answered(flow, patience):
                await self._end(flow, idle)
        finally:
            self._waiting.pop(flow, None)
            if not flow.connection.is_closed:
                flow.abort("the forward is gone")
                guest.settle_now(flow)

    async def _answered(self, flow: SpliceFlow, patience: float) -> bool:
        """Whether the guest answered, be it with a refusal, which is the end.  Looked at when the time is over."""
        with trio.move_on_after(patience):
            await flow.wait_released()
        if flow.connection.state is State.SYN_SENT:
            self._guest.count("tcp_call_unanswered")
            return False
        return True

    async def _end(self, flow: SpliceFlow, idle: float | None) -> None:
        if idle is None:
            await flow.wait_released()
            return
        while (left := flow.active_at + idle - self._guest.now()) > 0:
            with trio.move_on_after(left):
                await flow.wait_released()
                return
        self._guest.count("tcp_forward_idle")

    def _make_place(self) -> None:
        """So that calls that nobody answers, which take minutes, do not keep others from the guest."""
        for flow in list(self._waiting):
            if flow.connection.state is not State.SYN_SENT:
                del self._waiting[flow]
        if len(self._waiting) >= MAX_UNANSWERED:
            self._guest.count("tcp_call_evicted")
            oldest, _ = self._waiting.popitem(last=False)
            oldest.abort("made place for a newer call")
            self._guest.settle_now(oldest)

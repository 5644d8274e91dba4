"""One guest: his link, his tables and his burst loop.

A burst is drained from the link without waiting; what it touched is settled at its end, and then the host's sockets
are asked, also without waiting, as their answers are often there already.  Only when both have nothing the loop waits.
Views of frames die at the end of their burst.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tapdev.link import LinkClosed
from vpnkit.errors import WireError
from vpnkit.flow import host as host_sockets
from vpnkit.flow.clock import Deadlines
from vpnkit.flow.poller import Poller
from vpnkit.net.calls import Calls
from vpnkit.net.gateway import Gateway
from vpnkit.net.icmp import IcmpTable
from vpnkit.net.intake import MIN_TCP_FRAME, MIN_TCP_FRAME6, Intake
from vpnkit.net.lan import Lan
from vpnkit.net.neighbours import Neighbours
from vpnkit.net.output import Output
from vpnkit.net.reachability import Reachability
from vpnkit.net.tcp import TcpTable
from vpnkit.net.udp import UdpTable
from vpnkit.wire import ethernet, ipv4

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Hashable

    from tapdev.link import Link
    from vpnkit.flow.host import HostSockets
    from vpnkit.flow.tcp_flow import TcpFlow
    from vpnkit.net.plan import Plan
    from vpnkit.proto.deadlines import Timed
    from vpnkit.proto.tcp.budget import Budget
    from vpnkit.services.dhcp import DhcpService

log = logging.getLogger(__name__)

FRAMES_PER_BURST: Final = 64
MAX_TRACEBACKS: Final = 20  # of one guest
ROUNDS: Final = 16  # bursts with something in them between two checkpoints
TURN_SECONDS: Final = 0.005  # then other guests have their turn: rounds of super-frames are long
EMPTY_LOOKS: Final = 16  # in vain, before the loop waits
BULK_OCTETS: Final = 16384  # moved since the loop woke: this is no conversation, so one look in vain is enough


class DatagramFlow(Protocol):
    """A mapping or a ping session whose socket may have something."""

    touched: bool

    def receive(self, now: float) -> None:
        """Read it, up to a budget, and be touched again when there may be more."""
        ...

    def on_failure(self, error: BaseException) -> None: ...


class Guest:
    """One link and everything that its owner has with us.  When it goes, everything of his goes."""

    def __init__(
        self,
        link: Link,
        plan: Plan,
        dhcp: DhcpService,
        rng: random.Random,
        nursery: trio.Nursery,
        *,
        number: int = 1,
        name: str = "",
        ip: bytes | None = None,
        mac: bytes | None = None,
        lan: Lan | None = None,
        identity: Hashable = None,
        verify_checksums: bool = False,
        udp_filtering: str = "address",
        nat64: bool = False,
        budget: Budget | None = None,
        ipv6: Reachability | None = None,
        admit: Callable[[], bool] = lambda: True,
        warn: Callable[[str], None] = log.warning,
        host: HostSockets = host_sockets,
        poller: Poller | None = None,
    ) -> None:
        self.link = link
        self.plan = plan
        self.number = number
        self.name = name or type(link).__name__
        self.random = rng
        self.host = host
        self.admit = admit
        self.now = trio.lowlevel.current_clock().current_time  # a third of what trio.current_time() costs
        self.counters: Counter[str] = Counter()
        self.poller = Poller() if poller is None else poller
        self.checksum_offload = link.capabilities.checksum
        self.nat64 = nat64
        self._warn = warn
        self._warned: set[str] = set()
        self._numbers = 0
        self.touched: list[TcpFlow] = []  # to be settled at the end of this burst
        self._datagrams: deque[DatagramFlow] = deque()
        self._blocked: dict[bytes, TcpFlow] = {}  # flows that wait until the link takes frames again
        self._link_writable = trio.Event()
        self.link_is_full = False  # so that nobody makes a segment, and its checksum, only to keep it
        self.ours = plan.ours()
        self.deadlines = Deadlines(self._after_deadlines, self._deadline_failed)
        self.out = Output(self)
        self.tcp = TcpTable(self, rng.randbytes(32), budget=budget)
        self.calls = Calls(self)
        self.udp = UdpTable(self, filtering=udp_filtering)
        self.icmp = IcmpTable(self)
        self.station = (lan or Lan(plan, dhcp.server)).attach(
            link, identity=identity, on_pending=self._link_writable_wanted
        )
        self.station.refuse = self.out.too_large
        if mac is not None:
            self.station.is_source(mac)
            if ip is not None:
                self.station.given(ip, mac)
        self.gateway = Gateway(self, dhcp, nursery)
        self.ipv6 = ipv6 or Reachability(plan, host, "off")
        self.neighbours = Neighbours(self)
        self.intake = Intake(self, verify_checksums=verify_checksums or not link.capabilities.reliable)

    @property
    def ip(self) -> bytes | None:
        """The IPv4 address by which he is known, once he has one."""
        return self.station.ip

    @property
    def mac(self) -> bytes:
        """His MAC address; the broadcast address until he has spoken."""
        return self.station.mac or ethernet.BROADCAST

    def mac_of(self, ip: bytes) -> bytes:
        """The MAC address that he uses with `ip`."""
        return self.station.addresses.get(ip) or self.mac

    # The loop

    async def run(self) -> None:
        """Serve the link until its other end is gone."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.deadlines.run)
                nursery.start_soon(self._serve_host)
                nursery.start_soon(self._serve_full_link)
                try:
                    await self._serve_link()
                except LinkClosed as closed:
                    log.info("guest %d: %s", self.number, closed)
                nursery.cancel_scope.cancel()
        finally:
            self.close()

    async def _serve_link(self) -> None:
        link = self.link
        while True:
            if self.touched or self._datagrams:
                await trio.lowlevel.checkpoint()  # edges that were seen and not used up: nobody tells us again
            else:
                await link.wait_readable()
            self._work()

    async def _serve_host(self) -> None:
        while True:
            if self.touched or self._datagrams:
                await trio.lowlevel.checkpoint()
            else:
                await self.poller.wait()
            try:
                self._work()
            except LinkClosed:
                await trio.sleep_forever()  # the link's own task sees it too, and ends us

    def _work(self) -> None:
        """Bursts and turns, until both had nothing to do several times in a row, or others should have their turn.

        To look a few times more costs about 50 us, which is less than what it costs to fall asleep, be woken and find
        every cache cold: a request and its answer are mostly closer together than that.
        """
        statistics = self.link.statistics
        octets = statistics.received_bytes + statistics.sent_bytes
        until = self.now() + TURN_SECONDS
        worked = empty = 0
        while worked < ROUNDS:
            if self.turn() + self.burst():
                worked += 1
                empty = 0
                if self.now() > until:
                    break
                continue
            empty += 1
            if empty >= EMPTY_LOOKS or statistics.received_bytes + statistics.sent_bytes - octets > BULK_OCTETS:
                break

    async def _serve_full_link(self) -> None:
        while True:
            await self._link_writable.wait()
            await self.link.wait_writable()
            self._link_writable = trio.Event()
            self.link_is_full = False
            blocked, self._blocked = self._blocked, {}
            for flow in blocked.values():
                self.touch(flow)
            try:
                if not self.station.port.flush():
                    self._link_writable.set()
                self._work()
                while self.touched or self._datagrams:  # the other tasks sleep, and would not see it
                    await trio.lowlevel.checkpoint()
                    self._work()
            except LinkClosed:
                await trio.sleep_forever()  # the link's own task sees it too, and ends us

    def burst(self) -> int:
        """Take in what the link has, up to a budget, and settle what it touched.  Returns the number of frames."""
        link = self.link
        receive = link.receive
        take = self.intake.frame
        now = self.now()
        count = 0
        try:
            while count < FRAMES_PER_BURST:
                frame = receive()
                if frame is None:
                    break
                count += 1
                try:
                    take(frame, now)
                except WireError as error:
                    self.counters["malformed"] += 1
                    log.debug("guest %d: %s", self.number, error)
                except LinkClosed:
                    raise
                except Exception:  # the containment boundary of one frame
                    self._frame_failed(frame, now)
            if self.udp.unfinished:
                self.udp.flush()
            if self.touched:
                self.settle()
        finally:
            link.release()
        return count

    def turn(self) -> int:
        """Ask the host's sockets, without waiting, and settle what answered.  Returns how much there was."""
        count = self.poller.poll()
        if self._datagrams:
            now = self.now()
            for _ in range(len(self._datagrams)):
                mapping = self._datagrams.popleft()
                mapping.touched = False
                try:
                    mapping.receive(now)
                except LinkClosed:
                    raise
                except Exception as error:  # the containment boundary of one mapping
                    mapping.on_failure(error)
            count += 1
        if self.touched:
            self.settle()
            count += 1
        return count

    def settle(self) -> None:
        """Settle every touched flow once; one that has more to do is touched again for the next turn."""
        touched, self.touched = self.touched, []
        now = self.now()
        for flow in touched:
            flow.touched = False
            try:
                flow.settle(now)
            except LinkClosed:
                raise
            except Exception:  # the containment boundary of one connection
                self._flow_failed(flow, now)

    def _flow_failed(self, flow: TcpFlow, now: float) -> None:
        self._internal_error(f"in flow {flow.number}")
        flow.connection.abort("internal error")
        try:
            flow.transmit(now)
        except LinkClosed:
            raise
        except Exception:
            log.debug("flow %d tcp: not even a reset", flow.number, exc_info=True)
        finally:
            self.forget(flow)

    def _frame_failed(self, frame: memoryview, now: float) -> None:
        flow = None
        if len(frame) >= MIN_TCP_FRAME and frame[23] == ipv4.TCP and frame[12] == 0x08:
            flow = self.tcp.flows.get(bytes(frame[26:38]))
        elif len(frame) >= MIN_TCP_FRAME6 and frame[20] == ipv4.TCP and frame[12] == 0x86:
            flow = self.tcp.flows.get(bytes(frame[22:58]))
        if flow is not None:
            self._flow_failed(flow, now)
        else:
            self._internal_error("on a frame")

    def _internal_error(self, where: str) -> None:
        """Count the exception that is being handled; only the first are logged, for the guest may repeat them."""
        self.counters["internal_error"] += 1
        if self.counters["internal_error"] <= MAX_TRACEBACKS:
            log.exception("guest %d: internal error %s", self.number, where)

    def _after_deadlines(self) -> None:
        try:
            self.settle()
        except LinkClosed:
            pass  # the link's own task sees it too

    def _deadline_failed(self, timed: Timed, error: BaseException) -> None:
        log.error("guest %d: internal error on a deadline of %r", self.number, timed, exc_info=error)
        give_up = getattr(timed, "on_failure", None)
        if give_up is None:
            self.count("internal_error")
        else:
            give_up(error)

    # What flows ask (FlowHost)

    def touch(self, flow: TcpFlow) -> None:
        if not flow.touched:
            flow.touched = True
            self.touched.append(flow)

    def touch_datagrams(self, mapping: DatagramFlow) -> None:
        if not mapping.touched:
            mapping.touched = True
            self._datagrams.append(mapping)

    def settle_now(self, flow: TcpFlow) -> None:
        self.touch(flow)
        try:
            self.settle()
        except LinkClosed:
            pass  # the link's own task sees it too

    def update_deadline(self, timed: Timed) -> None:
        self.deadlines.update(timed)

    def link_full(self, flow: TcpFlow) -> None:
        self._blocked[flow.key] = flow
        self.link_is_full = True
        self._link_writable.set()

    def _link_writable_wanted(self) -> None:
        """A neighbour's frames wait until the link takes them."""
        self._link_writable.set()

    def forget(self, flow: TcpFlow) -> None:
        self._blocked.pop(flow.key, None)
        self.tcp.forget(flow, self.now())

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def count(self, what: str) -> None:
        self.counters[what] += 1

    def warn_once(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self._warn(message)

    # The end

    def close(self) -> None:
        """Release everything.  Idempotent."""
        self.station.leave()
        self.neighbours.close()
        self.gateway.close()
        self.tcp.close()
        self.udp.close()
        self.icmp.close()
        self.poller.close()
        self.link.close()

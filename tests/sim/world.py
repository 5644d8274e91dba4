"""One world: the network under test, a simulated host around it, a scripted guest, and everything that happens."""

from __future__ import annotations

import hashlib
import logging
import random
import struct
import traceback
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import trio
import trio.testing

from tests.sim.agenda import Agenda
from tests.sim.checker import Broken, FlowChecker, FrameChecker
from tests.sim.checker6 import LATE, RouterChecker
from tests.sim.datagrams import request
from tests.sim.faults import Faults
from tests.sim.guest import SimGuest, open_connections
from tests.sim.guest6 import PREFIX6
from tests.sim.history import History
from tests.sim.host import SimHost, TcpSocket
from tests.sim.inspection import check_buffers, tables, watch
from tests.sim.packets import address
from tests.sim.poller import SimPoller
from tests.sim.resolver import Factory
from tests.sim.scenario import host_address
from tests.sim.wire import Wire
from vpnkit.net.network import Network, NetworkOptions
from vpnkit.net.plan import Plan, guest_mac
from vpnkit.proto.tcp.budget import Budget

if TYPE_CHECKING:
    from pathlib import Path

    from tests.sim.scenario import Incident, Scenario, TcpPlan, UdpPlan
    from vpnkit.net.guest import Guest

PATIENCE: Final = 12 * 3600.0  # simulated seconds from the last fault until everything must be over
PCAP_HEADER: Final = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
SMALL_TABLES: Final = {
    "vpnkit.net.tcp.MAX_FLOWS": 4,
    "vpnkit.net.tcp.MAX_HELD": 2,
    "vpnkit.net.tcp.MAX_HELD_PER_DESTINATION": 1,
    "vpnkit.net.tcp.MAX_TIME_WAIT": 2,
    "vpnkit.net.udp.MAX_MAPPINGS": 1,
    "vpnkit.net.udp_mapping.MAX_PEERS": 1,
    "vpnkit.net.icmp.MAX_SESSIONS": 1,
    "vpnkit.proto.dns.MAX_IN_FLIGHT": 1,
    "vpnkit.services.dns.MAX_SOCKETS": 1,
    "vpnkit.services.dns.MAX_STREAMS": 1,
    "vpnkit.proto.tcp.assembler.MAX_RANGES": 2,
}
SMALL_WINDOW: Final = {
    "vpnkit.proto.tcp.receiver.CAPACITY": 6000,
    "vpnkit.proto.tcp.receiver.FIRST_CAPACITY": 3000,
    "vpnkit.proto.tcp.sender.MAX_BUFFERED": 6000,
}
SMALL_BUDGET: Final = 24_000
TIME_WAIT: Final = 59.0  # seconds, a little less than the network's


@dataclass
class Outcome:
    """How a world ended."""

    seed: int
    digest: str  # of all frames, with their times
    frames: int
    faults: Counter[str]
    counters: Counter[str]  # of the network
    simulated: float  # seconds
    broken: str = ""


class Errors(logging.Handler):
    """Whatever the network logs as an error is one."""

    def __init__(self, broken: list[Broken]) -> None:
        super().__init__(logging.ERROR)
        self._broken = broken

    def emit(self, record: logging.LogRecord) -> None:
        reason = f": {record.exc_info[1]!r}" if record.exc_info else ""
        where = ""
        if record.exc_info and record.exc_info[2]:
            last = record.exc_info[2]
            while last.tb_next:
                last = last.tb_next
            where = f" at {last.tb_frame.f_code.co_filename}:{last.tb_lineno}"
        self._broken.append(Broken(f"I8: {record.getMessage()}{reason}{where}"))


class World:
    def __init__(self, scenario: Scenario, clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
        self.scenario = scenario
        self.clock = clock
        self.nursery = nursery
        self.rng = random.Random(f"world {scenario.seed}")
        self.faults = Faults(random.Random(f"faults {scenario.seed}"), **scenario.faults)
        self.agenda = Agenda(random.Random(f"agenda {scenario.seed}"))
        self.history = History()
        self.host = SimHost(self)
        self.is_calm = False
        self.every = 1  # how many steps go by from one look inside the network to the next
        self.broken: list[Broken] = []
        self.open_streams = 0
        self.udp_plans: dict[tuple[str, int], UdpPlan] = {}
        self.udp_by_number: dict[int, UdpPlan] = {}
        self.answered: set[int] = set()  # DNS questions
        self.frames: list[bytes] | None = None  # kept for a pcap file
        self.hash = hashlib.sha256(PCAP_HEADER)
        self.plan = Plan(mtu=scenario.capabilities.mtu)
        self.router = RouterChecker(
            PREFIX6, self.plan.server_mac, mtu=scenario.capabilities.mtu, offer=scenario.offer, routes=self.host.routes
        )
        self.checker = FrameChecker(self.plan.server_mac, mtu=scenario.capabilities.mtu, router=self.router)
        self.guest = SimGuest(
            self, guest_mac(1), address("192.168.65.3"), self.plan.server_mac, mtu=scenario.capabilities.mtu
        )
        options = NetworkOptions(
            dns=[
                (f"2001:db8:99::{i + 1}" if scenario.resolvers6 and i & 1 else f"10.99.0.{i + 1}", 53)
                for i in range(len(scenario.resolvers))
            ],
            ipv6=scenario.offer,
            nat64=scenario.nat64,
            rng=random.Random(f"network {scenario.seed}"),
            host=self.host,  # type: ignore[arg-type]
            poller=lambda: SimPoller(self.host),
        )
        if scenario.small_tables:
            options.max_connections = 6
        self.network = Network(self.plan, options)
        if scenario.small_window:
            self.network._budget = Budget(SMALL_BUDGET)
        self.served: list[Guest] = []
        self.wire: Wire | None = None
        trio.socket.set_custom_socket_factory(Factory(self))
        self.agenda.each = self._step

    # What the parts of the world report

    def frame(self, _wire: Wire, direction: int, frame: bytes, partial: bool, gso_size: int) -> None:
        micros = int(self.agenda.now() * 1e6)
        record = struct.pack("<IIII", micros // 1_000_000, micros % 1_000_000, len(frame), len(frame)) + frame
        self.hash.update(record)
        if self.frames is not None:
            self.frames.append(record)
        try:
            self.checker.frame(direction, frame, partial, gso_size)
        except Broken as broken:
            self.broken.append(broken)

    def expect(self, true: bool, invariant: str, what: str) -> None:
        if not true:
            self.broken.append(Broken(f"{invariant}: {what}"))

    def resolver(self, server: tuple[str, int]) -> str:
        return self.scenario.resolvers[int(server[0].replace(":", ".").rsplit(".", 1)[1]) - 1]

    def udp_arrived(self, plan: UdpPlan, data: bytes) -> None:
        sent = any(data == request(plan, number, size) for number, (_, size) in enumerate(plan.sends))
        self.expect(sent, "I1 udp", f"the host got a datagram of flow {plan.number} that was not sent")

    def _step(self) -> None:
        if not self.broken and self.agenda.steps % self.every == 0:
            try:
                for guest in self.network.guests:
                    check_buffers(guest)
            except Broken as broken:
                self.broken.append(broken)
        if self.broken:
            raise self.broken[0]

    # What happens

    async def link_up(self) -> None:
        scenario = self.scenario
        wire = Wire(
            self.agenda,
            self.faults,
            self.rng,
            scenario.capabilities,
            self,
            latency=scenario.latency,
            queue_frames=scenario.queue_frames,
        )
        self.wire = wire
        self.guest.attach(wire)
        self.agenda.after(0.01, self.guest.six.begin)
        self.nursery.start_soon(self._serve, wire)
        await trio.testing.wait_all_tasks_blocked()

    async def _serve(self, wire: Wire) -> None:
        async with trio.open_nursery() as nursery:
            guest = await nursery.start(self.network.serve_guest, wire)
            self.served.append(guest)
            watch(guest, self.broken, every=self.every)

    def begin(self) -> None:
        """Write everything into the agenda."""
        scenario, agenda, guest = self.scenario, self.agenda, self.guest
        guest.say_arp()
        if scenario.dhcp:
            guest.discover()
        if scenario.dhcpv6:
            agenda.after(1.0, guest.six.solicit_address)
        for plan in scenario.tcp:
            self.faults.counts["nat64"] += plan.address.startswith("64:")
            self.faults.counts["ipv6"] += ":" in plan.address
            self.host.plans[host_address(plan.address), plan.port] = plan
            if plan.forward:
                self.faults.counts["forward"] += 1
                guest.listening[plan.port] = plan
                agenda.after(plan.start, self._forward, plan)
            else:
                agenda.after(plan.start, guest.connect, plan)
        for udp in scenario.udp:
            self.udp_plans[host_address(udp.address), udp.port] = self.udp_by_number[udp.number] = udp
            for number, (when, size) in enumerate(udp.sends):
                agenda.after(udp.start + when, guest.send_udp, udp, number, size)
        for when, target, size in scenario.pings:
            agenda.after(when, guest.ping, target, size)
        for when, name, by_tcp, six in scenario.lookups:
            agenda.after(when, partial(guest.look_up_by_tcp if by_tcp else guest.look_up, name, six=six))
        for incident in scenario.incidents:
            agenda.after(incident.at, self._incident, incident)
        if self.faults.spurious_event:
            agenda.after(0.05, self._spurious)

    def _spurious(self) -> None:
        if not self.is_calm:
            self.host.spurious_events()
            self.agenda.after(0.05, self._spurious)

    def _forward(self, plan: TcpPlan) -> None:
        made = TcpSocket(self.host)
        made.adopt(plan)
        self.nursery.start_soon(self._serve_forward, made, plan)

    async def _serve_forward(self, made: TcpSocket, plan: TcpPlan) -> None:
        assert made.side is not None
        called = self.guest.local_for(address(plan.address))
        holder = await self.network.lan.resolve(called)
        guest = next((guest for guest in self.network.guests if holder and guest.station is holder.station), None)
        if guest is None:
            perfect = not self.scenario.faults and not self.scenario.incidents
            self.expect(not perfect, "I12", "the guest was asked who he is, and not found")
            made.side.causes.append("no guest")
            made.close()
            return
        try:
            await guest.calls.join(made, called, plan.port)  # type: ignore[arg-type]
        except OSError as error:
            made.side.causes.append(str(error))

    def _incident(self, incident: Incident) -> None:
        if self.is_calm or self.wire is None:
            return
        what, seconds = incident.what, incident.seconds
        if what == "link_down":
            self.wire.down = True
            self.agenda.after(seconds, self._repair)
        elif what == "link_stopped":
            self.wire.stopped = True
            self.agenda.after(seconds, self._repair)
        elif what == "guest_pause":
            self.faults.counts[what] += 1
            self.guest.pause(seconds)
            if self.rng.random() < 0.5:
                self.wire.stopped = True
                self.agenda.after(seconds, self._repair)
        elif what == "guest_reset":
            self.faults.counts[what] += 1
            self.guest.reset()
        elif what == "clock_jump":
            self.faults.counts[what] += 1
            self.clock.jump(seconds)
            self.host.routes.jump(seconds)
            if seconds >= TIME_WAIT:
                self._forget_time_wait()
        elif what == "ipv6_changes":
            self.faults.counts[what] += 1
            self.host.routes.change()
            self.agenda.after(seconds, self.host.routes.change)
        elif what == "too_big":
            self.guest.six.too_big()
        elif what == "relink":
            self.faults.counts[what] += 1
            self.history.everywhere.append("the link was closed")
            self.wire.end()
            self.nursery.start_soon(self.link_up)

    def _forget_time_wait(self) -> None:
        """The clock jumps over it: who still waits for the last ACK is told that there is no such connection."""
        for connection in self.guest.connections.values():
            if connection.finishing and connection.rcv_fin is not None:
                connection.side.causes.append("a jump of the clock over TIME-WAIT")

    def _repair(self) -> None:
        assert self.wire is not None
        self.wire.down = self.wire.stopped = False
        if not self.wire._far._closed:
            self.wire.drain()

    def calm(self) -> None:
        """No more faults, and everybody comes to an end."""
        self.is_calm = True
        self.faults.calm()
        self._repair()
        self.guest.resumes = 0.0
        self.guest.resume()
        for peer in list(self.host.peers):
            peer.calm()
        for connection in list(self.guest.connections.values()):
            connection.calm()
        self.agenda.after(LATE, self.guest.six.ask)
        self.agenda.after(LATE + 9, self._check_routers)

    def _check_routers(self) -> None:
        """What the guest believes now."""
        true = self.router.default_router(self.host.routes.has)
        six = self.guest.six
        if not self.host.routes.changed_lately:
            believes = six.router_until > self.agenda.now()
            self.expect(believes is true, "I11", f"the guest {'has' if believes else 'has no'} router")
        mac = six.neighbours.get(self.router.gateway)
        self.expect(mac == self.plan.server_mac, "I11", "the guest does not find the gateway")

    def left(self) -> dict[str, int]:
        """What is not over yet."""
        found: Counter[str] = Counter()
        for guest in self.network.guests:
            found.update(dict(tables(guest)))
        found["octets of the budget"] = self.network._budget.used
        found["host sockets"] = len(self.host.sockets)
        found["resolver streams"] = self.open_streams
        found["guest connections"] = len(open_connections(self.guest))
        found["peers"] = sum(peer.side is not None and not peer.side.over for peer in self.host.peers)
        return {what: count for what, count in found.items() if count}

    async def settle(self) -> None:
        """Wait until everything is over.  Raises Broken when it never is."""
        deadline = trio.current_time() + PATIENCE
        pause = 10.0
        await trio.sleep(LATE + 12)  # what a jump of the clock made due comes first, and what is told to the guest
        while self.left() or self.broken:
            if self.broken:
                raise self.broken[0]
            if trio.current_time() > deadline:
                stuck = [str(connection) for connection in self.guest.connections.values()]
                raise Broken(f"I6: never over: {self.left()} {'; '.join(stuck)}")
            await trio.sleep(pause)
            pause = min(pause * 1.5, 300.0)

    def judge(self) -> None:
        """Everything is over: the checks that need the whole history."""
        flows = FlowChecker(self.history, small_tables=self.scenario.small_tables, repeated=self.checker.repeated)
        for flow in self.history.flows.values():
            flows.check(flow)
        for connection in self.guest.dns_connections:
            connection.check()
        if self.broken:
            raise self.broken[0]
        internal = self.counters()["internal_error"]
        if internal:
            raise Broken(f"I8: internal_error {internal}")

    def counters(self) -> Counter[str]:
        total = Counter(self.network.gone)
        for guest in self.network.guests:
            total.update(guest.counters)
        return total

    def save(self, path: Path) -> None:
        path.write_bytes(PCAP_HEADER + b"".join(self.frames or ()))


async def live(scenario: Scenario, clock: trio.testing.MockClock, worlds: list[World], *, keep: bool) -> None:
    async with trio.open_nursery() as nursery:
        world = World(scenario, clock, nursery)
        worlds.append(world)
        if keep:
            world.frames = []
        await nursery.start(world.network.run)
        nursery.start_soon(world.agenda.run)
        await world.link_up()
        world.begin()
        await trio.sleep(scenario.calm_at)
        world.calm()
        await world.settle()
        assert world.wire is not None
        world.wire.end()
        with trio.move_on_after(10):
            while world.network.guests:  # noqa: ASYNC110
                await trio.sleep(1)
        if world.network.guests:
            raise Broken("I6: the guest did not end with his link")
        world.judge()
        nursery.cancel_scope.cancel()


def first(error: BaseException) -> BaseException:
    """The innermost of a group of exceptions."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def run(scenario: Scenario, *, pcap: Path | None = None, main: Any = live, verbose: bool = False) -> Outcome:
    """Live through one world, from its beginning to its end.  `verbose`: errors with their tracebacks on stderr."""
    worlds: list[World] = []
    clock = trio.testing.MockClock(autojump_threshold=0)
    changes: dict[str, int] = {}
    if scenario.small_tables:
        changes |= SMALL_TABLES
    if scenario.small_window:
        changes |= SMALL_WINDOW
    logger = logging.getLogger("vpnkit")
    broken = ""
    with ExitStack() as stack:
        for name, value in changes.items():
            stack.enter_context(patch(name, value))
        stack.enter_context(patch("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True))
        stack.enter_context(patch("trio._core._run._r", random.Random(f"trio {scenario.seed}")))
        before, logger.propagate = logger.propagate, False
        stack.callback(setattr, logger, "propagate", before)
        errors: list[Broken] = []
        logger.addHandler(handler := Errors(errors))
        if verbose:
            logger.addHandler(loud := logging.StreamHandler())
            stack.callback(logger.removeHandler, loud)
        stack.callback(logger.removeHandler, handler)

        async def start() -> None:
            await main(scenario, clock, worlds, keep=pcap is not None)

        try:
            trio.run(start, clock=clock)
        except Exception as error:
            cause = first(error)
            if verbose:
                traceback.print_exception(cause)
            if isinstance(cause, Broken):
                broken = str(cause)
            else:
                last = cause.__traceback__
                while last is not None and last.tb_next:
                    last = last.tb_next
                where = f" at {last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last else ""
                broken = f"I8: {cause!r}{where}"
        if errors:  # whatever came of it
            broken = str(errors[0])
    world = worlds[0]
    counts = world.faults.counts
    for name in ("small_tables", "small_window"):
        counts[name] += bool(getattr(scenario, name))
    counts["offload"] += scenario.capabilities.checksum
    if pcap is not None:
        world.save(pcap)
    return Outcome(
        scenario.seed,
        world.hash.hexdigest(),
        world.checker.frames,
        counts,
        world.counters(),
        clock.current_time(),
        broken,
    )

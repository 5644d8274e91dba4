"""A long life: many programs that speak for simulated hours, on a link that is not perfect.  At the end the tables are
empty, and memory did not grow on the way."""

from __future__ import annotations

import gc
import os
import random
import time
from dataclasses import replace
from typing import Final

import trio
import trio.testing

from tapdev.link import LinkCapabilities
from tests.sim.checker import FlowChecker
from tests.sim.guest import TCP_PORTS
from tests.sim.packets import address
from tests.sim.scenario import EndPlan, Scenario, TcpPlan, UdpPlan
from tests.sim.world import World, run

SWEEP: Final = 600.0  # simulated seconds between two looks at what is over
KEEP: Final = 1800.0  # and how long what is over is still known
LOOKS: Final = 50  # steps from one look at every flow to the next
PORTS: Final = 50_000
FLAT: Final = 0.05  # how much memory may grow from the third hour to the last


class Programs:
    """What runs in the guest, `flows` of them at once."""

    def __init__(self, world: World, flows: int) -> None:
        self.world = world
        self.rng = random.Random(f"programs {world.scenario.seed}")
        self.flows = flows
        self.started = 0
        self.checked = 0
        self.stopped = False
        self._over: list[tuple[float, TcpPlan]] = []
        self._waiting: dict[int, TcpPlan] = {}

    def begin(self) -> None:
        world = self.world
        for number in range(1, 9):
            udp = UdpPlan(
                number,
                0.0,
                f"10.2.0.{number}" if number & 1 else f"2001:db8:2::{number}",
                4000 + number,
                [(0.0, 100), (0.0, 1400)],
                1,
                300,
            )
            world.udp_plans[udp.address, udp.port] = world.udp_by_number[number] = udp
        for number in range(self.flows):
            world.agenda.after(self.rng.uniform(0, 60), self.step, number % 10)
        world.agenda.after(SWEEP, self.sweep)

    def step(self, kind: int) -> None:
        """One program does one thing, and later the next."""
        if self.stopped:
            return
        world, rng = self.world, self.rng
        lasts = rng.expovariate(1 / 60) + 1
        if kind == 0:
            udp = world.udp_by_number[rng.randrange(1, 9)]
            number = rng.randrange(2)
            world.guest.send_udp(udp, number, udp.sends[number][1])
        elif kind == 1:
            if rng.random() < 0.5:
                world.guest.ping(rng.choice(("192.168.65.1", "10.3.0.1", "2001:db8:3::1", "10.3.0.99")), 56)
            else:
                world.guest.look_up(f"n{rng.randrange(100)}.example.org")
        else:
            lasts = self._connect()
        world.agenda.after(lasts, self.step, kind)

    def _connect(self) -> float:
        rng = self.rng
        lasts = rng.choice((1.0, 60.0, 600.0, 3600.0))
        self.started += 1
        number = self.started
        plan = TcpPlan(
            number,
            0.0,
            f"2001:db8:4::{number:x}" if number & 1 else f"10.{4 + (number >> 16)}.{number >> 8 & 255}.{number & 255}",
            80,
            self._end(lasts, "fin"),
            self._end(lasts, rng.choice(("fin", "after", "after", "rst", "close"))),
            connect_delay=0.02,
        )
        self._waiting[number] = plan
        self.world.host.plans[plan.address, plan.port] = plan
        self.world.guest.connect(plan, self._port(plan))
        return lasts + rng.uniform(0, 60)

    @staticmethod
    def _port(plan: TcpPlan) -> int:
        return TCP_PORTS + plan.number % PORTS

    def _end(self, lasts: float, end: str) -> EndPlan:
        rng = self.rng
        count = 1 + int(lasts / 60)
        writes = sorted((rng.uniform(0, lasts), rng.choice((20, 200, 2000))) for _ in range(count))
        return EndPlan(writes, end, lasts, reads=rng.choice(("fast", "fast", "slow")))

    def sweep(self) -> None:
        """Judge what is over, and forget it."""
        world = self.world
        checker = FlowChecker(world.history, small_tables=False, repeated=world.checker.repeated)
        now = world.agenda.now()
        for number, plan in list(self._waiting.items()):
            flow = world.history.flow(plan)
            if all(side.over for side in (*flow.guest, *flow.host)):
                checker.check(flow)
                self.checked += 1
                del self._waiting[number], world.history.flows[number]
                self._over.append((now, plan))
        while self._over and (self._over[0][0] < now - KEEP or self.stopped):
            _, plan = self._over.pop(0)
            del world.host.plans[plan.address, plan.port]
            key = (world.guest.local_for(address(plan.address)), self._port(plan), address(plan.address), plan.port)
            world.checker.forget(key)
            world.checker.repeated.discard(key[2:])
        world.host.prune()
        if not self.stopped:
            world.agenda.after(SWEEP, self.sweep)

    def stop(self) -> None:
        self.stopped = True


def memory() -> tuple[int, int]:
    """Resident octets, and objects that the collector knows."""
    gc.collect()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(gc.get_objects())


def soak(hours: float, flows: int, seed: int) -> int:
    """Returns an exit status."""
    began = time.perf_counter()
    samples: list[tuple[int, int]] = []
    totals: dict[str, int] = {}

    async def main(scenario: Scenario, _clock: trio.testing.MockClock, worlds: list[World], *, keep: bool) -> None:
        async with trio.open_nursery() as nursery:
            world = World(scenario, _clock, nursery)
            worlds.append(world)
            world.every = LOOKS
            await nursery.start(world.network.run)
            nursery.start_soon(world.agenda.run)
            await world.link_up()
            world.begin()
            programs = Programs(world, flows)
            programs.begin()
            for hour in range(1, max(int(hours), 1) + 1):
                await trio.sleep(hours * 3600 / max(int(hours), 1))
                samples.append(memory())
                guest = world.network.guests[0]
                print(
                    f"hour {hour}: {len(guest.tcp.flows)} TCP, {len(guest.udp.mappings)} UDP, "
                    f"{programs.checked} connections over, {world.checker.frames} frames, "
                    f"{samples[-1][0] >> 10} KiB, {samples[-1][1]} objects, {time.perf_counter() - began:.0f} s",
                    flush=True,
                )
            programs.stop()
            world.calm()
            await world.settle()
            programs.sweep()
            world.judge()
            totals["connections"] = programs.checked
            assert world.wire is not None
            world.wire.end()
            nursery.cancel_scope.cancel()

    scenario = Scenario(
        seed,
        LinkCapabilities(mtu=1500),
        0.0005,
        256,
        {"drop": 0.005, "duplicate": 0.005, "reorder": 0.01, "short_write": 0.02, "eagain": 0.02},
        hours * 3600,
        [],
        [],
        [],
        [],
        ["answer", "answer"],
        [],
    )
    outcome = run(replace(scenario), main=main)
    print(
        f"{hours:g} simulated hours, {flows} programs, {totals.get('connections', 0)} connections, "
        f"{outcome.frames} frames in {time.perf_counter() - began:.0f} s: {outcome.broken or 'tables empty'}"
    )
    if outcome.broken:
        return 1
    if len(samples) < 4:
        return 0
    for what, early, late in zip(("octets", "objects"), samples[2], samples[-1], strict=True):
        print(f"{what}: {early} after three hours, {late} at the end ({(late - early) / early:+.1%})")
        if late > early * (1 + FLAT):
            print("memory is not flat")
            return 1
    return 0

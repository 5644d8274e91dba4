"""A running instance that always says the same, but for its forwards."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from portfwd.errors import ForwardError
from portfwd.spec import Spec, parse
from vpnkit.net.events import EventHub, ForwardAdded
from vpnkit.net.report import FlowReport, ForwardReport, GuestReport, LeaseReport, NameReport, StatusReport
from vpnkit.proto.dns_zones import Zone, Zones

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trio


class FixedOperator:
    def __init__(self) -> None:
        self.events = EventHub(lambda: 1_700_000_000.5)
        self.specs = [Spec(8080, 80)]
        self.reset: list[Spec] = []  # whose connections were to end with them
        self._zones = Zones()
        self.gone = False  # the guest

    def status(self) -> StatusReport:
        return StatusReport(
            name="default",
            version="0.1.0",
            pid=4711,
            uptime_seconds=3725.5,
            subnet="192.168.65.0/24",
            gateway="192.168.65.1",
            host="192.168.65.2",
            mtu=65520,
            dns=["192.0.2.53#53", "2001:db8::53#53"],
            guests=1,
            flows={"tcp": 2, "udp": 1, "icmp": 0},
            frames_to_host=1200,
            frames_to_guest=3400,
            bytes_to_host=123456,
            bytes_to_guest=98765432,
            counters={"dropped_frames": 0, "refused_flows": 3},
            warnings=["the kernel has no UDP segmentation offload"],
        )

    def guests(self) -> list[GuestReport]:
        if self.gone:
            return []
        return [
            GuestReport(
                id=1,
                link="netns:",
                mac="02:50:00:00:00:01",
                ip="192.168.65.3",
                addresses=["192.168.65.3", "fd65:7670:6e6b::3"],
                mtu=65520,
                offloads=["checksum", "tso4"],
                frames_to_host=1200,
                frames_to_guest=3400,
                bytes_to_host=123456,
                bytes_to_guest=98765432,
            )
        ]

    def flows(self) -> list[FlowReport]:
        return [
            FlowReport(
                id=7,
                protocol="tcp",
                direction="out",
                guest="192.168.65.3:51000",
                remote="192.0.2.80:443",
                host="192.0.2.80:443",
                state="ESTABLISHED",
                bytes_to_host=517,
                bytes_to_guest=1048576,
                age_seconds=12.25,
                idle_seconds=0.5,
                rtt_us=85,
                retransmissions=0,
            )
        ]

    def leases(self) -> list[LeaseReport]:
        return [
            LeaseReport(
                ip="192.168.65.3",
                mac="02:50:00:00:00:01",
                hostname="guest",
                client_id="01025000000001",
                expires_in_seconds=None,
                state="bound",
            )
        ]

    def forwards(self) -> list[ForwardReport]:
        return [_report(spec) for spec in self.specs]

    async def expose(self, text: str) -> list[ForwardReport]:
        made = parse(text)
        for spec in made:
            if any(_overlap(known, spec) for known in self.specs):
                busy = OSError(errno.EADDRINUSE, "Address already in use")
                raise ForwardError(f"cannot forward {spec}: 127.0.0.1:{spec.host_port} is in use") from busy
        self.specs += made
        self.events.publish(ForwardAdded(time=self.events.now(), forwards=[_report(spec) for spec in made]))
        return [_report(spec) for spec in made]

    async def unexpose(self, text: str, *, connections: bool = False) -> list[ForwardReport]:
        gone = parse(text)
        self.reset += gone if connections else []
        for spec in gone:
            if spec not in self.specs:
                raise ForwardError(f"{spec} is not forwarded; nothing is")
            self.specs.remove(spec)
        return [_report(spec) for spec in gone]

    def names(self) -> list[NameReport]:
        return [
            NameReport(name="gateway.containers.internal", of="gateway", addresses=["192.168.65.1"]),
            NameReport(name="host.containers.internal", of="host", addresses=["192.168.65.2"]),
            NameReport(name="vm.internal", of="asker", addresses=[]),
        ]

    def zones(self) -> list[Zone]:
        return self._zones.list()

    def add_zone(self, zone: Zone) -> None:
        self._zones.add(zone)

    def remove_zone(self, name: str) -> bool:
        return self._zones.remove(name)

    def each_flow(self) -> Iterator[FlowReport]:
        return iter(self.flows())

    def addresses(self) -> dict[str, str]:
        return {"192.168.65.3": "02:50:00:00:00:01", "192.168.65.1": "f6:16:36:bc:f9:c6"}

    def stations(self) -> dict[str, int]:
        return {"02:50:00:00:00:01": 1}

    async def tunnel(self, stream: trio.SocketStream, received: bytes, address: str, port: int) -> None:
        if (address, port) == ("192.168.65.3", 22):
            await stream.send_all(b"SSH-2.0-guest\r\n" + received)
            while data := await stream.receive_some():
                await stream.send_all(data)

    async def connect(self, stream: trio.SocketStream, received: bytes) -> None:
        raise AssertionError("no guest was expected")


def _overlap(one: Spec, other: Spec) -> bool:
    if (one.host_port, one.protocol) != (other.host_port, other.protocol):
        return False
    first, second = (_addresses(spec) for spec in (one, other))
    return not first.isdisjoint(second)


def _addresses(spec: Spec) -> set[str]:
    loopbacks = {"127.0.0.1", "::1"}
    families = {"0.0.0.0": {"0.0.0.0", "127.0.0.1"}, "::": {"::", "::1"}}
    return loopbacks if spec.host_address is None else families.get(spec.host_address, {spec.host_address})


def _report(spec: Spec) -> ForwardReport:
    return ForwardReport(
        protocol=spec.protocol,
        host_address=spec.host_address or "127.0.0.1",
        host_port=spec.host_port,
        guest_address=spec.guest_address,
        guest_port=spec.guest_port,
        connections=0,
        spec=str(spec),
    )

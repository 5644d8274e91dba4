"""A look inside the network under test: how full its tables and buffers are, and that a frame touches only its own
flow.  It reads what the code keeps, and believes none of its sums."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from tests.sim.checker import Broken
from tests.sim.packets import ICMP, ICMPV6, TCP, Bad
from tests.sim.packets6 import parse
from vpnkit.proto.tcp import assembler, receiver, sender

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vpnkit.flow.tcp_flow import TcpFlow
    from vpnkit.net.guest import Guest

OPEN: Final = attrgetter(
    "connection.state",
    "connection.aborted",
    "connection.receiver.nxt",
    "connection.receiver.edge",
    "connection.receiver.buffered",
    "connection.receiver.fin_sequence",
    "connection.sender.una",
    "connection.sender.nxt",
    "connection.sender.end",
    "connection.sender.window",
    "connection.sender.deadline",
    "bytes_to_host",
    "bytes_to_guest",
)
UNHEARD: Final = attrgetter("connection.state", "connection.aborted")


def tables(guest: Guest) -> Iterator[tuple[str, int]]:
    """Everything that must be empty when nothing is left to do."""
    now = guest.now()
    yield "tcp flows", len(guest.tcp.flows)
    yield "held SYNs", len(guest.tcp._held) + len(guest.tcp._held_to)
    yield "TIME-WAIT", sum(entry[2] > now for entry in guest.tcp._time_wait.values())
    yield "udp mappings", len(guest.udp.mappings)
    yield "udp routes", len(guest.udp.routes)
    yield "trains", len(guest.udp.unfinished)
    yield "datagrams in pieces", len(guest.intake._reassembler) + len(guest.intake._reassembler6)
    yield "pings", len(guest.icmp.sessions)
    yield "descriptors", len(guest.poller)
    yield "touched", len(guest.touched) + len(guest._datagrams)
    yield "blocked", len(guest._blocked)
    dns = guest.gateway.dns
    if dns is not None:
        yield "lookups", len(dns._attempts)
        yield "lookup sockets", dns._sockets
        yield "dns streams", dns._streams + dns._stream_lookups


def check_buffers(guest: Guest) -> None:
    """I7.  Raises Broken."""
    for flow in guest.tcp.flows.values():
        connection = flow.connection
        if not connection._heard:
            continue
        rcv, snd = connection.receiver, connection.sender
        backlog = getattr(flow, "_backlog", None) or getattr(flow, "incoming", ())
        octets = sum(map(len, backlog))
        if octets > rcv.capacity + receiver.ROUNDING:
            raise Broken(f"I7: {octets} octets wait for the host, of {rcv.capacity}")
        if not connection.aborted and octets != rcv.buffered:
            raise Broken(f"I7: {octets} octets wait for the host, {rcv.buffered} are counted")
        if rcv.assembler.octets > assembler.MAX_OCTETS:
            raise Broken(f"I7: {rcv.assembler.octets} early octets")
        queued = sum(len(data) for _, data in snd._chunks)
        if queued > 2 * sender.MAX_BUFFERED + snd.mss and not hasattr(flow, "incoming"):
            raise Broken(f"I7: {queued} octets wait for the guest")


def _state(flow: TcpFlow) -> tuple[Any, ...]:
    return OPEN(flow) if flow.connection._heard else UNHEARD(flow)


def watch(guest: Guest, broken: list[Broken], *, every: int = 1) -> None:
    """I10: from now on, each frame of `guest`, or one of `every`, is seen to change nothing of other flows."""
    inner = guest.intake.frame
    flows = guest.tcp.flows
    count = 0

    def frame(view: memoryview, now: float) -> None:
        nonlocal count
        count += 1
        if count % every:
            inner(view, now)
            return
        before = {key: (flow, _state(flow)) for key, flow in flows.items()}
        own = _own(view)
        evictions = guest.counters["tcp_held_evicted"]
        try:
            inner(view, now)
        finally:
            if guest.counters["tcp_held_evicted"] == evictions:
                for key, (flow, state) in before.items():
                    if key != own and (flows.get(key) is not flow or _state(flow) != state):
                        broken.append(Broken(f"I10: a frame for {own.hex()} changed {key.hex()}"))

    guest.intake.frame = frame  # type: ignore[method-assign]


def _own(view: memoryview) -> bytes:
    """The key of the flow that a frame is about."""
    if len(view) >= 74 and view[12:14] == b"\x86\xdd":
        return _own6(view)
    if len(view) < 54 or view[12:14] != b"\x08\x00":
        return b""
    if view[23] == TCP:
        return bytes(view[26:38])
    if view[23] == ICMP:
        try:
            quoted = parse(bytes(view)).payload[4:]
        except Bad:
            return b""
        if len(quoted) >= 28 and quoted[9] == TCP:
            return quoted[16:20] + quoted[12:16] + quoted[22:24] + quoted[20:22]
    return b""


def _own6(view: memoryview) -> bytes:
    if view[20] == TCP:
        return bytes(view[22:58])
    if view[20] == ICMPV6:
        try:
            quoted = parse(bytes(view)).payload[4:]
        except Bad:
            return b""
        if len(quoted) >= 48 and quoted[6] == TCP:
            return quoted[24:40] + quoted[8:24] + quoted[42:44] + quoted[40:42]
    return b""

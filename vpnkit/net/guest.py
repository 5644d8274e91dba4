"""One guest: his link, his tables and his burst loop.

A burst is drained from the link without waiting; what it touched is settled at its end, and then the host's sockets
are asked, also without waiting, as their answers are often there already.  Only when both have nothing the loop waits.
Views of frames die at the end of their burst.
"""

from __future__ import annotations

import logging
import struct
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

import trio

from tapdev.link import LinkClosed
from vpnkit.errors import WireError
from vpnkit.flow import host as host_sockets
from vpnkit.flow.clock import Deadlines
from vpnkit.flow.poller import Poller
from vpnkit.net.icmp import IcmpTable
from vpnkit.net.output import Output
from vpnkit.net.tcp import TcpTable
from vpnkit.net.udp import UdpTable
from vpnkit.proto import arp as arp_rules
from vpnkit.wire import arp, ethernet, icmp, ipv4, udp
from vpnkit.wire.checksum import is_valid
from vpnkit.wire.tcp import ACK

if TYPE_CHECKING:
    import random
    import socket
    from collections.abc import Callable

    from tapdev.link import Link
    from vpnkit.flow.stream import GuestStream
    from vpnkit.flow.tcp_flow import TcpFlow
    from vpnkit.net.plan import Plan
    from vpnkit.net.policy import Service
    from vpnkit.net.udp_mapping import UdpMapping
    from vpnkit.proto.deadlines import Timed
    from vpnkit.services.dhcp import DhcpService
    from vpnkit.services.dns import DnsService

log = logging.getLogger(__name__)

FRAMES_PER_BURST: Final = 64
HOLD_LIMIT: Final = 8192  # a bigger payload is delivered at once, so that its hot buffer is used again
ROUNDS: Final = 16  # bursts with something in them between two checkpoints
EMPTY_LOOKS: Final = 16  # in vain, before the loop waits
BULK_OCTETS: Final = 16384  # moved since the loop woke: this is no conversation, so one look in vain is enough

# Ethernet, IPv4 without options and TCP in one go: destination MAC, source MAC, ethertype | version and IHL, TOS,
# total length, identification, flags and offset, TTL, protocol, checksum | addresses and ports: the flow's key |
# sequence, acknowledgement, data offset, flags, window
PREFIX: Final = struct.Struct("!6s6sHBxHxxHxBxx12sIIBBH")
MIN_TCP_FRAME: Final = 54


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
        ip: bytes | None = None,
        mac: bytes | None = None,
        verify_checksums: bool = False,
        admit: Callable[[], bool] = lambda: True,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self.link = link
        self.plan = plan
        self.number = number
        self.ip = ip or plan.guest_ip.packed
        self.mac = mac or ethernet.BROADCAST
        self.random = rng
        self.dhcp_service = dhcp
        self.dns: DnsService | None = None  # set by whoever made us: it needs our poller
        self.host = host_sockets
        self.admit = admit
        self.now = trio.lowlevel.current_clock().current_time  # a third of what trio.current_time() costs
        self.counters: Counter[str] = Counter()
        self.poller = Poller()
        self.checksum_offload = link.capabilities.checksum
        self._verify = verify_checksums or not link.capabilities.reliable
        self._nursery = nursery
        self._warn = warn
        self._warned: set[str] = set()
        self._numbers = 0
        self._touched: list[TcpFlow] = []
        self._datagrams: deque[UdpMapping] = deque()
        self._blocked: dict[bytes, TcpFlow] = {}  # flows that wait until the link takes frames again
        self._link_writable = trio.Event()
        self.ours = {plan.gateway_ip.packed}
        if plan.host_ip is not None:
            self.ours.add(plan.host_ip.packed)
        self._subnet = int(plan.subnet.network_address)
        self._mask = int(plan.subnet.netmask)
        self.deadlines = Deadlines(self._after_deadlines, self._deadline_failed)
        self.out = Output(self)
        self.tcp = TcpTable(self, rng.randbytes(32))
        self.udp = UdpTable(self)
        self.icmp = IcmpTable(self)

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
            if self._touched or self._datagrams:
                await trio.lowlevel.checkpoint()  # edges that were seen and not used up: nobody tells us again
            else:
                await link.wait_readable()
            self._work()

    async def _serve_host(self) -> None:
        while True:
            if self._touched or self._datagrams:
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
        worked = empty = 0
        while worked < ROUNDS:
            if self.turn() + self.burst():
                worked += 1
                empty = 0
                continue
            empty += 1
            if empty >= EMPTY_LOOKS or statistics.received_bytes + statistics.sent_bytes - octets > BULK_OCTETS:
                break

    async def _serve_full_link(self) -> None:
        while True:
            await self._link_writable.wait()
            await self.link.wait_writable()
            self._link_writable = trio.Event()
            blocked, self._blocked = self._blocked, {}
            for flow in blocked.values():
                self.touch(flow)
            try:
                self.settle()
            except LinkClosed:
                await trio.sleep_forever()  # the link's own task sees it too, and ends us

    def burst(self) -> int:
        """Take in what the link has, up to a budget, and settle what it touched.  Returns the number of frames."""
        link = self.link
        receive = link.receive
        now = self.now()
        count = 0
        try:
            while count < FRAMES_PER_BURST:
                frame = receive()
                if frame is None:
                    break
                count += 1
                try:
                    self._frame(frame, now)
                except WireError as error:
                    self.counters["malformed"] += 1
                    log.debug("guest %d: %s", self.number, error)
                except LinkClosed:
                    raise
                except Exception:  # the containment boundary of one frame
                    self._frame_failed(frame, now)
            if self.udp.unfinished:
                self.udp.flush()
            if self._touched:
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
        if self._touched:
            self.settle()
            count += 1
        return count

    def settle(self) -> None:
        """Settle every touched flow once; one that has more to do is touched again for the next turn."""
        touched, self._touched = self._touched, []
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
        self.counters["internal_error"] += 1
        log.exception("flow %d tcp: internal error", flow.number)
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
        flow = self.tcp.flows.get(bytes(frame[26:38]))
        if flow is not None and len(frame) >= MIN_TCP_FRAME and frame[23] == ipv4.TCP:
            self._flow_failed(flow, now)
        else:
            self.counters["internal_error"] += 1
            log.exception("guest %d: internal error on a frame", self.number)

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
            self._touched.append(flow)

    def touch_datagrams(self, mapping: UdpMapping) -> None:
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

    # Frames in

    def _frame(self, frame: memoryview, now: float) -> None:
        if len(frame) >= MIN_TCP_FRAME:
            (
                destination_mac,
                source_mac,
                ethertype,
                version_ihl,
                total,
                flags_offset,
                protocol,
                key,
                sequence,
                acknowledgement,
                offset,
                flags,
                window,
            ) = PREFIX.unpack_from(frame)
            if ethertype == 0x0800 and version_ihl == 0x45 and not flags_offset & 0x3FFF and not self._verify:
                # The fast path: a segment or datagram of a flow that is there.  The rest is for the general one.
                end = 14 + total
                if protocol == 6:
                    flow = self.tcp.flows.get(key)
                    start = 34 + (offset >> 4) * 4
                    if flow is not None and flow.connection.state.synchronized and 54 <= start <= end <= len(frame):
                        if start == end and flags == ACK:
                            flow.acknowledged(sequence, acknowledgement, window, now)
                        else:
                            if flow.pending_ack is not None:
                                flow.take_pending_ack(now)
                            flow.connection.receive(sequence, acknowledgement, flags, window, frame[start:end], now)
                            if end - start > HOLD_LIMIT:
                                flow.deliver(now)
                            elif end != start:
                                self.link.hold()
                        if not flow.touched:
                            flow.touched = True
                            self._touched.append(flow)
                        return
                elif protocol == 17:
                    route = self.udp.routes.get(key)
                    if route is not None and sequence >> 16 == total - 20 and 42 < end <= len(frame):
                        link = self.link
                        self.udp.forward(route, frame[42:end], link.gso_size if link.gso_type else 0, now)
                        return
        elif len(frame) < ethernet.HEADER.size:
            raise WireError(f"frame of {len(frame)} octets")
        else:
            destination_mac, source_mac, ethertype = ethernet.HEADER.unpack_from(frame)
        if destination_mac != self.plan.server_mac and not destination_mac[0] & 1:
            self.counters["foreign_mac"] += 1  # for somebody else on the LAN
            return
        if ethertype == ethernet.ETHERTYPE_IPV4:
            self._ipv4(frame, source_mac, destination_mac, now)
        elif ethertype == ethernet.ETHERTYPE_ARP:
            self._arp(frame, source_mac)
        else:
            self.counters["ethertype_ignored"] += 1

    def _arp(self, frame: memoryview, source_mac: bytes) -> None:
        request = arp.decode(frame[ethernet.HEADER.size :])
        reply = arp_rules.answer(request, self.ours, self.plan.server_mac)
        if reply is not None:
            header = ethernet.HEADER.pack(source_mac, self.plan.server_mac, ethernet.ETHERTYPE_ARP)
            self.link.send((header + reply.encode(),))

    def _ipv4(self, frame: memoryview, source_mac: bytes, destination_mac: bytes, now: float) -> None:
        packet = ipv4.decode(frame[ethernet.HEADER.size :])
        protocol = packet.protocol
        broadcast = destination_mac[0] & 1 or packet.destination == ipv4.BROADCAST
        if broadcast:
            if protocol == ipv4.UDP and not packet.is_fragment:
                _, port, _, payload = udp.decode(packet.payload)
                if port == 67:
                    self.dhcp(packet.source, source_mac, payload)
                    return
            self.counters["broadcast_ignored"] += 1
            return
        if not self._is_valid_source(packet.source):
            self.counters["bad_source"] += 1
            return
        if packet.is_fragment:
            self.counters["fragment_dropped"] += 1
            return
        if self._verify and not self.link.checksum_partial and not self._checksum_holds(packet):
            raise WireError("transport checksum")
        if protocol == ipv4.TCP:
            self.tcp.segment(packet, source_mac, now)
            if len(packet.payload) > 20:
                self.link.hold()
        elif protocol == ipv4.UDP:
            self.udp.datagram(packet, source_mac, now)
        elif protocol == ipv4.ICMP:
            self.icmp.message(packet, source_mac, now)
        else:
            self.out.icmp_error(packet, icmp.DEST_UNREACHABLE, icmp.PROTOCOL_UNREACHABLE)

    def _is_valid_source(self, source: bytes) -> bool:
        """A guest speaks from the subnet, and not as one of us."""
        number = int.from_bytes(source, "big")
        host = number & ~self._mask & 0xFFFFFFFF
        return number & self._mask == self._subnet and source not in self.ours and 0 < host < ~self._mask & 0xFFFFFFFF

    @staticmethod
    def _checksum_holds(packet: ipv4.Ipv4Packet) -> bool:
        if packet.protocol == ipv4.TCP:
            return is_valid(packet.payload, packet.pseudo_sum())
        if packet.protocol == ipv4.UDP:
            _, _, check, payload = udp.decode(packet.payload)
            data = packet.payload[: udp.HEADER.size + len(payload)]
            pseudo = ipv4.pseudo_sum(packet.source, packet.destination, ipv4.UDP, len(data))
            return check == 0 or is_valid(data, pseudo)
        return True

    # Services

    def dhcp(self, source: bytes, source_mac: bytes, payload: memoryview) -> None:
        answer = self.dhcp_service.datagram(payload, source_mac, source, self.now())
        if answer is None:
            return
        self.udp.send(
            self.plan.gateway_ip.packed, 67, answer.destination_ip, 68, answer.destination_mac, (answer.payload,)
        )

    def dns_query(self, source: bytes, port: int, mac: bytes, query: memoryview) -> None:
        gateway = self.plan.gateway_ip.packed

        def reply(message: bytes) -> None:
            self.udp.send(gateway, 53, source, port, mac, (message,))

        if self.dns is not None:
            self.dns.query(bytes(query), source, reply)

    def serve(self, service: Service, stream: GuestStream, source: bytes) -> None:
        """Let a service of the gateway have a connection of the guest."""
        self._nursery.start_soon(self._serve_stream, stream, source)

    async def _serve_stream(self, stream: GuestStream, source: bytes) -> None:
        try:
            await stream.wait_open()
            if self.dns is not None:
                await self.dns.serve_stream(stream, source)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except Exception:  # the containment boundary of one connection
            self.counters["internal_error"] += 1
            log.exception("guest %d: internal error in a service", self.number)
        finally:
            stream.abort()

    # Ways in

    async def call_and_wait(self, host: socket.socket, destination: bytes, port: int) -> None:
        """Join the connected, non-blocking `host` with the guest's `port`, and return when both are closed.

        Takes over `host`.  Raises OSError when the guest has no room for it.
        """
        source = (self.plan.host_ip or self.plan.gateway_ip).packed
        try:
            flow = self.tcp.call(source, destination, port, host, self.mac)
        except BaseException:
            host.close()
            raise
        self.settle_now(flow)
        try:
            await flow.wait_released()
        finally:
            if not flow.connection.is_closed:
                flow.abort("the forward is gone")
                self.settle_now(flow)

    # The end

    def close(self) -> None:
        """Release everything.  Idempotent."""
        if self.dns is not None:
            self.dns.close()
        self.tcp.close()
        self.udp.close()
        self.icmp.close()
        self.poller.close()
        self.link.close()

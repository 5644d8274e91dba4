"""Simulated UDP and ping sockets, and who is at the other end of them."""

from __future__ import annotations

import errno
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from tests.sim.history import octets
from tests.sim.host import SimSocket, error
from vpnkit.flow.poller import HANGUP, READABLE, WRITABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.sim.host import SimHost
    from tests.sim.scenario import UdpPlan

MSG_ERRQUEUE: Final = 0x2000
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
Address = tuple[str, int] | tuple[str, int, int, int]
# Levels and kinds of error queues, and the origin, type and code of a port that is unreachable
QUEUE: Final = (socket.IPPROTO_IP, 11, (2, 3, 3))
QUEUE6: Final = (socket.IPPROTO_IPV6, 25, (3, 1, 4))
PING_LOST: Final = ("10.3.0.99", "2001:db8:3::99")


def request(plan: UdpPlan, number: int, size: int) -> bytes:
    """The guest's datagram `number`: it says which one it is, if it is long enough for that."""
    body = octets(plan.number * 1009 + number * 31, 0, size)
    return (struct.pack("!HH", plan.number, number) + body)[:size]


def reply(plan: UdpPlan, asked: bytes, number: int) -> bytes:
    return (asked[:4] + bytes((number,)) + octets(plan.number * 2003 + number * 17, 0, plan.reply_size))[
        : plan.reply_size
    ]


class UdpSocket(SimSocket):
    def __init__(self, host: SimHost, family: int, *, gro: bool) -> None:
        super().__init__(host, family)
        self.gro = gro
        self.incoming: deque[tuple[bytes, Address]] = deque()
        self.errors: deque[tuple[bytes, bytes, Address]] = deque()

    def state(self) -> int:
        bits = WRITABLE
        if self.incoming or self.error:
            bits |= READABLE
        if self.errors or self.error:
            bits |= HANGUP | READABLE
        return bits

    def getsockname(self) -> Address:
        return ("0.0.0.0" if self.family == socket.AF_INET else "::", 30000 + self.fd)

    def sendto(self, data: bytes | memoryview, *where: object) -> int:
        address = where[-1]
        assert isinstance(address, tuple)
        return self._send([bytes(data)], address)

    def sendmsg(
        self, parts: Sequence[bytes | memoryview], ancillary: Sequence[tuple[int, int, bytes]] = (), _flags: int = 0,
        address: Address = ("", 0),
    ) -> int:  # fmt: skip
        data = b"".join(parts)
        size = 0
        for level, kind, value in ancillary:
            if (level, kind) == (socket.IPPROTO_UDP, UDP_SEGMENT):
                size = struct.unpack("=H", value)[0]
        if size:
            return self._send([data[i : i + size] for i in range(0, len(data), size)], address)
        return self._send([data], address)

    def _send(self, datagrams: list[bytes], address: Address) -> int:
        self.check()
        self.need_way(address[0])
        faults = self.world.faults
        if faults.happens("udp_enobufs"):
            raise error(errno.ENOBUFS)
        if faults.happens("eagain"):
            raise BlockingIOError(errno.EAGAIN, "full")
        for data in datagrams:
            if len(data) > 65507:
                raise error(errno.EMSGSIZE)
            self.world.agenda.after(self.host.latency(), self._arrives_there, data, address)
        return sum(map(len, datagrams))

    def _arrives_there(self, data: bytes, address: Address) -> None:
        world = self.world
        plan = world.udp_plans.get(address[:2])
        if plan is None:
            return
        world.udp_arrived(plan, data)
        if plan.behaviour == "unreachable":
            world.faults.counts["udp_unreachable"] += 1
            self._refused(data, address)
        elif plan.behaviour != "silent":
            sender = address
            if plan.behaviour == "stranger":
                world.faults.counts["stranger"] += 1
                sender = ("10.66.66.66" if self.family == socket.AF_INET else "2001:db8:66::66", address[1])
            if self.family == socket.AF_INET6:
                sender = (*sender[:2], 0, 0)
            for number in range(plan.replies):
                answer = reply(plan, data, number)
                world.agenda.after(self.host.latency() * (number + 1), self._arrives_here, answer, sender)

    def _refused(self, data: bytes, address: Address) -> None:
        if not self.closed:
            _, _, said = QUEUE if self.family == socket.AF_INET else QUEUE6
            extended = struct.pack("=IBBBxII", errno.ECONNREFUSED, *said, 0, 0)
            self.errors.append((data[:64], extended, address))
            self.error = errno.ECONNREFUSED
            self.wake()

    def _arrives_here(self, data: bytes, sender: Address) -> None:
        if not self.closed:
            self.incoming.append((data, sender))
            self.wake()

    def recvfrom(self, _limit: int) -> tuple[bytes, Address]:
        self.check()
        if not self.incoming:
            raise BlockingIOError(errno.EAGAIN, "nothing")
        return self.incoming.popleft()

    def recvmsg(
        self, limit: int, _ancillary: int = 0, flags: int = 0
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Address]:
        if flags & MSG_ERRQUEUE:
            if not self.errors:
                raise BlockingIOError(errno.EAGAIN, "no error")
            data, extended, address = self.errors.popleft()
            self.error = 0
            level, kind, _ = QUEUE if self.family == socket.AF_INET else QUEUE6
            return data, [(level, kind, extended)], MSG_ERRQUEUE, address
        data, sender = self.recvfrom(limit)
        size = len(data)
        train = [data]
        while self.gro and size and self.incoming and self.incoming[0][1] == sender:
            if len(self.incoming[0][0]) != size or len(train) >= 16:
                break
            train.append(self.incoming.popleft()[0])
        ancillary = [(socket.IPPROTO_UDP, UDP_GRO, struct.pack("=i", size))] if len(train) > 1 else []
        return b"".join(train), ancillary, 0, sender


class PingSocket(UdpSocket):
    """An unprivileged ICMP socket."""

    def __init__(self, host: SimHost, family: int) -> None:
        super().__init__(host, family, gro=False)

    def _arrives_there(self, data: bytes, address: Address) -> None:
        if address[0] in PING_LOST:
            self.world.faults.counts["ping_lost"] += 1
            return
        self.world.faults.counts["ping6"] += self.family == socket.AF_INET6
        answer = (b"\0" if self.family == socket.AF_INET else b"\x81") + data[1:]
        self.world.agenda.after(self.host.latency(), self._arrives_here, answer, (address[0], 0))

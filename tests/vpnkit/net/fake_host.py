"""Host sockets of a test's own: they note every option and datagram in order, and have an error queue to fill."""

from __future__ import annotations

import socket
import struct
from collections import deque
from contextlib import asynccontextmanager

from scapy.layers.inet import IP, UDP
from trio.testing import wait_all_tasks_blocked

from tests.vpnkit.net.scripted_guest import octets, world
from vpnkit.flow import error_queue

GUEST, SERVER, ROUTER, OTHER = "192.168.65.3", "9.9.9.9", "10.20.30.1", "8.8.8.8"
HOSTS_OWN = "198.51.100.1"
NAMES = {
    (socket.IPPROTO_IP, socket.IP_TTL): "ttl",
    (socket.IPPROTO_IP, socket.IP_TOS): "tos",
    (socket.IPPROTO_IP, 10): "discover",
    (socket.IPPROTO_IP, error_queue.IP_RECVERR): "recverr",
    (socket.SOL_SOCKET, socket.SO_LINGER): "linger",
}
DONT, DO = 0, 2


class FakeSocket(socket.socket):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_DGRAM)
        self.setblocking(False)
        self.notes: list[tuple] = []
        self.errors: deque[tuple] = deque()
        self.replies: deque[tuple[bytes, tuple[str, int]]] = deque()
        self.failures: deque[int] = deque()  # of the sends to come; 0 for none

    def setsockopt(self, level, option, value):
        self.notes.append((NAMES[level, option], value))

    def sendto(self, data, address):
        if self.failures and (number := self.failures.popleft()):
            raise OSError(number, "as the test says")
        self.notes.append(("send", bytes(data), address))
        return len(data)

    def sendmsg(self, buffers, ancillary, _flags, address):
        self.notes.append(("train", [bytes(b) for b in buffers], address))
        return sum(map(len, buffers))

    def recvmsg(self, limit, _ancillary, flags=0):
        if flags & error_queue.MSG_ERRQUEUE:
            if not self.errors:
                raise BlockingIOError
            return self.errors.popleft()
        data, address = self.recvfrom(limit)
        return data, [], 0, address

    def recvfrom(self, _limit):
        if not self.replies:
            raise BlockingIOError
        return self.replies.popleft()

    def fails(self, number, origin, kind, code, info=0, offender=ROUTER, destination=(SERVER, 53), data=b""):
        value = error_queue.EXTENDED_ERROR.pack(number, origin, kind, code, info, 0)
        value += struct.pack("=HH", socket.AF_INET, 0) + octets(offender) + bytes(8)
        self.errors.append((data, [(socket.IPPROTO_IP, error_queue.IP_RECVERR, value)], 0, destination))


class FakeHost:
    def __init__(self, *, raw: bool = False) -> None:
        self.made: list[FakeSocket] = []
        self.raw = raw

    def udp_socket(self, family: int = socket.AF_INET, *, gro: bool) -> FakeSocket:
        self.made.append(FakeSocket())
        return self.made[-1]

    def ping_socket(self, family: int = socket.AF_INET) -> tuple[FakeSocket, bool]:
        return self.udp_socket(gro=False), self.raw

    @staticmethod
    def is_local(address: str) -> bool:
        return address == HOSTS_OWN


@asynccontextmanager
async def fake_world(*, raw: bool = False):
    async with world() as w:
        w.guest.host = host = FakeHost(raw=raw)
        yield w, host


def send(w, *, ttl=64, tos=0, flags="DF", payload=b"x", destination=SERVER, port=53) -> None:
    ip = IP(src=GUEST, dst=destination, ttl=ttl, tos=tos, flags=flags)
    w.scripted.ip(ip / UDP(sport=5000, dport=port) / payload)


async def notes(host, count: int, index: int = 0) -> list[tuple]:
    await wait_all_tasks_blocked(0.005)
    found = [tuple(note[:2]) for note in host.made[index].notes]
    assert len(found) == count, found
    return found

"""A guest of ours without tasks: the test feeds frames, turns the loop and moves the clock by hand, so that the same
input gives the same output.  His host has sockets that lead nowhere."""

from __future__ import annotations

import errno
import random
import socket
from collections import deque
from typing import TYPE_CHECKING

from tapdev.link import LinkCapabilities
from tapdev.memory import memory_link_pair
from vpnkit.net.guest import Guest
from vpnkit.net.leasing import dhcp_config
from vpnkit.net.plan import Plan, guest_mac
from vpnkit.net.reachability import Reachability
from vpnkit.proto.dhcp import DhcpServer
from vpnkit.services.dhcp import DhcpService

if TYPE_CHECKING:
    import trio

MAC = guest_mac(1)
IP_ADDRESS = bytes([192, 168, 65, 3])


class MuteSocket(socket.socket):
    """Takes every datagram and sends none."""

    def sendto(self, data, *_where):  # type: ignore[no-untyped-def, override]
        return len(data)

    def sendmsg(self, buffers, *_rest):  # type: ignore[no-untyped-def, override]
        return sum(map(len, buffers))


class MuteHost:
    """The host's sockets.  TCP ends in `far`, at the test, or is refused or never answered as the port says."""

    def __init__(self) -> None:
        self.far: deque[socket.socket] = deque()

    def tcp_socket(self, family: int = socket.AF_INET) -> socket.socket:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        self.far.append(far)
        while len(self.far) > 100:
            self.far.popleft().close()
        return near

    @staticmethod
    def start_connect(_made: socket.socket, address: tuple[str, int]) -> int:
        return {0: 0, 1: errno.ECONNREFUSED, 2: errno.EINPROGRESS, 3: errno.EHOSTUNREACH}[address[1] % 4]

    @staticmethod
    def udp_socket(family: int = socket.AF_INET, *, gro: bool) -> socket.socket:
        made = MuteSocket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setblocking(False)
        return made

    @staticmethod
    def ping_socket(family: int = socket.AF_INET) -> tuple[socket.socket, bool]:
        return MuteHost.udp_socket(gro=False), False

    @staticmethod
    def is_local(_address: str) -> bool:
        return False

    def close(self) -> None:
        for far in self.far:
            far.close()


class StillGuest:
    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        verify_checksums: bool,
        capabilities: LinkCapabilities | None = None,
        queue_frames: int = 4096,
        ipv6: str = "off",
    ) -> None:
        """`ipv6` is what is offered of it; by itself a guest may use it always."""
        plan = Plan()
        ours, self.link = memory_link_pair(
            capabilities=capabilities or LinkCapabilities(mtu=1500), queue_frames=queue_frames
        )
        dhcp = DhcpService(DhcpServer(dhcp_config(plan)))
        self.host = MuteHost()
        self.guest = Guest(
            ours,
            plan,
            dhcp,
            random.Random(1),
            nursery,
            ip=IP_ADDRESS,
            mac=MAC,
            verify_checksums=verify_checksums,
            ipv6=Reachability(plan, self.host, ipv6),  # type: ignore[arg-type]
        )
        self.guest.host = self.host  # type: ignore[assignment]

    def feed(self, *frames: bytes) -> list[bytes]:
        """One burst of the guest, and everything that it leads to until all is quiet."""
        for frame in frames:
            assert self.link.send((frame,))
        for _ in range(100):
            if not self.guest.burst() and not self.guest.turn():
                break
        return self.output()

    def output(self) -> list[bytes]:
        left = []
        while (frame := self.link.receive()) is not None:
            left.append(bytes(frame))
        self.link.release()
        return left

    def deadlines(self) -> None:
        """Serve what is due, as the guest's own task does."""
        now = self.guest.now()
        queue = self.guest.deadlines.queue
        for timed in queue.due(now):
            timed.on_deadline(now)
            queue.update(timed)
        self.guest.settle()

    def close(self) -> None:
        self.guest.close()
        self.link.close()
        self.host.close()

"""The simulated host: what `vpnkit.flow.host` opens, and TCP sockets with a scripted peer far away."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

from tests.sim.checker6 import Routes
from tests.sim.history import octets
from vpnkit.flow.poller import HANGUP, READABLE, WRITABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.sim.history import Side
    from tests.sim.poller import SimBackend
    from tests.sim.scenario import TcpPlan
    from tests.sim.world import World


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class SimSocket:
    """A descriptor of the simulated host."""

    def __init__(self, host: SimHost, family: int = socket.AF_INET) -> None:
        self.host = host
        self.family = family
        self.world = host.world
        self.backend: SimBackend | None = None
        self.error = 0
        self.closed = False
        self.options: dict[tuple[int, int], object] = {}
        self.fd = host.take(self)

    def fileno(self) -> int:
        return -1 if self.closed else self.fd

    def state(self) -> int:
        raise NotImplementedError

    def wake(self) -> None:
        if self.backend is not None and not self.closed:
            self.backend.mark(self.fd)

    def no_way(self, address: str) -> int:
        """The error of what goes to `address`; 0 when there is a way."""
        if (":" in address) != (self.family == socket.AF_INET6):
            return errno.EAFNOSUPPORT
        if ":" in address and address != "::1" and not self.host.routes.has:
            self.world.faults.counts["no_ipv6"] += 1
            return errno.ENETUNREACH
        return 0

    def need_way(self, address: str) -> None:
        """Raises OSError when there is none."""
        if number := self.no_way(address):
            raise error(number)

    def check(self) -> None:
        if self.closed:
            raise error(errno.EBADF)
        if self.error:
            number, self.error = self.error, 0
            raise error(number)

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def setsockopt(self, level: int, option: int, value: object) -> None:
        if self.closed:
            raise error(errno.EBADF)
        self.options[level, option] = value

    def getsockopt(self, level: int, option: int, _size: int = 0) -> object:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR):
            number, self.error = self.error, 0
            return number
        return self.options.get((level, option), 0)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            assert self.backend is None or self.backend.closed or self.fd not in self.backend.registered, (
                "closed while the poller watches it"
            )
            self.host.give_back(self)

    def detach(self) -> int:
        raise AssertionError("a simulated socket has no descriptor to detach")


class TcpSocket(SimSocket):
    """A TCP socket, and what its peer does."""

    def __init__(self, host: SimHost, family: int = socket.AF_INET) -> None:
        super().__init__(host, family)
        self.connected = False
        self.address = ("", 0)
        self.plan: TcpPlan | None = None
        self.side: Side | None = None
        self.incoming = bytearray()  # arrived here, not read yet
        self.eof = False
        self.reset_by_peer = False
        self.sent = bytearray()  # taken from us, not read by the peer yet
        self.shut = False
        self.full = False
        self.blocked = False
        self._eof_told = False
        self._last_arrival = 0.0
        self.peer_closed = False  # both ways
        self.dropped = False  # something came for it afterwards
        self.peer_reads = "fast"
        self.writes_left = 0
        self.capacity = 65536
        self.taken = 0  # octets that `send` took, for the checker
        self.given = 0  # octets that `recv` gave

    def state(self) -> int:
        bits = 0
        if self.incoming or self.eof or self.error or self.reset_by_peer:
            bits |= READABLE
        if self.error or self.reset_by_peer:
            bits |= WRITABLE | HANGUP
        if self.connected and not self.full and not self.blocked:
            bits |= WRITABLE
        if self.eof:
            bits |= HANGUP
        return bits

    def getpeername(self) -> tuple[str, int]:
        if not self.connected:
            raise error(errno.ENOTCONN)
        return self.address

    def getsockname(self) -> tuple[str, int]:
        return ("10.9.9.9", 40000 + self.fd)

    # Connecting

    def begin(self, address: tuple[str, int]) -> int:
        """`connect`: 0, EINPROGRESS, or an error."""
        self.address = address
        plan = self.host.plans.get(address)
        if plan is None:
            return errno.ECONNREFUSED
        self.plan = plan
        what, number, delay = plan.connect_what, plan.connect_error, plan.connect_delay
        if no_way := self.no_way(address[0]):
            what, number, delay = "connect_unreachable", no_way, 0.0
        if number:
            self.world.history.flow(plan).errors.add(number)
            self.world.faults.counts[what] += 1
            if not delay:
                return number
        if not delay:
            self._opened()
            return 0
        self.world.agenda.after(delay, self._answered, number)
        return errno.EINPROGRESS

    def _answered(self, number: int) -> None:
        if self.closed:
            return
        if number:
            self.error = number
        else:
            self._opened()
        self.wake()

    def _opened(self) -> None:
        assert self.plan is not None
        self.connected = True
        self.side = self.world.history.side(self.plan, self.world.agenda.now(), guest=False)
        self.side.connected = True
        self.host.peers.append(self)
        self.run_peer()
        if self.world.is_calm:
            self.world.agenda.after(0.5, self.calm)

    def adopt(self, plan: TcpPlan) -> None:
        """Connected from outside: a client of a forward."""
        self.plan = plan
        self.address = ("10.5.5.5", 50000 + plan.number)
        self._opened()

    # Our side

    def send(self, data: bytes | memoryview) -> int:
        return self.sendmsg([data])

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        self.check()
        if not self.connected:
            raise error(errno.ENOTCONN)
        if self.reset_by_peer or self.shut:
            raise error(errno.EPIPE)
        faults = self.world.faults
        if self.blocked:
            raise BlockingIOError(errno.EAGAIN, "blocked")
        if faults.happens("eagain"):
            self._block()
            raise BlockingIOError(errno.EAGAIN, "for a while")
        if faults.happens("enobufs") and self.side is not None:
            self.side.causes.append("ENOBUFS")
            raise error(errno.ENOBUFS)
        data = b"".join(buffers)
        room = self.capacity - len(self.sent)
        if room <= 0:
            self.full = True
            raise BlockingIOError(errno.EAGAIN, "full")
        count = min(len(data), room)
        if count < len(data):
            self.full = True
        elif count > 1 and faults.happens("short_write"):
            count = faults.rng.randrange(1, count)
            self._block()
        self.taken += count
        if self.peer_closed and self.side is not None:
            self.dropped = True
            self.side.causes.append("the peer had closed")
            self.world.agenda.after(self.host.latency(), self._reset_arrives)
            return count
        self.sent += data[:count]
        self.world.agenda.after(self.host.latency(), self._peer_reads)
        return count

    def _block(self) -> None:
        self.blocked = True
        self.world.agenda.after(self.world.faults.rng.uniform(0.001, 0.05), self._unblock)

    def _unblock(self) -> None:
        self.blocked = False
        self.wake()

    def recv(self, limit: int) -> bytes:
        if self.closed:
            raise error(errno.EBADF)
        if self.incoming:
            data = bytes(self.incoming[:limit])
            del self.incoming[:limit]
            self.given += len(data)
            return data
        self.check()
        if self.eof or self.reset_by_peer:
            return b""
        if not self.connected:
            raise error(errno.ENOTCONN)
        raise BlockingIOError(errno.EAGAIN, "nothing")

    def shutdown(self, how: int) -> None:
        self.check()
        assert how == socket.SHUT_WR
        if not self.connected or self.reset_by_peer:
            raise error(errno.ENOTCONN)
        self.shut = True
        self.world.agenda.after(self.host.latency(), self._peer_reads)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        if not self.connected or self.side is None or self.side.over:
            return
        linger = self.options.get((socket.SOL_SOCKET, socket.SO_LINGER))
        if linger == struct.pack("ii", 1, 0) or self.incoming:
            self.world.agenda.after(self.host.latency(), self._peer_sees_reset)
        else:
            self.shut = True
            self.world.agenda.after(self.host.latency(), self._peer_reads)

    # The peer's side

    def run_peer(self) -> None:
        assert self.plan is not None
        plan = self.plan.host
        after = self.world.agenda.after
        self.capacity = max(plan.buffer, sum(count for _, count in self.plan.guest.writes) // 100)
        self.peer_reads = plan.reads
        self.writes_left = len(plan.writes)
        for when, count in plan.writes:
            after(when, self._peer_writes, count)
        if plan.end == "rst":
            after(plan.end_at, self.peer_resets)
        elif plan.end == "close":
            after(plan.end_at, self._peer_closes)
        if plan.reads == "stall":
            after(plan.stall, self._peer_hurries)
        if not plan.writes:
            after(0.0, self._peer_wrote_all)

    def _gone(self) -> bool:
        return self.side is None or self.side.over or self.side.fin_sent or self.side.rst_sent

    def _peer_writes(self, count: int) -> None:
        self.writes_left -= 1
        if self._gone() or self.side is None:
            return
        data = octets(self.side.stream, self.side.wrote, count)
        self.side.wrote += count
        self._arrives(self._data_arrives, data)
        self._peer_wrote_all()

    def _arrives(self, what, *arguments) -> None:  # type: ignore[no-untyped-def]
        self._last_arrival = max(self.world.agenda.now() + self.host.latency(), self._last_arrival)
        self.world.agenda.at(self._last_arrival, what, *arguments)

    def _data_arrives(self, data: bytes) -> None:
        if self.closed:
            self._peer_sees_reset()
        elif not self.reset_by_peer:
            self.incoming += data
            self.wake()

    def _peer_wrote_all(self) -> None:
        if self.plan is None or self.writes_left or self._gone() or self.side is None:
            return
        end = self.plan.host.end
        if end == "fin" or (end == "after" and self.side.fin_seen):
            self.peer_finishes()

    def peer_finishes(self) -> None:
        if self._gone() or self.side is None:
            return
        self.side.fin_sent = True
        if not self.side.fin_seen:
            self.world.faults.counts["host_half_close"] += 1
        self._arrives(self._fin_arrives)
        self._perhaps_over()

    def _fin_arrives(self) -> None:
        if not self.reset_by_peer:
            self.eof = True
            self.wake()

    def _peer_closes(self) -> None:
        """`close`: what comes now is answered by a reset."""
        if self._gone() or self.side is None:
            return
        self.world.faults.counts["host_close"] += 1
        self.peer_closed = True
        if self.sent:
            self.peer_resets()
            return
        self.peer_finishes()

    def peer_resets(self) -> None:
        side = self.side
        if side is None or side.over:
            return
        self.world.faults.counts["host_reset"] += 1
        side.rst_sent = True
        side.causes.append("the host's reset")
        self._arrives(self._reset_arrives)
        side.over = True

    def _reset_arrives(self) -> None:
        if self.closed and self.side is not None:
            self.side.over = True
        if self.closed or self.reset_by_peer:
            return
        self.reset_by_peer = True
        self.error = errno.ECONNRESET
        self.sent.clear()
        if self.side is not None:
            self.side.over = True
        self.wake()

    def _peer_hurries(self) -> None:
        self.peer_reads = "fast"
        self._peer_reads()

    def _peer_reads(self) -> None:
        side = self.side
        if side is None or side.over or self.peer_reads == "stall" or side.rst_seen:
            return
        if self.peer_reads == "slow" and self.sent:
            count = min(self.world.faults.rng.randrange(200, 3000), len(self.sent))
            self.world.agenda.after(0.02, self._peer_reads)
        else:
            count = len(self.sent)
        side.read += self.sent[:count]
        del self.sent[:count]
        if count and self.full:
            self.full = False
            self.wake()
        if self.shut and not self.sent and not side.fin_seen and not self.dropped:
            side.fin_seen = True
            self._peer_wrote_all()
        self._perhaps_over()

    def _perhaps_over(self) -> None:
        if self.side is not None and self.side.fin_seen and self.side.fin_sent:
            self.side.over = True

    def _peer_sees_reset(self) -> None:
        side = self.side
        if side is not None and not side.over:
            side.rst_seen = True
            side.over = True
            self.sent.clear()

    def calm(self) -> None:
        """Everybody comes to an end now."""
        self.peer_reads = "fast"
        self.writes_left = 0
        self._peer_reads()
        self.peer_finishes()

    @property
    def quiet(self) -> bool:
        """The peer has nothing more to do with it."""
        return self.closed and (self.side is None or self.side.over)


class SimHost:
    """`vpnkit.flow.host`, with a network of the test's behind it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sockets: dict[int, SimSocket] = {}
        self.peers: list[TcpSocket] = []
        self.plans: dict[tuple[str, int], TcpPlan] = {}
        self.near = 0.0005
        self.routes = Routes(world.agenda.now, has=world.scenario.has_ipv6)

    def latency(self) -> float:
        return self.near * self.world.faults.rng.uniform(0.5, 2)

    def take(self, made: SimSocket) -> int:
        """The lowest free number, as a kernel gives."""
        fd = 3
        while fd in self.sockets:
            fd += 1
        self.sockets[fd] = made
        return fd

    def give_back(self, made: SimSocket) -> None:
        del self.sockets[made.fd]

    def exhausted(self) -> None:
        if self.world.faults.happens("emfile"):
            self.world.history.everywhere.append("EMFILE")
            raise error(errno.EMFILE)

    # What flows call

    def tcp_socket(self, family: int = socket.AF_INET) -> TcpSocket:
        self.exhausted()
        return TcpSocket(self, family)

    def start_connect(self, made: TcpSocket, address: tuple[str, int]) -> int:
        return made.begin(address)

    def udp_socket(self, family: int = socket.AF_INET, *, gro: bool) -> SimSocket:
        from tests.sim.datagrams import UdpSocket

        self.exhausted()
        return UdpSocket(self, family, gro=gro)

    def ping_socket(self, family: int = socket.AF_INET) -> tuple[SimSocket, bool]:
        from tests.sim.datagrams import PingSocket

        self.exhausted()
        return PingSocket(self, family), False

    def resolver_socket(self, family: int) -> SimSocket:
        from tests.sim.resolver import ResolverSocket

        self.exhausted()
        return ResolverSocket(self, family)

    @staticmethod
    def is_local(_address: str) -> bool:
        return False

    def has_ipv6(self) -> bool:
        return self.routes.has

    # What the world does

    def spurious_events(self) -> None:
        """Events that mean nothing, as a kernel may tell."""
        for made in list(self.sockets.values()):
            if self.world.faults.happens("spurious_event"):
                made.wake()

    def prune(self) -> None:
        self.peers = [peer for peer in self.peers if not peer.quiet]

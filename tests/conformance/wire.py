"""The guest's end of a wire, by hand: packets in, packets out, time moved by the test, real sockets behind it.

Nothing runs by itself: `Wire.send` and `Wire.work` turn a whole `Guest` until it is quiet, `Wire.pass_time` serves
what becomes due.  So a test is a script, and a silence is certain at once.
"""

from __future__ import annotations

import errno
import random
import select
import socket
import struct
from typing import TYPE_CHECKING, Final

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether

from tapdev.link import LinkCapabilities
from tapdev.memory import memory_link_pair
from vpnkit.flow import host as host_sockets
from vpnkit.flow.poller import HANGUP
from vpnkit.net.guest import Guest
from vpnkit.net.leasing import dhcp_config
from vpnkit.net.plan import SERVER_MAC, Plan, guest_mac
from vpnkit.net.reachability import Reachability
from vpnkit.proto.dhcp import DhcpServer
from vpnkit.services.dhcp import DhcpService

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable

    import trio
    from scapy.packet import Packet

MAC: Final = guest_mac(1).hex(":")
SERVER: Final = SERVER_MAC.hex(":")
BROADCAST: Final = "ff:ff:ff:ff:ff:ff"
GUEST: Final = "192.168.65.3"
GATEWAY: Final = "192.168.65.1"
HOST: Final = "192.168.65.2"  # 127.0.0.1 of this machine
PLAIN: Final = LinkCapabilities(mtu=1500)
# linux/errqueue.h, linux/in.h
ORIGIN_LOCAL: Final = 1
ORIGIN_ICMP: Final = 2
MSG_ERRQUEUE: Final = 0x2000
IP_RECVERR: Final = 11
IP_MTU_DISCOVER: Final = 10
IP_PMTUDISC_DONT: Final = 0
IP_PMTUDISC_DO: Final = 2
PATIENCE: Final = 5.0  # seconds of real time, for what the loopback does in microseconds


def far(number: int) -> str:
    """The address by which a guest of `Internet` knows 127.0.0.`number` of this machine, 2 to 254."""
    return f"203.0.113.{number}"


def _inward(address: tuple[str, int]) -> tuple[str, int]:
    return address[0].replace("203.0.113.", "127.0.0."), address[1]


def _outward(address: tuple[str, int] | None) -> tuple[str, int] | None:
    if not isinstance(address, tuple) or len(address) < 2 or address[0] == "127.0.0.1":
        return address  # the alias knows that one by its own name
    return address[0].replace("127.0.0.", "203.0.113."), address[1]


def _offender(value: bytes) -> bytes:
    """The offender of a struct sock_extended_err, outward."""
    if len(value) < 24 or value[20:23] != bytes([127, 0, 0]) or value[23] == 1:
        return value
    return value[:20] + bytes([203, 0, 113]) + value[23:]


class FarSocket(socket.socket):
    """A socket of the host for which 203.0.113.n is 127.0.0.n: several hosts without a network.

    What routers on the way say is put into its error queue by the test.
    """

    def __init__(self, *, fileno: int, mtu: int = 65535) -> None:
        super().__init__(fileno=fileno)
        self.mtu = mtu  # of the path
        self.errors: list[tuple[bytes, list[tuple[int, int, bytes]], int, tuple[str, int]]] = []

    def hear(
        self, number: int, kind: int, code: int, destination: tuple[str, int], data: bytes, **more: object
    ) -> None:
        """An ICMP error about `data`, the beginning of what went to `destination`; `number` is its errno."""
        self._queue(number, ORIGIN_ICMP, kind, code, destination, data, **more)

    def _queue(self, number, origin, kind, code, destination, data, *, info=0, offender="198.51.100.7"):
        value = struct.pack("=IBBBxII", number, origin, kind, code, info, 0)
        value += struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(offender))
        self.errors.append((data, [(socket.IPPROTO_IP, IP_RECVERR, value)], 0, destination))

    def sendto(self, data, *where):
        if len(data) + 28 > self.mtu and self.getsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER) == IP_PMTUDISC_DO:
            self._queue(errno.EMSGSIZE, ORIGIN_LOCAL, 0, 0, where[-1], bytes(data), info=self.mtu, offender="0.0.0.0")
            raise OSError(errno.EMSGSIZE, "Message too long")
        return super().sendto(data, *where[:-1], _inward(where[-1]))

    def sendmsg(self, buffers, ancillary=(), flags=0, address=None):
        return super().sendmsg(buffers, ancillary, flags, *([_inward(address)] if address else []))

    def recvfrom(self, *sizes):
        data, source = super().recvfrom(*sizes)
        return data, _outward(source)

    def recvmsg(self, *sizes):
        if len(sizes) == 3 and sizes[2] == MSG_ERRQUEUE and self.errors:
            return self.errors.pop(0)
        data, ancillary, flags, source = super().recvmsg(*sizes)
        near = [(level, kind, _offender(value)) for level, kind, value in ancillary]
        return data, near, flags, _outward(source)

    def connect_ex(self, address):
        return super().connect_ex(_inward(address))


class EchoSocket(FarSocket):
    """A ping socket, and every host answers it; those of `silent` do not."""

    def __init__(self, *, fileno: int, mtu: int) -> None:
        super().__init__(fileno=fileno, mtu=mtu)
        self.bind(("127.0.0.1", 0))
        self.asked: list[tuple[str, bytes]] = []  # whom, and the message
        self.silent: set[str] = set()

    def sendto(self, data, *where):
        self.asked.append((where[-1][0], bytes(data)))
        if where[-1][0] in self.silent:
            return len(data)
        if len(data) + 20 > self.mtu:
            return super().sendto(bytes(self.mtu), *where)  # the answer is an error
        self.answer(where[-1][0], bytes([0]) + bytes(data[1:]))
        return len(data)

    def answer(self, address: str, message: bytes) -> None:
        """`message` comes from `address`."""
        socket.socket.sendto(self, socket.inet_aton(address) + message, self.getsockname())

    def recvfrom(self, *sizes):
        data, _ = socket.socket.recvfrom(self, *sizes)
        return data[4:], (socket.inet_ntoa(data[:4]), 0)


class Internet:
    """Sockets of this machine for which 203.0.113.n is 127.0.0.n."""

    def __init__(self, mtu: int = 65535) -> None:
        self.opened: list[FarSocket] = []  # every socket that was asked for, in order
        self._mtu = mtu

    def _far(self, made: socket.socket) -> FarSocket:
        self.opened.append(FarSocket(fileno=made.detach(), mtu=self._mtu))
        self.opened[-1].setblocking(False)
        return self.opened[-1]

    def tcp_socket(self, family: int = socket.AF_INET) -> socket.socket:
        return self._far(host_sockets.tcp_socket(family))

    start_connect = staticmethod(host_sockets.start_connect)

    def udp_socket(self, family: int = socket.AF_INET, *, gro: bool) -> socket.socket:
        return self._far(host_sockets.udp_socket(family, gro=gro))

    def ping_socket(self, family: int = socket.AF_INET) -> tuple[socket.socket, bool]:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.opened.append(EchoSocket(fileno=made.detach(), mtu=self._mtu))
        self.opened[-1].setblocking(False)
        return self.opened[-1], False

    @staticmethod
    def is_local(address: str) -> bool:
        return host_sockets.is_local(address)

    def resolver_socket(self, family: socket.AddressFamily) -> socket.socket:
        return host_sockets.resolver_socket(family)


class Nowhere:
    """A host that has no sockets to give."""

    @staticmethod
    def udp_socket(family: int = socket.AF_INET, *, gro: bool) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    @staticmethod
    def tcp_socket(family: int = socket.AF_INET) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    @staticmethod
    def ping_socket(family: int = socket.AF_INET) -> tuple[socket.socket, bool]:
        raise OSError(errno.EPERM, "Operation not permitted")

    @staticmethod
    def is_local(address: str) -> bool:
        return False


class Wire:
    """A guest of ours without tasks, and what the one at the other end of his link says and hears."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        plan: Plan | None = None,
        capabilities: LinkCapabilities = PLAIN,
        host: object | None = None,
        verify_checksums: bool = False,
        ipv6: str = "off",
    ) -> None:
        plan = plan or Plan()
        self.time = 1000.0  # seconds
        self.internet = host or Internet()
        ours, self.link = memory_link_pair(capabilities=capabilities, queue_frames=4096)
        self.guest = Guest(
            ours,
            plan,
            DhcpService(DhcpServer(dhcp_config(plan))),
            random.Random(1),
            nursery,
            ip=bytes(map(int, GUEST.split("."))),
            mac=guest_mac(1),
            verify_checksums=verify_checksums,
            host=self.internet,  # type: ignore[arg-type]
            ipv6=Reachability(plan, self.internet, ipv6),  # type: ignore[arg-type]
        )
        self.guest.now = lambda: self.time
        self.guest.neighbours._changed()
        self.heard: list[bytes] = []  # every frame that came, in order

    @property
    def counters(self) -> Counter[str]:
        return self.guest.counters

    def send(self, *packets: Packet | bytes) -> list[Ether]:
        """Say `packets`, in one burst, to the gateway's MAC where they have no Ethernet header; returns what comes
        until all is quiet."""
        return [Ether(frame) for frame in self.exchange(*map(octets, packets))]

    def exchange(self, *frames: bytes) -> list[bytes]:
        """The same, without scapy."""
        for frame in frames:
            assert self.link.send((frame,))
        while self.guest.burst() + self.guest.turn():
            pass
        came = []
        while (received := self.link.receive()) is not None:
            came.append(bytes(received))
        self.link.release()
        self.heard += came
        for frame in came:
            assert is_sound(frame), Ether(frame).summary()
        assert not self.counters["internal_error"]
        return came

    def work(self) -> list[Ether]:
        """Everything that is ready, until all is quiet; returns what came."""
        return self.send()

    def until(self, *layers: type[Packet], count: int = 1) -> list[Ether]:
        """The next frames with all of `layers`, of real sockets that need a moment."""
        came: list[Ether] = []
        while len(came) < count:
            found = self.work()
            came += [frame for frame in found if all(layer in frame for layer in layers)]
            if not found and len(came) < count:
                ready, _, _ = select.select([self.guest.poller.fileno()], [], [], PATIENCE)
                assert ready, f"{len(came)} of {count} frames came"
        return came

    def pass_time(self, seconds: float) -> list[Ether]:
        """Let time pass, and serve whatever becomes due on the way; returns what comes."""
        queue = self.guest.deadlines.queue
        ends = self.time + seconds
        came: list[Ether] = []
        while True:
            for timed in queue.due(self.time):
                timed.on_deadline(self.time)
                queue.update(timed)
            self.guest.settle()
            came += self.work()
            if self.time >= ends:
                return came
            self.time = min(max(queue.next_deadline(), self.time + 0.001), ends)

    @staticmethod
    def server(address: str = "127.0.0.1", port: int = 0) -> socket.socket:
        """A UDP socket of the host."""
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, port))
        made.settimeout(PATIENCE)
        return made

    def network_says(self, host: FarSocket, number: int, kind: int, code: int, *more: object, **fields: object) -> None:
        """See `FarSocket.hear`; and the socket is told that there is an error."""
        host.hear(number, kind, code, *more, **fields)
        for handler in [*self.guest.udp.mappings.values(), *self.guest.icmp.sessions.values()]:
            if handler._socket is host:
                handler.on_ready(HANGUP)

    def close(self) -> None:
        """The guest leaves, and nothing of his is left."""
        self.guest.close()
        self.link.close()
        assert not self.guest.tcp.flows
        assert not self.guest.udp.mappings
        assert not self.guest.icmp.sessions


def octets(packet: Packet | bytes) -> bytes:
    """The frame of `packet`, to the gateway's MAC unless it says otherwise."""
    return bytes(Ether(src=MAC, dst=SERVER) / packet if isinstance(packet, IP) else packet)


def is_sound(frame: bytes) -> bool:
    """Whether its checksums are right; those of a transport are looked at when it is all there."""
    if frame[12:14] == b"\x86\xdd":
        return _is_sound6(frame)
    if frame[12:14] != b"\x08\x00":
        return True
    start = 14 + (frame[14] & 15) * 4
    payload = frame[start : 14 + int.from_bytes(frame[16:18], "big")]
    if not _adds_up(frame[14:start]):
        return False
    protocol = frame[23]
    if int.from_bytes(frame[20:22], "big") & 0x3FFF or protocol not in (1, 6, 17):
        return True
    pseudo = b"" if protocol == 1 else frame[26:34] + bytes([0, protocol]) + len(payload).to_bytes(2, "big")
    return _adds_up(pseudo + payload)


def _is_sound6(frame: bytes) -> bool:
    protocol, payload = frame[20], frame[54 : 54 + int.from_bytes(frame[18:20], "big")]
    return protocol not in (6, 17, 58) or _adds_up(frame[22:54] + bytes([0, protocol]) + frame[18:20] + payload)


def _adds_up(data: bytes) -> bool:
    """A number of 16-bit digits and the sum of the digits are the same modulo 65535 (RFC 1071)."""
    return int.from_bytes(data + bytes(len(data) % 2), "big") % 65535 == 0


def closed_port(address: str = "127.0.0.1", kind: int = socket.SOCK_DGRAM) -> int:
    """A port on which nobody listens."""
    with socket.socket(socket.AF_INET, kind) as unused:
        unused.bind((address, 0))
        return unused.getsockname()[1]


def datagram(payload: bytes, port: int, address: str = HOST, source_port: int = 5000, **ip: object) -> IP:
    return IP(src=GUEST, dst=address, **ip) / UDP(sport=source_port, dport=port) / payload


def ping(address: str, data: bytes = b"ping", identifier: int = 77, sequence: int = 1, **ip: object) -> IP:
    return IP(src=GUEST, dst=address, **ip) / ICMP(type=8, id=identifier, seq=sequence) / data


def syn(port: int, address: str = HOST, source_port: int = 40_000, sequence: int = 1000, **ip: object) -> IP:
    return IP(src=GUEST, dst=address, **ip) / TCP(
        sport=source_port, dport=port, seq=sequence, flags="S", options=[("MSS", 1460)]
    )


def errors(frames: Iterable[Ether]) -> list[tuple[int, int]]:
    """Type and code of the ICMP errors among `frames`."""
    return [(f[ICMP].type, f[ICMP].code) for f in frames if ICMP in f and f[ICMP].type not in (0, 8)]


def arp(target: str, *, sender: str = GUEST, source: str = MAC, hardware: str | None = None, op: int = 1) -> Ether:
    """An ARP packet of the guest; `hardware` is the sender's address in it when it is not the frame's."""
    return Ether(src=source, dst=BROADCAST) / ARP(op=op, hwsrc=hardware or source, psrc=sender, pdst=target)

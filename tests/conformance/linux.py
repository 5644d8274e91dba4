"""The Linux kernel as the other end of a script: its TCP behind a TUN device, in a network namespace for itself."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import threading
from collections import Counter, deque
from types import SimpleNamespace
from typing import Final

from tests.conformance.script import LOCAL6, OPEN, REMOTE, REMOTE6, Script
from tests.vpnkit.net.still_guest import IP_ADDRESS
from vpnkit.proto.tcp.state import State

CLONE_NEWNET: Final = 0x40000000
TUNSETIFF: Final = 0x400454CA
IFF_TUN: Final = 0x0001
IFF_NO_PI: Final = 0x1000
COMMANDS: Final = (
    "sysctl -qw net.ipv6.conf.all.disable_ipv6=0",
    "sysctl -qw net.ipv6.conf.all.router_solicitations=0",
    # what one test did must not change the answer to the next
    "sysctl -qw net.ipv4.tcp_invalid_ratelimit=0",
    "sysctl -qw net.ipv4.tcp_challenge_ack_limit=2147483647",
    "ip address add 9.9.9.9/32 dev tun0",
    "ip link set tun0 up",
    "ip route add 192.168.65.0/24 dev tun0 src 9.9.9.9",
    "ip address add 2001:db8::9/128 dev tun0 nodad",
    "ip route add fd65:7670:6e6b::/64 dev tun0 src 2001:db8::9",
)
PROTOCOL_AT: Final = {4: 9, 6: 6}  # by version of IP, of a packet without options
TCP_AT: Final = {4: 20, 6: 40}
ETHERTYPE: Final = {4: b"\x08\x00", 6: b"\x86\xdd"}
STATES: Final = {
    1: State.ESTABLISHED,
    2: State.SYN_SENT,
    3: State.SYN_RECEIVED,
    4: State.FIN_WAIT_1,
    5: State.FIN_WAIT_2,
    6: State.TIME_WAIT,
    7: State.CLOSED,
    8: State.CLOSE_WAIT,
    9: State.LAST_ACK,
    11: State.CLOSING,
}


class Kernel:
    """A namespace with a TUN device and a listening socket, which end with it.  Raises OSError without root."""

    def __init__(self) -> None:
        self.tun = None
        self.listeners: dict[int, socket.socket] = {}  # by version of IP
        self.callers: dict[int, socket.socket] = {}
        failed: list[Exception] = []

        def make() -> None:  # a thread, as a namespace is entered by threads
            try:
                self._make()
            except (OSError, subprocess.CalledProcessError) as error:
                failed.append(error)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]

    def _make(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        self.tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(self.tun, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
        for command in COMMANDS:
            subprocess.run(command.split(), check=True, capture_output=True)
        for version, family, address in ((4, socket.AF_INET, "9.9.9.9"), (6, socket.AF_INET6, "2001:db8::9")):
            self.listeners[version] = socket.create_server((address, OPEN), family=family, backlog=100)
            self.callers[version] = socket.socket(family)  # a socket belongs to the namespace where it was made
            self.listeners[version].setblocking(False)
            self.callers[version].setblocking(False)

    def close(self) -> None:
        for made in (*self.listeners.values(), *self.callers.values()):
            made.close()
        os.close(self.tun)


class LinuxScript(Script):
    """A script against the kernel."""

    def __init__(self, kernel: Kernel, source_port: int, *, iss: int = 0xFFFFFF00, version: int = 4) -> None:
        self.kernel = kernel
        self.guest = SimpleNamespace(counters=Counter(), checksum_offload=False)
        self.host = SimpleNamespace(far=[], held=False)
        self.iss = iss
        self.irs = 0
        self.heard_irs = False
        self.ports = struct.pack("!HH", source_port, OPEN)
        self.version = version
        self.local, self.remote = (IP_ADDRESS, REMOTE) if version == 4 else (LOCAL6, REMOTE6)
        self.next = self.acked = 0
        self.win = 65535
        self.frames = deque()
        self.log = []

    def burst(self, *frames: bytes) -> LinuxScript:
        for frame in frames:
            os.write(self.kernel.tun, frame[14:])
        came = []
        while True:
            try:
                packet = os.read(self.kernel.tun, 65536)
            except BlockingIOError:
                break
            if packet[0] >> 4 != self.version or packet[PROTOCOL_AT[self.version]] != socket.IPPROTO_TCP:
                continue  # neighbour discovery of the kernel's own
            to = TCP_AT[self.version] + 2
            if packet[to : to + 2] == self.ports[:2] or not self.ports[2]:
                came.append(bytes(12) + ETHERTYPE[self.version] + packet)
        self._hear(came)
        return self

    @property
    def program(self) -> socket.socket:
        if not self.host.far:
            self.host.far.append(self.kernel.listeners[self.version].accept()[0])
        return self.host.far[-1]

    def host_calls(self, port: int = 22, *, source: bytes | None = None) -> LinuxScript:
        caller = self.kernel.callers[self.version]
        self.ports = struct.pack("!HH", port, 0)
        family = socket.AF_INET if self.version == 4 else socket.AF_INET6
        caller.connect_ex((socket.inet_ntop(family, self.local), port))
        self.ports = struct.pack("!HH", port, caller.getsockname()[1])
        return self.turn()

    @property
    def state(self) -> State:
        return STATES[self.program.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]]

    def close(self) -> None:
        """Reset what is left, and forget what that leads to."""
        try:
            sock = self.program
        except BlockingIOError:
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        self.burst()

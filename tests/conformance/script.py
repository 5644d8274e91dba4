"""Scripts of one TCP connection, in the spirit of packetdrill: the test is the guest's kernel and the host's program.

A segment is injected into a whole `Guest`, or the clock moves, or the host's program does something; what leaves
towards the guest is expected next, in order, or nothing is.  Numbers are relative: SYNs have 0, data begins at 1.
Flags are written as tcpdump does: S, F, R, P, U, E, W and "." for ACK.  Frames are made and read here, by nothing
of the code under test, and each one that leaves must have sound lengths and checksums.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.vpnkit.net.still_guest import IP_ADDRESS, MAC, MuteHost, StillGuest
from vpnkit.net.plan import SERVER_MAC
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.tcp.state import State

if TYPE_CHECKING:
    import trio

    from tapdev.link import LinkCapabilities
    from vpnkit.proto.tcp.connection import TcpConnection


FLAGS: Final = {"F": 1, "S": 2, "R": 4, "P": 8, ".": 16, "U": 32, "E": 64, "W": 128}
MASK: Final = 2**32 - 1
REMOTE: Final = bytes([9, 9, 9, 9])
LOCAL6: Final = bytes.fromhex("fd6576706e6b") + bytes(9) + b"\3"
HOST6: Final = LOCAL6[:15] + b"\2"
REMOTE6: Final = bytes.fromhex("20010db8") + bytes(11) + b"\x09"
OPEN: Final = 8080  # MuteHost: connects at once
REFUSED: Final = 8081
PENDING: Final = 8082  # connects in the next turn
UNREACHABLE: Final = 8083
MSS: Final = 1460

NOP: Final = b"\x01"
SACK_PERMITTED: Final = b"\x04\x02"


def mss(octets: int) -> bytes:
    return struct.pack("!BBH", 2, 4, octets)


def scale(shift: int) -> bytes:
    return bytes([3, 3, shift])


def pad(options: bytes) -> bytes:
    """`options` up to a multiple of four octets, ended by zeros."""
    return options + bytes(-len(options) % 4)


def flag_bits(names: str) -> int:
    return sum(FLAGS[name] for name in names)


def flag_names(bits: int) -> str:
    return "".join(name for name in "SFRPUEW." if FLAGS[name] & bits)


def internet_sum(data: bytes) -> int:
    """The checksum of RFC 1071, the slow way."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip_frame(protocol: int, payload: bytes, *, source: bytes = IP_ADDRESS, destination: bytes = REMOTE,
             ip_options: bytes = b"", tos: int = 0, ttl: int = 64, to_mac: bytes = SERVER_MAC) -> bytes:  # fmt: skip
    """An Ethernet frame of the guest."""
    length = 20 + len(ip_options)
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | length // 4,
        tos,
        length + len(payload),
        0,
        0x4000,
        ttl,
        protocol,
        0,
        source,
        destination,
    )
    header += ip_options
    header = header[:10] + struct.pack("!H", internet_sum(header)) + header[12:]
    return to_mac + MAC + b"\x08\x00" + header + payload


def ip6_frame(protocol: int, payload: bytes, *, source: bytes = LOCAL6, destination: bytes = REMOTE6,
              tos: int = 0, ttl: int = 64, to_mac: bytes = SERVER_MAC) -> bytes:  # fmt: skip
    """The same by IPv6."""
    header = struct.pack("!IHBB", 6 << 28 | tos << 20, len(payload), protocol, ttl) + source + destination
    return to_mac + MAC + b"\x86\xdd" + header + payload


def pseudo(source: bytes, destination: bytes, length: int) -> bytes:
    return source + destination + struct.pack("!HH", 6, length)


def tcp_segment(ports: bytes, seq: int, ack: int, flags: int, win: int, payload: bytes = b"", options: bytes = b"",
                *, urgent: int = 0, source: bytes = IP_ADDRESS, destination: bytes = REMOTE) -> bytes:  # fmt: skip
    """A TCP segment with its checksum; `options` is a multiple of four octets."""
    header = ports + struct.pack("!IIBBHHH", seq & MASK, ack & MASK, (20 + len(options)) << 2, flags, win, 0, urgent)
    whole = header + options + payload
    total = internet_sum(pseudo(source, destination, len(whole)) + whole)
    return whole[:16] + struct.pack("!H", total) + whole[18:]


@dataclass
class Heard:
    """One TCP segment that came to the guest, its numbers relative."""

    flags: str
    seq: int
    ack: int
    win: int  # as it stands in the header, not scaled
    payload: bytes
    options: bytes
    absolute_seq: int
    absolute_ack: int
    source: bytes
    destination: bytes
    ports: bytes
    tos: int
    ttl: int
    dont_fragment: bool
    identification: int
    urgent: int

    @property
    def kinds(self) -> dict[int, bytes]:
        """Option kind -> content; NOP and end of list left out."""
        found = {}
        rest = self.options
        while rest and rest[0]:
            if rest[0] == 1:
                rest = rest[1:]
                continue
            assert 2 <= rest[1] <= len(rest), f"an option of ours has no sane length: {self.options.hex()}"
            found[rest[0]] = rest[2 : rest[1]]
            rest = rest[rest[1] :]
        assert not any(rest), f"padding of ours is not zero: {self.options.hex()}"
        return found

    def sacks(self, irs: int) -> list[tuple[int, int]]:
        """The SACK blocks, relative to `irs`."""
        numbers = struct.unpack(f"!{len(self.kinds.get(5, b'')) // 4}I", self.kinds.get(5, b""))
        relative = [(number - irs) & MASK for number in numbers]
        return list(zip(relative[::2], relative[1::2], strict=True))


class Host(MuteHost):
    """The host's sockets.  A connect that is `held` is answered when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.held = False
        self.error = 0

    def tcp_socket(self, family: int = socket.AF_INET) -> socket.socket:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        self.far.append(far)
        if self.held:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            near = Undecided(fileno=near.detach())
            near.host = self
            near.setblocking(False)
            try:
                while True:
                    near.send(bytes(65536))  # never writable until somebody reads
            except BlockingIOError:
                pass
        return near

    def start_connect(self, made: socket.socket, address: tuple[str, int]) -> int:  # type: ignore[override]
        return errno.EINPROGRESS if self.held else MuteHost.start_connect(made, address)

    def answer(self, error: int = 0) -> None:
        """The held connect ends."""
        self.error = error
        try:
            while self.far[-1].recv(1 << 20):
                pass
        except BlockingIOError:
            pass


class Undecided(socket.socket):
    host: Host

    def getsockopt(self, level, name, *size):  # type: ignore[no-untyped-def, override]
        if (level, name) == (socket.SOL_SOCKET, socket.SO_ERROR):
            return self.host.error
        return super().getsockopt(level, name, *size)


class Script:
    """A guest whose kernel is the test."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        capabilities: LinkCapabilities | None = None,
        verify_checksums: bool = False,
        iss: int = 0xFFFFFF00,
        source_port: int = 40_000,
        port: int = OPEN,
        our_iss: int | None = None,
        version: int = 4,
    ) -> None:
        """`iss` is the guest's first sequence number, `our_iss` ours when it should not be chosen as usual; `version`
        is that of IP."""
        self.now = 1000.0  # seconds
        self.still = StillGuest(nursery, verify_checksums=verify_checksums, capabilities=capabilities)
        self.guest = self.still.guest
        self.guest.now = lambda: self.now
        self.still.host.close()
        self.host = self.still.host = Host()
        self.guest.host = self.host  # type: ignore[assignment]
        if our_iss is not None:
            self.guest.tcp._initial_sequence = lambda _key, _now: our_iss  # type: ignore[method-assign]
        self.iss = iss  # the guest's
        self.irs = 0  # ours
        self.heard_irs = False
        self.ports = struct.pack("!HH", source_port, port)
        self.version = version
        self.local, self.remote = (IP_ADDRESS, REMOTE) if version == 4 else (LOCAL6, REMOTE6)
        self.next = 0  # what the guest sends next
        self.acked = 0  # what the guest has of us, in order
        self.win = 65535
        self.frames: deque[bytes] = deque()  # what came and was not expected yet
        self.log: list[bytes] = []  # everything that came

    # The guest's kernel

    def segment(self, flags: str = ".", payload: bytes | str = b"", *, seq: int | None = None, ack: int | None = None,
                win: int | None = None, options: bytes = b"", urgent: int = 0, **ip: object) -> bytes:  # fmt: skip
        """A frame of the guest; by default in order, and acknowledging what was expected so far."""
        data = payload.encode() if isinstance(payload, str) else payload
        if win is not None:
            self.win = win
        start = self.next if seq is None else seq
        if seq is None:
            self.next += len(data) + ("S" in flags) + ("F" in flags)
        acknowledgement = 0
        if "." in flags:
            acknowledgement = self.irs + (self.acked if ack is None else ack)
        elif ack is not None:
            acknowledgement = self.irs + ack
        body = tcp_segment(
            self.ports, self.iss + start, acknowledgement, flag_bits(flags), self.win, data, options,
            urgent=urgent, destination=self.remote, source=ip.setdefault("source", self.local),  # type: ignore[arg-type]
        )  # fmt: skip
        make = ip_frame if self.version == 4 else ip6_frame
        return make(6, body, destination=self.remote, **ip)  # type: ignore[arg-type]

    def inject(self, flags: str = ".", payload: bytes | str = b"", **fields: object) -> Script:
        """A segment of the guest arrives, alone in its burst."""
        return self.burst(self.segment(flags, payload, **fields))  # type: ignore[arg-type]

    def burst(self, *frames: bytes) -> Script:
        """`frames` arrive together."""
        self._hear(self.still.feed(*frames))
        return self

    # The host's program

    @property
    def program(self) -> socket.socket:
        return self.host.far[-1]

    def host_writes(self, data: bytes | str) -> Script:
        """The program writes, as much as its socket takes; fails when that is not all."""
        octets = data.encode() if isinstance(data, str) else data
        assert self.program.send(octets) == len(octets)
        return self.turn()

    def host_reads(self, limit: int = 1 << 20) -> bytes:
        """What the program can read now.  b"" when there is nothing."""
        data = b""
        try:
            while len(data) < limit and (part := self.program.recv(limit - len(data))):
                data += part
        except BlockingIOError:
            pass
        self.turn()
        return data

    def host_finishes(self) -> Script:
        self.program.shutdown(socket.SHUT_WR)
        return self.turn()

    def host_closes(self) -> Script:
        self.host.far.pop().close()
        return self.turn()

    def host_calls(self, port: int = 22, *, source: bytes | None = None) -> Script:
        """A client of the host calls the guest through a forward; the call is this script's connection."""
        self.remote = source or (bytes([192, 168, 65, 2]) if self.version == 4 else HOST6)
        flow = self.guest.tcp.call(self.remote, self.local, port, self.host.tcp_socket(), MAC)
        self.ports = flow.key[-4:]
        self.guest.touch(flow)
        self.guest.settle()
        return self.turn()

    # Time

    def turn(self) -> Script:
        """The loop runs until all is quiet."""
        return self.burst()

    def advance(self, seconds: float) -> Script:
        """Time passes, and every deadline in it is served when it comes."""
        queue = self.guest.deadlines.queue
        ends = self.now + seconds
        while self.now < ends:
            self.now = min(max(queue.next_deadline(), self.now), ends)
            self._serve()
        return self

    def wait(self) -> float:
        """Time passes until something leaves; returns the seconds that it took."""
        began = self.now
        queue = self.guest.deadlines.queue
        for _ in range(100):
            due = queue.next_deadline()
            assert due != NEVER, "nothing will ever leave"
            self.now = max(due, self.now)
            before = len(self.log)
            self._serve()
            if len(self.log) > before:
                return self.now - began
        raise AssertionError("nothing leaves")

    def _serve(self) -> None:
        self.still.deadlines()
        self._hear(self.still.output())
        self.turn()

    # What leaves

    def _hear(self, frames: list[bytes]) -> None:
        for frame in frames:
            self.frames.append(frame)
            self.log.append(frame)
        assert not self.guest.counters["internal_error"]

    def read(self, frame: bytes) -> Heard:
        """`frame`, which must be a sound TCP segment for the guest."""
        if self.version == 6:
            return self._read6(frame)
        assert frame[12:14] == b"\x08\x00", frame.hex()
        assert frame[14] == 0x45
        total, identification, fragment, ttl, protocol = struct.unpack_from("!HHHBB", frame, 16)
        assert protocol == 6, f"not TCP but {protocol}: {frame.hex()}"
        assert total == len(frame) - 14
        assert internet_sum(frame[14:34]) == 0, "IPv4 header checksum"
        return self._segment(
            frame[34:], frame[26:30], frame[30:34], frame[15], ttl, bool(fragment & 0x4000), identification
        )

    def _read6(self, frame: bytes) -> Heard:
        assert frame[12:14] == b"\x86\xdd", frame.hex()
        first, length, protocol, ttl = struct.unpack_from("!IHBB", frame, 14)
        assert first >> 28 == 6
        assert protocol == 6, f"not TCP but {protocol}: {frame.hex()}"
        assert length == len(frame) - 54
        return self._segment(
            frame[54:], frame[22:38], frame[38:54], first >> 20 & 255, ttl, dont_fragment=True, identification=0
        )

    def _segment(self, segment: bytes, source: bytes, destination: bytes, tos: int, ttl: int, dont_fragment: bool,
                 identification: int) -> Heard:  # fmt: skip
        if not self.guest.checksum_offload:
            assert internet_sum(pseudo(source, destination, len(segment)) + segment) == 0, "TCP checksum"
        seq, ack, offset, bits, win, _, urgent = struct.unpack_from("!IIBBHHH", segment, 4)
        header = offset >> 2
        assert 20 <= header <= len(segment)
        if bits & 2 and not self.heard_irs:
            self.irs = seq
            self.heard_irs = True
        flags = flag_names(bits)
        return Heard(
            flags, (seq - self.irs) & MASK, (ack - self.iss) & MASK if bits & 16 else 0, win, segment[header:],
            segment[20:header], seq, ack, source, destination, segment[:4], tos, ttl, dont_fragment, identification,
            urgent,
        )  # fmt: skip

    def expect(self, flags: str, payload: bytes | str | None = None, **fields: object) -> Heard:
        """The next segment that leaves has exactly these flags (P apart, unless it is named), and these fields."""
        assert self.frames, f"nothing left, expected {flags}"
        heard = self.read(self.frames.popleft())
        shown = heard.flags if "P" in flags else heard.flags.replace("P", "")
        assert sorted(shown) == sorted(flags), heard
        if payload is not None:
            assert heard.payload == (payload.encode() if isinstance(payload, str) else payload), heard
        for name, value in fields.items():
            assert getattr(heard, name) == value, f"{name} is {getattr(heard, name)}, expected {value}: {heard}"
        end = heard.seq + len(heard.payload) + ("S" in heard.flags) + ("F" in heard.flags)
        if heard.seq <= self.acked < end and "R" not in heard.flags:
            self.acked = end
        return heard

    def expect_icmp(self, kind: int, code: int) -> bytes:
        """The next frame is an ICMP error; returns what it quotes."""
        assert self.frames, f"nothing left, expected ICMP {kind}/{code}"
        frame = self.frames.popleft()
        assert frame[23] == 1, frame.hex()
        assert internet_sum(frame[34:]) == 0
        assert tuple(frame[34:36]) == (kind, code)
        return frame[42:]

    def silence(self) -> Script:
        assert not self.frames, [self.read(frame) for frame in self.frames]
        return self

    def everything(self) -> list[Heard]:
        """Whatever left and was not expected yet."""
        heard = [self.read(frame) for frame in self.frames]
        self.frames.clear()
        return heard

    # Shorthands

    def open(self, *, win: int = 65535, options: bytes | None = None, ours: bytes = b"") -> Script:
        """The guest's handshake.  It offers MSS 1460 and a window scale of 0, so that its windows are octets."""
        given = mss(MSS) + NOP + scale(0) if options is None else options
        self.inject("S", win=min(win, 65535), options=pad(given))
        self.expect("S.", seq=0, ack=1)
        self.inject(".", win=win)
        return self.silence()

    @property
    def connection(self) -> TcpConnection:
        (flow,) = self.guest.tcp.flows.values()
        return flow.connection

    @property
    def state(self) -> State:
        return self.connection.state

    def close(self) -> None:
        self.still.close()


def into(script: Script, state: State) -> Script:
    """Bring the connection into `state`, with RCV.NXT at `script.next` and nothing left to expect."""
    if state is State.CLOSED:
        return script
    if state is State.SYN_SENT:
        script.host_calls()
        script.expect("S")
        return script
    if state in (State.SYN_HELD, State.SYN_RECEIVED):
        script.host.held = state is State.SYN_HELD
        script.inject("S")
        script.everything()
        script.acked = 0 if script.host.held else 1
        return script
    script.open()
    if state in (State.FIN_WAIT_1, State.FIN_WAIT_2, State.CLOSING, State.TIME_WAIT):
        script.host_finishes()
        script.expect("F.", seq=1)
        script.inject(".", ack=2) if state in (State.FIN_WAIT_2, State.TIME_WAIT) else None
        script.inject("F.", ack=1) if state is State.CLOSING else None
        script.inject("F.", ack=2) if state is State.TIME_WAIT else None
    elif state in (State.CLOSE_WAIT, State.LAST_ACK):
        script.inject("F.")
        script.host_finishes() if state is State.LAST_ACK else None
    script.everything()
    assert state is State.TIME_WAIT or script.state is state
    return script


SYNCHRONIZED: Final = (
    State.ESTABLISHED,
    State.FIN_WAIT_1,
    State.FIN_WAIT_2,
    State.CLOSE_WAIT,
    State.CLOSING,
    State.LAST_ACK,
)  # and TIME-WAIT, which is an entry in a table and no connection

"""A whole `Guest` as an end of the wire: frames, the host's socket and its program instead of a core alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.conformance.script import Script, flag_bits, internet_sum, ip6_frame, ip_frame, pseudo
from tests.netsim.world import BEGIN, GUEST_ISS, Cell, Program, Wire, guest_end, shake_hands
from tests.vpnkit.proto.tcp.pair import Segment, pull

if TYPE_CHECKING:
    from collections.abc import Iterable

    import trio

WRITE: Final = 1 << 16


def frame_of(script: Script, segment: Segment) -> bytes:
    """A frame of the guest that carries `segment`."""
    header = script.ports + b"".join(
        number.to_bytes(length, "big")
        for number, length in (
            (segment.sequence, 4),
            (segment.acknowledgement, 4),
            ((20 + len(segment.options)) << 2, 1),
            (segment.flags, 1),
            (segment.window, 2),
            (0, 4),
        )
    )
    whole = header + segment.options + segment.payload
    total = internet_sum(pseudo(script.local, script.remote, len(whole)) + whole)
    make = ip_frame if script.version == 4 else ip6_frame
    return make(6, whole[:16] + total.to_bytes(2, "big") + whole[18:])


class GuestEnd:
    """What `script` makes of a guest's segments."""

    def __init__(self, script: Script, program: Program, *, writes: bool) -> None:
        self.script = script
        self.program = program
        self.writes = writes

    def leave(self, now: float) -> Iterable[Segment]:
        self.script.now = now
        if self.writes:
            self._write()
        heard = self.script.everything()
        return [Segment(h.absolute_seq, h.absolute_ack, flag_bits(h.flags), h.win, h.payload, h.options) for h in heard]

    def _write(self) -> None:
        """The program keeps its socket full."""
        program, before = self.program, self.program.done
        while program.left:
            started = program.done
            data = program.write(WRITE)
            try:
                sent = self.script.program.send(data)
            except BlockingIOError:
                sent = 0
            program.done = started + sent
            if sent < len(data):
                break
        if program.done != before:
            self.script.turn()

    def arrive(self, segment: Segment, now: float) -> None:
        self.script.now = now
        self.script.burst(frame_of(self.script, segment))
        if not self.writes:
            self.program.read(self.script.host_reads())

    def deadline(self) -> float:
        return self.script.guest.deadlines.queue.next_deadline()

    def on_deadline(self, now: float) -> None:
        self.script.now = now
        self.script._serve()


def transfer(nursery: trio.Nursery, cell: Cell, octets: int, seed: int, *, version: int = 4) -> float:
    """Seconds that `octets` take between a core and a whole Guest, by one version of IP."""
    writer, reader = Program(octets), Program(octets)
    up = cell.way == "up"
    guest = guest_end(cell, writer if up else reader)
    script = Script(nursery, iss=GUEST_ISS, version=version)
    try:
        script.now = BEGIN
        (syn,) = pull(guest.connection, BEGIN)
        script.burst(frame_of(script, syn))
        ours = GuestEnd(script, reader if up else writer, writes=False)
        (syn_ack,) = ours.leave(BEGIN)
        shake_hands(guest, ours, syn_ack)
        ours.writes = not up
        return Wire((guest, ours), cell, seed).run(reader)
    finally:
        script.close()

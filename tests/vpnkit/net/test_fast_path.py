"""The fast path of a guest's segments is a short cut, not another way: the same input, the same frames and octets."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tapdev.link import LinkCapabilities
from tests.vpnkit.net.still_guest import IP_ADDRESS, MAC, StillGuest
from vpnkit.net.plan import SERVER_MAC
from vpnkit.wire.tcp import ACK, FIN, PSH, RST, SYN, FrameTemplate, SynOptions

REMOTE = bytes([9, 9, 9, 9])
PORTS = b"\x9c\x40\x1f\x90"  # 40000 to 8080, which connects
ISS = 2**32 - 1000
PLAIN = LinkCapabilities(mtu=1500)
TSO = LinkCapabilities(mtu=1500, checksum=True, tso4=True)

NEAR = st.sampled_from([0, 0, 0, 0, 0, 1, -1, 5, -100, 1460, 3000, 100_000])
SEGMENT = st.tuples(
    st.just("segment"),
    NEAR,  # from where the guest would send next
    NEAR,  # from what he has heard
    st.sampled_from([ACK, ACK, ACK, ACK | PSH, ACK | FIN, RST, SYN, ACK | RST, FIN, 0, ACK | 0x20]),
    st.sampled_from([0, 1, 8, 512, 65535]),
    st.sampled_from([0, 0, 1, 10, 1460]),
)
STEPS = st.lists(
    st.one_of(
        SEGMENT,
        SEGMENT,
        SEGMENT,
        st.tuples(st.just("turn")),
        st.tuples(st.just("host writes"), st.sampled_from([1, 1000, 20_000])),
        st.tuples(st.just("host reads")),
        st.tuples(st.just("host finishes")),
        st.tuples(st.just("host closes")),
        st.tuples(st.just("time"), st.sampled_from([0.001, 0.003, 0.3, 2.0])),
    ),
    max_size=30,
)


class Twins:
    """Two guests that get the same and must say the same; the second looks at everything the long way."""

    def __init__(self, nursery: trio.Nursery, capabilities: LinkCapabilities) -> None:
        self.guests = [
            StillGuest(nursery, verify_checksums=verify, capabilities=capabilities) for verify in (False, True)
        ]
        self.template = FrameTemplate(SERVER_MAC, MAC, IP_ADDRESS, REMOTE, PORTS)
        self.pending: list[bytes] = []
        self.next = ISS
        self.heard = 0  # the highest end of what came
        self.host_got = [bytearray(), bytearray()]
        self.frames = 0

    def turn(self) -> None:
        pending, self.pending = self.pending, []
        outputs = [guest.feed(*pending) for guest in self.guests]
        assert outputs[0] == outputs[1]
        self.frames += len(outputs[0])
        for frame in outputs[0]:
            sequence = int.from_bytes(frame[38:42], "big")
            length = int.from_bytes(frame[16:18], "big") - 20 - (frame[46] >> 4) * 4
            end = (sequence + length + (frame[47] & SYN != 0) + (frame[47] & FIN)) & 0xFFFFFFFF
            if not self.heard or (end - self.heard) & 0x80000000 == 0:
                self.heard = end
        flows = [guest.guest.tcp.flows for guest in self.guests]
        assert flows[0].keys() == flows[1].keys()
        for one, other in zip(flows[0].values(), flows[1].values(), strict=True):
            assert one.connection.state is other.connection.state

    def open(self) -> None:
        self.pending.append(bytes(self.template.with_options(ISS, 0, SYN, 65535, SynOptions(1460, 7).encode())))
        self.turn()
        self.next = (ISS + 1) & 0xFFFFFFFF
        self.segment(0, 0, ACK, 512, 0)
        self.turn()

    def segment(self, sequence: int, acknowledgement: int, flags: int, window: int, length: int) -> None:
        start = (self.next + sequence) & 0xFFFFFFFF
        payload = bytes((start + i) % 251 for i in range(length))
        header = self.template.complete_header(
            start, (self.heard + acknowledgement) & 0xFFFFFFFF, flags, window, payload
        )
        self.pending.append(bytes(header) + payload)
        if sequence == 0:
            self.next = (self.next + length + (flags & FIN)) & 0xFFFFFFFF

    def with_host(self, what: str, *how: int) -> None:
        for index, guest in enumerate(self.guests):
            if not guest.host.far:
                return
            far = guest.host.far[0]
            try:
                if what == "host writes":
                    far.send(b"h" * how[0])
                elif what == "host reads":
                    self.host_got[index] += far.recv(1 << 20)
                elif what == "host finishes":
                    far.shutdown(1)
                else:
                    far.close()
            except OSError:
                pass
        assert self.host_got[0] == self.host_got[1]


async def play(steps: list[tuple], capabilities: LinkCapabilities, clock: MockClock) -> int:
    async with trio.open_nursery() as nursery:
        twins = Twins(nursery, capabilities)
        try:
            twins.open()
            for what, *how in steps:
                if what == "segment":
                    twins.segment(*how)
                    continue
                twins.turn()
                if what == "time":
                    clock.jump(how[0])
                    for guest in twins.guests:
                        guest.deadlines()
                elif what != "turn":
                    twins.with_host(what, *how)
                twins.turn()
            twins.turn()
            assert [g.guest.counters["internal_error"] for g in twins.guests] == [0, 0]
            return twins.frames
        finally:
            for guest in twins.guests:
                guest.close()
            nursery.cancel_scope.cancel()
    return 0


@pytest.mark.parametrize("capabilities", [PLAIN, TSO], ids=["plain", "tso"])
def test_the_same_input_gives_the_same_output(capabilities):
    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(STEPS)
    def check(steps):
        clock = MockClock()
        trio.run(play, steps, capabilities, clock, clock=clock)

    check()


def test_it_is_not_silence_that_is_compared():
    clock = MockClock()
    steps = [("host writes", 20_000), ("segment", 0, 0, ACK, 512, 1460), ("turn",), ("host reads",)]
    assert trio.run(play, steps, PLAIN, clock, clock=clock) > 14

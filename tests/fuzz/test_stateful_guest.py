"""A whole guest, and a LAN of several, under whatever order of frames, host events and time (conformance.md B2, I10).

The machines are synchronous; they run inside one trio run, whose clock stands still until a rule moves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.fuzz import frames
from tests.fuzz.frames import GATEWAY, HOST, REMOTE, SERVER_MAC
from tests.fuzz.victim import Victim, run
from tests.fuzz.village import Village
from vpnkit.net import icmp, tcp, udp

if TYPE_CHECKING:
    import trio
    from trio.testing import MockClock

EVERYDAY = settings(max_examples=25, stateful_step_count=40, deadline=None)
SLOW = (pytest.mark.slow, pytest.mark.timeout(900))
THOROUGH = settings(max_examples=200, stateful_step_count=60, deadline=None)

SERVERS = st.sampled_from([GATEWAY, HOST, REMOTE, REMOTE, "10.9.9.9", "192.168.65.4", "169.254.169.254", "127.0.0.1"])
PORTS = st.sampled_from([5000, 5001, 5002, 0, 53, 67, 8080, 8081, 8082, 8083])
FLAGS = st.sampled_from([2, 2, 16, 16, 16, 24, 17, 4, 20, 18, 0, 255]) | st.integers(0, 255)
NUMBERS = st.sampled_from([0, 1, -1, 100, -100, 65535, 1 << 20, 1 << 31])


class UnderAttack(RuleBasedStateMachine):
    nursery: trio.Nursery
    clock: MockClock
    ipv6 = "off"

    def __init__(self) -> None:
        super().__init__()
        self.victim = Victim(self.nursery, self.clock, queue_frames=512, ipv6=self.ipv6)
        self.faithful = self.victim.connect(port=4444)
        self.host_end = self.victim.far[-1]
        self.ends = [self.host_end]  # of honest connections

    @rule(dst=SERVERS, sport=PORTS, dport=PORTS, size=st.sampled_from([0, 1, 12, 300, 1472]), repeat=st.integers(1, 3))
    def datagram(self, dst, sport, dport, size, repeat):
        self.victim.feed(*[frames.udp(bytes(size), dst=dst, sport=sport, dport=dport)] * repeat)

    @rule(dst=SERVERS, ident=st.integers(0, 5), size=st.sampled_from([0, 56, 1400]))
    def ping(self, dst, ident, size):
        self.victim.feed(frames.ping(bytes(size), ident=ident, dst=dst))

    @rule(
        sport=PORTS, dport=PORTS, dst=SERVERS, flags=FLAGS, seq=NUMBERS, ack=NUMBERS, size=st.sampled_from([0, 1, 1400])
    )
    def segment(self, sport, dport, dst, flags, seq, ack, size):
        """Of a flow that may be there: its numbers are known to him."""
        key = frames.packed(frames.GUEST) + frames.packed(dst) + sport.to_bytes(2, "big") + dport.to_bytes(2, "big")
        flow = self.victim.guest.tcp.flows.get(key)
        if flow is not None and flow.connection._heard:
            seq += flow.connection.receiver.nxt
            ack += flow.connection.sender.top
        self.victim.feed(frames.tcp(bytes(size), sport=sport, dport=dport, dst=dst, flags=flags, seq=seq, ack=ack))

    @rule(
        question=st.sampled_from(["host.internal", "a.example", "b.example", ""]),
        qtype=st.sampled_from([1, 28, 12, 252]),
    )
    def name(self, question, qtype):
        self.victim.feed(frames.dns(frames.dns_query(question, qtype=qtype)))

    @rule(kind=st.integers(0, 9), wanted=st.integers(0, 255))
    def lease(self, kind, wanted):
        address = bytes((192, 168, 65, wanted))
        self.victim.feed(frames.dhcp(frames.dhcp_message((53, bytes((kind,))), (50, address))))

    @rule(kind=st.integers(0, 15), code=st.integers(0, 15), sport=PORTS, dport=PORTS)
    def icmp_error(self, kind, code, sport, dport):
        ours = frames.tcp_segment(sport=dport, dport=sport, src=REMOTE, dst=frames.GUEST)
        self.victim.feed(frames.icmp_error(kind, code, frames.ipv4(ours, 6, src=REMOTE, dst=frames.GUEST)))

    @rule(ident=st.integers(0, 3), start=st.integers(0, 20), size=st.integers(0, 40), more=st.booleans())
    def fragment(self, ident, start, size, more):
        packet = frames.ipv4(bytes(8 * size), 17, ident=ident, flags_offset=start | (frames.MF if more else 0))
        self.victim.feed(frames.ether(packet))

    @rule(frame=st.binary(min_size=0, max_size=80), kind=st.sampled_from([0x0800, 0x0806, 0x86DD, 0x8100]))
    def noise(self, frame, kind):
        self.victim.raw(frames.ether(frame, kind=kind))

    @rule(what=st.sampled_from(["send", "shutdown", "close", "much"]), which=st.integers(0, 10))
    def host(self, what, which):
        ends = [far for far in self.victim.far if far not in self.ends and far.fileno() >= 0]
        if not ends:
            return
        far = ends[which % len(ends)]
        try:
            if what == "send":
                far.send(b"from the host")
            elif what == "much":
                far.send(bytes(100_000))
            elif what == "shutdown":
                far.shutdown(1)
            else:
                far.close()
        except OSError:
            pass
        self.victim.feed()

    @rule(seconds=st.sampled_from([0.001, 0.3, 1.0, 10.0, 61.0, 301.0]))
    def time(self, seconds):
        self.victim.passes(seconds)

    @invariant()
    def bounded(self):
        self.victim.check_tables()

    @invariant()
    def faithful_is_not_hurt(self):
        self.faithful.say(b"+")
        assert self.host_end.recv(10) == b"+"

    def teardown(self):
        try:
            self.victim.check()
        finally:
            self.victim.close()


ADDRESSES = st.integers(0, 255).map(lambda last: f"192.168.65.{last}")


class Quarrel(RuleBasedStateMachine):
    """Anna is honest.  The others say what they like, come and go."""

    nursery: trio.Nursery
    clock: MockClock

    def __init__(self) -> None:
        super().__init__()
        self.village = Village(self.nursery, self.clock)
        self.anna = self.village.come(speaks=False)
        assert self.anna.lease()
        self.berta = self.village.come()
        self.rogues = [self.village.come() for _ in range(2)]
        self.words = 0

    @initialize()
    def settled(self):
        self.anna.hears()
        self.berta.hears()

    def _mac(self, number: int, rogue) -> bytes:
        known = [rogue.mac, self.anna.mac, self.berta.mac, SERVER_MAC, bytes(6), frames.BROADCAST]
        return known[number] if number < len(known) else b"\x02" + number.to_bytes(5, "big")

    @rule(
        who=st.integers(0, 5),
        src=st.integers(0, 30),
        dst=st.integers(0, 8),
        kind=st.sampled_from(["arp", "ip", "ip6", "na", "noise", "dhcp"]),
        address=ADDRESSES,
        op=st.integers(1, 2),
        number=st.integers(0, 40),
    )
    def rogue_says(self, who, src, dst, kind, address, op, number):
        rogue = self.rogues[who % len(self.rogues)] if self.rogues else None
        if rogue is None:
            return
        src_mac, dst_mac = self._mac(src, rogue), self._mac(dst, rogue)
        ip6 = b"\xfe\x80" + bytes(12) + number.to_bytes(2, "big")
        if kind == "arp":
            packet = frames.arp_packet(op=op, sender=address, sender_mac=self._mac(number, rogue))
            frame = frames.ether(packet, dst=dst_mac, src=src_mac, kind=0x0806)
        elif kind == "ip":
            datagram = frames.udp_datagram(b"rogue", sport=67 if number == 7 else 9, src=address, dst=self.anna.ip)
            packet = frames.ipv4(datagram, 17, src=address, dst=self.anna.ip)
            frame = frames.ether(packet, dst=dst_mac, src=src_mac)
        elif kind == "ip6":
            frame = frames.ether(frames.ipv6(bytes(8), 59, src=ip6, dst=ip6), dst=dst_mac, src=src_mac, kind=0x86DD)
        elif kind == "na":
            body = (
                bytes((134 + number % 4, 0, 0, 0)) + bytes(4) + ip6 + bytes((number % 3, 1)) + self._mac(number, rogue)
            )
            frame = frames.ether(frames.ipv6(body, 58, src=ip6, dst=ip6), dst=dst_mac, src=src_mac, kind=0x86DD)
        elif kind == "dhcp":
            message = frames.dhcp_message(
                (53, bytes((number % 10,))), (50, frames.packed(address)), mac=self._mac(dst, rogue)
            )
            frame = frames.dhcp(message, source_mac=src_mac)
        else:
            frame = frames.ether(bytes(number), dst=dst_mac, src=src_mac, kind=0x88B5)
        rogue.says(frame)
        self.village.settle()

    @rule()
    def another_comes(self):
        if len(self.rogues) < 5:
            self.rogues.append(self.village.come())

    @rule(who=st.integers(0, 5))
    def one_goes(self, who):
        if self.rogues:
            self.village.go(self.rogues.pop(who % len(self.rogues)))

    @rule(seconds=st.sampled_from([1.0, 61.0, 601.0]))
    def time(self, seconds):
        self.village.passes(seconds)

    @rule()
    def anna_renews(self):
        answer = self.anna.dhcp((53, b"\3"), (50, frames.packed(self.anna.ip)))
        assert answer is not None
        assert answer[16:20] == frames.packed(self.anna.ip)

    @invariant()
    def honest_ones_lose_nothing(self):
        lan = self.village.lan
        for villager in (self.anna, self.berta):
            assert lan.holder(frames.packed(villager.ip)).station is villager.guest.station
            assert lan.switch.owner(villager.mac) is villager.guest.station.port
        self.words += 1
        word = b"word %d" % self.words
        self.berta.says(self.berta.datagram_to(self.anna, word))
        heard = self.anna.hears()
        assert any(frame[42:] == word for frame in heard)
        for frame in heard:
            if not frame[42:].startswith(b"word") and frame[6:12] != SERVER_MAC:
                assert frame[6:12] not in (self.anna.mac, self.berta.mac), "another's MAC address"
                if frame[12:14] == b"\x08\x00":
                    assert frame[26:30] not in map(frames.packed, (self.anna.ip, self.berta.ip, GATEWAY, HOST))

    @invariant()
    def consistent(self):
        self.village.check()

    def teardown(self):
        try:
            assert self.anna.is_served()
            assert self.berta.is_served()
        finally:
            self.village.close()


def run_machine(machine: type[RuleBasedStateMachine], how: settings) -> None:
    def body(nursery: trio.Nursery, clock: MockClock) -> None:
        run_state_machine_as_test(
            type(machine.__name__, (machine,), {"nursery": nursery, "clock": clock}), settings=how
        )

    run(body)


@pytest.fixture
def small_tables(monkeypatch):
    monkeypatch.setattr(tcp, "MAX_HELD", 4)
    monkeypatch.setattr(tcp, "MAX_TIME_WAIT", 4)
    monkeypatch.setattr(udp, "MAX_MAPPINGS", 3)
    monkeypatch.setattr(icmp, "MAX_SESSIONS", 3)


@pytest.mark.parametrize("how", [EVERYDAY, pytest.param(THOROUGH, marks=SLOW)], ids=["everyday", "thorough"])
def test_a_guest_under_attack(how, small_tables):
    run_machine(UnderAttack, how)


@pytest.mark.parametrize("how", [EVERYDAY, pytest.param(THOROUGH, marks=SLOW)], ids=["everyday", "thorough"])
def test_honest_and_hostile_guests_on_one_lan(how):
    run_machine(Quarrel, how)

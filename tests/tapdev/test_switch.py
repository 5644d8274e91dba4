from __future__ import annotations

import gc
import weakref

import pytest
import trio
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from tapdev import switch as module
from tapdev.link import Gso, LinkCapabilities
from tapdev.memory import MemoryLink, memory_link_pair
from tapdev.switch import MACS_PER_PORT, QUEUE_FRAMES, QUEUE_OCTETS, Port, Switch
from vpnkit.wire.offload import adapt, partial_checksum

PLAIN = LinkCapabilities(mtu=1500)
JUMBO = LinkCapabilities(mtu=65520)
ABLE = LinkCapabilities(mtu=1500, checksum=True, tso4=True, tso6=True, uso=True)

GATEWAY = bytes.fromhex("f61636bcf9c6")
BROADCAST = b"\xff" * 6
MDNS = bytes.fromhex("01005e0000fb")
MDNS6 = bytes.fromhex("3333000000fb")


def mac(number: int) -> bytes:
    return b"\x02\x50\0\0" + number.to_bytes(2, "big")


def frame(destination: bytes, source: bytes, length: int = 60, number: int = 0) -> bytes:
    head = destination + source + b"\x88\xb5" + number.to_bytes(4, "big")
    return head + bytes((number + i) & 0xFF for i in range(length - len(head)))


def text(length: int) -> bytes:
    return (b"The quick brown fox jumps over the lazy dog. " * (length // 45 + 1))[:length]


class Guest:
    """One link with both of its ends: `vm` is the guest's, the other is attached to the switch."""

    def __init__(
        self,
        switch: Switch,
        number: int,
        capabilities: LinkCapabilities = PLAIN,
        *,
        queue_frames: int = 4096,
        identity: object = None,
    ) -> None:
        self.switch = switch
        self.mac = mac(number)
        self.vm: MemoryLink
        self.vm, self.link = memory_link_pair(capabilities=capabilities, queue_frames=queue_frames)
        self.asked = 0  # how often the port asked for a flush
        self.port: Port = switch.attach(self.link, self._pending, name=f"guest {number}", identity=identity)

    def _pending(self) -> None:
        self.asked += 1

    def say(self, destination: bytes, **arguments) -> bool:
        """A frame of this guest, as its network forwards it."""
        return self.send(frame(destination, self.mac, **arguments))

    def send(self, data: bytes, *metadata: int) -> bool:
        """What the owner of the link does with a frame."""
        assert self.vm.send([data], *metadata)
        view = self.link.receive()
        assert view is not None
        try:
            if not self.switch.learn(self.port, bytes(view[6:12])):
                return False
            link = self.link
            return self.switch.forward(self.port, view, link.gso_type, link.gso_size, link.checksum_partial)
        finally:
            self.link.release()

    def heard(self) -> list[bytes]:
        """Everything that arrived since the last time."""
        arrived = []
        while (view := self.vm.receive()) is not None:
            arrived.append(bytes(view))
            self.vm.release()
        return arrived


@pytest.fixture
def switch() -> Switch:
    made = Switch(adapt)
    made.reserve(GATEWAY)
    return made


def three(switch: Switch, *capabilities: LinkCapabilities) -> list[Guest]:
    able = capabilities or (PLAIN, PLAIN, PLAIN)
    guests = [Guest(switch, number, one) for number, one in enumerate(able, 1)]
    for guest in guests:
        assert guest.say(BROADCAST)
    for guest in guests:
        guest.heard()
    return guests


class TestLearning:
    async def test_a_frame_goes_to_the_port_of_its_destination_only(self, switch):
        one, two, three_ = three(switch)
        assert one.say(two.mac)
        assert (one.heard(), two.heard(), three_.heard()) == ([], [frame(two.mac, one.mac)], [])
        assert two.say(one.mac)
        assert (one.heard(), two.heard(), three_.heard()) == ([frame(one.mac, two.mac)], [], [])
        assert switch.owner(two.mac) is two.port

    async def test_a_mac_that_nobody_has_spoken_from_is_for_nobody(self, switch):
        one, two, three_ = three(switch)
        assert not one.say(mac(99))
        assert not one.say(GATEWAY)
        assert not one.say(one.mac), "itself"
        assert (one.heard(), two.heard(), three_.heard()) == ([], [], [])
        assert switch.counters == {"unknown_mac": 3}

    @pytest.mark.parametrize("group", [BROADCAST, MDNS, MDNS6])
    async def test_groups_are_for_everybody_else(self, switch, group):
        one, two, three_ = three(switch)
        assert one.say(group)
        wanted = frame(group, one.mac)
        assert (one.heard(), two.heard(), three_.heard()) == ([], [wanted], [wanted])

    async def test_one_port_may_have_several_macs(self, switch):
        one, two, _ = three(switch)
        assert two.send(frame(one.mac, mac(77)))
        one.heard()
        assert one.say(mac(77))
        assert two.heard() == [frame(mac(77), one.mac)]

    async def test_but_not_any_number(self, switch):
        one, two, _ = three(switch)
        for number in range(1, MACS_PER_PORT):
            assert switch.learn(one.port, mac(100 + number))
        assert switch.learn(one.port, mac(200))
        assert len(one.port.macs) == MACS_PER_PORT
        assert one.port.counters == {"forgotten_macs": 1}
        assert switch.learn(two.port, one.mac), "the first was forgotten, and is free"
        assert not switch.learn(two.port, mac(101))

    async def test_a_frame_without_a_header_is_for_nobody(self, switch):
        one, two, _ = three(switch)
        assert not switch.forward(one.port, memoryview(bytes(13)), 0, 0, False)
        assert switch.counters == {"runt": 1}
        assert two.heard() == []

    @pytest.mark.parametrize("mtu", [1500, 9000, 65520])
    async def test_full_size_frames(self, switch, mtu):
        """The original lost them."""
        one, two, _ = three(switch, *3 * (LinkCapabilities(mtu=mtu),))
        assert one.say(two.mac, length=mtu + 14)
        assert two.heard() == [frame(two.mac, one.mac, mtu + 14)]
        assert one.say(BROADCAST, length=mtu + 14)
        assert two.heard() == [frame(BROADCAST, one.mac, mtu + 14)]

    async def test_what_does_not_fit_is_lost_and_counted(self, switch):
        one, two, three_ = three(switch, JUMBO, PLAIN, JUMBO)
        assert one.say(two.mac, length=1515)
        assert two.heard() == []
        assert two.port.counters == {"unfit": 1}
        assert one.say(BROADCAST, length=1515)
        assert two.heard() == []
        assert len(three_.heard()) == 1


class TestSpoofing:
    async def test_a_mac_of_a_living_guest_is_refused(self, switch):
        one, two, three_ = three(switch)
        assert not three_.send(frame(BROADCAST, two.mac))
        assert not three_.send(frame(one.mac, two.mac))
        assert three_.port.counters == {"spoofed_mac": 2}
        assert (one.heard(), two.heard()) == ([], [])
        assert one.say(two.mac)
        assert two.heard() == [frame(two.mac, one.mac)]
        assert three_.heard() == []

    async def test_the_owners_mac_is_refused(self, switch):
        one, _, _ = three(switch)
        assert not switch.learn(one.port, GATEWAY)
        assert one.port.counters == {"spoofed_mac": 1}
        assert switch.owner(GATEWAY) is None

    async def test_a_mac_that_is_reserved_later_is_taken_away(self, switch):
        one, two, _ = three(switch)
        switch.reserve(two.mac)
        assert not one.say(two.mac)
        assert not switch.learn(two.port, two.mac)
        assert not two.port.macs

    @pytest.mark.parametrize("source", [BROADCAST, MDNS, MDNS6, bytes(6), b"", b"\x02\x50"])
    async def test_what_is_no_station(self, switch, source):
        one, _, _ = three(switch)
        assert not switch.learn(one.port, source)
        assert one.port.counters == {"bad_source_mac": 1}

    async def test_the_mac_of_a_guest_that_left_is_free(self, switch):
        one, two, three_ = three(switch)
        switch.detach(two.port)
        assert not one.say(two.mac)
        assert three_.send(frame(one.mac, two.mac))
        assert switch.owner(two.mac) is three_.port


class TestIdentity:
    """Two connections of one guest (VMN3T: the same UUID)."""

    async def test_the_last_that_spoke_gets_the_frames(self, switch):
        other = Guest(switch, 1)
        old = Guest(switch, 2, identity="uuid")
        new = Guest(switch, 2, identity="uuid")
        other.say(BROADCAST)
        for speaker, silent in ((old, new), (new, old), (old, new)):
            assert speaker.say(other.mac)
            for guest in (old, new):
                guest.heard()
            assert other.say(speaker.mac)
            assert (len(speaker.heard()), silent.heard()) == (1, [])
            assert (set(speaker.port.macs), set(silent.port.macs)) == ({mac(2)}, set())
        assert not old.port.counters + new.port.counters

    async def test_a_guest_does_not_hear_its_own_broadcast(self, switch):
        """It would take it for somebody else with its address."""
        other = Guest(switch, 1)
        old = Guest(switch, 2, identity="uuid")
        new = Guest(switch, 2, identity="uuid")
        assert new.say(BROADCAST)
        assert (len(other.heard()), old.heard(), new.heard()) == (1, [], [])

    async def test_the_older_connection_inherits(self, switch):
        other = Guest(switch, 1)
        old = Guest(switch, 2, identity="uuid")
        new = Guest(switch, 2, identity="uuid")
        other.say(BROADCAST)
        new.say(BROADCAST)
        switch.detach(new.port)
        assert switch.owner(mac(2)) is old.port
        old.heard()
        assert other.say(mac(2))
        assert len(old.heard()) == 1
        assert not switch.learn(other.port, mac(2))
        switch.detach(old.port)
        assert switch.learn(other.port, mac(2))

    async def test_the_newest_of_several_inherits(self, switch):
        ports = [Guest(switch, 2, identity="uuid").port for _ in range(4)]
        assert switch.learn(ports[1], mac(2))
        for leaves, inherits in ((1, 3), (3, 2), (2, 0)):
            switch.detach(ports[leaves])
            assert switch.owner(mac(2)) is ports[inherits]

    async def test_an_inheritance_is_bounded_too(self, switch):
        keeper = Guest(switch, 1, identity="uuid")
        for generation in range(4):
            heir = Guest(switch, 1, identity="uuid")
            for number in range(MACS_PER_PORT):
                assert switch.learn(heir.port, mac(1000 * generation + number))
            switch.detach(heir.port)
        assert len(keeper.port.macs) == MACS_PER_PORT
        assert switch.learn(Guest(switch, 2).port, mac(3000)), "what nobody inherited is free"

    async def test_another_identity_is_another_guest(self, switch):
        old, new = Guest(switch, 2, identity="a"), Guest(switch, 2, identity="b")
        assert old.say(BROADCAST)
        assert not new.say(BROADCAST)

    async def test_no_identity_is_nobodys(self, switch):
        old, new = Guest(switch, 2), Guest(switch, 2)
        assert old.say(BROADCAST)
        assert not new.say(BROADCAST)


async def test_isolation():
    switch = Switch(adapt, isolate=True)
    one, two = Guest(switch, 1), Guest(switch, 2)
    assert not one.say(BROADCAST)
    assert not two.say(BROADCAST)
    assert not one.say(two.mac)
    assert (one.heard(), two.heard()) == ([], [])
    assert switch.counters == {"isolated": 3}
    assert not switch.learn(two.port, one.mac), "its source filter works all the same"


def tcp_frame(destination: bytes, source: bytes, length: int) -> tuple[bytes, int]:
    """A partial TCP frame with `length` octets of payload, and the length of its headers."""
    options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
    head = Ether(dst=destination.hex(":"), src=source.hex(":")) / IP(src="192.168.65.3", dst="192.168.65.4")
    made = partial_checksum(bytes(head / TCP(seq=1, flags="PA", options=options) / text(length)))
    assert made is not None
    return bytes(made[0]), len(made[0]) - length


def is_sound(data: bytes) -> bool:
    read, again = Ether(data), Ether(data)
    layer = TCP if TCP in read else UDP
    del again[IP].chksum, again[IP].len, again[layer].chksum
    again = Ether(bytes(again))
    return (
        again[layer].chksum % 65535 == read[layer].chksum % 65535
        and again[IP].chksum % 65535 == read[IP].chksum % 65535
        and again[IP].len == read[IP].len
    )


class TestOffloads:
    """A super-frame of 60000 octets between links of every kind."""

    async def test_between_links_that_can_it_stays_one(self, switch):
        one, two, _ = three(switch, ABLE, ABLE, PLAIN)
        data, header = tcp_frame(two.mac, one.mac, 60000)
        assert one.send(data, 34, 16, Gso.TCPV4, 1448, header)
        assert two.vm.receive() == data
        assert (two.vm.gso_type, two.vm.gso_size, two.vm.checksum_partial) == (Gso.TCPV4, 1448, True)
        assert two.vm.receive() is None

    @pytest.mark.parametrize("destination", [PLAIN, JUMBO, LinkCapabilities(mtu=1500, checksum=True)])
    async def test_otherwise_it_is_cut(self, switch, destination):
        one, two, _ = three(switch, ABLE, destination, PLAIN)
        data, header = tcp_frame(two.mac, one.mac, 60000)
        assert one.send(data, 34, 16, Gso.TCPV4, 1448, header)
        heard = two.heard()
        assert len(heard) == 42
        assert all(is_sound(segment) for segment in heard)
        assert b"".join(bytes(Ether(segment)[TCP].payload) for segment in heard) == text(60000)

    @pytest.mark.parametrize("destination", [PLAIN, JUMBO])
    async def test_from_a_guest_that_says_nothing_about_it(self, switch, destination):
        """libkrun: passt-slirp-qemu.md 4.8."""
        one, two, _ = three(switch, JUMBO, destination, PLAIN)
        data, _ = tcp_frame(two.mac, one.mac, 60000)
        assert one.send(data)
        heard = two.heard()
        assert max(map(len, heard)) <= destination.mtu + 14
        assert all(is_sound(segment) for segment in heard)
        assert b"".join(bytes(Ether(segment)[TCP].payload) for segment in heard) == text(60000)

    async def test_and_from_it_to_one_that_can(self, switch):
        one, two, _ = three(switch, JUMBO, ABLE, PLAIN)
        data, header = tcp_frame(two.mac, one.mac, 60000)
        assert one.send(data)
        assert two.vm.receive() == data
        assert (two.vm.gso_type, two.vm.checksum_partial) == (Gso.TCPV4, True)
        assert two.vm.gso_size == 1500 + 14 - header

    async def test_a_group_gets_it_each_as_he_can(self, switch):
        head = Ether(dst=MDNS.hex(":"), src=mac(1).hex(":")) / IP(src="192.168.65.3", dst="224.0.0.251")
        made = partial_checksum(bytes(head / UDP(sport=5353, dport=5353) / text(200)))
        assert made is not None
        one, two, three_ = three(switch, ABLE, ABLE, PLAIN)
        assert one.send(bytes(made[0]), 34, 6)
        assert two.vm.receive() == made[0]
        assert two.vm.checksum_partial
        (heard,) = three_.heard()
        assert is_sound(heard)
        assert heard[42:] == text(200)


class TestQueue:
    async def test_what_a_full_link_does_not_take_waits_in_order(self, switch):
        one = Guest(switch, 1)
        two = Guest(switch, 2, queue_frames=2)
        two.say(BROADCAST)
        one.heard()
        for number in range(6):
            assert one.say(two.mac, number=number)
        assert two.port.pending
        assert (two.port.queued_frames, two.port.queued_octets, two.asked) == (4, 240, 1)
        assert not two.port.flush()
        arrived = two.heard()
        assert not two.port.flush()
        arrived += two.heard()
        one.say(two.mac, number=6)
        assert two.port.queued_frames == 3, "no frame overtakes another, though the link has room"
        assert not two.port.flush()
        arrived += two.heard()
        assert two.port.flush()
        arrived += two.heard()
        assert not two.port.pending
        assert arrived == [frame(two.mac, one.mac, number=number) for number in range(7)]
        assert two.port.queued_octets == 0
        assert two.asked == 1

    async def test_an_owner_that_waits_and_flushes(self, switch):
        """As the owner of a link is meant to do it."""
        one = Guest(switch, 1)
        two = Guest(switch, 2, queue_frames=3)
        two.say(BROADCAST)
        total, arrived = 300, []

        async def flush() -> None:
            while len(arrived) < total:
                await two.link.wait_writable()
                two.port.flush()
                await trio.lowlevel.checkpoint()

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for number in range(total):
                    assert one.say(two.mac, number=number)
                nursery.start_soon(flush)
                while len(arrived) < total:
                    await two.vm.wait_readable()
                    arrived += two.heard()
        assert arrived == [frame(two.mac, one.mac, number=number) for number in range(total)]

    async def test_the_number_of_frames_is_bounded(self, switch):
        one, two = Guest(switch, 1), Guest(switch, 2, queue_frames=1)
        two.say(BROADCAST)
        for number in range(1 + QUEUE_FRAMES + 5):
            assert one.say(two.mac, number=number)
        assert two.port.queued_frames == QUEUE_FRAMES
        assert two.port.counters == {"queue_full": 5}

    async def test_their_octets_are_bounded(self, switch):
        one, two = Guest(switch, 1, JUMBO), Guest(switch, 2, JUMBO, queue_frames=1)
        two.say(BROADCAST)
        for _ in range(40):
            assert one.say(two.mac, length=65534)
        assert two.port.queued_octets == 65534 * (QUEUE_OCTETS // 65534)
        assert two.port.counters == {"queue_full": 39 - QUEUE_OCTETS // 65534}
        assert one.say(two.mac, length=60), "a small one still fits"
        assert two.port.counters["queue_full"] == 39 - QUEUE_OCTETS // 65534

    async def test_metadata_waits_too(self, switch):
        one, two = Guest(switch, 1, ABLE), Guest(switch, 2, ABLE, queue_frames=1)
        two.say(BROADCAST)
        data, header = tcp_frame(two.mac, one.mac, 20000)
        for _ in range(2):
            assert one.send(data, 34, 16, Gso.TCPV4, 1448, header)
        two.vm.receive()
        assert two.port.flush()
        assert two.vm.receive() == data
        assert (two.vm.gso_type, two.vm.gso_size, two.vm.checksum_partial) == (Gso.TCPV4, 1448, True)

    async def test_the_owner_sends_through_the_same_queue(self, switch):
        two = Guest(switch, 2, queue_frames=1)
        parts = [bytearray(frame(two.mac, GATEWAY, number=number)) for number in range(2)]
        for part in parts:
            assert two.port.deliver((memoryview(part)[:20], memoryview(part)[20:]))
            part[:] = bytes(len(part))
        assert two.heard() == [frame(two.mac, GATEWAY, number=0)]
        assert two.port.flush()
        assert two.heard() == [frame(two.mac, GATEWAY, number=1)]

    async def test_a_full_neighbour_delays_nobody_else(self, switch):
        one, two, three_ = Guest(switch, 1), Guest(switch, 2, queue_frames=1), Guest(switch, 3)
        for _ in range(QUEUE_FRAMES + 10):
            assert one.say(BROADCAST)
        assert len(three_.heard()) == QUEUE_FRAMES + 10
        assert two.port.counters == {"queue_full": 9}


class TestTheEnd:
    async def test_a_closed_destination_troubles_nobody(self, switch):
        one, two, three_ = three(switch)
        two.vm.close()
        assert one.say(two.mac)
        assert two.port.counters == {"link_closed": 1}
        assert one.say(BROADCAST)
        assert len(three_.heard()) == 1

    async def test_a_link_that_closes_with_frames_waiting(self, switch):
        one, two = Guest(switch, 1), Guest(switch, 2, queue_frames=1)
        two.say(BROADCAST)
        for _ in range(5):
            one.say(two.mac)
        two.vm.close()
        assert two.port.flush(), "nothing waits any more"
        assert two.port.counters == {"link_closed": 4}
        assert two.port.queued_octets == 0

    async def test_detaching_releases_everything(self, switch):
        one, two = Guest(switch, 1), Guest(switch, 2, queue_frames=1)
        two.say(BROADCAST)
        one.heard()
        for _ in range(5):
            one.say(two.mac)
        switch.detach(two.port)
        switch.detach(two.port)
        assert switch.ports == (one.port,)
        assert not two.port.pending
        assert two.port.flush()
        assert not one.say(two.mac)
        assert one.say(BROADCAST)
        assert len(two.heard()) == 1, "what the link had taken before"
        assert not switch.learn(two.port, mac(50)), "it is gone"
        assert not two.port.deliver([frame(two.mac, GATEWAY)])
        assert two.port.counters == {"link_closed": 1}
        gone = weakref.ref(two.vm)
        del two
        gc.collect()
        assert gone() is None

    async def test_and_it_is_back_at_once(self, switch):
        one, two, _ = three(switch)
        switch.detach(two.port)
        again = Guest(switch, 2)
        assert again.say(one.mac)
        assert one.say(again.mac)
        assert len(again.heard()) == 1

    async def test_a_port_that_leaves_while_a_broadcast_is_under_way(self, switch):
        one, two, three_ = Guest(switch, 1), Guest(switch, 2, queue_frames=1), Guest(switch, 3)
        two.port._on_pending = lambda: switch.detach(three_.port)
        assert one.say(BROADCAST)
        assert one.say(BROADCAST)
        assert switch.ports == (one.port, two.port)
        assert len(three_.heard()) == 1


async def test_many_guests_leave_nothing(switch):
    guests = [Guest(switch, number) for number in range(1, 65)]
    for guest in guests:
        assert guest.say(BROADCAST)
    for guest in guests:
        assert len(guest.heard()) == 63
    for guest in guests[1:]:
        switch.detach(guest.port)
    assert list(switch._owners) == [mac(1)]
    assert switch.ports == (guests[0].port,)


def test_the_constants_hold_a_burst():
    """A super-frame that is cut for a link that is full must fit the queue."""
    assert module.QUEUE_FRAMES >= 65535 // 1448
    assert module.QUEUE_OCTETS >= 65549

"""What all connections of a network may keep between them."""

from __future__ import annotations

from tests.vpnkit.proto.tcp.pair import OFFER, Script
from vpnkit.proto.tcp.budget import LEAST, LIMIT, Budget
from vpnkit.proto.tcp.connection import TcpConnection
from vpnkit.proto.tcp.receiver import CAPACITY, Receiver
from vpnkit.proto.tcp.sender import MAX_BUFFERED
from vpnkit.proto.tcp.seq import distance
from vpnkit.wire.tcp import SynOptions

WIDE = 2**22


def opened(budget: Budget) -> Script:
    script = Script(established=False)
    script.connection = TcpConnection.passive(0, OFFER, 0x5000, SynOptions(1460, 7), 65535, budget=budget)
    script.connection.accept(0.0)
    script.says("S.")
    script.gets(window=WIDE)
    script.connection.sender.congestion.window = WIDE
    return script


def test_alone_nothing_is_limited():
    budget = Budget()
    script = opened(budget)
    assert script.connection.sender.room() == MAX_BUFFERED
    script.write(bytes(MAX_BUFFERED))
    assert budget.used == MAX_BUFFERED


def test_guests_that_never_read_share():
    """B12, the host's side: two hundred of them, and each has about as much as the others, below the limit."""
    budget = Budget()
    scripts = [opened(budget) for _ in range(200)]
    for _ in range(300):
        for script in scripts:
            room = script.connection.sender.room()
            if room:
                script.write(bytes(min(room, 65536)))
    queued = [script.connection.sender.queued for script in scripts]
    assert budget.used == sum(queued) < LIMIT + 200 * LEAST
    assert min(queued) > 100_000


def test_whoever_moves_finds_room_beside_them():
    budget = Budget()
    test = opened(budget)
    budget.used = LIMIT - (1 << 20)
    assert 0 < test.connection.sender.room() <= 1 << 16


def test_what_is_acknowledged_or_given_up_is_free():
    budget = Budget()
    one, other = opened(budget), opened(budget)
    one.write(bytes(5000)).pull()
    other.write(bytes(700)).pull()
    one.connection.finish()
    one.pull()
    other.gets("early", seq=100, ack=1, window=WIDE)
    assert budget.used == 5000 + 1 + 700 + 5
    one.gets(ack=3001, window=WIDE)
    assert budget.used == 2001 + 705
    one.gets(ack=5002, window=WIDE)
    assert budget.used == 705
    other.gets(bytes(99), seq=1, ack=1, window=WIDE)
    assert budget.used == 700
    other.connection.receiver.keep(104)
    assert budget.used == 804
    other.connection.consumed(4)
    assert budget.used == 800
    other.connection.abort("gone")
    for _ in range(2):
        other.connection.release()
        one.connection.release()
    assert budget.used == 0
    other.connection.receiver.leave(100)
    assert budget.used == 0


def test_windows_of_those_who_are_not_read_get_smaller_and_never_go_back():
    """B12, the guest's side."""
    budget = Budget()
    receivers = [Receiver(0, 7, budget=budget) for _ in range(2000)]
    for receiver in receivers:
        receiver.window_field()
    for _ in range(100):
        for receiver in receivers:
            edge = receiver.edge
            taken = min(distance(receiver.nxt, edge), 8192)
            receiver.nxt += taken
            receiver.keep(taken)
            receiver.window_field()
            assert distance(edge, receiver.edge) >= 0
    assert max(receiver.capacity for receiver in receivers) < CAPACITY
    assert all(distance(receiver.nxt, receiver.edge) <= 128 for receiver in receivers)

"""The simulated world: some seeds, that a seed is one world, and that the checker sees each invariant broken."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import trio._core._run

from tests.sim.faults import SOMETIMES
from tests.sim.quiet import broken, scenario
from tests.sim.scenario import EndPlan, TcpPlan, draw
from tests.sim.soak import soak
from tests.sim.world import Outcome, run
from vpnkit.flow.splice import SpliceFlow
from vpnkit.flow.tcp_flow import TcpFlow
from vpnkit.net.icmp import IcmpTable
from vpnkit.net.intake import Intake
from vpnkit.net.tcp import TcpTable
from vpnkit.net.udp_mapping import UdpMapping
from vpnkit.proto.tcp.connection import Offer, TcpConnection
from vpnkit.proto.tcp.receiver import Receiver
from vpnkit.proto.tcp.sender import Sender

if TYPE_CHECKING:
    from pathlib import Path

EVERYDAY = 60
ROOT = __file__.rsplit("/tests/", 1)[0]


def seeds(start: int, count: int) -> Counter[str]:
    faults: Counter[str] = Counter()
    for seed in range(start, start + count):
        outcome = run(draw(seed))
        assert not outcome.broken, f"seed {seed}: {outcome.broken}; python -m tests.sim --seed {seed}"
        faults.update(outcome.faults)
    return faults


@pytest.mark.parametrize("start", range(0, EVERYDAY, 20))
def test_no_invariant_is_broken(start: int) -> None:
    seeds(start, 20)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_invariant_is_broken_and_every_fault_happens() -> None:
    faults = seeds(1000, 500)
    assert not [name for name in SOMETIMES if not faults[name]]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tables_are_empty_and_memory_is_flat_after_hours() -> None:
    assert soak(5, 20, 0) == 0


def test_trio_has_the_private_names_that_make_it_deterministic() -> None:
    assert hasattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING")
    assert hasattr(trio._core._run._r, "shuffle")


def test_i9_same_seed_same_frames_at_the_same_times_in_another_process(tmp_path: Path) -> None:
    """Whatever the hashes of strings and the addresses of objects are."""
    code = "from tests.sim.__main__ import seed; print([seed(n).digest for n in range(6)])"
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert len(set(said[0].split(", "))) == 6
    outcome = run(draw(3), pcap=tmp_path / "a.pcap")
    assert outcome.digest in said[0]
    run(draw(3), pcap=tmp_path / "b.pcap")
    assert (tmp_path / "a.pcap").read_bytes() == (tmp_path / "b.pcap").read_bytes()


# Bugs planted into the network of a quiet world


def test_a_quiet_world_is_fine() -> None:
    outcome = run(scenario())
    assert not outcome.broken
    assert outcome.frames > 60


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Any:
    return monkeypatch.setattr


def test_i1_an_octet_that_changes_is_seen(plant: Any) -> None:
    inner = SpliceFlow.deliver

    def deliver(self: SpliceFlow, now: float) -> None:
        inbox = self.connection.receiver.inbox
        inbox[:] = [bytes(data).replace(b"\x00", b"\x01") for data in inbox]
        inner(self, now)

    plant(SpliceFlow, "deliver", deliver)
    assert "I1" in broken()


def test_i1_a_lost_tail_is_seen(plant: Any) -> None:
    """What waits for the host is forgotten when the guest has finished."""
    inner = SpliceFlow.deliver

    def deliver(self: SpliceFlow, now: float) -> None:
        if self.connection.receiver.finished:
            self.connection.consumed(sum(map(len, self._backlog)))
            self._backlog.clear()
        inner(self, now)

    plant(SpliceFlow, "deliver", deliver)
    assert "I1" in broken()


def test_i1_a_datagram_that_changes_is_seen(plant: Any) -> None:
    inner = UdpMapping._emit

    def emit(self: UdpMapping, source: Any, train: list[bytes], *rest: Any) -> None:
        inner(self, source, [data[:-1] + b"?" for data in train], *rest)

    plant(UdpMapping, "_emit", emit)
    assert "I1 udp" in broken()


def test_i2_an_end_that_nobody_made_is_seen(plant: Any) -> None:
    inner = SpliceFlow.deliver

    def deliver(self: SpliceFlow, now: float) -> None:
        inner(self, now)
        if self.bytes_to_host and not self._shut and self._socket is not None and self.connection.is_open:
            self._shut = True
            self._socket.shutdown(1)

    plant(SpliceFlow, "deliver", deliver)
    assert "I2" in broken() or "I1" in broken()


def test_i2_an_end_that_is_not_told_is_seen(plant: Any) -> None:
    plant(TcpConnection, "finish", lambda _self: None)
    assert broken()[:2] in ("I2", "I6")


def test_i2_a_reset_for_no_reason_is_seen(plant: Any) -> None:
    inner = SpliceFlow.fetch

    def fetch(self: SpliceFlow, now: float) -> None:
        inner(self, now)
        if self.bytes_to_guest > 3000 and not self.connection.is_closed:
            self.abort("for no reason")

    plant(SpliceFlow, "fetch", fetch)
    assert "I2" in broken()


def test_i2_a_connection_without_the_host_is_seen(plant: Any) -> None:
    inner = TcpTable._answer

    def answer(self: TcpTable, flow: Any, number: int, *rest: Any) -> None:
        inner(self, flow, 0 if number else number, *rest)

    plant(TcpTable, "_answer", answer)
    plan = TcpPlan(3, 0.0, "10.1.0.3", 80, EndPlan([(0.1, 700)]), EndPlan(), connect_error=111)
    assert "I2" in broken(tcp=[plan])


def test_i3_a_window_that_shrinks_is_seen(plant: Any) -> None:
    def window_field(self: Receiver) -> int:
        field = max(self.capacity - self.buffered - 2 * len(self.inbox), 0) >> self.scale
        self.edge = (self.nxt + (field << self.scale)) & 0xFFFFFFFF
        return min(field, 65535) // (2 if self.buffered else 1)

    plant(Receiver, "window_field", window_field)
    assert "I3" in broken()


def test_i4_more_than_the_window_is_seen(plant: Any) -> None:
    plant(Sender, "room", lambda *_arguments: 30_000)
    inner = Sender.acknowledge

    def acknowledge(self: Sender, sequence: int, acknowledgement: int, window: int, *rest: Any, **more: Any) -> bool:
        return inner(self, sequence, acknowledgement, window + 9000, *rest, **more)

    plant(Sender, "acknowledge", acknowledge)
    assert "I4" in broken()


def test_i5_a_wrong_checksum_is_seen(plant: Any) -> None:
    inner = TcpFlow._send

    def send(self: TcpFlow, segment: Any) -> bool:
        self.template._fixed_sum += self.bytes_to_guest > 4000
        return inner(self, segment)

    plant(TcpFlow, "_send", send)
    stream = SpliceFlow._stream

    def streamed(self: SpliceFlow, *arguments: Any) -> None:
        self.template._fixed_sum += self.bytes_to_guest > 4000
        stream(self, *arguments)

    plant(SpliceFlow, "_stream", streamed)
    assert "I5: transport checksum" in broken()


def test_i5_a_frame_larger_than_the_mtu_is_seen(plant: Any) -> None:
    plant(TcpTable, "_offer", lambda _self, _key: Offer(1460, 3000))
    plant("vpnkit.proto.tcp.sender.Sender.mss", property(lambda _self: 3000, lambda _self, _value: None))
    assert "I5: 2960 octets" in broken(tcp=[TcpPlan(1, 0.0, "10.1.0.1", 80, EndPlan(), EndPlan([(0.1, 9000)]))])


def test_i6_a_mapping_that_stays_is_seen(plant: Any) -> None:
    plant(UdpMapping, "next_deadline", lambda _self: float("inf"))
    assert "I6" in broken()


def test_i6_a_descriptor_that_is_left_open_is_seen(plant: Any) -> None:
    inner = UdpMapping.close

    def close(self: UdpMapping) -> None:
        host, self._socket = self._socket, None
        if host is not None:
            self._table.guest.poller.unregister(host.fileno())
        inner(self)

    plant(UdpMapping, "close", close)
    assert "I6" in broken()


def test_i7_a_backlog_that_is_not_counted_is_seen(plant: Any) -> None:
    inner = SpliceFlow._keep

    def keep(self: SpliceFlow, inbox: Any) -> None:
        before = self.connection.receiver.buffered
        inner(self, inbox)
        self.connection.receiver.buffered = before

    plant(SpliceFlow, "_keep", keep)
    assert "I7" in broken()


def test_i8_an_exception_is_seen(plant: Any) -> None:
    def message(*_arguments: Any) -> None:
        raise RuntimeError("planted")

    plant(IcmpTable, "message", message)
    assert "I8" in broken()
    assert "planted" in broken()


def test_i10_a_frame_that_changes_another_flow_is_seen(plant: Any) -> None:
    inner = Intake.frame

    def frame(self: Intake, view: memoryview, now: float) -> None:
        inner(self, view, now)
        for flow in self._guest.tcp.flows.values():
            flow.connection.sender.window += 1

    plant(Intake, "frame", frame)
    assert "I10" in broken()


def outcome_of(**more: Any) -> Outcome:
    return run(scenario(**more))


def test_i1_a_full_host_socket_that_fails_after_the_end_is_a_reset() -> None:
    """The guest's last octets and its FIN come together, the host had finished, and the socket takes nothing more:
    the host must not see an end, as if that had been everything."""
    plan = TcpPlan(1, 0.0, "10.1.0.1", 80, EndPlan([(0.8, 100)], "after"), EndPlan([], "fin"))
    outcome = outcome_of(tcp=[plan], faults={"enobufs": 1.0})
    assert outcome.faults["enobufs"]
    assert not outcome.broken


def test_i2_a_forward_that_the_guest_has_no_room_for_is_a_reset(plant: Any) -> None:
    """The host's client is connected already; an end would say that the guest's program had nothing to say."""

    def call(*_arguments: Any, **_more: Any) -> None:
        raise OSError(errno.ENOBUFS, "the guest has too many flows")

    plant(TcpTable, "call", call)
    plan = TcpPlan(1, 0.0, "10.1.0.1", 2001, EndPlan([(0.1, 100)]), EndPlan([], "after"), forward=True)
    assert not outcome_of(tcp=[plan]).broken

"""What a network remembers between its runs."""

from __future__ import annotations

import random
import uuid

import msgspec
import pytest
import trio
from trio.testing import MockClock

from vpnkit.errors import ConfigError
from vpnkit.net.identities import Identities
from vpnkit.net.lease_options import LeaseOptions
from vpnkit.net.leasing import dhcp_config
from vpnkit.net.memory import SAVE_SECONDS, Memory
from vpnkit.net.network import Network, NetworkOptions
from vpnkit.net.plan import Plan
from vpnkit.proto.dhcp import DhcpReply, DhcpServer
from vpnkit.services.state_file import State, StateFile
from vpnkit.wire import dhcp
from vpnkit.wire.dhcp import DhcpMessage

UUID = uuid.UUID("d1d9cd61-d0dc-4715-9bb3-4c11da7ad7a5")


def mac(number: int) -> bytes:
    return b"\x02\x00" + number.to_bytes(4, "big")


class Run:
    """One run of an instance, as far as leases go."""

    def __init__(self, path, wall: float = 1e9) -> None:
        self.wall = wall
        self.dhcp = DhcpServer(dhcp_config(Plan()))
        self.identities = Identities(self.dhcp, lambda mac: False)
        self.memory = Memory(StateFile(path), self.dhcp, self.identities, self.clock)

    def clock(self) -> float:
        return self.wall + trio.current_time()

    def gets(self, number: int, **options: bytes) -> bytes:
        sent = {53: bytes((dhcp.DISCOVER,))} | ({61: options["client"]} if options else {})
        now = trio.current_time()
        reply = self.dhcp.receive(DhcpMessage(1, 7, mac(number), sent), now)
        assert isinstance(reply, DhcpReply)
        ip = reply.message.yiaddr
        sent |= {53: bytes((dhcp.REQUEST,)), 50: ip}
        assert isinstance(self.dhcp.receive(DhcpMessage(1, 7, mac(number), sent), now), DhcpReply)
        return ip


def go(body) -> None:
    async def main():
        async with trio.open_nursery() as nursery:
            await body(nursery)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state"


def read(path) -> State:
    return msgspec.json.decode(path.read_bytes(), type=State)


@pytest.mark.requirement("RFC2131 1.6")
def test_everybody_has_his_address_again(path):
    given = {}

    async def first(nursery):
        run = Run(path)
        await nursery.start(run.memory.run)
        for number in (5, 4, 3):
            given[number] = run.gets(number)
        given["id"] = run.gets(2, client=b"\xffid")
        given[UUID] = run.identities.register(UUID, None, trio.current_time())

    async def second(nursery):
        run = Run(path)
        await nursery.start(run.memory.run)
        assert run.gets(6) not in given.values()
        assert run.gets(7, client=b"\xffid") == given["id"]
        assert {number: run.gets(number) for number in (3, 4, 5)} == {number: given[number] for number in (3, 4, 5)}
        assert run.identities.register(UUID, None, trio.current_time()) == given[UUID]
        assert run.identities.register(None, None, trio.current_time()).mac != given[UUID].mac

    go(first)
    go(second)


def test_a_lease_goes_on_by_the_wall_clock(path):
    async def first(nursery):
        await trio.sleep(500)  # another clock than the second run's
        run = Run(path, wall=1e9)
        await nursery.start(run.memory.run)
        run.gets(1)

    async def second(nursery):
        run = Run(path, wall=1e9 + 500 + 86000)
        await nursery.start(run.memory.run)
        [lease] = run.dhcp.leases(trio.current_time())
        assert lease.state == "bound"
        assert lease.expires_at == pytest.approx(400)

    go(first)
    go(second)


def test_changes_are_written_soon_and_together(path):
    async def body(nursery):
        run = Run(path)
        await nursery.start(run.memory.run)
        writes = []
        written = trio.Event()
        save = run.memory._file.save

        def noted(state):
            writes.append(state)
            save(state)
            trio.from_thread.run_sync(written.set)

        run.memory._file.save = noted
        await trio.sleep(100)
        assert writes == []
        for number in range(20):
            run.gets(number)
        await trio.sleep(SAVE_SECONDS / 2)
        assert writes == []
        await written.wait()
        run.memory._file.save = save
        assert [len(state.leases) for state in writes] == [20]
        assert len(read(path).leases) == 20

    go(body)


def test_an_offer_is_not_remembered(path):
    async def body(nursery):
        run = Run(path)
        await nursery.start(run.memory.run)
        run.dhcp.receive(DhcpMessage(1, 7, mac(1), {53: b"\1"}), trio.current_time())

    go(body)
    assert read(path).leases == []


def test_a_disk_that_is_full_does_not_stop_anybody(path, caplog):
    async def body(nursery):
        run = Run(path)
        await nursery.start(run.memory.run)
        tried = trio.Event()
        save = run.memory._file.save

        def full(state):
            trio.from_thread.run_sync(tried.set)
            raise OSError(28, "No space left on device")

        run.memory._file.save = full
        run.gets(1)
        await tried.wait()
        run.memory._file.save = save
        assert run.gets(2)

    go(body)
    assert "No space" in caplog.text
    assert len(read(path).leases) == 2  # it was tried again


def test_what_was_assigned_is_not_remembered(path):
    """Whoever assigns does so again."""

    async def body(nursery):
        run = Run(path)
        await nursery.start(run.memory.run)
        run.dhcp.assign(mac(9), Plan().guest_ip.packed, "", 0.0)

    go(body)
    assert read(path).leases == []


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"leases": [{"ip": "x", "mac": "", "client_id": "", "hostname": "", "expires": 1, "state": "bound"}]}',
        '{"leases": [{"ip": "1.2.3.4", "mac": "02", "client_id": "", "hostname": "", "expires": 1, "state": "bound"}]}',
        '{"identities": [{"uuid": "x", "mac": "02:00:00:00:00:01", "ip": "192.168.65.3"}]}',
    ],
)
def test_a_broken_file_is_an_error_before_anything_runs(path, text):
    path.write_text(text)
    for _ in range(2):  # and it is not locked afterwards
        with pytest.raises(ConfigError, match="broken"):
            Network(Plan(), NetworkOptions(leasing=LeaseOptions(state=path), rng=random.Random(1)))
    assert path.read_text() == text


def test_a_network_keeps_its_file(path):
    async def body(nursery):
        network = Network(Plan(), NetworkOptions(leasing=LeaseOptions(state=path), rng=random.Random(1), ipv6="off"))
        await nursery.start(network.run)
        registration = network.register(UUID, None)
        message = DhcpMessage(1, 7, registration.mac, {53: bytes((dhcp.REQUEST,)), 50: registration.ip})
        assert isinstance(network.dhcp.receive(message, trio.current_time()), DhcpReply)

    go(body)
    state = read(path)
    [lease] = state.leases
    assert (lease.ip, lease.mac, lease.state) == ("192.168.65.3", "02:50:00:00:00:01", "bound")
    assert [identity.uuid for identity in state.identities] == [str(UUID)]

"""What a network tells of itself while guests come and go."""

from __future__ import annotations

import pytest
import trio

from portfwd.errors import ForwardError
from tests.vpnkit.net.neighbours import lan
from vpnkit.net.events import ForwardAdded, ForwardRemoved, GuestCame, GuestLeft, LeaseGiven, Warned


async def test_a_guest_comes_gets_an_address_and_leaves() -> None:
    async with lan(0) as world:
        with world.network.events.listening() as listener, trio.fail_after(5):
            neighbour = await world.come()
            [came] = await listener.take()
            assert isinstance(came, GuestCame)
            assert came.guest.id == world.network.guests[0].number
            address = await neighbour.lease()
            [given] = await listener.take()
            assert isinstance(given, LeaseGiven)
            assert (given.ip, given.mac, given.guest) == (address, neighbour.mac, came.guest.id)
            await world.go(neighbour)
            [left] = await listener.take()
            assert isinstance(left, GuestLeft)
            assert (left.guest.id, left.guest.ip) == (came.guest.id, address)
            assert left.guest.frames_to_host > 0


async def test_forwards_and_warnings() -> None:
    async with lan(0) as world:
        network = world.network
        with network.events.listening() as listener, trio.fail_after(5):
            [forward] = await network.expose("127.0.0.1:0:80")
            [added] = await listener.take()
            assert isinstance(added, ForwardAdded)
            assert [report.spec for report in added.forwards] == [str(forward.spec)]
            await network.unexpose(str(forward.spec))
            [removed] = await listener.take()
            assert isinstance(removed, ForwardRemoved)
            assert [report.spec for report in removed.forwards] == [str(forward.spec)]
            with pytest.raises(ForwardError):
                await network.unexpose(str(forward.spec))
            network._warn("something")
            [warned] = await listener.take()
            assert isinstance(warned, Warned)
            assert warned.message == "something"
            assert abs(warned.time - network.events.now()) < 60

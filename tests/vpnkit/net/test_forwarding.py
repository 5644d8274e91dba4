"""Forwards of a whole network: whose guests come and go, and what is told about them."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import trio
from scapy.layers.inet import IP, TCP, UDP

from portfwd.errors import ForwardError
from portfwd.spec import SpecError
from tests.vpnkit.net.neighbours import lan
from vpnkit.net.events import ForwardAdded, ForwardRemoved
from vpnkit.net.operator import NetworkOperator

if TYPE_CHECKING:
    from portfwd.forward import Forward
    from vpnkit.net.network import Network

LOOPBACK = "127.0.0.1"


async def one(network: Network, text: str) -> Forward:
    [forward] = await network.expose(text)
    return forward


async def is_reset(forward: Forward) -> bool:
    try:
        async with await trio.open_tcp_stream(*forward.addresses[0]) as client:
            with trio.fail_after(5):
                await client.receive_some()
    except (trio.BrokenResourceError, OSError):
        return True
    return False


async def test_a_guest_leaves_and_returns() -> None:
    async with lan(1) as world:
        [guest] = world.neighbours
        stream = await one(world.network, f"{LOOPBACK}:0:{guest.ip}:80")
        datagram = await one(world.network, f"{LOOPBACK}:0:{guest.ip}:53/udp")
        async with await trio.open_tcp_stream(*stream.addresses[0]) as client:
            await guest.hears(lambda frame: TCP in frame and frame[TCP].dport == 80)
            await world.go(guest)
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
        assert await is_reset(stream)
        assert stream.failures == 1
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            await client.connect(datagram.addresses[0])
            await client.send(b"lost")
            await world.until(lambda: datagram.failures == 1)
            back = await world.come()
            back.ip = guest.ip
            back.speak()
            await world.settled(back)
            await client.send(b"found")
            assert bytes((await back.hears(lambda frame: UDP in frame))[UDP].payload) == b"found"
        async with await trio.open_tcp_stream(*stream.addresses[0]):
            syn = await back.hears(lambda frame: TCP in frame)
            assert (syn[IP].dst, syn[TCP].dport) == (guest.ip, 80)


async def test_a_forward_goes_to_the_guest_that_has_the_address() -> None:
    async with lan(3) as world:
        forwards = [await one(world.network, f"{LOOPBACK}:0:{guest.ip}:53/udp") for guest in world.neighbours]
        for guest, forward in zip(world.neighbours, forwards, strict=True):
            with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                await client.sendto(guest.ip.encode(), forward.addresses[0])
                frame = await guest.hears(lambda frame: UDP in frame)
                assert bytes(frame[UDP].payload) == guest.ip.encode()


async def test_all_or_nothing_and_what_is_told() -> None:
    async with lan(1) as world:
        network = world.network
        operator = NetworkOperator(network)
        with network.events.listening() as heard:
            [report] = await operator.expose(f"{LOOPBACK}:0:80")
            port = report.host_port
            with pytest.raises(ForwardError, match=f"{LOOPBACK}:{port} is forwarded already"):
                await operator.expose(f"{LOOPBACK}:{port}:81")
            with pytest.raises(SpecError):
                await operator.expose("x")
            with pytest.raises(ForwardError, match="1:1 is not forwarded"):
                await operator.unexpose("1:1")
            assert [known.spec for known in operator.forwards()] == [f"{LOOPBACK}:{port}:80"]
            gone = await operator.unexpose(report.spec)
            assert [known.spec for known in gone] == [report.spec]
            assert operator.forwards() == []
            events = await heard.take()
        assert [type(event) for event in events] == [ForwardAdded, ForwardRemoved]


async def test_reports_of_every_kind(tmp_path: object) -> None:
    async with lan(1) as world:
        operator = NetworkOperator(world.network)
        await operator.expose("0:80")
        await operator.expose(f"{LOOPBACK}:0:[fd65::3]:53/udp,source=client")
        await operator.expose(f"unix:{tmp_path}/s:80")
        await operator.expose(f"{LOOPBACK}:0:vsock:3:1024")
        reports = operator.forwards()
        assert [(r.protocol, r.host_address, r.guest_address, r.guest_port, r.guest_cid) for r in reports] == [
            ("tcp", LOOPBACK, None, 80, None),
            ("tcp", "::1", None, 80, None),
            ("udp", LOOPBACK, "fd65::3", 53, None),
            ("unix", "", None, 80, None),
            ("tcp", LOOPBACK, None, 1024, 3),
        ]
        assert [report.host_path for report in reports] == [None, None, None, f"{tmp_path}/s", None]
        for spec in {report.spec for report in reports}:
            await operator.unexpose(spec)
        assert operator.forwards() == []


async def test_descriptors_are_kept_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with lan(1, max_connections=2) as world:
        forward = await one(world.network, f"{LOOPBACK}:0:80")
        assert world.network._admit()
        clients = [await trio.open_tcp_stream(*forward.addresses[0]) for _ in range(2)]
        await world.until(lambda: forward.connections == 2)
        assert not world.network._admit()
        assert await is_reset(forward)
        assert forward.refused == 1
        for client in clients:
            await client.aclose()
        monkeypatch.setattr(world.network, "_limit", 1000)
        assert world.network._admit()
        monkeypatch.setattr(world.network, "_descriptors", 3)  # two sockets of guests and one that listens
        assert not world.network._admit()


async def test_a_guest_leaves_some_to_others(caplog: pytest.LogCaptureFixture) -> None:
    async with lan(2, max_guest_connections=1) as world:
        first, second = world.neighbours
        forward = await one(world.network, f"{LOOPBACK}:0:{first.ip}:80")
        other = await one(world.network, f"{LOOPBACK}:0:{second.ip}:80")
        async with await trio.open_tcp_stream(*forward.addresses[0]):
            await first.hears(lambda frame: TCP in frame)
            assert await is_reset(forward)
            assert world.counter(first, "tcp_limit") == 1
            assert f"guest {first.guest.number} has as many connections as he may" in caplog.text
            async with await trio.open_tcp_stream(*other.addresses[0]):
                await second.hears(lambda frame: TCP in frame)


async def test_clients_of_udp_are_flows_that_came_in() -> None:
    async with lan(1) as world:
        [guest] = world.neighbours
        operator = NetworkOperator(world.network)
        forward = await one(world.network, f"{LOOPBACK}:0:{guest.ip}:53/udp")
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            await client.bind((LOOPBACK, 0))
            await client.sendto(b"four", forward.addresses[0])
            frame = await guest.hears(lambda frame: UDP in frame)
            [flow] = operator.flows()
            assert (flow.protocol, flow.direction, flow.bytes_to_guest) == ("udp", "in", 4)
            assert (flow.guest, flow.remote) == (f"{guest.ip}:53", f"192.168.65.2:{frame[UDP].sport}")
            assert flow.host == f"{LOOPBACK}:{client.getsockname()[1]}"
            assert operator.status().flows["udp"] == 1
        await world.network.unexpose(str(forward.spec))
        assert operator.flows() == []

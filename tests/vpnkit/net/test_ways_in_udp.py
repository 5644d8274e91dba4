"""Forwards of datagrams to a guest, and what he answers."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from scapy.layers.inet import ICMP, IP, UDP

from portfwd.spec import parse
from tests.vpnkit.net.scripted_guest import (
    HOST,
    HOST6,
    IP6,
    OFFLOADS,
    PLAIN,
)
from tests.vpnkit.net.ways import GUEST, PATIENCE, ways
from vpnkit.net import udp_inbound

if TYPE_CHECKING:
    from portfwd.forward import Forward


async def datagram_client(forward: Forward) -> trio.socket.SocketType:
    made = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await made.connect(forward.addresses[0])
    return made


class TestDatagrams:
    @pytest.mark.parametrize("capabilities", [PLAIN, OFFLOADS])
    async def test_there_and_back(self, capabilities: object) -> None:
        async with ways(capabilities=capabilities) as w:
            forward = await w.expose("127.0.0.1:0:53/udp")
            with await datagram_client(forward) as client:
                await client.send(b"question")
                source, port, called, data = await w.scripted.answer()
                assert (source, called, data) == (HOST, 53, b"question")
                assert port >= 49152
                w.scripted.datagram(b"answer", port, HOST, 53)
                with trio.fail_after(PATIENCE):
                    assert await client.recv(100) == b"answer"
                await client.send(b"again")
                assert (await w.scripted.answer())[:3] == (HOST, port, 53)
            assert not w.inner.guest.udp.mappings

    async def test_clients_have_ports_of_their_own(self) -> None:
        async with ways() as w:
            forward = await w.expose("127.0.0.1:0:53/udp")
            with await datagram_client(forward) as one, await datagram_client(forward) as two:
                await one.send(b"1")
                _, first, _, _ = await w.scripted.answer()
                await two.send(b"2")
                _, second, _, _ = await w.scripted.answer()
                assert first != second
                w.scripted.datagram(b"to two", second, HOST, 53)
                w.scripted.datagram(b"to one", first, HOST, 53)
                with trio.fail_after(PATIENCE):
                    assert [await one.recv(100), await two.recv(100)] == [b"to one", b"to two"]

    async def test_an_answer_from_another_port_is_none(self) -> None:
        """It would be a datagram of the guest's own to the host."""
        async with ways() as w:
            forward = await w.expose("127.0.0.1:0:53/udp")
            with await datagram_client(forward) as client:
                await client.send(b"1")
                _, port, _, _ = await w.scripted.answer()
                w.scripted.datagram(b"not from 53", port, HOST, 54)
                w.scripted.datagram(b"from 53", port, HOST, 53)
                with trio.fail_after(PATIENCE):
                    assert await client.recv(100) == b"from 53"

    async def test_ipv6(self) -> None:
        async with ways() as w:
            w.speak6()
            forward = await w.expose(f"127.0.0.1:0:[{IP6}]:53/udp")
            with await datagram_client(forward) as client:
                await client.send(b"question")
                source, port, called, data = await w.scripted.answer()
                assert (source, called, data) == (HOST6, 53, b"question")
                w.scripted.datagram(b"answer", port, HOST6, 53)
                with trio.fail_after(PATIENCE):
                    assert await client.recv(100) == b"answer"

    @pytest.mark.parametrize("size", [0, 1, 1472, 1473, 9216, 65507])
    async def test_sizes(self, size: int) -> None:
        async with ways() as w:
            forward = await w.expose("127.0.0.1:0:53/udp")
            with await datagram_client(forward) as client:
                await client.send(b"x" * size)
                first = await w.scripted.frame(IP)
                assert first[IP].src == HOST
                assert bool(first[IP].flags.MF) == (size > 1472)

    async def test_its_own_address(self) -> None:
        async with ways() as w:
            heard = []
            [spec] = parse("53/udp,source=client")
            peer = w.ways_in.open(
                spec, ("203.0.113.9", 5555), lambda parts, size: heard.append((b"".join(parts), size))
            )
            peer.send_to_guest(b"question", 0)
            assert await w.scripted.answer() == ("203.0.113.9", 5555, 53, b"question")
            w.scripted.datagram(b"answer", 5555, "203.0.113.9", 53)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert heard == [(b"answer", 0)]
            peer.close()
            peer.close()
            w.scripted.datagram(b"too late", 5555, "203.0.113.9", 53)  # to the world, from now on
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert heard == [(b"answer", 0)]

    async def test_a_train_goes_as_one_where_the_link_can(self) -> None:
        async with ways(capabilities=OFFLOADS) as w:
            [spec] = parse("53/udp")
            peer = w.ways_in.open(spec, ("127.0.0.1", 5555), lambda parts, size: None)
            peer.send_to_guest(b"x" * 2500, 1000)
            frame = await w.scripted.frame(UDP)
            assert len(frame[UDP].payload) == 2500
            peer.close()

    async def test_a_train_of_the_guest_goes_back_as_one(self) -> None:
        async with ways() as w:
            heard = []
            [spec] = parse("53/udp")
            peer = w.ways_in.open(
                spec, ("127.0.0.1", 5555), lambda parts, size: heard.append((list(map(bytes, parts)), size))
            )
            peer.send_to_guest(b"x", 0)
            _, port, _, _ = await w.scripted.answer()
            w.scripted.datagram(b"first", port, HOST, 53)  # so that the next ones go the fast way
            await trio.testing.wait_all_tasks_blocked(0.01)
            for _ in range(3):
                w.scripted.datagram(b"abcd", port, HOST, 53)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert b"".join(b"".join(parts) for parts, _ in heard) == b"first" + 3 * b"abcd"
            peer.close()

    async def test_clients_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(udp_inbound, "MAX_INBOUND", 2)
        async with ways() as w:
            [spec] = parse("53/udp")
            peers = [w.ways_in.open(spec, ("127.0.0.1", port), lambda parts, size: None) for port in (1, 2)]
            with pytest.raises(OSError, match="more than 2 clients"):
                w.ways_in.open(spec, ("127.0.0.1", 3), lambda parts, size: None)
            assert w.inner.guest.counters["udp_inbound_limit"] == 1
            for peer in peers:
                peer.close()

    async def test_port_unreachable_ends_nothing(self) -> None:
        """RFC 4787 REQ-12."""
        async with ways() as w:
            forward = await w.expose("127.0.0.1:0:53/udp")
            with await datagram_client(forward) as client:
                await client.send(b"1")
                asked = await w.scripted.frame(UDP)
                w.scripted.ip(IP(src=GUEST, dst=HOST) / ICMP(type=3, code=3) / bytes(asked[IP]))
                w.scripted.datagram(b"answer", asked[UDP].sport, HOST, 53)
                with trio.fail_after(PATIENCE):
                    assert await client.recv(100) == b"answer"
            assert w.inner.guest.counters["malformed"] == 0

    async def test_the_guest_goes(self) -> None:
        async with ways() as w:
            forward = await w.expose("127.0.0.1:0:53/udp")
            with await datagram_client(forward) as client:
                await client.send(b"1")
                await w.scripted.answer()
                [mapping] = w.inner.guest.udp.inbound.values()
                w.scripted.link.close()
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not mapping.is_open
                await client.send(b"2")
                await trio.testing.wait_all_tasks_blocked(1.0)
            assert forward.failures == 1

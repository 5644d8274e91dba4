"""Forwards to a guest who answers by our own core, over a link in memory."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP

from portfwd.spec import parse
from portfwd.table import ForwardError
from tests.vpnkit.net.scripted_guest import (
    HOST,
    HOST6,
    IP6,
    MAC,
    OFFLOADS,
    PLAIN,
    Client,
    ScriptedGuest,
    World,
    arp,
    checksums_hold,
    octets,
    world,
)
from vpnkit.net import calls, udp_inbound
from vpnkit.net.ways_in import WaysIn
from vpnkit.proto.tcp.connection import Offer, TcpConnection
from vpnkit.wire.tcp import FrameTemplate, FrameTemplate6, decode, decode_syn_options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from portfwd.forward import Forward
    from vpnkit.net.plan import Plan

GUEST = "192.168.65.3"
PATIENCE = 5.0


class Answer(Client):
    """A connection that was called: the guest answers a SYN."""

    def __init__(self, guest: ScriptedGuest, syn: bytes) -> None:
        self.guest = guest
        six = syn[14] >> 4 == 6
        start = 54 if six else 34
        self.key = syn[22:58] if six else syn[26:38]
        size = 16 if six else 4
        self.caller, called, ports = self.key[:size], self.key[size:-4], self.key[-4:]
        segment = decode(memoryview(syn)[start:])
        mss = 1440 if six else 1460
        self.connection = TcpConnection.passive(
            guest.rng.randrange(2**32),
            Offer(mss, mss),
            segment.sequence,
            decode_syn_options(segment.options, 536),
            segment.window,
        )
        make = FrameTemplate6 if six else FrameTemplate
        self.template = make(MAC, MAC, called, self.caller, ports[2:] + ports[:2])
        self.template.buffer[0:6] = guest.plan.server_mac
        self.caller_port = struct.unpack("!H", ports[:2])[0]
        self.got = bytearray()
        self.reading = True
        self.changed = trio.lowlevel.ParkingLot()
        self.reset_sequence = None
        self.segments: list[tuple[int, int]] = []
        guest.clients[self.key] = self
        self.connection.accept(trio.current_time())
        self.flush()


@dataclass
class Ways:
    inner: World
    ways_in: WaysIn
    nursery: trio.Nursery

    @property
    def scripted(self) -> ScriptedGuest:
        return self.inner.scripted

    async def expose(self, text: str) -> Forward:
        [forward] = await self.ways_in.forwards.expose_all(parse(text), self.nursery)
        return forward

    async def answer(self) -> Answer:
        """Answer the next SYN."""
        syn = await self.scripted.frame(TCP)
        assert checksums_hold(bytes(syn))
        there = Answer(self.scripted, bytes(syn))
        await there.until(lambda: there.connection.is_open)
        return there

    def speak6(self) -> None:
        """The guest has an IPv6 address from now on."""
        self.scripted.datagram(b"", 9, HOST6, 9)


@asynccontextmanager
async def ways(
    plan: Plan | None = None, capabilities: object = PLAIN, *, limit: int = 1000, allowed: Sequence[str] = ()
) -> AsyncIterator[Ways]:
    async with world(plan, capabilities) as inner:
        lan = inner.guest.station.lan
        made = WaysIn(
            inner.guest.plan,
            lan,
            [inner.guest],
            lambda: len(inner.guest.poller) + made.unpolled < limit,
            allowed=[ip_network(text) for text in allowed],
        )
        async with trio.open_nursery() as nursery:
            yield Ways(inner, made, nursery)
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert made.unpolled == 0
        assert not inner.guest.calls._waiting
        assert not inner.guest.udp.inbound


async def dial(forward: Forward, source: str = "127.0.0.1") -> trio.SocketStream:
    address = forward.addresses[0]
    made = trio.socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    try:
        await made.bind((source, 0))
        await made.connect(address)
    except BaseException:
        made.close()
        raise
    return trio.SocketStream(made)


async def read_all(stream: trio.SocketStream) -> bytes:
    with trio.fail_after(PATIENCE):
        return b"".join([chunk async for chunk in stream])


class TestStreams:
    async def test_the_alias_calls_the_guest(self) -> None:
        async with ways() as w:
            forward = await w.expose("127.0.0.1:0:80")
            async with await dial(forward) as client:
                there = await w.answer()
                assert there.caller == octets(HOST)
                await client.send_all(b"request")
                await client.send_eof()
                assert await there.finished() == b"request"
                await there.send(b"answer")
                there.finish()
                assert await read_all(client) == b"answer"
            await there.closed()

    @pytest.mark.parametrize("text", [f"127.0.0.1:0:[{IP6}]:80", f"[::1]:0:[{IP6}]:80"])
    async def test_ipv6_guests(self, text: str) -> None:
        async with ways() as w:
            w.speak6()
            forward = await w.expose(text)
            async with await dial(forward, "::1" if text.startswith("[") else "127.0.0.1") as client:
                there = await w.answer()
                assert there.caller == octets(HOST6)
                await there.send(b"hello")
                there.finish()
                assert await read_all(client) == b"hello"

    async def test_a_guest_without_ipv4(self) -> None:
        """The forward names no address; IPv4 is asked for first, and not for every connection."""
        async with ways() as w:
            w.inner.guest.station.released(octets(GUEST))
            w.speak6()
            forward = await w.expose("127.0.0.1:0:80")
            for _ in range(2):
                async with await dial(forward):
                    there = await w.answer()
                    assert there.caller == octets(HOST6)
                    there.finish()
            asked = w.inner.guest.station.lan._asked[octets(GUEST)]
            assert trio.current_time() >= asked + 0.3  # the last of three times, and nobody had it

            w.inner.guest.station.given(octets(GUEST), MAC)
            async with await dial(forward):
                assert (await w.answer()).caller == octets(HOST)

    @pytest.mark.parametrize(("version", "start"), [("v1", b"PROXY TCP4 127.0.0.1 "), ("v2", b"\r\n\r\n\0\r\nQUIT\n")])
    async def test_the_proxy_header_comes_first(self, version: str, start: bytes) -> None:
        async with ways() as w:
            forward = await w.expose(f"127.0.0.1:0:80,proxy={version}")
            async with await dial(forward) as client:
                there = await w.answer()
                port = client.socket.getsockname()[1]
                expected = (
                    f"PROXY TCP4 127.0.0.1 127.0.0.1 {port} {forward.spec.host_port}\r\n".encode()
                    if version == "v1"
                    else start
                    + bytes.fromhex("2111000c7f0000017f000001")
                    + struct.pack("!HH", port, forward.spec.host_port)
                )
                assert await there.receive(len(expected)) == expected  # before the client has said a word
                await client.send_all(b"hello")
                await client.send_eof()
                assert await there.finished() == expected + b"hello"
                there.finish()
                assert await read_all(client) == b""

    async def test_a_unix_socket(self, tmp_path: object) -> None:
        path = f"{tmp_path}/forward"
        async with ways() as w:
            forward = await w.expose(f"unix:{path}:80,proxy=v1")
            async with await trio.open_unix_socket(path) as client:
                there = await w.answer()
                assert [flow.remote for flow in w.inner.guest.tcp.flows.values()] == [f"unix:{path}"]
                await client.send_all(b"x")
                await client.send_eof()
                assert await there.finished() == b"PROXY UNKNOWN\r\nx"
                await there.send(b"y")
                there.finish()
                assert await read_all(client) == b"y"
            other = WaysIn(w.inner.guest.plan, w.inner.guest.station.lan, [], lambda: True)
            with pytest.raises(ForwardError, match=f"{path} is already served by process"):
                await other.forwards.expose(forward.spec, w.nursery)
        with pytest.raises(FileNotFoundError):
            await trio.open_unix_socket(path)

    async def test_a_stale_path_is_replaced(self, tmp_path: object) -> None:
        path = f"{tmp_path}/forward"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        async with ways() as w:
            await w.expose(f"unix:{path}:80")
            async with await trio.open_unix_socket(path):
                await w.answer()

    async def test_nobody_listens_in_the_guest(self) -> None:
        async with ways() as w:
            forward = await w.expose("127.0.0.1:0:80")
            async with await dial(forward) as client:
                syn = await w.scripted.frame(TCP)
                ports = {"sport": 80, "dport": syn[TCP].sport}
                w.scripted.ip(IP(src=GUEST, dst=HOST) / TCP(**ports, flags="RA", ack=syn[TCP].seq + 1))
                with pytest.raises(trio.BrokenResourceError):
                    await client.receive_some()

    async def test_silence_ends_it_when_that_was_asked_for(self) -> None:
        async with ways() as w:
            forward = await w.expose("127.0.0.1:0:80,idle=1")
            async with await dial(forward) as client:
                there = await w.answer()
                for _ in range(3):  # longer than the limit in all
                    await trio.sleep(0.5)
                    await client.send_all(b"x")
                await there.receive(3)
                with pytest.raises(trio.BrokenResourceError), trio.fail_after(PATIENCE):
                    await client.receive_some()
                await there.closed()
            assert w.inner.guest.counters["tcp_forward_idle"] == 1

    async def test_connections_go_with_their_forward_if_asked(self) -> None:
        async with ways() as w:
            forward = await w.expose("127.0.0.1:0:80")
            async with await dial(forward) as client:
                there = await w.answer()
                await w.ways_in.forwards.unexpose(forward.spec, connections=True)
                with pytest.raises(trio.BrokenResourceError):
                    await client.receive_some()
                await there.closed()
                assert there.reset_sequence is not None

    async def test_too_many_are_reset_at_once(self) -> None:
        async with ways(limit=1) as w:
            forward = await w.expose("127.0.0.1:0:80")
            async with await dial(forward):
                await w.answer()
                refused = 0
                try:
                    async with await dial(forward) as more:
                        await more.receive_some()
                except (trio.BrokenResourceError, ConnectionResetError):
                    refused += 1
                assert refused == forward.refused == 1

    async def test_the_oldest_unanswered_call_makes_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(calls, "MAX_UNANSWERED", 2)
        async with ways() as w:
            forward = await w.expose("127.0.0.1:0:80")
            async with await dial(forward) as answered:
                there = await w.answer()
                await there.send(b"here")
                assert await answered.receive_some() == b"here"
                waiting = []
                for _ in range(3):
                    waiting.append(await dial(forward))
                    await w.scripted.frame(TCP)
                with pytest.raises(trio.BrokenResourceError), trio.fail_after(PATIENCE):
                    await waiting[0].receive_some()
                assert w.inner.guest.counters["tcp_call_evicted"] == 1
                await there.send(b"still")  # what was answered is nobody's place
                assert await answered.receive_some() == b"still"
                for stream in waiting:
                    await stream.aclose()

    async def test_a_guest_that_is_not_there(self, caplog: pytest.LogCaptureFixture) -> None:
        async with ways() as w:
            forward = await w.expose("127.0.0.1:0:192.168.65.77:80")
            async with await dial(forward) as client:
                question = await w.scripted.frame(ARP)
                assert question[ARP].pdst == "192.168.65.77"
                assert w.ways_in.unpolled == 1
                with pytest.raises(trio.BrokenResourceError), trio.fail_after(PATIENCE):
                    await client.receive_some()
            assert "no guest has 192.168.65.77" in caplog.text
            assert forward.failures == 1

    async def test_a_guest_who_says_where_he_is_when_asked(self) -> None:
        async with ways() as w:
            forward = await w.expose("127.0.0.1:0:192.168.65.77:80")
            async with await dial(forward) as client:
                await w.scripted.frame(ARP)
                w.scripted.send(arp(HOST, "192.168.65.77"))
                there = await w.answer()
                await there.send(b"here")
                assert await client.receive_some() == b"here"


class TestTunnel:
    async def test_what_was_read_goes_first(self) -> None:
        async with ways() as w:
            near, far = socket.socketpair()
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
            far.setblocking(False)
            async with trio.SocketStream(trio.socket.from_stdlib_socket(far)) as client:
                w.nursery.start_soon(w.ways_in.tunnel, stream, b"read ", octets(GUEST), 22)
                there = await w.answer()
                await client.send_all(b"and sent")
                await client.send_eof()
                assert await there.finished() == b"read and sent"
                there.finish()
                assert await read_all(client) == b""

    async def test_nobody_is_there(self) -> None:
        async with ways() as w:
            near, far = socket.socketpair()
            with far:
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
                with pytest.raises(OSError, match=r"no guest has 192\.168\.65\.9"):
                    await w.ways_in.tunnel(stream, b"", octets("192.168.65.9"), 22)


class TestOwnAddress:
    """source=client.  The client of these tests is a pair of numbers, as this host has only its loopback."""

    async def call(self, w: Ways, client: tuple[str, int], text: str = "8080:80,source=client") -> tuple[bytes, int]:
        [spec] = parse(text)
        destination = w.ways_in._destination(spec, client)
        caller = w.ways_in._caller(spec, client, destination)
        near, far = socket.socketpair()
        near.setblocking(False)
        with far:
            w.nursery.start_soon(lambda: w.inner.guest.calls.join(near, destination, spec.guest_port, caller=caller))
            there = await w.answer()
        return there.caller, there.caller_port

    async def test_a_client_of_the_world_keeps_address_and_port(self) -> None:
        async with ways() as w:
            assert await self.call(w, ("203.0.113.9", 5555)) == (octets("203.0.113.9"), 5555)

    async def test_a_port_that_is_taken_is_replaced(self) -> None:
        async with ways() as w:
            assert await self.call(w, ("203.0.113.9", 5555)) == (octets("203.0.113.9"), 5555)
            caller, port = await self.call(w, ("203.0.113.9", 5555))
            assert caller == octets("203.0.113.9")
            assert port != 5555

    @pytest.mark.parametrize(
        "client",
        [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "192.168.65.2",
            "192.168.65.200",
            "192.168.65.255",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "2001:db8::9",  # the guest has no IPv6 address
        ],
    )
    async def test_who_cannot_be_answered_is_the_alias(self, client: str) -> None:
        async with ways() as w:
            caller, port = await self.call(w, (client, 5555))
            assert caller == octets(HOST)
            assert port >= 49152

    @pytest.mark.parametrize(
        ("client", "expected"),
        [
            ("2001:db8::9", "2001:db8::9"),
            ("::1", HOST6),
            ("fe80::9%eth0", HOST6),
            ("fd65:7670:6e6b::99", HOST6),
            ("ff02::1", HOST6),
        ],
    )
    async def test_ipv6_clients_of_a_guest_who_has_it(self, client: str, expected: str) -> None:
        async with ways() as w:
            w.speak6()
            await trio.testing.wait_all_tasks_blocked(0.01)
            caller, _ = await self.call(w, (client, 5555))
            assert caller == octets(expected)

    async def test_it_is_not_the_usual(self) -> None:
        async with ways() as w:
            caller, _ = await self.call(w, ("203.0.113.9", 5555), "8080:80")
            assert caller == octets(HOST)


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

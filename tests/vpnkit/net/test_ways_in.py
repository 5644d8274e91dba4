"""Forwards of streams to a guest who answers by our own core."""

from __future__ import annotations

import socket
import struct

import pytest
import trio
import trio.testing
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import ARP

from portfwd.spec import parse
from portfwd.table import ForwardError
from tests.vpnkit.net.scripted_guest import (
    HOST,
    HOST6,
    IP6,
    MAC,
    arp,
    octets,
)
from tests.vpnkit.net.ways import GUEST, PATIENCE, Ways, dial, read_all, ways
from vpnkit.net import calls
from vpnkit.net.ways_in import WaysIn


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

"""TCP of a guest through real sockets of the host's loopback."""

from __future__ import annotations

import errno
import hashlib
import random
import socket

import pytest
import trio
from scapy.layers.inet import ICMP, IP, TCP, IPerror, TCPerror

from tests.vpnkit.net.scripted_guest import GATEWAY, HOST, MAC, OFFLOADS, PLAIN, checksums_hold, world
from vpnkit.flow import host as host_sockets
from vpnkit.net.plan import Plan
from vpnkit.proto.tcp.state import State
from vpnkit.wire.tcp import ACK, RST, SYN

LINKS = pytest.mark.parametrize("capabilities", [PLAIN, OFFLOADS], ids=["plain", "offloads"])


async def listen(nursery, handler):
    """Serve each connection on the loopback by `handler`; returns the port."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, handler, [listener])
    return listener.socket.getsockname()[1]


async def read_all(stream):
    data = bytearray()
    async for chunk in stream:
        data += chunk
    return bytes(data)


async def send_for_ever(stream):
    while True:
        await stream.send_all(bytes(100_000))


def closed_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


class FakeHost:
    """The host's sockets, whose `connect` ends as the test says."""

    def __init__(self, number: int = 0, *, socket_error: int = 0) -> None:
        self.number = number
        self.socket_error = socket_error
        self.made: list[socket.socket] = []

    def tcp_socket(self, family: int = socket.AF_INET) -> socket.socket:
        if self.socket_error:
            raise OSError(self.socket_error, "as the test says")
        self.made.append(host_sockets.tcp_socket(family))
        return self.made[-1]

    def start_connect(self, made: socket.socket, address: tuple[str, int]) -> int:
        return self.number


class SmallBuffers:
    """The host's sockets, whose send buffers do not take megabytes."""

    start_connect = staticmethod(host_sockets.start_connect)

    def tcp_socket(self, family: int = socket.AF_INET) -> socket.socket:
        made = host_sockets.tcp_socket(family)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        return made


class TestOpening:
    async def test_refused(self):
        async with world() as w:
            client = w.scripted.call(closed_port())
            assert await client.closed() is State.CLOSED
            assert client.connection.aborted == "refused by the guest"
            (frame,) = w.scripted.log
            reset = TCP(bytes(frame[34:]))
            assert (reset.flags, reset.seq, reset.ack) == ("RA", 0, (client.iss + 1) & 0xFFFFFFFF)
            assert checksums_hold(frame)
            assert w.guest.counters["tcp_connect_refused"] == 1

    async def test_accepted_only_when_the_host_accepted(self):
        """A full backlog holds the host's answer back: no SYN-ACK until there is one."""
        async with world() as w:
            number = errno.EINPROGRESS
            w.guest.host = fake = FakeHost(number)
            client = w.scripted.call(80, "9.9.9.9")
            await trio.sleep(0.05)
            assert client.connection.state is State.SYN_SENT
            client.connection._syn_due = True  # the guest repeats himself
            client.flush()
            await trio.sleep(0.02)
            assert not w.scripted.log
            assert len(fake.made) == 1
            (flow,) = w.guest.tcp.flows.values()
            w.guest.tcp._host_answered(flow, 0)
            w.guest.settle()
            await client.until(lambda: client.connection.is_open)
            assert client.segments == [(SYN | ACK, 0)]
            client.abort()

    @pytest.mark.parametrize(
        ("number", "kind_and_code", "reset"),
        [
            (errno.ECONNREFUSED, None, True),
            (errno.ENETUNREACH, (3, 0), False),
            (errno.EHOSTUNREACH, (3, 1), False),
            (errno.EACCES, (3, 13), False),
            (errno.ETIMEDOUT, None, False),
            (errno.EMFILE, None, True),
            (errno.EADDRNOTAVAIL, None, True),
        ],
        ids=lambda value: errno.errorcode.get(value) if isinstance(value, int) else None,
    )
    @pytest.mark.parametrize("at_once", [True, False])
    async def test_what_a_failed_connect_looks_like(self, number, kind_and_code, reset, at_once):
        async with world() as w:
            w.guest.host = FakeHost(number if at_once else errno.EINPROGRESS)
            client = w.scripted.call(8080, "9.9.9.9")
            if not at_once:
                await trio.sleep(0.03)
                (flow,) = w.guest.tcp.flows.values()
                w.guest.tcp._host_answered(flow, number)
                w.guest.settle()
            if kind_and_code is not None:
                error = await w.scripted.frame(ICMP)
                assert (error[ICMP].type, error[ICMP].code) == kind_and_code
                assert (error[IP].src, error[IP].dst) == (GATEWAY, "192.168.65.3")
                quoted = error[ICMP].payload
                assert (quoted[IPerror].dst, quoted[TCPerror].dport) == ("9.9.9.9", 8080)
                assert quoted[TCPerror].seq == client.iss
                assert checksums_hold(bytes(error))
            if reset:
                await client.closed()
                assert client.reset_sequence == 0
            else:
                await trio.sleep(0.03)
                assert client.connection.state is State.SYN_SENT
            assert not w.guest.tcp.flows
            assert not w.guest.tcp._held
            assert not w.guest.tcp._held_to
            assert not len(w.guest.poller)

    async def test_no_descriptor_left(self):
        async with world() as w:
            w.guest.host = FakeHost(socket_error=errno.EMFILE)
            client = w.scripted.call(80, "9.9.9.9")
            await client.closed()
            assert w.guest.counters["tcp_connect_exhausted"] == 1

    @pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "0.0.0.0", "224.0.0.1", "255.255.255.255"])
    async def test_addresses_that_no_packet_may_have(self, address):
        async with world() as w:
            w.guest.host = FakeHost(0)
            w.scripted.call(80, address)
            await w.scripted.silence()
            assert not w.guest.host.made

    @pytest.mark.parametrize(("source_port", "port"), [(0, 80), (1000, 0)])
    async def test_port_zero(self, source_port, port):
        async with world() as w:
            w.guest.host = FakeHost(0)
            w.scripted.call(port, "9.9.9.9", source_port)
            await w.scripted.silence()
            assert not w.guest.host.made
            assert w.guest.counters["malformed"] == 1

    async def test_a_closed_port_of_the_gateway(self):
        async with world() as w:
            client = w.scripted.call(81, GATEWAY)
            assert await client.closed() is State.CLOSED

    async def test_without_the_alias_the_loopback_is_out_of_reach(self):
        async with world(Plan(host_loopback=False)) as w:
            w.guest.host = FakeHost(0)
            client = w.scripted.call(80, HOST)
            await client.closed()
            assert not w.guest.host.made

    async def test_metadata_services_are_prohibited(self):
        async with world() as w:
            w.scripted.call(80, "169.254.169.254")
            error = await w.scripted.frame(ICMP)
            assert (error[ICMP].type, error[ICMP].code) == (3, 13)

    @pytest.mark.parametrize("source", ["192.168.65.1", "192.168.65.2", "192.168.65.0", "192.168.65.255", "10.0.0.1"])
    async def test_a_source_that_is_not_his(self, source):
        async with world() as w:
            w.scripted.ip(IP(src=source, dst=HOST) / TCP(sport=1, dport=2, flags="S"))
            await w.scripted.silence()
            assert w.guest.counters["bad_source"] == 1

    @pytest.mark.parametrize("mac", [b"\xff" * 6, b"\x01\x00\x5e\x00\x00\x01"])
    async def test_a_syn_in_a_group_frame(self, mac):
        async with world() as w:
            w.scripted.ip(IP(src="192.168.65.3", dst=HOST) / TCP(sport=1, dport=2, flags="S"), mac)
            await w.scripted.silence()

    async def test_a_frame_for_somebody_else(self):
        async with world() as w:
            w.scripted.ip(IP(src="192.168.65.3", dst=HOST) / TCP(sport=1, dport=2, flags="S"), MAC)
            await w.scripted.silence()
            assert w.guest.counters["foreign_mac"] == 1

    async def test_a_segment_of_no_flow(self):
        async with world() as w:
            for flags, seq, ack, payload, expected in (
                ("A", 5, 77, b"", ("R", 77, 0)),
                ("FA", 5, 77, b"abc", ("R", 77, 0)),
                ("F", 5, 0, b"abc", ("RA", 0, 9)),
                ("", 5, 0, b"", ("RA", 0, 5)),
            ):
                packet = IP(src="192.168.65.3", dst="9.9.9.9") / TCP(sport=9, dport=2, flags=flags, seq=seq, ack=ack)
                w.scripted.ip(packet / payload)
                frame = await w.scripted.frame(TCP)
                assert (frame[TCP].flags, frame[TCP].seq, frame[TCP].ack) == expected
                assert (frame[IP].src, frame[TCP].sport, frame[TCP].dport) == ("9.9.9.9", 2, 9)
            w.scripted.ip(IP(src="192.168.65.3", dst="9.9.9.9") / TCP(sport=9, dport=2, flags="R"))
            await w.scripted.silence()

    async def test_limits(self, monkeypatch: pytest.MonkeyPatch):
        from vpnkit.net import tcp

        monkeypatch.setattr(tcp, "MAX_HELD_PER_DESTINATION", 3)
        monkeypatch.setattr(tcp, "MAX_HELD", 5)
        monkeypatch.setattr(tcp, "MAX_FLOWS", 5)
        async with world() as w:
            w.guest.host = FakeHost(errno.EINPROGRESS)
            for port in (80, 80, 80, 80, 81, 82, 83):
                w.scripted.call(port, "9.9.9.9")
            await trio.sleep(0.03)
            assert len(w.guest.tcp.flows) == 5
            assert w.guest.counters["tcp_held_limit"] == 1
            assert w.guest.counters["tcp_limit"] == 1

    async def test_the_oldest_held_makes_place(self, monkeypatch: pytest.MonkeyPatch):
        from vpnkit.net import tcp

        monkeypatch.setattr(tcp, "MAX_HELD", 2)
        async with world() as w:
            w.guest.host = fake = FakeHost(errno.EINPROGRESS)
            for port in (80, 81, 82):
                w.scripted.call(port, "9.9.9.9")
            await trio.sleep(0.03)
            assert [int.from_bytes(key[10:12], "big") for key in w.guest.tcp.flows] == [81, 82]
            assert fake.made[0].fileno() == -1
            assert w.guest.counters["tcp_held_evicted"] == 1

    async def test_a_flow_is_forgotten_once(self):
        """The next one with its ports is another flow."""
        async with world() as w:
            w.guest.host = FakeHost(errno.EINPROGRESS)
            w.scripted.call(80, "9.9.9.9", 1000)
            await trio.sleep(0.02)
            (first,) = w.guest.tcp.flows.values()
            w.scripted.call(80, "9.9.9.9", 1000)
            await trio.sleep(0.02)
            (second,) = w.guest.tcp.flows.values()
            assert second is not first
            w.guest.tcp.forget(first, w.guest.now())
            assert list(w.guest.tcp.flows.values()) == [second]

    async def test_asked_anew_while_held(self):
        """The guest rebooted: the same port, another sequence."""
        async with world() as w:
            w.guest.host = fake = FakeHost(errno.EINPROGRESS)
            w.scripted.call(80, "9.9.9.9", 1000)
            await trio.sleep(0.02)
            again = w.scripted.call(80, "9.9.9.9", 1000)
            await trio.sleep(0.02)
            assert len(fake.made) == 2
            assert fake.made[0].fileno() == -1
            (flow,) = w.guest.tcp.flows.values()
            assert flow.connection.receiver.nxt == (again.iss + 1) & 0xFFFFFFFF


@LINKS
class TestStreams:
    async def test_both_ways_with_half_closes(self, capabilities):
        sent, answer = random.Random(1).randbytes(1_500_000), random.Random(2).randbytes(1_200_000)
        heard = []

        async def handler(stream):
            heard.append(hashlib.sha256(await read_all(stream)).digest())
            await stream.send_all(answer)

        async with world(capabilities=capabilities) as w:
            client = await w.scripted.connect(await listen(w.nursery, handler))
            await client.send(sent)
            client.finish()
            assert hashlib.sha256(await client.finished()).digest() == hashlib.sha256(answer).digest()
            assert heard == [hashlib.sha256(sent).digest()]
            assert await client.closed() is State.TIME_WAIT
            await trio.sleep(0.02)
            assert not w.guest.tcp.flows
            assert not w.guest.counters["tcp_aborted"]
            if not capabilities.checksum:
                assert all(checksums_hold(frame) for frame in list(w.scripted.log)[-200:])

    async def test_the_host_closes_first(self, capabilities):
        got = trio.Event()
        heard = []

        async def handler(stream):
            await stream.send_all(b"bye")
            await stream.send_eof()
            heard.append(await read_all(stream))
            got.set()

        async with world(capabilities=capabilities) as w:
            client = await w.scripted.connect(await listen(w.nursery, handler))
            assert await client.finished() == b"bye"
            await client.send(b"wait, there is more")
            client.finish()
            with trio.fail_after(5):
                await got.wait()
            assert heard == [b"wait, there is more"]
            assert await client.closed() is State.CLOSED
            assert not client.connection.aborted
            await trio.sleep(0.02)
            assert len(w.guest.tcp._time_wait) == 1
            # a FIN of the guest that was lost on its way back comes again
            again = IP(src="192.168.65.3", dst=HOST) / TCP(
                sport=40001,
                dport=int.from_bytes(client.key[8:10], "big"),
                flags="FA",
                seq=client.connection.sender.nxt - 1,
                ack=client.connection.receiver.nxt,
            )
            w.scripted.clients.clear()
            w.scripted.ip(again)
            ack = await w.scripted.frame(TCP)
            assert (ack[TCP].flags, ack[TCP].ack) == ("A", client.connection.sender.nxt)
            again[TCP].flags = "A"
            again[TCP].seq = client.connection.sender.nxt
            w.scripted.ip(again)
            await w.scripted.silence()  # an ACK is not answered by an ACK

    async def test_the_guest_resets(self, capabilities):
        ended = trio.Event()
        errors = []

        async def handler(stream):
            try:
                await read_all(stream)
            except trio.BrokenResourceError as error:
                errors.append(error.__cause__)
            ended.set()

        async with world(capabilities=capabilities) as w:
            client = await w.scripted.connect(await listen(w.nursery, handler))
            await client.send(b"abc")
            await trio.sleep(0.02)
            client.abort()
            with trio.fail_after(5):
                await ended.wait()
            assert isinstance(errors[0], ConnectionResetError)
            assert not w.guest.tcp.flows

    async def test_the_host_resets(self, capabilities):
        async def handler(stream):
            await stream.receive_some()
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, host_sockets.RESET_ON_CLOSE)

        async with world(capabilities=capabilities) as w:
            client = await w.scripted.connect(await listen(w.nursery, handler))
            await client.send(b"abc")
            await client.closed()
            assert client.connection.aborted == "reset by the guest"
            assert client.segments[-1][0] & RST
            await trio.sleep(0.02)
            assert not w.guest.tcp.flows

    async def test_a_slow_host_closes_the_window_and_nothing_is_lost(self, capabilities):
        sent = random.Random(3).randbytes(4_000_000)
        go = trio.Event()
        heard = []

        async def handler(stream):
            await go.wait()
            heard.append(await read_all(stream))

        async with world(capabilities=capabilities) as w:
            w.guest.host = SmallBuffers()
            client = await w.scripted.connect(await listen(w.nursery, handler))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, sent)
                await client.until(lambda: client.connection.sender.window < 2000)
                (flow,) = w.guest.tcp.flows.values()
                assert flow.connection.receiver.buffered <= 1_200_000
                go.set()
            client.finish()
            assert await client.finished() == b""
            assert heard == [sent]

    async def test_a_slow_guest_stops_the_host(self, capabilities):
        sent = random.Random(4).randbytes(5_000_000)
        progress = [0]

        async def handler(stream):
            for start in range(0, len(sent), 65536):
                await stream.send_all(sent[start : start + 65536])
                progress[0] = start

        async with world(capabilities=capabilities) as w:
            client = w.scripted.call(await listen(w.nursery, handler))
            client.reading = False
            await client.until(lambda: len(client.got) > 100_000)
            await trio.sleep(0.1)
            (flow,) = w.guest.tcp.flows.values()
            assert flow.connection.sender.queued <= 2000  # only what probes
            client.reading = True
            client.read(client.connection.receiver.buffered)
            assert await client.finished() == sent
            client.finish()

    async def test_a_full_link_loses_nothing(self, capabilities):
        sent = random.Random(5).randbytes(1_000_000)

        async def handler(stream):
            await stream.send_all(sent)

        async with world(capabilities=capabilities, queue_frames=3) as w:
            client = await w.scripted.connect(await listen(w.nursery, handler))
            w.scripted.deaf = True
            await trio.sleep(0.1)
            w.scripted.deaf = False
            assert await client.finished() == sent
            (flow,) = w.guest.tcp.flows.values()
            assert flow.connection.sender.retransmitted <= 3
            client.finish()

    async def test_many_at_once(self, capabilities):
        async def handler(stream):
            await stream.send_all(await read_all(stream))

        async with world(capabilities=capabilities, queue_frames=1000) as w:
            port = await listen(w.nursery, handler)

            async def one(seed):
                data = random.Random(seed).randbytes(seed * 3001)
                client = await w.scripted.connect(port)
                await client.send(data)
                client.finish()
                assert await client.finished() == data

            async with trio.open_nursery() as nursery:
                for seed in range(30):
                    nursery.start_soon(one, seed)
            await trio.sleep(0.05)
            assert not w.guest.tcp.flows


class TestEndings:
    async def test_the_link_closes_with_everything_open(self):
        """`world` looks at what is left, and the fixture at descriptors."""

        async def handler(stream):
            with pytest.raises(trio.BrokenResourceError):
                await read_all(stream)

        async with world() as w:
            port = await listen(w.nursery, handler)
            for _ in range(5):
                await w.scripted.connect(port)
            w.scripted.datagram(b"hello", closed_port())
            w.scripted.call(80, "192.0.2.1")
            await trio.sleep(0.02)
            assert len(w.guest.tcp.flows) >= 5

    async def test_the_link_closes_while_the_host_sends(self):
        """Whoever notices first, the guest ends in peace."""

        async def handler(stream):
            with pytest.raises(trio.BrokenResourceError):
                await send_for_ever(stream)

        for _ in range(5):
            async with world(queue_frames=8) as w:
                await w.scripted.connect(await listen(w.nursery, handler))
                await trio.sleep(0.02)

    async def test_the_link_closes_while_it_is_full(self):
        async def handler(stream):
            with pytest.raises(trio.BrokenResourceError):
                await send_for_ever(stream)

        async with world(queue_frames=2) as w:
            await w.scripted.connect(await listen(w.nursery, handler))
            w.scripted.deaf = True
            await trio.sleep(0.05)

    @pytest.mark.parametrize("where", ["deliver", "fetch", "transmit"])
    async def test_a_failure_inside_a_flow_resets_that_flow(self, where, monkeypatch, caplog):
        from vpnkit.flow.splice import SpliceFlow

        async def handler(stream):
            try:
                async for data in stream:
                    await stream.send_all(data)
            except trio.BrokenResourceError:
                pass

        async with world() as w:
            port = await listen(w.nursery, handler)
            victim, other = await w.scripted.connect(port), await w.scripted.connect(port)
            await trio.sleep(0.02)
            flow = next(f for key, f in w.guest.tcp.flows.items() if key[8:10] == victim.key[10:12])
            original = getattr(SpliceFlow, where)

            def broken(self, now):
                if self is flow:
                    raise ZeroDivisionError("as the test says")
                return original(self, now)

            monkeypatch.setattr(SpliceFlow, where, broken)
            await victim.send(b"boom")
            await other.send(b"fine")
            assert await other.receive(4) == b"fine"
            if where != "transmit":
                await victim.closed()
            assert w.guest.counters["internal_error"] == 1
            assert len(w.guest.tcp.flows) == 1
            assert "internal error" in caplog.text

    async def test_a_failure_on_a_segment_resets_that_flow(self, monkeypatch, caplog):
        from vpnkit.proto.tcp.connection import TcpConnection

        async def handler(stream):
            try:
                await read_all(stream)
            except trio.BrokenResourceError:
                pass

        async with world() as w:
            victim = await w.scripted.connect(await listen(w.nursery, handler))
            (flow,) = w.guest.tcp.flows.values()
            original = TcpConnection.receive

            def broken(self, *args):
                if self is flow.connection:
                    raise ZeroDivisionError("as the test says")
                original(self, *args)

            monkeypatch.setattr(TcpConnection, "receive", broken)
            await victim.send(b"boom")
            await victim.closed()
            assert w.guest.counters["internal_error"] == 1
            assert not w.guest.tcp.flows

    async def test_a_failure_at_a_deadline_resets_that_flow_and_does_not_spin(self, monkeypatch, caplog):
        from vpnkit.proto.tcp.connection import TcpConnection

        async def handler(stream):
            try:
                await read_all(stream)
            except trio.BrokenResourceError:
                pass

        async with world() as w:
            victim = await w.scripted.connect(await listen(w.nursery, handler))
            (flow,) = w.guest.tcp.flows.values()
            original = TcpConnection.on_deadline

            def broken(self, now):
                if self is flow.connection:
                    raise ZeroDivisionError("as the test says")
                original(self, now)

            monkeypatch.setattr(TcpConnection, "on_deadline", broken)
            flow.connection.sender.deadline = trio.current_time() + 0.01
            w.guest.update_deadline(flow)
            await victim.closed()
            await trio.sleep(0.05)
            assert w.guest.counters["internal_error"] == 1
            assert not w.guest.tcp.flows

    async def test_the_host_fails_when_the_guest_is_done_already(self):
        """The guest closed both ways and lingers in nobody's table while the host has a backlog; then the host dies."""
        ready, go = trio.Event(), trio.Event()

        async def handler(stream):
            await stream.send_eof()
            ready.set()
            await go.wait()
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, host_sockets.RESET_ON_CLOSE)

        async with world() as w:
            w.guest.host = SmallBuffers()
            client = await w.scripted.connect(await listen(w.nursery, handler))
            await client.finished()
            await client.send(bytes(200_000))
            client.finish()
            await client.closed()
            (flow,) = w.guest.tcp.flows.values()
            assert flow.connection.receiver.buffered
            go.set()
            await trio.sleep(0.1)
            assert not w.guest.tcp.flows


class TestCalls:
    """The host calls the guest: a port forward."""

    def pair(self):
        (a, b) = socket.socketpair()
        for end in (a, b):
            end.setblocking(False)
        return a, trio.SocketStream(trio.socket.from_stdlib_socket(b)) if False else b

    async def test_refused(self):
        async with world() as w:
            ours, theirs = self.pair()
            with theirs:

                async def call():
                    await w.guest.calls.join(ours, bytes([192, 168, 65, 3]), 80)

                w.nursery.start_soon(call)
                syn = await w.scripted.frame(TCP)
                assert (syn[TCP].flags, syn[IP].src, syn[TCP].dport) == ("S", HOST, 80)
                reset = IP(src="192.168.65.3", dst=HOST) / TCP(
                    sport=80, dport=syn[TCP].sport, flags="RA", ack=syn[TCP].seq + 1
                )
                w.scripted.ip(reset)
                await trio.sleep(0.05)
                assert not w.guest.tcp.flows
                assert theirs.recv(1) == b""

    async def test_icmp_says_that_nobody_listens(self):
        async with world() as w:
            ours, theirs = self.pair()
            with theirs:
                w.nursery.start_soon(w.guest.calls.join, ours, bytes([192, 168, 65, 3]), 80)
                syn = await w.scripted.frame(TCP)
                w.scripted.ip(IP(src="192.168.65.3", dst=HOST) / ICMP(type=3, code=3) / bytes(syn[IP]))
                await trio.sleep(0.05)
                assert not w.guest.tcp.flows

    async def test_soft_errors_abort_nothing(self):
        async with world() as w:
            ours, theirs = self.pair()
            with theirs:
                w.nursery.start_soon(w.guest.calls.join, ours, bytes([192, 168, 65, 3]), 80)
                syn = await w.scripted.frame(TCP)
                for kind, code in ((3, 0), (3, 1), (3, 4), (11, 0), (4, 0), (12, 0)):
                    w.scripted.ip(IP(src="192.168.65.3", dst=HOST) / ICMP(type=kind, code=code) / bytes(syn[IP]))
                await trio.sleep(0.05)
                assert len(w.guest.tcp.flows) == 1

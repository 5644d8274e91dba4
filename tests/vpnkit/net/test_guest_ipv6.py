"""TCP, UDP, ping and ICMPv6 of a guest over IPv6, with real sockets of the host's ::1 where there are any."""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING

import pytest
import trio
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    _ICMPv6,
    defragment6,
    fragment6,
)
from scapy.layers.l2 import Ether

from tests.vpnkit.net.scripted_guest import (
    GATEWAY6,
    HOST6,
    IP6,
    MAC,
    OFFLOADS,
    PLAIN,
    ROUTER6,
    checksums_hold,
    octets,
    world,
)
from vpnkit.flow import host as host_sockets
from vpnkit.net.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable

LINKS = pytest.mark.parametrize("capabilities", [PLAIN, OFFLOADS], ids=["plain", "offloads"])
WORLD = "2001:db8::7"


class HostWithout:
    """A host whose sockets fail as the test says."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getattr__(self, name: str):
        return getattr(host_sockets, name)

    def start_connect(self, made: socket.socket, address: tuple[str, int]) -> int:
        return self.number


class ToLoopback:
    """A host where everything is on the loopback, whatever its address."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def __getattr__(self, name: str):
        return getattr(host_sockets, name)

    def start_connect(self, made: socket.socket, address: tuple[str, int]) -> int:
        self.asked.append(address)
        loopback = "::1" if made.family == socket.AF_INET6 else "127.0.0.1"
        return host_sockets.start_connect(made, (loopback, address[1]))


async def echo_server(nursery: trio.Nursery, address: str = "::1") -> int:
    [listener] = await trio.open_tcp_listeners(0, host=address)

    async def serve(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()

    nursery.start_soon(trio.serve_listeners, serve, [listener])
    return listener.socket.getsockname()[1]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await trio.sleep(0.01)
    raise AssertionError("it did not come to that")


def whole_of(fragments: list[Ether]) -> IPv6:
    return IPv6(bytes(defragment6([each[IPv6] for each in fragments])))


@LINKS
class TestTcp:
    async def test_a_megabyte_there_and_back(self, capabilities):
        async with world(capabilities=capabilities) as w:
            port = await echo_server(w.nursery)
            client = await w.scripted.connect(port, HOST6)
            data = bytes(range(256)) * 4096
            w.nursery.start_soon(client.send, data)
            assert await client.receive(len(data)) == data
            client.finish()
            assert await client.finished() == data
            assert w.guest.counters["internal_error"] == w.guest.counters["malformed"] == 0

    async def test_a_closed_port(self, capabilities):
        async with world(capabilities=capabilities) as w:
            with socket.create_server(("::1", 0), family=socket.AF_INET6) as made:
                port = made.getsockname()[1]
            with pytest.raises(ConnectionRefusedError):
                await w.scripted.connect(port, HOST6)

    async def test_a_call_from_the_host(self, capabilities):
        async with world(capabilities=capabilities) as w:
            ours, theirs = socket.socketpair()
            with theirs:
                ours.setblocking(False)
                w.nursery.start_soon(w.guest.calls.join, ours, octets(IP6), 80)
                syn = await w.scripted.frame(IPv6, TCP)
                assert (syn[IPv6].src, syn[IPv6].dst, syn[TCP].dport) == (HOST6, IP6, 80)
                assert dict(syn[TCP].options)["MSS"] == 1440
                assert checksums_hold(bytes(syn)) or capabilities.checksum
                refusal = TCP(sport=80, dport=syn[TCP].sport, flags="RA", ack=syn[TCP].seq + 1)
                w.scripted.ip(IPv6(src=IP6, dst=HOST6) / refusal)
                assert await trio.to_thread.run_sync(theirs.recv, 1) == b""
                assert not w.guest.tcp.flows


class TestSyns:
    async def test_the_mss_without_the_option_is_1220(self):
        """RFC 9293 MUST-15."""
        async with world() as w:
            port = await echo_server(w.nursery)
            w.scripted.ip(IPv6(src=IP6, dst=HOST6) / TCP(sport=1000, dport=port, flags="S", seq=1))
            reply = await w.scripted.frame(TCP)
            assert reply[TCP].flags == "SA"
            assert reply[IPv6].fl
            [flow] = w.guest.tcp.flows.values()
            assert flow.connection.sender.mss == 1220

    @pytest.mark.parametrize(
        ("number", "kind", "code"),
        [
            (errno.ENETUNREACH, ICMPv6DestUnreach, 0),
            (errno.EHOSTUNREACH, ICMPv6DestUnreach, 3),
            (errno.EACCES, ICMPv6DestUnreach, 1),
            (errno.ENOPROTOOPT, ICMPv6ParamProblem, 1),
        ],
    )
    async def test_a_host_that_cannot_be_reached_is_told_at_once(self, number, kind, code):
        """So a guest with both families falls back without waiting (RFC 8305)."""
        async with world() as w:
            w.guest.host = HostWithout(number)
            w.scripted.ip(IPv6(src=IP6, dst=WORLD) / TCP(sport=1000, dport=80, flags="S", seq=7))
            error = await w.scripted.frame(kind)
            assert error[kind].code == code
            assert (error[IPv6].src, error[IPv6].dst) == (GATEWAY6, IP6)
            quoted = IPv6(bytes(error[kind].payload))
            assert (quoted.src, quoted.dst, quoted[TCP].seq) == (IP6, WORLD, 7)
            assert checksums_hold(bytes(error))
            assert not w.guest.tcp.flows

    async def test_what_no_flow_expects_is_reset(self):
        async with world() as w:
            w.scripted.ip(IPv6(src=IP6, dst=WORLD) / TCP(sport=1000, dport=80, flags="A", seq=7, ack=9))
            reply = await w.scripted.frame(TCP)
            assert (reply[TCP].flags, reply[TCP].seq) == ("R", 9)
            assert checksums_hold(bytes(reply))

    async def test_packet_too_big_of_the_guest(self):
        """RFC 8201: smaller segments for that connection, and never below the least MTU."""
        async with world() as w:
            port = await echo_server(w.nursery)
            client = await w.scripted.connect(port, HOST6)
            w.scripted.deaf = True
            client.connection.write(bytes(60000))
            client.flush()
            [flow] = w.guest.tcp.flows.values()
            sender = flow.connection.sender
            await until(lambda: sender.in_flight > 0)
            quoted = IPv6(src=HOST6, dst=IP6) / TCP(sport=port, dport=40001, seq=sender.una)
            w.scripted.ip(IPv6(src=IP6, dst=HOST6) / ICMPv6PacketTooBig(mtu=1300) / quoted)
            await until(lambda: sender.mss == 1240)
            w.scripted.ip(IPv6(src=IP6, dst=HOST6) / ICMPv6PacketTooBig(mtu=600) / quoted)
            await until(lambda: sender.mss == 1220)
            w.scripted.deaf = False
            await client.receive(60000)


@LINKS
class TestUdp:
    async def test_there_and_back(self, capabilities):
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
            made.bind(("::1", 0))
            made.settimeout(5)
            port = made.getsockname()[1]
            async with world(capabilities=capabilities) as w:
                for round_ in range(3):  # the second one goes by the fast path
                    w.scripted.datagram(b"a question that is long enough %d" % round_, port, HOST6)
                    data, peer = await trio.to_thread.run_sync(made.recvfrom, 65536)
                    assert data == b"a question that is long enough %d" % round_
                    made.sendto(b"answer", peer)
                    assert await w.scripted.answer() == (HOST6, port, 5000, b"answer")
                assert checksums_hold(w.scripted.log[-1]) or capabilities.checksum
                assert len(w.guest.udp.mappings) == 1
                [mapping] = w.guest.udp.mappings.values()
                assert (mapping.addressed, mapping.remote) == (f"[{HOST6}]:{port}", f"[::1]:{port}")

    async def test_large_ones_both_ways(self, capabilities):
        """In fragments, which the guest puts together; and what he fragmented leaves whole."""
        data = bytes(range(251)) * 40
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
            made.bind(("::1", 0))
            made.settimeout(5)
            async with world(capabilities=capabilities) as w:
                whole = IPv6(src=IP6, dst=HOST6) / IPv6ExtHdrFragment(id=77) / UDP(sport=9, dport=made.getsockname()[1])
                for fragment in fragment6(whole / data, 1480):
                    w.scripted.ip(fragment)
                heard, peer = await trio.to_thread.run_sync(made.recvfrom, 65536)
                assert heard == data
                made.sendto(data[::-1], peer)
                fragments = [await w.scripted.frame(IPv6ExtHdrFragment)]
                while fragments[-1][IPv6ExtHdrFragment].m:
                    fragments.append(await w.scripted.frame(IPv6ExtHdrFragment))
                assert all(len(bytes(fragment)) <= 1514 for fragment in fragments)
                assert bytes(whole_of(fragments)[UDP].payload) == data[::-1]

    async def test_port_unreachable(self, capabilities):
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
            made.bind(("::1", 0))
            port = made.getsockname()[1]
        async with world(capabilities=capabilities) as w:
            w.scripted.datagram(b"anybody?", port, HOST6)
            error = await w.scripted.frame(ICMPv6DestUnreach)
            assert (error[ICMPv6DestUnreach].code, error[IPv6].src) == (4, HOST6)
            quoted = IPv6(bytes(error[ICMPv6DestUnreach].payload))
            assert (quoted.src, quoted[UDP].sport, quoted[UDP].dport) == (IP6, 5000, port)
            assert checksums_hold(bytes(error))

    async def test_a_datagram_without_a_checksum(self, capabilities):
        """RFC 8200 section 8.1: discarded."""
        async with world(capabilities=capabilities) as w:
            w.scripted.ip(IPv6(src=IP6, dst=HOST6) / UDP(sport=9, dport=9, chksum=0) / b"no checksum")
            await w.scripted.silence()
            assert w.guest.counters["malformed"] == 1
            assert not w.guest.udp.mappings


class TestPing:
    @pytest.mark.parametrize("address", [GATEWAY6, HOST6, ROUTER6])
    async def test_our_addresses(self, address):
        async with world() as w:
            w.scripted.ip(IPv6(src=IP6, dst=address) / ICMPv6EchoRequest(id=5, seq=6, data=b"payload"))
            reply = await w.scripted.frame(ICMPv6EchoReply)
            assert (reply[IPv6].src, reply[ICMPv6EchoReply].id, reply[ICMPv6EchoReply].seq) == (address, 5, 6)
            assert reply[ICMPv6EchoReply].data == b"payload"
            assert checksums_hold(bytes(reply))

    async def test_an_echo_larger_than_the_link(self):
        async with world() as w:
            request = IPv6(src=IP6, dst=GATEWAY6) / IPv6ExtHdrFragment(id=3) / ICMPv6EchoRequest(id=5, data=bytes(4000))
            for fragment in fragment6(request, 1280):
                w.scripted.ip(fragment)
            parts = [await w.scripted.frame(IPv6ExtHdrFragment)]
            while parts[-1][IPv6ExtHdrFragment].m:
                parts.append(await w.scripted.frame(IPv6ExtHdrFragment))
            assert len(whole_of(parts)[ICMPv6EchoReply].data) == 4000

    async def test_others_by_the_hosts_ping_socket(self):
        """What answers is this kernel, at ::1; the guest calls it by another name."""

        class Near(ToLoopback):
            def ping_socket(self, family):
                made, raw = host_sockets.ping_socket(family)

                class Redirected(socket.socket):
                    def sendto(self, data, address):
                        return super().sendto(data, ("::1", 0))

                    def recvfrom(self, limit):
                        data, _ = super().recvfrom(limit)
                        return data, (WORLD, 0, 0, 0)

                redirected = Redirected(fileno=made.detach())
                redirected.setblocking(False)
                return redirected, raw

        async with world() as w:
            w.guest.host = Near()
            for sequence in (1, 2):
                w.scripted.ip(IPv6(src=IP6, dst=WORLD) / ICMPv6EchoRequest(id=77, seq=sequence, data=b"hello there"))
                reply = await w.scripted.frame(ICMPv6EchoReply)
                assert (reply[IPv6].src, reply[ICMPv6EchoReply].id, reply[ICMPv6EchoReply].seq) == (WORLD, 77, sequence)
                assert reply[ICMPv6EchoReply].data == b"hello there"
                assert checksums_hold(bytes(reply))
            assert len(w.guest.icmp.sessions) == 1


class TestWhatIsRefused:
    async def test_the_hop_limit_ends_here(self):
        async with world() as w:
            w.scripted.ip(IPv6(src=IP6, dst=WORLD, hlim=1) / UDP(sport=9, dport=33434) / b"traceroute")
            error = await w.scripted.frame(ICMPv6TimeExceeded)
            assert (error[ICMPv6TimeExceeded].code, error[IPv6].src) == (0, GATEWAY6)
            assert w.guest.counters["ttl_expired"] == 1

    async def test_an_unknown_protocol(self):
        """RFC 4443 section 3.4: the pointer is at the next header."""
        async with world() as w:
            w.scripted.ip(IPv6(src=IP6, dst=WORLD, nh=99) / b"12345678")
            error = await w.scripted.frame(ICMPv6ParamProblem)
            assert (error[ICMPv6ParamProblem].code, error[ICMPv6ParamProblem].ptr) == (1, 6)

    async def test_an_unknown_protocol_behind_an_option_header(self):
        async with world() as w:
            w.scripted.ip(IPv6(src=IP6, dst=WORLD) / IPv6ExtHdrDestOpt(nh=99) / b"12345678")
            error = await w.scripted.frame(ICMPv6ParamProblem)
            assert (error[ICMPv6ParamProblem].code, error[ICMPv6ParamProblem].ptr) == (1, 40)

    async def test_a_routing_header(self):
        """RFC 5095."""
        async with world() as w:
            route = IPv6ExtHdrRouting(type=0, segleft=1, addresses=[WORLD])
            w.scripted.ip(IPv6(src=IP6, dst=GATEWAY6) / route / ICMPv6EchoRequest())
            error = await w.scripted.frame(ICMPv6ParamProblem)
            assert (error[ICMPv6ParamProblem].code, error[ICMPv6ParamProblem].ptr) == (0, 42)
            await w.scripted.silence()

    async def test_options_that_may_be_passed_over(self):
        async with world() as w:
            w.scripted.ip(IPv6(src=IP6, dst=GATEWAY6) / IPv6ExtHdrHopByHop() / ICMPv6EchoRequest(id=1))
            assert (await w.scripted.frame(ICMPv6EchoReply))[ICMPv6EchoReply].id == 1

    @pytest.mark.parametrize("source", ["2001:db8::1", "::1", "ff02::1", "fd65:7670:6e6c::3", "::"])
    async def test_a_source_that_no_guest_has(self, source):
        async with world() as w:
            w.scripted.ip(IPv6(src=source, dst=GATEWAY6) / ICMPv6EchoRequest(id=1))
            w.scripted.ip(IPv6(src=source, dst=WORLD, hlim=1) / UDP() / b"x")
            await w.scripted.silence()
            assert w.guest.counters["bad_source"] + w.guest.counters["listener_ignored"] == 2

    @pytest.mark.parametrize("source", [GATEWAY6, HOST6, ROUTER6])
    async def test_our_addresses_as_a_source(self, source):
        async with world() as w:
            w.scripted.ip(IPv6(src=source, dst=WORLD, hlim=1) / UDP() / b"x")
            await w.scripted.silence()
            assert w.guest.counters["bad_source"] == 1

    async def test_the_metadata_service(self):
        async with world() as w:
            w.scripted.ip(IPv6(src=IP6, dst="fd00:ec2::254") / TCP(sport=9, dport=80, flags="S"))
            assert (await w.scripted.frame(ICMPv6DestUnreach))[ICMPv6DestUnreach].code == 1

    @pytest.mark.parametrize("packet", [ICMPv6EchoRequest(id=1), UDP(sport=9, dport=9) / b"x", TCP(flags="S")])
    async def test_multicast(self, packet):
        """No reply and no error (RFC 4443 section 2.4 (e))."""
        async with world() as w:
            w.scripted.send(Ether(src=MAC, dst="33:33:00:00:00:01") / IPv6(src=IP6, dst="ff02::1") / packet)
            w.scripted.send(Ether(src=MAC, dst=w.scripted.plan.server_mac) / IPv6(src=IP6, dst="ff02::1") / packet)
            await w.scripted.silence()

    async def test_one_error_about_an_error_is_none(self):
        async with world() as w:
            quoted = IPv6(src=WORLD, dst=IP6) / UDP() / b"x"
            w.scripted.ip(IPv6(src=IP6, dst=WORLD, hlim=1) / ICMPv6DestUnreach(code=4) / quoted)
            await w.scripted.silence()
            assert w.guest.counters["icmp_error_unmatched"] == 1

    async def test_a_network_without_ipv6_hears_none(self):
        async with world(Plan(prefix6=None)) as w:
            w.scripted.ip(IPv6(src=IP6, dst=GATEWAY6) / ICMPv6EchoRequest(id=1))
            await w.scripted.silence()
            assert w.guest.counters["ethertype_ignored"] == 1


class TestNat64:
    async def test_tcp_to_an_ipv4_host(self):
        async with world(nat64=True) as w:
            w.guest.host = host = ToLoopback()
            port = await echo_server(w.nursery, "127.0.0.1")
            client = await w.scripted.connect(port, "64:ff9b::203.0.113.9")
            await client.send(b"hello")
            assert await client.receive(5) == b"hello"
            assert host.asked == [("203.0.113.9", port)]

    async def test_udp_to_hosts_of_both_families_from_one_port(self):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as four,
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six,
        ):
            four.bind(("127.0.0.1", 0))
            six.bind(("::1", 0))
            async with world(nat64=True) as w:
                alias = "64:ff9b::192.168.65.2"
                for made, address in ((four, alias), (six, HOST6)):
                    made.settimeout(5)
                    port = made.getsockname()[1]
                    w.scripted.datagram(b"who is there?", port, address)
                    data, peer = await trio.to_thread.run_sync(made.recvfrom, 100)
                    made.sendto(data[::-1], peer)
                    source, sport, dport, answer = await w.scripted.answer()
                    assert octets(source) == octets(address)
                    assert (sport, dport, answer) == (port, 5000, b"?ereht si ohw")
                assert len(w.guest.udp.mappings) == 2

    async def test_an_error_of_ipv4_is_told_in_ipv6(self):
        """RFC 7915 section 4.2."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.bind(("127.0.0.1", 0))
            port = made.getsockname()[1]
        alias = "64:ff9b::c0a8:4102"
        async with world(nat64=True) as w:
            w.scripted.datagram(b"anybody?", port, alias)
            error = await w.scripted.frame(ICMPv6DestUnreach)
            assert (error[ICMPv6DestUnreach].code, error[IPv6].src) == (4, alias)
            quoted = IPv6(bytes(error[ICMPv6DestUnreach].payload))
            assert (quoted.dst, quoted[UDP].dport) == (alias, port)
            assert checksums_hold(bytes(error))

    async def test_without_the_option_it_is_nowhere(self):
        async with world() as w:
            w.scripted.ip(IPv6(src=IP6, dst="64:ff9b::203.0.113.9") / TCP(sport=9, dport=80, flags="S"))
            await w.scripted.silence()
            assert w.guest.counters["tcp_bad_destination"] == 1


async def test_a_partial_checksum_and_a_super_frame_are_the_links():
    """TSO6: one frame of up to 64 KiB, whose header says how to cut it."""
    async with world(capabilities=OFFLOADS) as w:
        [listener] = await trio.open_tcp_listeners(0, host="::1")
        sent: list[tuple[int, ...]] = []
        send = w.guest.link.send

        def noted(parts, *metadata):
            sent.append((sum(map(len, parts)), *metadata))
            return send(parts, *metadata)

        w.guest.link.send = noted
        client = await w.scripted.connect(listener.socket.getsockname()[1], HOST6)
        server = await listener.accept()
        await server.send_all(bytes(200_000))
        await client.receive(200_000)
        await listener.aclose()
        await server.aclose()
        assert (54, 16, 4, 1440, 74) in {metadata[1:] for metadata in sent}
        assert max(metadata[0] for metadata in sent) > 10_000
        assert not any(struct.unpack("!H", frame[12:14])[0] == 0x0800 for frame in w.scripted.log)


def test_no_layer_of_ipv4_is_needed():
    """The helpers above check what they say: a wrong sum is seen."""
    frame = bytearray(bytes(Ether(src=MAC, dst=MAC) / IPv6(src=IP6, dst=WORLD) / UDP(sport=1, dport=2) / b"payload"))
    assert checksums_hold(bytes(frame))
    frame[-1] ^= 1
    assert not checksums_hold(bytes(frame))
    assert IP not in Ether(bytes(frame))
    assert ICMP not in Ether(bytes(frame))
    assert not isinstance(Ether(bytes(frame))[IPv6].payload, _ICMPv6)

"""UDP, ICMP, ARP and DHCP of a guest, with real sockets of the host's loopback where there are any."""

from __future__ import annotations

import errno
import socket

import pytest
import trio
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, UDP, IPerror, UDPerror, defragment
from scapy.layers.l2 import ARP, Ether

from tests.vpnkit.net.scripted_guest import (
    GATEWAY,
    HOST,
    MAC,
    OFFLOADS,
    PLAIN,
    arp,
    checksums_hold,
    octets,
    world,
)
from vpnkit.flow import host as host_sockets
from vpnkit.net import udp, udp_mapping
from vpnkit.net.plan import SERVER_MAC, Plan
from vpnkit.net.udp_mapping import IDLE_SECONDS

LINKS = pytest.mark.parametrize("capabilities", [PLAIN, OFFLOADS], ids=["plain", "offloads"])
FAKE_SERVER = "9.9.9.9"


def server() -> tuple[socket.socket, int]:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", 0))
    made.settimeout(5)
    return made, made.getsockname()[1]


async def heard(made: socket.socket) -> tuple[bytes, tuple[str, int]]:
    return await trio.to_thread.run_sync(made.recvfrom, 65536)


@LINKS
class TestDatagrams:
    async def test_there_and_back(self, capabilities):
        made, port = server()
        with made:
            async with world(capabilities=capabilities) as w:
                w.scripted.datagram(b"question", port)
                data, peer = await heard(made)
                assert data == b"question"
                made.sendto(b"answer", peer)
                assert await w.scripted.answer() == (HOST, port, 5000, b"answer")
                if not capabilities.checksum:
                    assert checksums_hold(w.scripted.log[-1])

    async def test_an_empty_datagram(self, capabilities):
        made, port = server()
        with made:
            async with world(capabilities=capabilities) as w:
                w.scripted.datagram(b"", port)
                data, peer = await heard(made)
                assert data == b""
                made.sendto(b"", peer)
                assert (await w.scripted.answer())[3] == b""

    async def test_one_port_for_all_servers(self, capabilities):
        """RFC 4787 REQ-1, endpoint-independent mapping."""
        servers = [server() for _ in range(3)]
        async with world(capabilities=capabilities) as w:
            peers = set()
            for made, port in servers:
                w.scripted.datagram(b"who am I?", port)
                peers.add((await heard(made))[1])
                made.close()
            assert len(peers) == 1
            assert len(w.guest.udp.mappings) == 1

    async def test_two_ports_of_the_guest_are_two_of_the_host(self, capabilities):
        made, port = server()
        with made:
            async with world(capabilities=capabilities) as w:
                w.scripted.datagram(b"1", port, source_port=5000)
                w.scripted.datagram(b"2", port, source_port=5001)
                assert (await heard(made))[1] != (await heard(made))[1]

    async def test_strangers_are_filtered(self, capabilities):
        """RFC 4787 REQ-8, address-dependent: another port of a known host may answer, another host may not."""
        made, port = server()
        other, other_port = server()
        with made, other, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.2", 0))
            async with world(capabilities=capabilities) as w:
                w.scripted.datagram(b"hello", port)
                _, peer = await heard(made)
                (mapping,) = w.guest.udp.mappings.values()
                idle_since = mapping.active_at = mapping.active_at - 100
                stranger.sendto(b"boo", ("127.0.0.1", peer[1]))
                await w.scripted.silence()
                assert w.guest.counters["udp_filtered"] == 1
                assert mapping.active_at == idle_since  # RFC 7857 section 7: what is filtered refreshes nothing
                other.sendto(b"from next door", ("127.0.0.1", peer[1]))
                assert await w.scripted.answer() == (HOST, other_port, 5000, b"from next door")
                assert mapping.active_at > idle_since

    @pytest.mark.parametrize(("plan", "known_as"), [(Plan(), HOST), (Plan(host_loopback=False), None)])
    async def test_strangers_are_let_in_where_asked_for(self, capabilities, plan, known_as):
        """RFC 4787 REQ-8, endpoint-independent."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.2", 0))
            async with world(plan, capabilities, udp_filtering="endpoint") as w:
                w.scripted.datagram(b"nobody", 9, FAKE_SERVER)
                with trio.fail_after(5):
                    while not w.guest.udp.mappings:
                        await trio.lowlevel.checkpoint()
                (mapping,) = w.guest.udp.mappings.values()
                stranger.sendto(b"boo", ("127.0.0.1", mapping._socket.getsockname()[1]))
                if known_as is None:
                    with trio.fail_after(5):
                        while not w.guest.counters["udp_filtered"]:
                            await trio.lowlevel.checkpoint()
                else:
                    assert await w.scripted.answer() == (known_as, stranger.getsockname()[1], 5000, b"boo")

    async def test_nobody_listens(self, capabilities):
        made, port = server()
        made.close()
        async with world(capabilities=capabilities) as w:
            w.scripted.datagram(b"anybody?", port)
            error = await w.scripted.frame(ICMP)
            assert (error[ICMP].type, error[ICMP].code, error[IP].src) == (3, 3, HOST)
            quoted = error[ICMP].payload
            assert (quoted[IPerror].src, quoted[IPerror].dst) == ("192.168.65.3", HOST)
            assert (quoted[UDPerror].sport, quoted[UDPerror].dport) == (5000, port)
            assert checksums_hold(bytes(error))
            events = w.guest.deadlines.wakeups
            await trio.sleep(0.05)
            assert w.guest.deadlines.wakeups - events < 5  # and nobody turns in circles

    async def test_trains_too_large_for_the_link_come_one_by_one(self, capabilities):
        made, port = server()
        with made:
            async with world(capabilities=capabilities) as w:
                w.scripted.datagram(b"?", port)
                _, peer = await heard(made)
                for i in range(3):
                    made.sendto(bytes([i]) * 2000, peer)
                frames = [(await w.scripted.frame(IP))[IP] for _ in range(6)]
                assert all(len(frame) <= 1500 for frame in frames)
                assert [bytes(d[UDP].payload) for d in defragment(frames)] == [bytes([i]) * 2000 for i in range(3)]

    async def test_large_datagrams_come_in_fragments(self, capabilities):
        made, port = server()
        with made:
            async with world(capabilities=capabilities) as w:
                w.scripted.datagram(b"?", port)
                _, peer = await heard(made)
                made.sendto(bytes(range(250)) * 20, peer)
                frames = [(await w.scripted.frame(IP))[IP] for _ in range(4)]
                assert all(len(frame) <= 1500 for frame in frames)
                (whole,) = defragment(frames)
                assert bytes(whole[UDP].payload) == bytes(range(250)) * 20

    async def test_a_burst_keeps_its_order_and_its_borders(self, capabilities):
        made, port = server()
        with made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            async with world(capabilities=capabilities) as w:
                sizes = [100] * 10 + [50, 100, 100, 7, 1400, 1, 1]
                for i, size in enumerate(sizes):
                    w.scripted.datagram(bytes([i]) * size, port)
                got = [await heard(made) for _ in sizes]
                assert [data for data, _ in got] == [bytes([i]) * size for i, size in enumerate(sizes)]
                assert len({peer for _, peer in got}) == 1

    async def test_a_long_burst_of_the_host_does_not_stop_half_way(self, capabilities, monkeypatch):
        """More than the turns of one wake-up read: the edge of the poller is behind us then."""
        monkeypatch.setattr(udp_mapping, "RECEIVE_BUDGET", 2)
        made, port = server()
        with made:
            async with world(capabilities=capabilities, queue_frames=5000) as w:
                w.scripted.datagram(b"go", port)
                _, peer = await heard(made)
                for i in range(200):
                    made.sendto(i.to_bytes(4, "big") + bytes(i % 50), peer)
                got = b""
                while got[:4] != (199).to_bytes(4, "big"):
                    got = bytes((await w.scripted.frame(UDP))[UDP].payload)[-4 - 199 % 50 :]
                await trio.sleep(0.02)
                (mapping,) = w.guest.udp.mappings.values()
                assert not mapping.touched


class TestMappings:
    async def test_idle_ones_expire(self):
        made, port = server()
        with made:
            async with world() as w:
                w.scripted.datagram(b"hello", port)
                await heard(made)
                (mapping,) = w.guest.udp.mappings.values()
                assert mapping.next_deadline() == mapping.active_at + IDLE_SECONDS
                assert IDLE_SECONDS >= 300  # RFC 4787 REQ-5c
                mapping.on_deadline(mapping.next_deadline())
                assert not w.guest.udp.mappings
                assert not w.guest.udp.routes
                assert w.guest.counters["udp_expired"] == 1
                w.scripted.datagram(b"again", port)
                assert (await heard(made))[0] == b"again"

    async def test_the_longest_idle_makes_place(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(udp, "MAX_MAPPINGS", 3)
        made, port = server()
        with made:
            async with world() as w:
                peers = {}
                for source_port in (1, 2, 3):
                    w.scripted.datagram(b"hello", port, source_port=source_port)
                    peers[source_port] = (await heard(made))[1]
                for mapping in w.guest.udp.mappings.values():
                    mapping.active_at -= 50
                made.sendto(b"still here", peers[1])  # keeps the first one young
                await w.scripted.answer()
                w.scripted.datagram(b"hello", port, source_port=4)
                await heard(made)
                assert {mapping.port for mapping in w.guest.udp.mappings.values()} == {1, 3, 4}
                assert w.guest.counters["udp_evicted"] == 1

    async def test_peers_are_bounded_and_the_last_one_called_may_answer(self, monkeypatch: pytest.MonkeyPatch):
        """A guest that calls many hosts from one port, as peer-to-peer programs do."""
        monkeypatch.setattr(udp_mapping, "MAX_PEERS", 4)
        made, port = server()
        with made:
            async with world() as w:
                w.scripted.datagram(b"hello", port)
                await heard(made)
                (mapping,) = w.guest.udp.mappings.values()
                for i in range(1, 4):
                    mapping.add_route(octets(f"9.9.9.{i}") + b"\0\1", (f"127.9.9.{i}", 1))
                mapping.add_route(octets(HOST) + b"\0\1", ("127.0.0.1", 1))  # the host again, at another port
                mapping.add_route(octets("9.9.9.9") + b"\0\1", ("127.9.9.9", 1))
                assert len(mapping.routes) == len(mapping._peers) == 4
                _, peer = made.getsockname(), mapping._socket.getsockname()
                made.sendto(b"still you", ("127.0.0.1", peer[1]))
                assert (await w.scripted.answer())[3] == b"still you"

    async def test_no_descriptor_left(self):
        class Full:
            @staticmethod
            def udp_socket(family: int = socket.AF_INET, *, gro: bool) -> socket.socket:
                raise OSError(errno.EMFILE, "as the test says")

        async with world() as w:
            w.guest.host = Full()
            w.scripted.datagram(b"hello", 9, FAKE_SERVER)
            error = await w.scripted.frame(ICMP)
            assert (error[ICMP].type, error[ICMP].code) == (3, 13)

    @pytest.mark.parametrize(
        ("number", "code"), [(errno.ENETUNREACH, 0), (errno.EHOSTUNREACH, 1), (errno.EACCES, 13), (errno.EPERM, 13)]
    )
    async def test_what_a_failed_send_looks_like(self, number, code):
        class Failing(socket.socket):
            def sendto(self, *_args):
                raise OSError(number, "as the test says")

        class Fake:
            @staticmethod
            def udp_socket(family: int = socket.AF_INET, *, gro: bool) -> socket.socket:
                real = host_sockets.udp_socket(family, gro=gro)
                return Failing(fileno=real.detach())

        async with world() as w:
            w.guest.host = Fake()
            w.scripted.datagram(b"hello", 9, FAKE_SERVER)
            error = await w.scripted.frame(ICMP)
            assert (error[ICMP].type, error[ICMP].code) == (3, code)

    async def test_a_failure_in_a_mapping_ends_only_that(self, monkeypatch, caplog):
        from vpnkit.net.udp_mapping import UdpMapping

        made, port = server()
        with made:
            async with world() as w:
                w.scripted.datagram(b"hello", port)
                _, peer = await heard(made)

                def broken(self, now):
                    raise ZeroDivisionError("as the test says")

                with monkeypatch.context() as patch:
                    patch.setattr(UdpMapping, "receive", broken)
                    made.sendto(b"boom", peer)
                    await trio.sleep(0.05)
                assert w.guest.counters["internal_error"] == 1
                assert not w.guest.udp.mappings
                w.scripted.datagram(b"again", port)
                assert (await heard(made))[0] == b"again"

    @pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "224.0.0.251", "192.168.65.255", "192.168.65.77"])
    async def test_addresses_that_lead_nowhere(self, address):
        async with world() as w:
            w.scripted.datagram(b"hello", 5353, address)
            await w.scripted.silence()
            assert not w.guest.udp.mappings

    @pytest.mark.parametrize(("source_port", "port"), [(0, 99), (5000, 0)])
    async def test_port_zero(self, source_port, port):
        async with world() as w:
            w.scripted.datagram(b"hello", port, FAKE_SERVER, source_port=source_port)
            await w.scripted.silence()
            assert not w.guest.udp.mappings

    async def test_a_closed_port_of_the_gateway(self):
        async with world() as w:
            w.scripted.datagram(b"hello", 99, GATEWAY)
            error = await w.scripted.frame(ICMP)
            assert (error[ICMP].type, error[ICMP].code, error[IP].src) == (3, 3, GATEWAY)


class TestArp:
    @pytest.mark.parametrize("target", [GATEWAY, HOST])
    async def test_our_addresses(self, target):
        async with world() as w:
            w.scripted.send(arp(target))
            reply = await w.scripted.frame(ARP)
            assert (reply.dst, reply.src) == (MAC.hex(":"), SERVER_MAC.hex(":"))
            assert (reply[ARP].op, reply[ARP].psrc, reply[ARP].hwsrc) == (2, target, SERVER_MAC.hex(":"))
            assert (reply[ARP].pdst, reply[ARP].hwdst) == ("192.168.65.3", MAC.hex(":"))

    async def test_a_probe_for_his_own_address(self):
        async with world() as w:
            w.scripted.send(arp("192.168.65.3", "0.0.0.0"))
            w.scripted.send(arp("192.168.65.3"))
            w.scripted.send(arp("192.168.65.4"))
            await w.scripted.silence()

    async def test_the_alias_that_is_switched_off(self):
        async with world(Plan(host_loopback=False)) as w:
            w.scripted.send(arp(HOST))
            await w.scripted.silence()


class TestIcmp:
    @pytest.mark.parametrize("address", [GATEWAY, HOST])
    @pytest.mark.parametrize("length", [0, 1, 56, 1472])
    async def test_echo_of_our_addresses(self, address, length):
        async with world() as w:
            data = bytes(i % 256 for i in range(length))
            w.scripted.ip(IP(src="192.168.65.3", dst=address) / ICMP(id=77, seq=9) / data)
            reply = await w.scripted.frame(ICMP)
            assert (reply[IP].src, reply[ICMP].type, reply[ICMP].id, reply[ICMP].seq) == (address, 0, 77, 9)
            assert bytes(reply[ICMP].payload) == data
            assert checksums_hold(bytes(reply))

    async def test_a_wrong_checksum(self):
        async with world() as w:
            w.scripted.ip(IP(src="192.168.65.3", dst=GATEWAY) / ICMP(chksum=1))
            await w.scripted.silence()
            assert w.guest.counters["malformed"] == 1

    async def test_an_unknown_protocol(self):
        async with world() as w:
            w.scripted.ip(IP(src="192.168.65.3", dst=GATEWAY, proto=132) / b"sctp here")
            error = await w.scripted.frame(ICMP)
            assert (error[ICMP].type, error[ICMP].code) == (3, 2)

    async def test_no_error_about_errors_fragments_or_groups(self):
        async with world() as w:
            bad = IP(src="192.168.65.3", dst=GATEWAY, proto=132)
            w.scripted.ip(bad.copy() / b"x", b"\xff" * 6)
            group = bad.copy()
            group.dst = "224.0.0.1"
            w.scripted.ip(group / b"x")
            fragment = bad.copy()
            fragment.frag = 8
            w.scripted.ip(fragment / b"x")
            w.scripted.ip(IP(src="192.168.65.3", dst=GATEWAY) / ICMP(type=3, code=3) / bytes(28))
            await w.scripted.silence()

    async def test_errors_are_rate_limited(self):
        async with world() as w:
            for _ in range(200):
                w.scripted.datagram(b"hello", 99, GATEWAY)
            await trio.sleep(0.05)
            assert 30 <= len(w.scripted.frames) < 200  # 50 on the average, and never told exactly
            assert w.guest.counters["icmp_rate_limited"]

    async def test_where_ping_is_forbidden_there_is_one_warning(self, caplog):
        class Forbidden:
            @staticmethod
            def ping_socket(family: int = socket.AF_INET) -> tuple[socket.socket, bool]:
                raise OSError(errno.EPERM, "Operation not permitted")

        async with world() as w:
            w.guest.host = Forbidden()
            for _ in range(3):
                w.scripted.ip(IP(src="192.168.65.3", dst=FAKE_SERVER) / ICMP())
                error = await w.scripted.frame(ICMP)
                assert (error[ICMP].type, error[ICMP].code) == (3, 13)
            assert len([r for r in caplog.records if "ping" in r.message]) == 1


class TestDhcp:
    def discover(self, kind: str, **options: str) -> BOOTP:
        listed = [("message-type", kind), *options.items(), "end"]
        return BOOTP(chaddr=MAC + bytes(10), xid=77, flags=0x8000) / DHCP(options=listed)

    async def test_a_lease(self):
        async with world() as w:
            header = Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / IP(src="0.0.0.0", dst="255.255.255.255")
            w.scripted.send(header / UDP(sport=68, dport=67) / self.discover("discover"))
            offer = await w.scripted.frame(DHCP)
            assert offer[BOOTP].xid == 77
            assert (offer[UDP].sport, offer[UDP].dport, offer[IP].src) == (67, 68, GATEWAY)
            assert checksums_hold(bytes(offer))
            address = offer[BOOTP].yiaddr
            request = self.discover("request", requested_addr=address, server_id=GATEWAY)
            w.scripted.send(header / UDP(sport=68, dport=67) / request)
            ack = await w.scripted.frame(DHCP)
            assert ("message-type", 5) in ack[DHCP].options
            renew = self.discover("request")
            renew.ciaddr, renew.flags = address, 0
            w.scripted.ip(IP(src=address, dst=GATEWAY) / UDP(sport=68, dport=67) / renew)
            ack = await w.scripted.frame(DHCP)
            assert ("message-type", 5) in ack[DHCP].options
            assert ack[IP].dst == address

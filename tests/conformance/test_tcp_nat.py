"""The NAT for TCP: RFC 5382, and what RFC 7857 says of its sessions.  Its ICMP is in test_rfc9293_icmp.py."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, TCP

from tests.conformance.wire import GUEST, HOST, MAC, datagram, syn
from vpnkit.net.tcp import TIME_WAIT_SECONDS

if TYPE_CHECKING:
    from tests.conformance.script import Script

ESTABLISHED_IDLE = 2 * 3600 + 4 * 60  # seconds
TRANSITORY_IDLE = 4 * 60


@pytest.mark.requirement("RFC7857 2")
async def test_rfc5382_req_2_the_guest_closes_first(script: Script):
    script.open()
    script.inject("F.", "the last words").expect(".", ack=16)
    assert script.host_reads() == b"the last words"
    assert script.program.recv(1) == b""
    script.host_writes("answer").expect(".", "answer")
    script.inject(".").host_closes().expect("F.", seq=7)
    script.inject(".").silence()
    assert not script.guest.tcp.flows


@pytest.mark.requirement("RFC7857 2")
async def test_rfc5382_req_2_the_host_closes_first(script: Script):
    script.open()
    script.host_writes("the last words").expect(".", "the last words")
    script.host_finishes().expect("F.", seq=15)
    script.inject(".").silence()
    script.inject(".", "answer").expect(".", ack=7)
    assert script.host_reads() == b"answer"
    script.inject("F.").expect(".", ack=8)
    assert script.program.recv(1) == b""
    assert not script.guest.tcp.flows


@pytest.mark.requirement("RFC7857 2")
async def test_rfc5382_req_2_both_close_at_the_same_time(script: Script):
    """Their FINs cross."""
    script.open()
    script.host_finishes().expect("F.", seq=1)
    script.inject("F.", ack=1).expect(".", ack=2)
    script.inject(".").silence()
    assert script.program.recv(1) == b""
    assert not script.guest.tcp.flows


@pytest.mark.requirement("RFC7857 2")
async def test_rfc5382_req_2_a_reset_of_the_guest_is_one_for_the_host(script: Script):
    script.open()
    script.inject("R").silence()
    assert not script.guest.tcp.flows
    assert script.program.recv(1) == b""  # as much as a socket pair can tell


@pytest.mark.requirement("RFC7857 2")
async def test_rfc5382_req_2_a_syn_is_no_session_until_the_host_says_so(script: Script):
    """INIT: nothing is promised to the guest, and its SYN again changes nothing."""
    script.host.held = True
    script.inject("S").silence()
    for _ in range(3):
        script.advance(3).inject("S", seq=0).silence()
    assert len(script.guest.tcp.flows) == 1
    script.host.answer()
    script.turn().expect("S.", ack=1)


@pytest.mark.parametrize("payload", ["", "data"])
async def test_rfc5382_req_2_data_may_come_with_the_ack_of_the_handshake(script: Script, payload):
    script.inject("S").expect("S.", ack=1)
    script.inject(".", payload)
    assert script.host_reads() == payload.encode()


async def test_rfc5382_req_5_an_established_connection_may_be_idle(script: Script):
    """2 h 4 min; a keep-alive of ours is answered, as any TCP does."""
    script.open()
    for _ in range(ESTABLISHED_IDLE // 60 + 1):
        script.advance(60)
        for probe in script.everything():
            assert not probe.payload
            script.inject(".")
    script.inject(".", "still here").expect(".", ack=11)
    assert script.host_reads() == b"still here"
    script.host_writes("so am I").expect(".", "so am I")


@pytest.mark.parametrize("first", ["guest", "host"])
async def test_rfc5382_req_5_a_connection_that_closes_may_be_idle(script: Script, first):
    """Half closed, four minutes and more: the other half goes on."""
    script.open()
    if first == "guest":
        script.inject("F.").expect(".", ack=2)
    else:
        script.host_finishes().expect("F.", seq=1)
        script.inject(".")
    for _ in range(TRANSITORY_IDLE // 30 + 1):
        script.advance(30)
        for _ in script.everything():
            script.inject(".")
    if first == "guest":
        script.host_writes("late").expect(".", "late")
    else:
        script.inject(".", "late").expect(".")
        assert script.host_reads() == b"late"


async def test_rfc5382_req_5_a_connection_that_opens_may_take_its_time(script: Script):
    """The host's connect decides, and the kernel's takes two minutes; nothing of ours is shorter than four."""
    script.host.held = True
    script.inject("S").advance(TRANSITORY_IDLE + 1).silence()
    script.host.answer()
    script.turn().expect("S.", ack=1)


def acknowledged(answer) -> IP:
    """The third segment of the handshake."""
    ours = answer[TCP]
    return IP(src=GUEST, dst=HOST) / TCP(sport=ours.dport, dport=ours.sport, seq=ours.ack, ack=ours.seq + 1, flags="A")


ADDRESSED = b"PORT 192,168,65,3,19,136\r\n227 Entering Passive Mode (192,168,65,3,19,136)\r\n\xc0\xa8\x41\x03"


async def test_rfc5382_req_6_addresses_in_the_data_stay_as_they_are(script: Script):
    script.open()
    script.inject(".", ADDRESSED).expect(".")
    assert script.host_reads() == ADDRESSED
    script.host_writes(ADDRESSED).expect(".", ADDRESSED)


async def test_rfc5382_req_8_hairpinning_with_the_external_address_as_the_source(wire):
    """The guest calls his own forwarded port by the host's address.  What comes back to him comes from there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        forwarded = listener.getsockname()[1]
        [answer] = wire.send(syn(forwarded))
        wire.send(acknowledged(answer))
        accepted, _ = listener.accept()
    accepted.setblocking(False)
    flow = wire.guest.tcp.call(
        bytes([192, 168, 65, 2]), bytes([192, 168, 65, 3]), 80, accepted, bytes.fromhex(MAC.replace(":", ""))
    )
    wire.guest.settle_now(flow)
    [call] = wire.work()
    assert (call[IP].src, call[IP].dst, call[TCP].dport, call[TCP].flags) == (HOST, GUEST, 80, "S")
    served = IP(src=GUEST, dst=HOST) / TCP(sport=80, dport=call[TCP].sport, seq=5000, ack=call[TCP].seq + 1, flags="SA")
    wire.send(served)
    served[TCP].seq, served[TCP].flags = 5001, "PA"
    came = wire.send(served / b"hello, me")
    [data] = [frame for frame in came if frame[TCP].dport == 40_000 and frame[TCP].payload]
    assert (data[IP].src, data[TCP].sport, bytes(data[TCP].payload)) == (HOST, forwarded, b"hello, me")


async def test_rfc7857_2_1_a_call_that_nobody_answers_is_given_up(script: Script):
    """Opening has a time of its own."""
    script.host_calls()
    script.advance(100)
    assert {segment.flags for segment in script.everything()} == {"S"}
    assert script.guest.tcp.flows
    script.advance(600)
    assert not script.guest.tcp.flows


async def test_rfc7857_2_1_time_wait_has_a_time_of_its_own(script: Script):
    script.open()
    script.host_finishes().expect("F.", seq=1)
    script.inject("F.").expect(".", ack=2)
    script.advance(TIME_WAIT_SECONDS - 1)
    script.inject("F.", seq=1).expect(".", ack=2)
    script.advance(2)
    script.inject("F.", seq=1).expect("R", seq=2)


@pytest.mark.parametrize("seq", [0, -1, 2_000_000, 2**31])
async def test_rfc7857_2_2_a_reset_outside_the_window_ends_nothing(script: Script, seq):
    script.open()
    script.inject("R", seq=seq).silence()
    assert script.connection.is_open


async def test_rfc7857_2_2_a_reset_that_is_not_exact_is_asked_back(script: Script):
    """RFC 5961 section 3.2."""
    script.open()
    script.inject("R", seq=100).expect(".", seq=1, ack=1)
    assert script.connection.is_open


async def test_rfc7857_2_2_an_exact_reset_ends_the_session(script: Script):
    script.open()
    script.inject("R", seq=1).silence()
    assert not script.guest.tcp.flows


async def test_rfc7857_5_each_protocol_has_a_mapping_of_its_own(wire):
    """The same port of the guest, the same port of the host."""
    with wire.server() as udp, socket.create_server(udp.getsockname()) as tcp:
        port = udp.getsockname()[1]
        [answer] = wire.send(syn(port, source_port=5000))
        wire.send(acknowledged(answer), datagram(b"?", port, source_port=5000))
        assert len(wire.guest.tcp.flows) == len(wire.guest.udp.mappings) == 1
        wire.pass_time(301)
        assert len(wire.guest.tcp.flows) == 1
        assert not wire.guest.udp.mappings
        tcp.accept()[0].close()


async def test_rfc7857_6_a_session_of_tcp_admits_no_udp(wire):
    with socket.create_server(("127.0.0.1", 0)) as tcp, wire.server() as stranger:
        port = tcp.getsockname()[1]
        [answer] = wire.send(syn(port))
        wire.send(acknowledged(answer))
        accepted, peer = tcp.accept()
        with accepted:
            stranger.sendto(b"let me in", peer)
            assert not wire.work()


async def test_rfc7857_6_a_mapping_of_udp_admits_no_tcp(wire):
    with wire.server() as udp:
        wire.send(datagram(b"?", udp.getsockname()[1]))
        _, peer = udp.recvfrom(100)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(peer, timeout=5)
        assert not wire.work()

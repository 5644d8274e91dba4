from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.vpnkit.services.dns_lan import (
    GUEST,
    answer_bytes,
    closed_port,
    honest,
    lan,
    query_bytes,
    silent,
    told,
)
from vpnkit.proto import dns as rules
from vpnkit.proto.dns_upstreams import Server
from vpnkit.services import dns as service_module
from vpnkit.services import dns_stream
from vpnkit.services.dns_connections import receive_message, socket_address

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Jumps when nothing happened for a moment: sockets are real here, so a moment must be longer than none."""
    return trio.testing.MockClock(autojump_threshold=0.01)


# UDP


async def test_local_names_are_answered_at_once(clock: trio.testing.MockClock) -> None:
    async with lan() as net:
        net.send(query_bytes("Gateway.Internal"))
        net.send(query_bytes("vm.internal"))
        net.send(query_bytes("9.65.168.192.in-addr.arpa", "PTR"))
        assert [told(reply) for reply in net.replies] == [
            "NOERROR 192.168.65.1",
            "NOERROR 192.168.65.3",
            "NXDOMAIN",
        ]
        assert net.service.statistics().local == 3


async def test_forwarded_and_back(clock: trio.testing.MockClock) -> None:
    async with lan(honest("10.9.8.7")) as net:
        raw = query_bytes("eXaMple.com", id=4711, use_edns=0, want_dnssec=True)
        reply = await net.ask(raw)
        assert told(reply) == "NOERROR 10.9.8.7"
        [asked] = net.upstreams[0].udp
        assert asked[2:] == raw[2:]
        assert reply[2:] == answer_bytes(asked, "10.9.8.7")[2:]
        statistics = net.service.statistics()
        assert (statistics.forwarded, statistics.in_flight, statistics.sockets) == (1, 0, 0)
        assert trio.current_time() < 0.5


@pytest.mark.parametrize("flags", range(0, 128, 9))
async def test_unknown_flags_and_types_pass(clock: trio.testing.MockClock, flags: int) -> None:
    """AD, CD, Z, TC, AA, RD and RA of a query arrive as they were; so does any type."""

    def echo(query: bytes) -> list[bytes]:
        return [query[:2] + bytes((query[2] | 0x80,)) + query[3:] + b"opaque"]

    async with lan(echo) as net:
        raw = query_bytes(rdtype=f"TYPE{65280 + flags}")
        raw = raw[:2] + bytes((flags & 7, flags >> 3 << 4)) + raw[4:]
        reply = await net.ask(raw)
        assert net.upstreams[0].udp[0][2:] == raw[2:]
        assert reply == raw[:2] + bytes((raw[2] | 0x80,)) + raw[3:] + b"opaque"


async def test_silent_server_costs_one_second(clock: trio.testing.MockClock) -> None:
    async with lan(silent, honest()) as net:
        assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.1"
        assert 1.0 <= trio.current_time() < 1.5
        assert net.service.statistics().retried == 1


async def test_a_late_answer_of_the_first_server_counts(clock: trio.testing.MockClock) -> None:
    async with lan(silent, silent) as net:
        upstream = net.upstreams[0]

        async def answer_late() -> None:
            await trio.sleep(1.5)
            await upstream.sock.sendto(answer_bytes(upstream.udp[0], "10.0.0.9"), ("127.0.0.1", upstream.ports[0]))

        net.nursery.start_soon(answer_late)
        assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.9"
        assert 1.5 <= trio.current_time() < 2


async def test_dead_servers_cost_nothing(clock: trio.testing.MockClock) -> None:
    nowhere = ("not-an-address", 53)
    async with lan(closed_port(), nowhere, honest()) as net:
        assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.1"
        assert trio.current_time() < 0.5


async def test_everybody_silent(clock: trio.testing.MockClock) -> None:
    async with lan(silent, silent) as net:
        assert told(await net.ask(query_bytes())) == "SERVFAIL"
        assert 3.0 <= trio.current_time() < 5.0
        assert [len(upstream.udp) for upstream in net.upstreams] == [2, 2]
        assert len(set(net.upstreams[0].ports)) == 1  # the question is repeated, not asked anew
        assert net.service.statistics().unanswered == 1


async def test_everybody_dead(clock: trio.testing.MockClock) -> None:
    async with lan(closed_port(), closed_port()) as net:
        assert told(await net.ask(query_bytes())) == "SERVFAIL"
        assert trio.current_time() < 0.5


async def test_no_servers(clock: trio.testing.MockClock) -> None:
    async with lan() as net:
        net.send(query_bytes())
        assert told(net.replies[0]) == "SERVFAIL"


@pytest.mark.parametrize(("rcode", "word"), [(2, "SERVFAIL"), (5, "REFUSED")])
async def test_unwilling_server(clock: trio.testing.MockClock, rcode: int, word: str) -> None:
    async with lan(honest(rcode=rcode), honest()) as net:
        assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.1"
        assert trio.current_time() < 0.5
    async with lan(honest(rcode=rcode)) as net:
        assert told(await net.ask(query_bytes())) == word
        assert net.service.statistics().unanswered == 0


async def test_nxdomain_passes(clock: trio.testing.MockClock) -> None:
    async with lan(honest(rcode=3), honest()) as net:
        assert told(await net.ask(query_bytes())) == "NXDOMAIN"
        assert net.upstreams[1].udp == []


def lies(query: bytes) -> Iterator[bytes]:
    truth = answer_bytes(query, "10.6.6.6")
    yield bytes((truth[0] ^ 1,)) + truth[1:]
    yield truth[:2] + bytes((truth[2] & 0x7F,)) + truth[3:]
    yield truth[:14] + b"Q" + truth[15:]
    yield truth[:11]
    yield b""


async def test_lies_are_ignored_and_the_truth_awaited(clock: trio.testing.MockClock) -> None:
    async with lan(lambda query: [*lies(query), answer_bytes(query, "10.0.0.7")], honest()) as net:
        assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.7"
        assert net.service.statistics().mismatched == 5
        assert trio.current_time() < 0.5


async def test_a_liar_is_given_up(clock: trio.testing.MockClock) -> None:
    async with lan(lambda query: list(lies(query)) * 20, honest()) as net:
        assert told(await net.ask(query_bytes())) == "NOERROR 10.0.0.1"
        assert net.service.statistics().mismatched <= service_module.MAX_WRONG


async def test_another_host_cannot_answer(clock: trio.testing.MockClock) -> None:
    async with lan(silent) as net:
        net.send(query_bytes())
        await trio.sleep(0.1)
        upstream = net.upstreams[0]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as spoofer:
            spoofer.sendto(answer_bytes(upstream.udp[0], "10.6.6.6"), ("127.0.0.1", upstream.ports[0]))
        await trio.sleep(0.1)
        assert net.replies == []
        assert net.service.statistics().mismatched == 0


async def test_big_answers(clock: trio.testing.MockClock) -> None:
    async with lan(honest(count=250)) as net:
        whole = await net.ask(query_bytes(use_edns=0, payload=4096))
        assert 4000 < len(whole) <= 4096
        assert not whole[2] & 2
        for options, limit in (
            ({}, 512),
            ({"use_edns": 0, "payload": 100}, 512),
            ({"use_edns": 0, "payload": 1232}, 1232),
        ):
            cut = await net.ask(query_bytes(**options))  # type: ignore[arg-type]
            assert limit - 16 < len(cut) <= limit
            assert cut[2] & 2
        assert net.service.statistics().truncated == 3


async def test_tc_passes(clock: trio.testing.MockClock) -> None:
    async with lan(honest(tc=True)) as net:
        reply = await net.ask(query_bytes())
        assert reply[2] & 2
        assert len(net.upstreams[0].tcp) == 0


async def test_local_answers_are_cut_too(clock: trio.testing.MockClock) -> None:
    async with lan() as net:
        reply = await net.ask(query_bytes("big.internal"))
        assert 496 < len(reply) <= 512
        assert reply[2] & 2


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (b"", None),
        (query_bytes()[:11], None),
        (answer_bytes(query_bytes()), None),
        (query_bytes()[:20], "FORMERR"),
        (bytes.fromhex("0001 0100 0000 0000 0000 0000"), "FORMERR"),
        (bytes.fromhex("0001 0100 0002 0000 0000 0000") + query_bytes()[12:] * 2, "FORMERR"),
        (bytes.fromhex("0001 0100 0001 0000 0000 0000 c00c 0001 0001 0000 0000 0000"), "FORMERR"),  # 28 octets
        (bytes.fromhex("0001 2800 0001 0000 0000 0000") + query_bytes()[12:], "NOTIMP"),  # UPDATE
        (query_bytes(rdtype="AXFR"), "NOTIMP"),
    ],
)
async def test_what_is_not_forwarded(clock: trio.testing.MockClock, raw: bytes, word: str | None) -> None:
    async with lan(honest()) as net:
        net.send(raw)
        assert [told(reply) for reply in net.replies] == ([word] if word else [])
        await trio.sleep(0.05)
        assert net.upstreams[0].udp == []


async def test_ports_and_ids_are_random(clock: trio.testing.MockClock) -> None:
    async with lan(silent) as net:
        for number in range(200):
            net.send(query_bytes(f"n{number}.example"))
        await trio.sleep(0.2)
        upstream = net.upstreams[0]
        assert len(set(upstream.ports)) == 200
        assert len({data[:2] for data in upstream.udp}) > 190


async def test_the_same_question_is_asked_once(clock: trio.testing.MockClock) -> None:
    async with lan(honest()) as net:
        for ident in range(5):
            net.send(query_bytes(id=ident))
        await trio.sleep(0.1)
        assert [int.from_bytes(reply[:2], "big") for reply in net.replies] == [0, 1, 2, 3, 4]
        assert len(net.upstreams[0].udp) == 1


async def test_a_loop_ends(clock: trio.testing.MockClock) -> None:
    """A server that is ourselves: the question joins its own lookup, and nothing multiplies."""
    async with lan(silent) as net:
        upstream = net.upstreams[0]

        def behave(query: bytes) -> list[bytes]:
            net.send(query)
            return []

        upstream.behave = behave
        assert told(await net.ask(query_bytes())) == "SERVFAIL"
        assert len(upstream.udp) == 4
        assert net.service.statistics().forwarded == 1


async def test_lookups_are_bounded(clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_IN_FLIGHT", 20)
    monkeypatch.setattr(service_module, "MAX_SOCKETS", 25)
    async with lan(silent, silent, silent) as net:
        for number in range(21):
            net.send(query_bytes(f"n{number}.example"))
        assert [told(reply) for reply in net.replies] == ["SERVFAIL"]
        most = 0
        while len(net.replies) < 21:
            most = max(most, net.service.statistics().sockets)
            await trio.sleep(0.5)
        assert 20 < most <= 25
        assert net.service.statistics().overflowed == 1
        assert net.service.statistics().sockets == 0


async def test_a_reply_that_raises_ends_its_lookup_only(clock: trio.testing.MockClock) -> None:
    async with lan(honest()) as net:

        def reply(_: bytes) -> None:
            raise RuntimeError("the link is gone")

        net.service.query(query_bytes("a.example"), GUEST, reply)
        assert told(await net.ask(query_bytes("b.example"))) == "NOERROR 10.0.0.1"
        statistics = net.service.statistics()
        assert (statistics.failed, statistics.in_flight, statistics.sockets) == (1, 0, 0)


async def test_closed(clock: trio.testing.MockClock) -> None:
    async with lan(silent) as net:
        net.send(query_bytes())
        assert net.service.statistics().sockets == 1
        net.service.close()
        net.send(query_bytes())
        await trio.sleep(6)
        assert net.replies == []


async def test_idle_means_idle(clock: trio.testing.MockClock) -> None:
    """Many answered questions leave two timers behind, as long as patience grew shorter once, not one each."""
    async with lan(honest()) as net:
        for number in range(20):
            await net.ask(query_bytes(f"n{number}.example"))
        assert len(net.service._deadlines.queue) <= 2
        await trio.sleep(10)
        assert net.service._deadlines.wakeups <= 3
        assert len(net.service._deadlines.queue) == 0


async def test_ipv6_server(clock: trio.testing.MockClock) -> None:
    try:
        sock = trio.socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        await sock.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    with sock:
        async with lan(("::1", sock.getsockname()[1])) as net:
            net.send(query_bytes())
            data, sender = await sock.recvfrom(512)
            await sock.sendto(answer_bytes(data, "10.0.0.6"), sender)
            await trio.sleep(0.05)
            assert told(net.replies[0]) == "NOERROR 10.0.0.6"


@pytest.mark.parametrize("server", [("fe80::1%no-such-interface", 53), ("::x", 53), ("1.2.3", 53), ("", 53)])
def test_bad_server_addresses(server: tuple[str, int]) -> None:
    with pytest.raises(OSError, match=r".*"):
        socket_address(Server(*server))


def test_zones() -> None:
    assert socket_address(Server("fe80::1%1", 53)) == (socket.AF_INET6, ("fe80::1", 53, 0, 1))


# TCP


def frame(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


async def test_stream_goes_upstream_by_stream(clock: trio.testing.MockClock) -> None:
    async with lan(honest("10.0.0.8", count=3000)) as net:
        reply = await net.ask_stream(query_bytes(id=4712))
        assert told(reply).startswith("NOERROR 10.0.0.8 10.1.0.1")
        assert len(reply) > 48000
        assert (len(net.upstreams[0].tcp), len(net.upstreams[0].udp)) == (1, 0)
        assert int.from_bytes(reply[:2], "big") == 4712
        assert trio.current_time() < 0.5


async def test_stream_local_and_errors(clock: trio.testing.MockClock) -> None:
    async with lan() as net:
        assert told(await net.ask_stream(query_bytes("gateway.internal"))) == "NOERROR 192.168.65.1"
        assert len(await net.ask_stream(query_bytes("big.internal"))) > 1024
        assert told(await net.ask_stream(query_bytes("big.internal")[:20])) == "FORMERR"
        assert told(await net.ask_stream(query_bytes(rdtype="AXFR"))) == "NOTIMP"
        assert told(await net.ask_stream(query_bytes(rdtype="IXFR"))) == "NOTIMP"
        assert told(await net.ask_stream(query_bytes())) == "SERVFAIL"


async def test_stream_in_single_octets(clock: trio.testing.MockClock) -> None:
    async with lan() as net, net.connect() as stream:
        for octet in frame(query_bytes("gateway.internal")):
            await stream.send_all(bytes((octet,)))
        answer = await receive_message(stream, bytearray())
        assert answer is not None
        assert told(answer) == "NOERROR 192.168.65.1"


async def test_a_slow_query_does_not_hold_the_next(clock: trio.testing.MockClock) -> None:
    async with lan(silent) as net, net.connect() as stream:
        await stream.send_all(frame(query_bytes(id=1), query_bytes("gateway.internal", id=2)))
        await stream.send_eof()
        received = bytearray()
        idents = []
        while (answer := await receive_message(stream, received)) is not None:
            idents.append((int.from_bytes(answer[:2], "big"), told(answer)))
        assert idents == [(2, "NOERROR 192.168.65.1"), (1, "SERVFAIL")]
        assert 3.9 < trio.current_time() < 5


async def test_stream_servers_in_turn(clock: trio.testing.MockClock) -> None:
    async with lan(closed_port(), silent, honest("10.0.0.4")) as net:
        assert told(await net.ask_stream(query_bytes())) == "NOERROR 10.0.0.4"
        assert 1.0 <= trio.current_time() < 1.5
    async with lan(honest(rcode=5), honest("10.0.0.4")) as net:
        assert told(await net.ask_stream(query_bytes())) == "NOERROR 10.0.0.4"
    async with lan(honest(rcode=5), closed_port()) as net:
        assert told(await net.ask_stream(query_bytes())) == "REFUSED"
    async with lan(closed_port()) as net:
        assert told(await net.ask_stream(query_bytes())) == "SERVFAIL"


async def test_stream_lies(clock: trio.testing.MockClock) -> None:
    async with lan(lambda query: [*lies(query), answer_bytes(query, "10.0.0.7")]) as net:
        assert told(await net.ask_stream(query_bytes())) == "NOERROR 10.0.0.7"
        assert net.service.statistics().mismatched == 3  # the two that have no header are skipped unseen


async def test_idle_connection(clock: trio.testing.MockClock) -> None:
    """One octet every nine seconds is not a message: the limit counts from the last complete one."""
    async with lan() as net, net.connect() as stream:
        await stream.send_all(frame(query_bytes("gateway.internal")))
        received = bytearray()
        assert await receive_message(stream, received) is not None
        await stream.send_all(b"\0")
        await trio.sleep(9)
        await stream.send_all(b"\x40")
        await trio.sleep(2)
        assert await receive_message(stream, received) is None
        assert 10 <= trio.current_time() <= 12
        assert net.service.statistics().idle == 1
        assert net.service.statistics().streams == 0


@pytest.mark.parametrize("length", [0, 1, 11])
async def test_messages_without_a_header(clock: trio.testing.MockClock, length: int) -> None:
    async with lan() as net, net.connect() as stream:
        await stream.send_all(frame(bytes(length), query_bytes("gateway.internal")))
        answer = await receive_message(stream, bytearray())
        assert answer is not None
        assert told(answer) == "NOERROR 192.168.65.1"


async def test_client_that_breaks_off(clock: trio.testing.MockClock) -> None:
    async with lan(silent) as net:
        stream = net.connect()
        await stream.send_all(frame(query_bytes(), query_bytes("gateway.internal")))
        await trio.sleep(0.1)
        await stream.aclose()
        await trio.sleep(6)
        assert net.service.statistics().streams == 0


async def test_client_that_does_not_read(clock: trio.testing.MockClock) -> None:
    async with lan() as net:
        mine, theirs = trio.testing.lockstep_stream_pair()
        net.nursery.start_soon(net.service.serve_stream, theirs, GUEST)
        await mine.send_all(frame(*[query_bytes("gateway.internal")] * 5))
        await trio.sleep(dns_stream.IDLE_SECONDS + 11)
        assert net.service.statistics().streams == 0
        await mine.aclose()


async def test_streams_are_bounded(clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "MAX_STREAMS", 2)
    async with lan() as net:
        streams = []
        for _ in range(3):
            streams.append(net.connect())
            await trio.testing.wait_all_tasks_blocked()
        statistics = net.service.statistics()
        assert (statistics.streams, statistics.refused_streams) == (2, 1)
        assert await streams[2].receive_some() == b""
        await streams[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert told(await net.ask_stream(query_bytes("gateway.internal"))) == "NOERROR 192.168.65.1"
        await streams[1].aclose()


async def test_stream_lookups_are_bounded(clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "MAX_STREAM_LOOKUPS", 1)
    async with lan(silent) as net, net.connect() as stream:
        await stream.send_all(frame(query_bytes(id=1), query_bytes(id=2)))
        assert await receive_message(stream, bytearray()) is not None
        assert trio.current_time() < 0.5
        assert net.service.statistics().overflowed == 1


async def test_whatever_a_guest_sends_is_answered_or_counted(clock: trio.testing.MockClock) -> None:
    rng = random.Random(7)
    seeds = [query_bytes(), query_bytes("gateway.internal", use_edns=0), query_bytes("x" * 60, "TYPE65", use_edns=0)]
    async with lan(silent, closed_port()) as net:
        for _ in range(500):
            raw = bytearray(rng.choice(seeds))
            for _ in range(rng.randrange(4)):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            net.send(bytes(raw[: rng.randrange(len(raw)) if rng.random() < 0.2 else len(raw)]))
        await trio.sleep(6)
        statistics = net.service.statistics()
        dropped = statistics.responses + statistics.crowded + statistics.malformed
        formerr = sum(reply[3] & 15 == 1 for reply in net.replies)
        assert len(net.replies) == 500 - dropped + formerr
        assert (statistics.in_flight, statistics.sockets, statistics.failed) == (0, 0, 0)

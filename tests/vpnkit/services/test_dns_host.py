"""The operating system's resolver, which is a script here; and whom to ask what it cannot be."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import dns.message
import pytest
import trio
import trio.testing

from tests.vpnkit.services.dns_lan import honest, lan, query_bytes, told
from vpnkit.proto.dns_upstreams import Routes
from vpnkit.services.dns_host import HostResolver, is_for_host
from vpnkit.services.resolvconf import HOST
from vpnkit.wire import dns as wire

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0.05)


class System:
    """What the system knows, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.addresses: dict[str, list[str] | int] = {
            "both.example.": ["10.0.0.1", "10.0.0.2", "2001:db8::1", "10.0.0.1"],
            "four.example.": ["10.0.0.4"],
            "printer": ["10.0.0.5"],
            "linked.local.": ["fe80::1%2"],
            "broken.example.": socket.EAI_AGAIN,
            "nodata.example.": getattr(socket, "EAI_NODATA", socket.EAI_NONAME),
        }

    def getaddrinfo(self, name: str, *_: Any) -> list[tuple[Any, ...]]:
        self.asked.append(name)
        known = self.addresses.get(name.lower(), socket.EAI_NONAME)
        if isinstance(known, int):
            raise socket.gaierror(known, "no")
        return [
            (socket.AF_INET6 if ":" in text else socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, 0)) for text in known
        ]

    def getnameinfo(self, address: tuple[str, int], _flags: int) -> tuple[str, str]:
        if address[0] == "10.0.0.1":
            return "both.example", "0"
        raise socket.gaierror(socket.EAI_NONAME, "no")


@pytest.fixture
def system() -> System:
    return System()


@pytest.fixture
def host(system: System, tmp_path: Path) -> HostResolver:
    (tmp_path / "hosts").write_text("10.7.7.7 written.example\n")
    return HostResolver(system.getaddrinfo, system.getnameinfo, str(tmp_path / "hosts"))


@pytest.mark.parametrize(
    ("name", "rdtype", "expected"),
    [
        ("Both.example", "A", "NOERROR 10.0.0.1 10.0.0.2"),
        ("both.example", "AAAA", "NOERROR 2001:db8::1"),
        ("four.example", "AAAA", "NOERROR"),
        ("printer", "A", "NOERROR 10.0.0.5"),
        ("linked.local", "AAAA", "NOERROR fe80::1"),
        ("missing.example", "A", "NXDOMAIN"),
        ("broken.example", "A", "SERVFAIL"),
        ("nodata.example", "A", "NOERROR" if hasattr(socket, "EAI_NODATA") else "NXDOMAIN"),
        ("written.example", "A", "NOERROR 10.7.7.7"),
        ("written.example", "AAAA", "NOERROR"),
        ("1.0.0.10.in-addr.arpa", "PTR", "NOERROR both.example."),
        ("2.0.0.10.in-addr.arpa", "PTR", "NXDOMAIN"),
        ("a\\000b.example", "A", "NXDOMAIN"),
        ("x.\\195\\164.example", "A", "NXDOMAIN"),
    ],
)
async def test_what_the_system_says(host: HostResolver, name: str, rdtype: str, expected: str) -> None:
    query = wire.decode_query(query_bytes(name, rdtype))
    assert is_for_host(query)
    assert told(await host.answer(query)) == expected


async def test_a_hostile_name_does_not_reach_the_system(host: HostResolver, system: System) -> None:
    for name in ("a\\010b.example", "$(id).example", "a\\.b.example", "a/b"):
        await host.answer(wire.decode_query(query_bytes(name)))
    assert system.asked == []


def test_what_the_system_cannot_be_asked() -> None:
    for name, rdtype, rdclass in (("a", "MX", "IN"), ("a", "A", "CH"), ("x.example", "PTR", "IN"), ("a", "ANY", "IN")):
        raw = dns.message.make_query(name, rdtype, rdclass).to_wire()
        assert not is_for_host(wire.decode_query(raw))


async def test_in_a_network(clock: trio.testing.MockClock, host: HostResolver, system: System) -> None:
    """Datagrams and connections, the cache, and resolv.conf's servers for what the system cannot be asked."""
    fallback: list[Any] = []
    routes = Routes([HOST])

    def routing(servers: list[Any]) -> Any:
        fallback.extend(servers)
        return lambda: routes

    async with lan(honest("10.9.9.9"), routing=routing, host=host, fallback=lambda: fallback) as net:
        assert told(await net.ask(query_bytes("both.example"))) == "NOERROR 10.0.0.1 10.0.0.2"
        assert told(await net.ask(query_bytes("both.example"))) == "NOERROR 10.0.0.1 10.0.0.2"
        assert told(await net.ask_stream(query_bytes("both.example"))) == "NOERROR 10.0.0.1 10.0.0.2"
        assert system.asked == ["both.example."]
        assert told(await net.ask(query_bytes("broken.example"))) == "SERVFAIL"
        assert net.upstreams[0].udp == []
        assert told(await net.ask(query_bytes("both.example", "TYPE65280"))) == "NOERROR 10.9.9.9"
        await trio.sleep(11)
        await net.ask(query_bytes("both.example"))
        assert system.asked.count("both.example.") == 2


async def test_a_system_that_takes_its_time(clock: trio.testing.MockClock, tmp_path: Path) -> None:
    """Nobody waits longer than a client does, and a slow name holds up no other."""
    threads: list[str] = []

    class Slow(HostResolver):
        async def answer(self, query: wire.Query) -> bytes:
            threads.append("asked")
            if b"slow" in query.name:
                await trio.sleep(60)
            return wire.encode_reply(query, wire.NOERROR)

    routes = Routes([HOST])
    slow = Slow(hosts=str(tmp_path / "none"))
    async with lan(routing=lambda _: lambda: routes, host=slow) as net:
        net.send(query_bytes("slow.example", id=1))
        assert told(await net.ask(query_bytes("quick.example"))) == "NOERROR"
        assert net.replies == []
        await trio.sleep(5)
        assert [told(reply) for reply in net.replies] == ["SERVFAIL"]


async def test_a_resolver_that_raises_is_one_that_failed(
    clock: trio.testing.MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(HostResolver):
        async def answer(self, query: wire.Query) -> bytes:
            raise RuntimeError("a bug")

    routes = Routes([HOST])
    async with lan(routing=lambda _: lambda: routes, host=Broken(hosts=str(tmp_path / "none"))) as net:
        for name in ("a.example", "b.example"):
            assert told(await net.ask(query_bytes(name))) == "SERVFAIL"
    assert "a bug" in caplog.text

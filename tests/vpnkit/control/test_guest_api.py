"""gvproxy's API at the gateway: asked by a guest, over his own TCP."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.vpnkit.control.asking import Answer, asker
from tests.vpnkit.control.reporter import FixedOperator
from tests.vpnkit.net.scripted_guest import GATEWAY, World, world
from vpnkit.control import guest_api, gvproxy_forwards
from vpnkit.control.guest_api import GuestApi
from vpnkit.control.gvproxy_forwards import GvproxyForwards
from vpnkit.control.instance import instance_router
from vpnkit.net.events import GuestLeft
from vpnkit.net.plan import GATEWAY_NAMES, Plan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
def operator() -> FixedOperator:
    operator = FixedOperator()
    operator.specs.clear()
    return operator


class Inside:
    """A guest that may ask."""

    def __init__(self, inner: World, api: GuestApi, forwards: GvproxyForwards) -> None:
        self.inner = inner
        self.api = api
        self.forwards = forwards

    async def ask(
        self, path: str, body: object = None, *headers: str, host: str = "gateway.containers.internal"
    ) -> Answer:
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
        client = await self.inner.scripted.connect(80, GATEWAY)
        await client.send("\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode() + data)
        await client.until(lambda: client.connection.receiver.finished)
        assert client.reset_sequence is None
        client.finish()
        head, _, answer = bytes(client.got).partition(b"\r\n\r\n")
        return Answer(int(head.split()[1]), {}, answer)

    async def expose(self, local: str, remote: str, **more: str) -> Answer:
        return await self.ask("/services/forwarder/expose", {"local": local, "remote": remote, **more})


@asynccontextmanager
async def inside(operator: FixedOperator, plan: Plan | None = None) -> AsyncIterator[Inside]:
    forwards = GvproxyForwards(operator)
    api = GuestApi(operator, forwards, GATEWAY_NAMES)
    network: Any = SimpleNamespace(services={})
    async with world(plan or Plan(gateway_api=True)) as inner:
        inner.guest.gateway.more = network.services
        inner.nursery.start_soon(api.run, network)
        await trio.testing.wait_all_tasks_blocked()
        yield Inside(inner, api, forwards)


async def test_a_guest_publishes_a_port_as_podman_does(operator: FixedOperator) -> None:
    async with inside(operator) as guest:
        answer = await guest.expose("127.0.0.1:8080", ":80", protocol="tcp")
        assert (answer.status, answer.body) == (200, b"")
        assert list(map(str, operator.specs)) == ["127.0.0.1:8080:192.168.65.3:80"]
        listed = await guest.ask("/services/forwarder/all")
        assert json.loads(listed.body) == [{"local": "127.0.0.1:8080", "remote": "192.168.65.3:80", "protocol": "tcp"}]
        answer = await guest.ask("/services/forwarder/unexpose", {"local": "127.0.0.1:8080"})
        assert (answer.status, operator.specs) == (200, [])


async def test_without_the_option_nobody_listens(operator: FixedOperator) -> None:
    async with inside(operator, Plan()) as guest:
        with pytest.raises(ConnectionRefusedError):
            await guest.inner.scripted.connect(80, GATEWAY)


async def test_only_the_three_paths(operator: FixedOperator) -> None:
    async with inside(operator) as guest:
        for path in (
            "/",
            "/v1/status",
            "/services/dns/all",
            "/connect",
            "/tunnel?ip=1.2.3.4&port=1",
            "/leases",
            "/metrics",
        ):
            answer = await guest.ask(path)
            assert (answer.status, answer.body) == (404, b"404 page not found\n")


async def test_pages_that_a_browser_in_the_guest_shows(operator: FixedOperator) -> None:
    async with inside(operator) as guest:
        answer = await guest.ask("/services/forwarder/all", None, "Origin: http://evil.example")
        assert (answer.status, answer.error()) == (403, "foreign_origin")
        answer = await guest.ask("/services/forwarder/all", host="evil.example")
        assert (answer.status, answer.error()) == (421, "misdirected")


@pytest.mark.parametrize(
    ("local", "remote", "protocol", "text"),
    [
        (":1", "192.168.65.4:80", "tcp", "a guest may forward ports to itself only, which is 192.168.65.3"),
        (":1", "127.0.0.1:80", "udp", "a guest may forward ports to itself only, which is 192.168.65.3"),
        ("/tmp/x.sock", "tcp://192.168.65.3:80", "unix", "a guest may not make sockets in the host's file system"),
    ],
)
async def test_what_a_guest_may_not(operator: FixedOperator, local: str, remote: str, protocol: str, text: str) -> None:
    async with inside(operator) as guest:
        answer = await guest.expose(local, remote, protocol=protocol)
        assert (answer.status, answer.body.decode()) == (500, f"{text}\n")
        assert operator.specs == []


async def test_what_the_operator_made_is_not_the_guests(operator: FixedOperator) -> None:
    await operator.expose("127.0.0.1:8080:192.168.65.3:80")
    async with inside(operator) as guest:
        assert (await guest.ask("/services/forwarder/all")).body == b"[]\n"
        answer = await guest.ask("/services/forwarder/unexpose", {"local": "127.0.0.1:8080"})
        assert (answer.status, answer.body) == (500, b"proxy not found\n")
        answer = await guest.expose("127.0.0.1:8080", ":80")
        assert answer.body == b"proxy already running for tcp on 127.0.0.1:8080\n"
    assert len(operator.specs) == 1


async def test_what_a_guest_made_is_seen_outside(operator: FixedOperator) -> None:
    async with inside(operator) as guest:
        await guest.expose(":8080", ":80")
        async with asker(instance_router(operator, forwards=guest.forwards)) as ask:
            assert b'":8080"' in (await ask("GET", "/services/forwarder/all")).body
            assert len(json.loads((await ask("GET", "/v1/forwards")).body)) == 2
            body = {"local": ":8080"}
            assert (await ask("POST", "/services/forwarder/unexpose", body)).status == 200
        assert operator.specs == []


async def test_so_many_and_no_more(operator: FixedOperator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gvproxy_forwards, "MAX_OF_A_GUEST", 2)
    async with inside(operator) as guest:
        answers = [(await guest.expose(f"127.0.0.1:{port}", ":80")).status for port in (1, 2, 3)]
        assert answers == [200, 200, 500]
        assert guest.forwards.refused == 1
        await guest.ask("/services/forwarder/unexpose", {"local": "127.0.0.1:1"})
        assert (await guest.expose("127.0.0.1:3", ":80")).status == 200


@pytest.mark.parametrize("limit", ["MAX_CONNECTIONS", "MAX_OF_ALL"])
async def test_connections_are_bounded(operator: FixedOperator, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(guest_api, limit, 2)
    async with inside(operator) as guest:
        held = [await guest.inner.scripted.connect(80, GATEWAY) for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked()
        refused = await guest.inner.scripted.connect(80, GATEWAY)
        await refused.until(lambda: refused.reset_sequence is not None)
        assert guest.api.refused == 1
        for client in held:
            client.finish()
            await client.until(lambda client=client: client.connection.receiver.finished)
        assert (await guest.ask("/services/forwarder/all")).status == 200


async def test_what_a_guest_made_goes_with_him(operator: FixedOperator) -> None:
    async with inside(operator) as guest:
        await operator.expose("127.0.0.1:1:192.168.65.3:1")
        await guest.expose("127.0.0.1:8080", ":80")
        report = operator.guests()[0]
        operator.events.publish(GuestLeft(time=0.0, guest=report))
        await trio.testing.wait_all_tasks_blocked()
        assert len(operator.specs) == 2, "somebody else left"
        operator.gone = True
        operator.events.publish(GuestLeft(time=0.0, guest=report))
        await trio.testing.wait_all_tasks_blocked()
        assert list(map(str, operator.specs)) == ["127.0.0.1:1:192.168.65.3:1"]

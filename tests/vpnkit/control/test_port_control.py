"""The API of the original's Go tools, as its own client asks: the tests of `go/pkg/vpnkit/http`, and its corners."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from tests.vpnkit.control.asking import Answer, asker
from tests.vpnkit.control.reporter import FixedOperator
from vpnkit.control.instance import instance_router
from vpnkit.net.network import Network, NetworkOptions
from vpnkit.net.operator import NetworkOperator
from vpnkit.net.plan import Plan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import trio

Ask = Callable[..., Awaitable[Answer]]

PORT = {"proto": "tcp", "out_ip": "127.0.0.1", "out_port": 8080, "in_ip": "192.168.65.3", "in_port": 80}


@pytest.fixture
def operator() -> FixedOperator:
    operator = FixedOperator()
    operator.specs.clear()
    return operator


@pytest.fixture
async def ask(operator: FixedOperator) -> AsyncIterator[Ask]:
    async with asker(instance_router(operator)) as ask:
        yield ask


async def listed(ask: Ask) -> object:
    answer = await ask("GET", "/forwards/list")
    assert (answer.status, answer.header("content-type")) == (200, "application/json; charset=UTF-8")
    return json.loads(answer.body)


async def test_empty_list(ask: Ask) -> None:
    assert (await ask("GET", "/forwards/list")).body == b"null"


@pytest.mark.parametrize(("put", "delete"), [("PUT", "DELETE"), ("POST", "POST")])
async def test_expose_list_unexpose(ask: Ask, operator: FixedOperator, put: str, delete: str) -> None:
    answer = await ask(put, "/forwards/expose/port", PORT)
    assert (answer.status, answer.body) == (200, b"")
    assert (await ask("GET", "/forwards/list")).body == (
        b'[{"proto":"tcp","out_ip":"127.0.0.1","out_port":8080,"in_ip":"192.168.65.3","in_port":80}]'
    )
    assert list(map(str, operator.specs)) == ["127.0.0.1:8080:192.168.65.3:80"]
    assert (await ask(delete, "/forwards/unexpose/port", PORT)).status == 200
    assert await listed(ask) is None
    assert operator.specs == []


async def test_expose_is_idempotent(ask: Ask, operator: FixedOperator) -> None:
    for _ in range(2):
        assert (await ask("PUT", "/forwards/expose/port", PORT)).status == 200
    assert len(operator.specs) == 1


async def test_unexpose_of_nothing(ask: Ask) -> None:
    assert (await ask("DELETE", "/forwards/unexpose/port", PORT)).status == 200


async def test_what_cannot_be_exposed(ask: Ask, operator: FixedOperator) -> None:
    await operator.expose("8080:1")
    answer = await ask("PUT", "/forwards/expose/port", PORT)
    assert answer.status == 400
    assert json.loads(answer.body) == {"message": "listen tcp 127.0.0.1:8080: bind: address already in use"}


async def test_another_annotation_is_another_forward(ask: Ask) -> None:
    await ask("PUT", "/forwards/expose/port", {**PORT, "annotation": "web"})
    assert await listed(ask) == [{**PORT, "annotation": "web"}]
    assert (await ask("PUT", "/forwards/expose/port", PORT)).status == 400


@pytest.mark.parametrize(
    ("path", "proto", "text"),
    [
        ("port", "unix", "exposed ports can only be TCP or UDP"),
        ("port", "", "exposed ports can only be TCP or UDP"),
        ("pipe", "tcp", "exposed pipes can only have proto=Unix"),
    ],
)
async def test_a_wrong_protocol_is_told_in_a_string(ask: Ask, path: str, proto: str, text: str) -> None:
    for method, verb in (("PUT", "expose"), ("DELETE", "unexpose")):
        answer = await ask(method, f"/forwards/{verb}/{path}", {**PORT, "proto": proto})
        assert (answer.status, json.loads(answer.body)) == (400, text)


async def test_udp_and_all_addresses(ask: Ask, operator: FixedOperator) -> None:
    await ask("PUT", "/forwards/expose/port", {"proto": "udp", "out_port": 53, "in_ip": "fd00::3", "in_port": 53})
    assert list(map(str, operator.specs)) == ["0.0.0.0:53:[fd00::3]:53/udp"]


@pytest.mark.parametrize(
    ("port", "status"),
    [
        ({**PORT, "out_ip": "localhost"}, 400),
        ({**PORT, "in_port": 0}, 400),
        ({**PORT, "out_port": 70000}, 400),
        ({**PORT, "out_port": "80"}, 400),
        ([], 400),
    ],
)
async def test_nonsense(ask: Ask, port: object, status: int) -> None:
    answer = await ask("PUT", "/forwards/expose/port", port)
    assert answer.status == status
    assert set(json.loads(answer.body)) == {"message"}


async def test_json_has_to_be_called_so(ask: Ask) -> None:
    answer = await ask("PUT", "/forwards/expose/port", PORT, content_type="text/plain")
    assert answer.status == 415


async def test_forwards_that_came_otherwise_are_listed(ask: Ask, operator: FixedOperator) -> None:
    await operator.expose("8080:80")
    assert await listed(ask) == [{"proto": "tcp", "out_ip": "127.0.0.1", "out_port": 8080, "in_port": 80}]
    assert (await ask("GET", "/forwards/dump")).body == b"8080:80 0 open\n"


async def test_a_port_that_the_system_chooses_is_listed_and_unexposed_by_its_number(nursery: trio.Nursery) -> None:
    network = Network(Plan(), NetworkOptions(dns=[("127.0.0.1", 9)]))
    await nursery.start(network.run)
    async with asker(instance_router(NetworkOperator(network))) as ask:
        await ask("PUT", "/forwards/expose/port", {**PORT, "out_port": 0, "annotation": "any"})
        found = await listed(ask)
        assert isinstance(found, list)
        [port] = found
        assert port["out_port"] > 0
        assert port == {**PORT, "out_port": port["out_port"], "annotation": "any"}
        assert (await ask("DELETE", "/forwards/unexpose/port", port)).status == 200
        assert await listed(ask) is None
        assert network.forwards.list() == []
    nursery.cancel_scope.cancel()


async def test_gvproxys_port_0_is_one_port_of_both_families(nursery: trio.Nursery) -> None:
    network = Network(Plan(), NetworkOptions(dns=[("127.0.0.1", 9)]))
    await nursery.start(network.run)
    async with asker(instance_router(NetworkOperator(network))) as ask:
        assert (
            await ask("POST", "/services/forwarder/expose", {"local": ":0", "remote": "192.168.65.3:80"})
        ).status == 200
        ports = {report.host_port for report in NetworkOperator(network).forwards()}
        assert len(ports) == 1
        assert ports != {0}
        assert (await ask("POST", "/services/forwarder/unexpose", {"local": ":0"})).status == 200
        assert network.forwards.list() == []
    nursery.cancel_scope.cancel()

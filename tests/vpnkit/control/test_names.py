"""Names and zones: our own paths, and gvproxy's."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from tests.vpnkit.control.asking import Answer, asker
from tests.vpnkit.control.reporter import FixedOperator
from vpnkit.control.instance import instance_router

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Ask = Callable[..., Awaitable[Answer]]

ZONE = {
    "name": "Apps.test.",
    "records": [{"ip": "192.0.2.1", "name": "a", "regexp": ""}, {"ip": "2001:db8::1", "name": "", "regexp": "^b"}],
    "default_ip": "192.0.2.9",
}


@pytest.fixture
def operator() -> FixedOperator:
    return FixedOperator()


@pytest.fixture
async def ask(operator: FixedOperator) -> AsyncIterator[Ask]:
    async with asker(instance_router(operator)) as ask:
        yield ask


async def add(ask: Ask, zone: object) -> Answer:
    return await ask("POST", "/services/dns/add", zone, content_type="application/x-www-form-urlencoded")


async def listed(ask: Ask) -> list[dict[str, object]]:
    answer = await ask("GET", "/services/dns/all")
    assert (answer.status, answer.header("content-type")) == (200, "text/plain; charset=utf-8")
    return list(json.loads(answer.body))


# Ours


async def test_names(ask: Ask) -> None:
    names = json.loads((await ask("GET", "/v1/names")).body)
    assert {"name": "gateway.containers.internal", "of": "gateway", "addresses": ["192.168.65.1"]} in names


async def test_a_zone_comes_and_goes(ask: Ask) -> None:
    answer = await ask("POST", "/v1/zones", ZONE)
    assert (answer.status, json.loads(answer.body)) == (201, ZONE)
    assert json.loads((await ask("GET", "/v1/zones")).body) == [ZONE]
    answer = await ask("DELETE", "/v1/zones/apps.TEST")
    assert (answer.status, json.loads(answer.body)) == (200, ZONE)
    assert json.loads((await ask("GET", "/v1/zones")).body) == []
    assert (await ask("DELETE", "/v1/zones/apps.test")).error() == "no_such_zone"


async def test_more_records_for_a_zone(ask: Ask) -> None:
    await ask("POST", "/v1/zones", ZONE)
    answer = await ask("POST", "/v1/zones", {"name": "apps.test", "records": [{"name": "c", "ip": "192.0.2.3"}]})
    zone = json.loads(answer.body)
    assert [record["ip"] for record in zone["records"]] == ["192.0.2.3", "192.0.2.1", "2001:db8::1"]
    assert (zone["name"], zone["default_ip"]) == ("Apps.test.", "")


@pytest.mark.parametrize(
    ("zone", "code", "message"),
    [
        ({"name": "x.test", "default_ip": "nonsense"}, "bad_zone", "invalid IP address: nonsense"),
        ({"name": "x..test"}, "bad_zone", ""),
        ({"name": "x.test", "records": [{"ip": "192.0.2.1"}]}, "bad_zone", "neither a name nor a regular expression"),
        ({"records": []}, "bad_request", "`name`"),
        ({"name": "x.test", "ttl": 1}, "bad_request", "`ttl`"),
        ({"name": "x.test", "records": [{"name": "a"}]}, "bad_request", "`ip`"),
    ],
)
async def test_what_is_no_zone(ask: Ask, zone: object, code: str, message: str) -> None:
    answer = await ask("POST", "/v1/zones", zone)
    assert (answer.status, answer.error()) == (400, code)
    assert message in answer.body.decode()
    assert json.loads((await ask("GET", "/v1/zones")).body) == []


# gvproxy's


async def test_our_own_names_are_zones(ask: Ask) -> None:
    assert (await ask("GET", "/services/dns/all")).body == (
        b'[{"Name":"containers.internal.","Records":[{"Name":"gateway","IP":"192.168.65.1"},'
        b'{"Name":"host","IP":"192.168.65.2"}],"DefaultIP":""},'
        b'{"Name":"internal.","Records":null,"DefaultIP":""}]\n'
    )


async def test_add_as_gvproxys_documentation_does(ask: Ask, operator: FixedOperator) -> None:
    answer = await add(ask, {"Name": "crc.testing.", "Records": [{"Name": "host", "IP": "192.168.127.254"}]})
    assert (answer.status, answer.body, answer.header("content-type")) == (200, b"", None)
    assert (await listed(ask))[-1] == {
        "Name": "crc.testing.",
        "Records": [{"Name": "host", "IP": "192.168.127.254"}],
        "DefaultIP": "",
    }
    await add(ask, {"name": "crc.testing.", "RECORDS": [{"regexp": "^x", "ip": "192.0.2.1"}], "defaultip": "192.0.2.2"})
    assert (await listed(ask))[-1] == {
        "Name": "crc.testing.",
        "Records": [{"Name": "", "IP": "192.0.2.1", "Regexp": "^x"}, {"Name": "host", "IP": "192.168.127.254"}],
        "DefaultIP": "192.0.2.2",
    }
    assert len(operator.zones()) == 1


async def test_records_beside_our_own_names(ask: Ask) -> None:
    await add(ask, {"Name": "Containers.Internal", "Records": [{"Name": "db", "IP": "192.0.2.1"}]})
    zones = await listed(ask)
    assert [zone["Name"] for zone in zones] == ["containers.internal.", "internal."]
    assert zones[0]["Records"][-1] == {"Name": "db", "IP": "192.0.2.1"}


@pytest.mark.parametrize(
    ("zone", "text"),
    [
        (b"", "EOF"),
        ({"Name": "x.", "DefaultIP": "nonsense"}, "invalid IP address: nonsense"),
        ({"Name": "x.", "Records": [{"Name": "a", "IP": "nonsense"}]}, "invalid IP address: nonsense"),
        ({"Name": "x.", "Records": {}}, "json: cannot unmarshal object into Go struct field .Records"),
        ({"Name": "x.", "Records": ["a"]}, "json: cannot unmarshal string into Go struct field .Records"),
        ({"Name": 5}, "json: cannot unmarshal number into Go struct field .Name of type string"),
    ],
)
async def test_what_cannot_be_added(ask: Ask, operator: FixedOperator, zone: object, text: str) -> None:
    answer = await add(ask, zone)
    assert (answer.status, answer.body.decode()) == (400, f"{text}\n")
    assert operator.zones() == []


async def test_get_is_told_to_post(ask: Ask) -> None:
    answer = await ask("GET", "/services/dns/add")
    assert (answer.status, answer.body) == (400, b"post only\n")

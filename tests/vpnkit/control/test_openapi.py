"""The document, against the server that it describes: every path, method, status and body."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from openapi_spec_validator import validate

from tests.vpnkit.control.asking import Answer, asker
from tests.vpnkit.control.reporter import FixedOperator
from vpnkit.control.captures import capture_routes
from vpnkit.control.guard import TokenGuard
from vpnkit.control.instance import instance_router
from vpnkit.control.message import Request, Stream
from vpnkit.control.openapi import document
from vpnkit.net.events import Warned
from vpnkit.proto.dns_zones import Zone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Ask = Callable[..., Awaitable[Answer]]

# (method, path) -> status -> what to ask for it: the query, the body
EXAMPLES: dict[tuple[str, str], dict[int, tuple[str, object]]] = {
    ("get", "/v1/status"): {200: ("", None)},
    ("get", "/v1/guests"): {200: ("", None)},
    ("get", "/v1/flows"): {200: ("", None)},
    ("get", "/v1/leases"): {200: ("", None)},
    ("get", "/v1/forwards"): {200: ("", None)},
    ("post", "/v1/forwards"): {
        201: ("", {"spec": "9000-9002:90-92"}),
        400: ("", {"spec": "nonsense"}),
        409: ("", {"spec": "8080:1"}),
        415: ("", b"9090:90"),
    },
    ("delete", "/v1/forwards"): {200: ("?spec=8080:80", None), 400: ("?spec=nonsense", None), 404: ("?spec=1:1", None)},
    ("get", "/v1/names"): {200: ("", None)},
    ("get", "/v1/zones"): {200: ("", None)},
    ("post", "/v1/zones"): {
        201: ("", {"name": "x.test", "records": [{"name": "a", "ip": "192.0.2.1"}], "default_ip": "2001:db8::1"}),
        400: ("", {"name": "x.test", "default_ip": "nonsense"}),
        415: ("", b"{}"),
    },
    ("delete", "/v1/zones/{name}"): {200: ("known.test", None), 404: ("unknown.test", None)},
    ("get", "/metrics"): {200: ("", None)},
    ("get", "/v1/openapi.json"): {200: ("", None)},
}
# What goes on has tests of its own; here the lines are looked at.
STREAMS = {("get", "/v1/events"): {200, 503}}


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(document(instance_router(FixedOperator()))))
    return made


@pytest.fixture
async def ask() -> AsyncIterator[Ask]:
    operator = FixedOperator()
    operator.add_zone(Zone("known.test"))
    async with asker(instance_router(operator)) as ask:
        yield ask


def operations(described: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method, path): operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }


def check(described: dict[str, Any], schema: dict[str, Any], value: object) -> None:
    whole = {"components": described["components"], **schema}
    jsonschema.Draft202012Validator(whole).validate(value)


def test_it_is_openapi_3_1(described: dict[str, Any]) -> None:
    validate(described)
    assert described["openapi"] == "3.1.0"
    whole = json.loads(json.dumps(document(instance_router(FixedOperator(), capture_routes(None)))))
    validate(whole)
    assert set(whole["paths"]) > set(described["paths"])
    names = [operation["operationId"] for operation in operations(whole).values()]
    assert len(names) == len(set(names))


def test_it_has_what_is_ours_and_nothing_else(described: dict[str, Any]) -> None:
    router = instance_router(FixedOperator())
    ours = {(route.method.lower(), route.path) for route in router.routes if route.path.startswith("/v1/")}
    assert set(operations(described)) == ours | {("get", "/metrics")}


def test_every_documented_answer_has_an_example_here(described: dict[str, Any]) -> None:
    documented = {
        key: {int(status) for status in operation["responses"] if status != "default"}
        for key, operation in operations(described).items()
    }
    assert documented == {key: set(statuses) for key, statuses in EXAMPLES.items()} | STREAMS


@pytest.mark.parametrize(
    ("method", "path", "status"), [(*key, status) for key, statuses in EXAMPLES.items() for status in statuses]
)
async def test_the_answers_are_as_documented(
    described: dict[str, Any], ask: Ask, method: str, path: str, status: int
) -> None:
    query, body = EXAMPLES[method, path][status]
    operation = operations(described)[method, path]
    if body is not None and status < 300:
        check(described, operation["requestBody"]["content"]["application/json"]["schema"], body)
    target = path.replace("{name}", query) if "{" in path else path + query
    answer = await ask(method.upper(), target, body, content_type="text/plain" if status == 415 else "application/json")
    assert answer.status == status
    ((content_type, content),) = operation["responses"][str(status)]["content"].items()
    assert answer.header("content-type") == content_type
    if content_type == "application/json":
        check(described, content["schema"], json.loads(answer.body))


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("PUT", "/v1/forwards", 405, "method_not_allowed"),
        ("GET", "/v1/status?x=1", 400, "bad_request"),
        ("DELETE", "/v1/forwards", 400, "bad_request"),
    ],
)
async def test_other_errors_are_the_default(
    described: dict[str, Any], ask: Ask, method: str, target: str, status: int, code: str
) -> None:
    answer = await ask(method, target)
    assert (answer.status, answer.error()) == (status, code)
    for operation in operations(described).values():
        check(
            described,
            operation["responses"]["default"]["content"]["application/json"]["schema"],
            json.loads(answer.body),
        )


async def test_the_server_gives_the_document(described: dict[str, Any], ask: Ask) -> None:
    for _ in range(2):
        assert json.loads((await ask("GET", "/v1/openapi.json")).body) == described


class Enough(Exception):
    """What was sent."""


def sender(operator: FixedOperator) -> Callable[[bytes], Awaitable[None]]:
    """Lets something happen when the stream begins, and ends with what it says of it."""

    async def send(data: bytes) -> None:
        if b"{" in data:
            raise Enough(data.decode())
        operator.events.publish(Warned(time=1.0, message="x"))

    return send


async def test_events_are_as_documented(described: dict[str, Any]) -> None:
    operator = FixedOperator()
    router = instance_router(operator)
    content = operations(described)["get", "/v1/events"]["responses"]["200"]["content"]
    (route,) = [route for route in router.routes if route.path == "/v1/events"]
    for content_type in content:
        answer = await route.handler(Request("GET", "/v1/events", "", (("accept", content_type),)))
        assert isinstance(answer, Stream)
        assert answer.content_type == content_type
        with pytest.raises(Enough) as told:
            await answer.produce(sender(operator))
        line = str(told.value)
        check(described, content[content_type]["schema"], json.loads(line[line.index("{") :]))


async def test_schemas_refuse_what_is_not_there(described: dict[str, Any], ask: Ask) -> None:
    schema = operations(described)["get", "/v1/status"]["responses"]["200"]["content"]["application/json"]["schema"]
    status = json.loads((await ask("GET", "/v1/status")).body)
    check(described, schema, status)
    with pytest.raises(jsonschema.ValidationError):
        check(described, schema, {})
    for field in status:
        with pytest.raises(jsonschema.ValidationError):
            check(described, schema, {**status, field: object()})


async def test_over_tcp_the_security_scheme_is_meant(described: dict[str, Any]) -> None:
    scheme = described["components"]["securitySchemes"]["token"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    async with asker(instance_router(FixedOperator()), TokenGuard("secret"), authority="127.0.0.1") as ask:
        assert (await ask("GET", "/v1/status")).status == 401
        assert (await ask("GET", "/v1/status", Authorization="Bearer secret")).status == 200

"""The OpenAPI 3.1 document of a router, made from its routes: nothing is written down twice."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec

from vpnkit import __version__
from vpnkit.control.message import JSON, FailureReport, json_response
from vpnkit.control.routes import Argument, Route, Router

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vpnkit.control.message import Request, Response

PATH: Final = "/v1/openapi.json"
REFERENCES: Final = "#/components/schemas/{name}"
DESCRIPTION: Final = (
    "What a running instance says about itself, and what may be changed. "
    "On the unix socket every process of the owner may ask; over TCP a bearer token is needed. "
    "Requests with an Origin are refused."
)
FAILED: Final = (
    "400 not HTTP, or not what this path takes; 401, 403, 421 not allowed to ask; 405 no such method; 408 too slow; "
    "413, 431 too large; 415 not JSON; 501, 505 not implemented; 500 a bug; 503 too many connections"
)

_PARAMETER: Final = re.compile(r"\{(\w+)\}")


def with_document(*tables: Iterable[Route]) -> Router:
    """A router of `tables` that also answers where its own document is."""
    holder: list[bytes] = []

    async def handler(_request: Request) -> Response:
        if not holder:
            holder.append(json_response(document(router)).body)
        return json_response(msgspec.Raw(holder[0].rstrip()))

    route = Route("GET", PATH, handler, "This document.", answers={200: dict[str, Any]})
    router = Router(*tables, [route])
    return router


def document(router: Router) -> dict[str, Any]:
    """The document of every route that has a summary."""
    routes = [route for route in router.routes if route.summary]
    schemas, components = _schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vpnkit",
            "version": __version__,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://localhost", "description": "the host name is not looked at on the unix socket"}],
        "security": [{}, {"token": []}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _schemas(routes: Iterable[Route]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every type's schema, by `_key`, and the components that they refer to."""
    kinds: dict[str, Any] = {_key(FailureReport): FailureReport}
    for route in routes:
        for kind in (route.body, *route.answers.values(), *route.media.values()):
            if kind not in (None, bytes):
                kinds[_key(kind)] = kind
    made, components = msgspec.json.schema_components(kinds.values(), ref_template=REFERENCES)
    return dict(zip(kinds, made, strict=True)), components


def _key(kind: Any) -> str:
    return repr(kind)


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _identifier(route),
        "summary": route.summary,
        "tags": [route.path.split("/")[2] if route.path.startswith("/v1/") else route.path.split("/")[1]],
    }
    described = {argument.name: argument for argument in route.parameters}
    names = _PARAMETER.findall(route.path)
    parameters = [_parameter(described.get(name, Argument(name, "")), "path") for name in names]
    parameters += [_parameter(argument, "query") for argument in route.query]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schemas[_key(route.body)]}}}
    operation["responses"] = _responses(route, schemas)
    return operation


def _responses(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    failure = {JSON: {"schema": schemas[_key(FailureReport)]}}
    responses: dict[str, Any] = {}
    for status, kind in route.answers.items():
        responses[str(status)] = {"description": HTTPStatus(status).phrase}
        if kind is not None:
            responses[str(status)]["content"] = {JSON: {"schema": schemas[_key(kind)]}}
    if route.media:
        content = {name: _medium(kind, schemas) for name, kind in route.media.items()}
        responses["200"] = {"description": HTTPStatus.OK.phrase, "content": content}
    for status, when in route.errors.items():
        responses[str(status)] = {"description": when, "content": failure}
    responses["default"] = {"description": FAILED, "content": failure}
    return dict(sorted(responses.items()))


def _medium(kind: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    if kind is bytes:
        return {}  # binary has no schema: OpenAPI 3.1 section 4.8.14.3
    return {"schema": {"type": "string"} if kind is None else schemas[_key(kind)]}


def _parameter(argument: Argument, place: str) -> dict[str, Any]:
    parameter: dict[str, Any] = {
        "name": argument.name,
        "in": place,
        "required": argument.required or place == "path",
        "schema": {"type": "string"},
    }
    if argument.description:
        parameter["description"] = argument.description
    if argument.example:
        parameter["example"] = argument.example
    return parameter


def _identifier(route: Route) -> str:
    words = re.split(r"[^A-Za-z0-9]+", route.path.removeprefix("/v1"))
    return "_".join([route.method.lower(), *(word for word in words if word)])

"""Which route a request finds, and what it is told when it finds none."""

from __future__ import annotations

import pytest

from vpnkit.control.message import HttpError, Request, Response, json_response
from vpnkit.control.routes import ANY, Argument, Route, Router


def route(method: str, path: str, **more: object) -> Route:
    async def handler(request: Request) -> Response:
        return json_response({"route": f"{method} {path}", **request.parameters})

    return Route(method, path, handler, **more)  # type: ignore[arg-type]


ROUTER = Router(
    [
        route("GET", "/v1/things"),
        route("POST", "/v1/things"),
        route("GET", "/v1/things/{name}"),
        route("DELETE", "/v1/things/{name}"),
        route("GET", "/v1/things/special"),
        route("GET", "/v1/things/{name}/parts/{part}"),
    ],
    [
        route(ANY, "/v1/things/{name}/*"),
        route(ANY, "/any"),
        route("GET", "/strict", summary="x", query=(Argument("a", "first"), Argument("b", "second", required=False))),
        route("GET", "/none", summary="x"),
    ],
)


async def ask(method: str, path: str, query: str = "") -> dict[str, str]:
    import json

    answer = await ROUTER.answer(Request(method, path, query, ()))
    assert isinstance(answer, Response)
    return dict(json.loads(answer.body))


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("GET", "/v1/things", {"route": "GET /v1/things"}),
        ("HEAD", "/v1/things", {"route": "GET /v1/things"}),
        ("POST", "/v1/things", {"route": "POST /v1/things"}),
        ("GET", "/v1/things/a%20b%2Fc", {"route": "GET /v1/things/{name}", "name": "a b/c"}),
        ("GET", "/v1/things/", {"route": "GET /v1/things/{name}", "name": ""}),
        ("GET", "/v1/things/special", {"route": "GET /v1/things/special"}),
        ("GET", "/v1/things/x/parts/y", {"route": "GET /v1/things/{name}/parts/{part}", "name": "x", "part": "y"}),
        ("PUT", "/v1/things/x/other/y/z", {"route": "* /v1/things/{name}/*", "name": "x"}),
        ("BREW", "/any", {"route": "* /any"}),
    ],
)
async def test_what_is_found(method: str, path: str, found: dict[str, str]) -> None:
    assert await ask(method, path) == found


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/thing", "any", "/any/", "//any", "/v1/things/%ff", "*"])
async def test_what_is_not(path: str) -> None:
    with pytest.raises(HttpError) as raised:
        await ask("GET", path)
    assert (raised.value.status, raised.value.code) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/v1/things", "GET, HEAD, POST"),
        ("PUT", "/v1/things/x", "DELETE, GET, HEAD"),
        ("DELETE", "/v1/things/special", "GET, HEAD"),
    ],
)
async def test_a_wrong_method(method: str, path: str, allow: str) -> None:
    with pytest.raises(HttpError) as raised:
        await ask(method, path)
    assert (raised.value.status, raised.value.headers) == (405, (("Allow", allow),))


@pytest.mark.parametrize(
    ("path", "query", "message"),
    [
        ("/strict", "", "wants \\?a="),
        ("/strict", "b=1", "wants \\?a="),
        ("/strict", "a=1&c=2", "no query field 'c'; it takes a, b"),
        ("/none", "x=1", "no query field 'x'; it takes none"),
        ("/strict", "a", "cannot be read"),
        ("/strict", "a=%ff", "cannot be read"),
        ("/strict", "&".join(f"a={n}" for n in range(65)), "cannot be read"),
    ],
)
async def test_queries_are_checked_where_they_are_documented(path: str, query: str, message: str) -> None:
    with pytest.raises(HttpError, match=message) as raised:
        await ask("GET", path, query)
    assert (raised.value.status, raised.value.code) == (400, "bad_request")


async def test_queries_that_are_right() -> None:
    assert (await ask("GET", "/strict", "a=")) == {"route": "GET /strict"}
    assert (await ask("GET", "/strict", "a=1&b=%20")) == {"route": "GET /strict"}
    assert (await ask("GET", "/any", "what=ever&x"))["route"] == "* /any"


def test_two_routes_for_one_thing() -> None:
    with pytest.raises(ValueError, match="two routes for GET /any"):
        Router([route("GET", "/any")], [route("GET", "/any")])
    Router([route("GET", "/any"), route("POST", "/any")])

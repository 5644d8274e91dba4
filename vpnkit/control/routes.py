"""One table of routes: what each path takes and answers, from which requests are answered and the document is made.

A path may have parameters, `/v1/things/{name}`, each one segment; a path that ends in `/*` has everything below it.
What is literal counts before a parameter, and that before a rest.  HEAD is answered by the route of GET.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from vpnkit.control.message import HttpError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vpnkit.control.message import Answer, Handler, Request

log = logging.getLogger(__name__)

ANY: Final = "*"  # a method: all of them, as servers have that look at none


@dataclass(frozen=True, slots=True)
class Argument:
    """One parameter of the path or field of the query, a text."""

    name: str
    description: str
    required: bool = True
    example: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path.

    `summary` and what follows it are for the document; a route without summary is not in it.  Where there is a summary,
    a query field that is not in `query` is refused.
    """

    method: str
    path: str
    handler: Handler
    summary: str = ""
    body: Any = None  # the type of the JSON body that is demanded
    query: tuple[Argument, ...] = ()
    answers: Mapping[int, Any] = field(default_factory=dict)  # status -> the type of the JSON body
    errors: Mapping[int, str] = field(default_factory=dict)  # status -> when
    media: Mapping[str, Any] = field(
        default_factory=dict
    )  # of 200 where it is not JSON: content type -> type of a line
    parameters: tuple[Argument, ...] = ()  # of the path


class Router:
    """The routes of some tables.  Raises ValueError when two of them are the same."""

    def __init__(self, *tables: Iterable[Route]) -> None:
        self.routes = [route for table in tables for route in table]
        self._literal: dict[str, dict[str, Route]] = {}
        self._patterns: dict[tuple[str, ...], dict[str, Route]] = {}
        for route in self.routes:
            pattern = _pattern(route.path)
            special = any(part.startswith(("{", ANY)) for part in pattern)
            methods = self._patterns.setdefault(pattern, {}) if special else self._literal.setdefault(route.path, {})
            if route.method in methods:
                raise ValueError(f"two routes for {route.method} {route.path}")
            methods[route.method] = route
        self._order = sorted(self._patterns, key=_generality)

    async def answer(self, request: Request) -> Answer:
        """What the routes say to `request`.  Raises HttpError; a handler that fails is a 500 and a log entry."""
        methods, parameters = self._find(request.path)
        route = methods.get("GET" if request.method == "HEAD" else request.method) or methods.get(ANY)
        if route is None:
            allowed = ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
            message = f"{request.path} does not take {request.method}: {allowed}"
            raise HttpError(405, "method_not_allowed", message, (("Allow", allowed),))
        if route.summary:
            _check_arguments(route, request)
        try:
            return await route.handler(replace(request, parameters=parameters) if parameters else request)
        except HttpError:
            raise
        except Exception:
            log.exception("control: %s %s failed", request.method, request.path)
            raise HttpError(500, "internal", "the request failed inside vpnkit; its log says how") from None

    def _find(self, path: str) -> tuple[Mapping[str, Route], dict[str, str]]:
        methods = self._literal.get(path)
        if methods is not None:
            return methods, {}
        if path.startswith("/"):
            parts = path[1:].split("/")
            for pattern in self._order:
                parameters = _match(pattern, parts)
                if parameters is not None:
                    return self._patterns[pattern], parameters
        raise HttpError(404, "not_found", f"there is nothing at {path}")


def _pattern(path: str) -> tuple[str, ...]:
    assert path.startswith("/")
    return tuple(path[1:].split("/"))


def _generality(pattern: tuple[str, ...]) -> tuple[bool, tuple[bool, ...]]:
    """Sorts what fits less before what fits more."""
    return pattern[-1] == ANY, tuple(part.startswith(("{", ANY)) for part in pattern)


def _match(pattern: tuple[str, ...], parts: list[str]) -> dict[str, str] | None:
    if pattern[-1] == ANY:
        if len(parts) < len(pattern):
            return None
        pattern = pattern[:-1]
        parts = parts[: len(pattern)]
    if len(pattern) != len(parts):
        return None
    found = {}
    for expected, part in zip(pattern, parts, strict=True):
        if expected.startswith("{"):
            try:
                found[expected[1:-1]] = unquote(part, errors="strict")
            except UnicodeDecodeError:
                return None
        elif expected != part:
            return None
    return found


def _check_arguments(route: Route, request: Request) -> None:
    given = request.arguments()
    known = [argument.name for argument in route.query]
    for name in given:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise HttpError(400, "bad_request", f"{route.path} has no query field {name!r}; {takes}")
    for argument in route.query:
        if argument.required and argument.name not in given:
            raise HttpError(400, "bad_request", f"{route.path} wants ?{argument.name}=: {argument.description}")

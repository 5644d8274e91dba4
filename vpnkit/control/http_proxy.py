"""The HTTP proxy's configuration, at the original's path: what GET says can be POSTed again, passwords included.

Answers are the original's, and so not those of our own API's document.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vpnkit.control.message import TEXT, Response
from vpnkit.control.routes import Route
from vpnkit.errors import ConfigError
from vpnkit.proto.http_proxy import parse_config

if TYPE_CHECKING:
    from vpnkit.control.message import Request
    from vpnkit.services.http_proxy.service import HttpProxyService

PATH = "/http_proxy.json"


def http_proxy_routes(proxy: HttpProxyService) -> list[Route]:
    """The routes of one network."""

    async def get(_request: Request) -> Response:
        config = proxy.config()
        if config is None:
            return Response(404, b"", "")
        return Response(200, config.encode() + b"\n")

    async def post(request: Request) -> Response:
        try:
            proxy.replace(parse_config(request.body))
        except ConfigError as error:
            return Response(400, f"Failed to parse .json: {error}\n".encode(), TEXT)
        return Response(200, b"", "")

    async def delete(_request: Request) -> Response:
        proxy.replace(None)
        return Response(200, b"", "")

    return [Route("GET", PATH, get), Route("POST", PATH, post), Route("DELETE", PATH, delete)]

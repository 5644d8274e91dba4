"""/http_proxy.json: what is said can be said again, and what is wrong changes nothing."""

from __future__ import annotations

import json

from tests.vpnkit.control.asking import asker
from vpnkit.control.http_proxy import PATH, http_proxy_routes
from vpnkit.control.routes import Router
from vpnkit.services.http_proxy.service import HttpProxyService

WANTED = {"http": "http://u:p@proxy.example:3128", "exclude": "*.local 10.0.0.0/8", "allow": ["a.example"]}


async def test_get_and_post():
    service = HttpProxyService()
    async with asker(Router(http_proxy_routes(service))) as ask:
        answer = await ask("GET", PATH)
        assert (answer.status, answer.body) == (404, b"")
        answer = await ask("POST", PATH, WANTED)
        assert (answer.status, answer.body) == (200, b"")
        said = await ask("GET", PATH)
        assert said.status == 200
        assert {key: json.loads(said.body)[key] for key in WANTED} == WANTED
        before = service.config()
        assert (await ask("POST", PATH, said.body)).status == 200
        assert service.config() == before


async def test_what_is_wrong():
    service = HttpProxyService()
    async with asker(Router(http_proxy_routes(service))) as ask:
        await ask("POST", PATH, WANTED)
        for body in (b"{", b"[]", b'{"http": "nowhere"}', b""):
            answer = await ask("POST", PATH, body)
            assert answer.status == 400
            assert answer.body.startswith(b"Failed to parse .json: ")
        assert service.config().http.host == "proxy.example"


async def test_the_content_type_does_not_matter():
    """The original's clients do not say one."""
    service = HttpProxyService()
    async with asker(Router(http_proxy_routes(service))) as ask:
        answer = await ask("POST", PATH, WANTED, content_type="application/x-www-form-urlencoded")
        assert answer.status == 200


async def test_delete():
    service = HttpProxyService()
    async with asker(Router(http_proxy_routes(service))) as ask:
        await ask("POST", PATH, WANTED)
        assert (await ask("DELETE", PATH)).status == 200
        assert service.config() is None

"""Which connections of a guest are the HTTP proxy's."""

from __future__ import annotations

import json

import pytest

from tests.vpnkit.net.scripted_guest import GATEWAY, GATEWAY6, HOST, world
from vpnkit.errors import ConfigError
from vpnkit.net.http_proxying import HttpProxying
from vpnkit.net.network import NetworkOptions
from vpnkit.net.plan import Plan
from vpnkit.net.policy import Host
from vpnkit.proto.http_proxy import from_url, parse_config

WORLD = "203.0.113.7"
DEAD = "http://host.internal:1"


def proxying(text: str | None = None) -> HttpProxying:
    return HttpProxying(Plan(), NetworkOptions(http_proxy=None if text is None else parse_config(text.encode())))


@pytest.mark.parametrize("address", [GATEWAY, GATEWAY6])
@pytest.mark.parametrize("port", [3128, 3129])
async def test_without_a_configuration_the_ports_are_closed(address, port):
    async with world() as w:
        with pytest.raises(ConnectionRefusedError):
            await w.scripted.connect(port, address)
        w.guest.gateway.http_proxy = proxying()
        with pytest.raises(ConnectionRefusedError):
            await w.scripted.connect(port, address)


@pytest.mark.parametrize(("address", "port"), [(GATEWAY, 3128), (GATEWAY6, 3129), (WORLD, 80), (WORLD, 8080)])
async def test_a_request(address, port):
    """It is read, and its way leads nowhere."""
    async with world() as w:
        w.guest.gateway.http_proxy = proxying(
            json.dumps({"http": DEAD, "https": DEAD, "transparent_http_ports": [80, 8080]})
        )
        client = await w.scripted.connect(port, address)
        await client.send(b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n")
        client.finish()
        assert (await client.finished()).startswith(b"HTTP/1.1 503 ")
        assert w.guest.gateway.http_proxy.service.streams <= 1


async def test_the_proxy_itself_cannot_be_asked_for():
    async with world() as w:
        w.guest.gateway.http_proxy = proxying("{}")
        for host in (f"{GATEWAY}:3128", "gateway.internal:3129", "127.0.0.1:80", "169.254.169.254"):
            client = await w.scripted.connect(3128, GATEWAY)
            await client.send(f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            client.finish()
            assert (await client.finished())[:13] in (b"HTTP/1.1 403 ", b"HTTP/1.1 503 ")


def test_what_is_taken():
    taken = proxying(json.dumps({"http": DEAD})).intercepts
    assert taken(Host(WORLD, 80))
    assert taken(Host("2001:db8::1", 80))
    assert not taken(Host(WORLD, 443))
    assert not taken(Host(WORLD, 22))
    assert not taken(Host("127.0.0.1", 80)), HOST
    assert not taken(Host("::1", 80))
    assert not proxying("{}").intercepts(Host(WORLD, 80))
    assert not proxying().intercepts(Host(WORLD, 80))


@pytest.mark.parametrize("host", [GATEWAY, f"[{GATEWAY6}]", "gateway.internal", "Gateway.Docker.Internal"])
def test_a_proxy_that_is_this_one(host):
    with pytest.raises(ConfigError, match="this proxy itself"):
        HttpProxying(Plan(), NetworkOptions(http_proxy=from_url(f"http://{host}:3128")))

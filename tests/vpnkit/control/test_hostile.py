"""Bodies and targets that nobody means: every one is answered, and none is a bug."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.vpnkit.control.asking import asker
from tests.vpnkit.control.reporter import FixedOperator
from vpnkit.control.guard import GuestGuard
from vpnkit.control.gvproxy import guest_routes
from vpnkit.control.gvproxy_forwards import GvproxyForwards
from vpnkit.control.instance import instance_router
from vpnkit.control.routes import Router

if TYPE_CHECKING:
    from collections.abc import Iterator

GUEST = "192.168.65.3"
PATHS = (
    "/services/forwarder/expose",
    "/services/forwarder/unexpose",
    "/services/dns/add",
    "/forwards/expose/port",
    "/forwards/unexpose/port",
    "/forwards/expose/pipe",
    "/forwards/unexpose/pipe",
    "/v1/forwards",
    "/v1/zones",
)
KEYS = st.sampled_from(
    [
        *("local", "remote", "protocol", "LOCAL", "Name", "Records", "DefaultIP", "IP", "Regexp"),
        *("proto", "out_ip", "out_port", "out_path", "in_ip", "in_port", "in_path", "annotation"),
        *("spec", "name", "records", "default_ip", "ip", "regexp"),
    ]
)
TEXTS = st.sampled_from(
    [
        *("tcp", "udp", "unix", "npipe", ":80", "192.168.65.3:80", "[::1]:80", "0.0.0.0:1", "[", "]:1", ":", "::", "%"),
        *("unix:/tmp/x:80", "tcp://192.168.65.3:80", "ssh-tunnel://u@h/s?key=k", "\0", "\ud800", "/tmp/\0", "a" * 5000),
        *("1:1", "x.test", ".", "..", "(", "(a+)+$", "1-65535:1-65535", "8080:80,source=client", "\u2028<&>"),
        *("[fe80::1%eth0]:80", "fe80::1%\n", "\ud800:1", "\uff11:\uff11"),
    ]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | TEXTS
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS | st.text(), inner), max_leaves=8)
OBJECTS = st.dictionaries(KEYS, TEXTS | VALUES, max_size=6)
EXTREMES = [
    b"[" * 60000,
    b'{"local":' * 6000,
    b"9" * 60000,
    b'{"local":' + b"9" * 60000 + b"}",
    b"\xff",
    b'"\\ud800"',
    b"NaN",
    b"-",
    *(json.dumps({"local": text, "remote": "192.168.65.3:1"}).encode() for text in ("\ud800", "\ud800:1", "\0:1")),
    *(
        json.dumps({"local": ":1", "remote": text}).encode()
        for text in ("\ud800", "\ud800:1", "\0:1", "1.2.3.4:\u0661")
    ),
    *(
        json.dumps({"local": text, "remote": "tcp://1.2.3.4:1", "protocol": "unix"}).encode()
        for text in ("\0", "\ud800")
    ),
    json.dumps({"Name": "\ud800", "Records": [{"Name": "\ud800", "IP": "1.2.3.4", "Regexp": "\ud800"}]}).encode(),
]
BODIES = st.binary(max_size=200) | (OBJECTS | VALUES).map(lambda value: json.dumps(value).encode())
TARGETS = st.sampled_from([*PATHS, "/tunnel", "/v1/zones/x", "/nothing", "/services/x", "/v1/events/x"])
QUERIES = st.sampled_from(
    ["", "?", "?ip=1.2.3.4&port=99999999999999999999", "?ip=%00&port=x", "?spec=%ff", "?spec=\x7f", "?a&b", "?=" * 100]
)

SETTINGS = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def nothing_is_a_bug(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.ERROR):
        yield
    assert not caplog.get_records("call"), caplog.text


def ask(router: Router, method: str, target: str, body: bytes, **more: Any) -> int:
    async def main() -> int:
        async with asker(router, **more) as asking:
            answer = await asking(method, target, body)
            return answer.status

    return trio.run(main)


@pytest.mark.parametrize("path", PATHS)
def test_extremes(path: str) -> None:
    router = instance_router(FixedOperator())
    for body in EXTREMES:
        assert ask(router, "POST", path, body) in {200, 201, 400, 409, 500}
    for path in (
        "/services/forwarder/all",
        "/services/dns/all",
        "/forwards/list",
        "/v1/forwards",
        "/v1/zones",
        "/metrics",
    ):
        assert ask(router, "GET", path, b"") == 200


@SETTINGS
@given(path=st.sampled_from(PATHS), body=BODIES)
def test_the_operators_paths(path: str, body: bytes) -> None:
    assert ask(instance_router(FixedOperator()), "POST", path, body) in {200, 201, 400, 409, 500}


@SETTINGS
@given(path=st.sampled_from(PATHS[:2]), body=BODIES)
def test_the_guests_paths(path: str, body: bytes) -> None:
    operator = FixedOperator()
    router = Router(guest_routes(operator, GvproxyForwards(operator)))
    status = ask(router, "POST", path, body, guard=GuestGuard([]), peer=GUEST, authority="192.168.65.1")
    assert status in {200, 400, 500}
    for spec in operator.specs[1:]:
        assert spec.guest_address == GUEST, "a guest forwards to itself only"
        assert spec.host_path is None, "and makes no socket in the file system"


@SETTINGS
@given(method=st.sampled_from(["GET", "HEAD", "DELETE", "PUT", "BREW"]), target=TARGETS, query=QUERIES)
def test_targets(method: str, target: str, query: str) -> None:
    if target == "/tunnel" and "ip=1.2.3.4" in query:
        return  # the end of HTTP
    status = ask(instance_router(FixedOperator()), method, target + query.replace("\x7f", "%7f"), b"")
    assert status in {200, 400, 404, 405, 415, 500}

"""gvproxy's API, asked as its documentation asks: by curl, over the unix socket, with the octets that it answers."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trio

from tests.vpnkit.control.reporter import FixedOperator
from vpnkit.control.api import serve_control
from vpnkit.control.instance import instance_router

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TEXT = "text/plain; charset=utf-8"

pytestmark = pytest.mark.program("curl")


@dataclass
class Answer:
    status: int
    content_type: str
    body: str
    nosniff: bool


Curl = Callable[..., Awaitable[Answer]]


@pytest.fixture
def operator() -> FixedOperator:
    operator = FixedOperator()
    operator.specs.clear()
    return operator


@pytest.fixture
async def path(tmp_path: Path, operator: FixedOperator, nursery: trio.Nursery) -> AsyncIterator[Path]:
    yield await nursery.start(serve_control, tmp_path / "network.sock", instance_router(operator))
    nursery.cancel_scope.cancel()


@pytest.fixture
def curl(path: Path) -> Curl:
    async def ask(where: str, *options: str) -> Answer:
        form = "\n%{http_code}\n%{content_type}\n%header{x-content-type-options}"
        done = await trio.run_process(
            ["curl", "-sS", "--max-time", "10", "--unix-socket", path, f"http:/unix{where}", "-w", form, *options],
            capture_stdout=True,
            check=True,
        )
        body, status, content_type, sniffing = done.stdout.decode().rsplit("\n", 3)
        return Answer(int(status), content_type, body, sniffing == "nosniff")

    return ask


def post(body: object) -> tuple[str, ...]:
    return ("-X", "POST", "-d", body if isinstance(body, str) else json.dumps(body))


async def test_expose_list_and_unexpose(curl: Curl) -> None:
    assert await curl("/services/forwarder/all") == Answer(200, TEXT, "[]\n", True)
    wanted = {"local": ":6443", "remote": "192.168.127.2:6443"}
    assert await curl("/services/forwarder/expose", *post(wanted)) == Answer(200, "", "", True)
    answer = await curl("/services/forwarder/all")
    assert answer.body == '[{"local":":6443","remote":"192.168.127.2:6443","protocol":"tcp"}]\n'
    assert await curl("/services/forwarder/unexpose", *post({"local": ":6443"})) == Answer(200, "", "", True)
    assert (await curl("/services/forwarder/all")).body == "[]\n"


async def test_without_an_address_the_host_listens_on_all(curl: Curl, operator: FixedOperator) -> None:
    await curl("/services/forwarder/expose", *post({"local": ":53", "remote": "192.168.127.2:53", "protocol": "udp"}))
    assert list(map(str, operator.specs)) == ["0.0.0.0:53:192.168.127.2:53/udp", "[::]:53:192.168.127.2:53/udp"]
    await curl("/services/forwarder/unexpose", *post({"local": ":53", "protocol": "udp"}))
    assert operator.specs == []


async def test_forwards_that_came_otherwise_are_there_too(curl: Curl, operator: FixedOperator) -> None:
    await operator.expose("8080:80")
    await operator.expose("[::1]:5353:[fd00::3]:53/udp")
    assert json.loads((await curl("/services/forwarder/all")).body) == [
        {"local": "127.0.0.1:8080", "remote": "192.168.65.3:80", "protocol": "tcp"},
        {"local": "[::1]:5353", "remote": "[fd00::3]:53", "protocol": "udp"},
    ]
    assert (await curl("/services/forwarder/unexpose", *post({"local": "127.0.0.1:8080"}))).status == 200
    assert list(map(str, operator.specs)) == ["[::1]:5353:[fd00::3]:53/udp"]


async def test_what_others_removed_is_gone(curl: Curl, operator: FixedOperator) -> None:
    await curl("/services/forwarder/expose", *post({"local": "127.0.0.1:1", "remote": "192.168.127.2:2"}))
    await operator.unexpose("127.0.0.1:1:192.168.127.2:2")
    assert (await curl("/services/forwarder/all")).body == "[]\n"
    wanted = {"local": "127.0.0.1:1", "remote": "192.168.127.2:2"}
    assert (await curl("/services/forwarder/expose", *post(wanted))).status == 200


async def test_keys_in_any_case_and_what_is_behind_the_object(curl: Curl) -> None:
    body = ' {"LOCAL":"127.0.0.1:1","Remote":"192.168.127.2:2","other":[1],"protocol":null} {"local":5}'
    assert (await curl("/services/forwarder/expose", *post(body))).status == 200
    assert "127.0.0.1:1" in (await curl("/services/forwarder/all")).body


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ("", 400, "EOF"),
        ("  ", 400, "EOF"),
        ('{"local":', 400, "unexpected EOF"),
        ('{"local":"a', 400, "unexpected EOF"),
        ({"local": 5}, 400, "json: cannot unmarshal number into Go struct field .local of type string"),
        ([], 400, "json: cannot unmarshal array into Go value"),
        ({"local": ":1", "remote": ":80"}, 400, "address @: missing port in address"),
        ({"local": ":1", "remote": "192.168.127.2"}, 400, "address 192.168.127.2: missing port in address"),
        ({"local": ":1"}, 400, "missing port in address"),
        ({"local": ":1", "remote": "fd00::1:80"}, 400, "address fd00::1:80: too many colons in address"),
        ({"local": ":1", "remote": "localhost:80"}, 500, "invalid remote addr"),
        ({"local": ":1", "remote": "192.168.127.2:x"}, 500, 'strconv.ParseUint: parsing "x": invalid syntax'),
        (
            {"local": ":1", "remote": "192.168.127.2:99999"},
            500,
            'strconv.ParseUint: parsing "99999": value out of range',
        ),
        ({"local": "1", "remote": "192.168.127.2:1"}, 500, "listen tcp: address 1: missing port in address"),
        ({"local": "nowhere:1", "remote": "192.168.127.2:1"}, 500, "listen tcp: lookup nowhere: no such host"),
        ({"local": ":x", "remote": "192.168.127.2:1"}, 500, "listen tcp: address x: invalid port"),
        ({"local": ":1", "remote": "192.168.127.2:1", "protocol": "sctp"}, 500, "unknown protocol sctp"),
        ({"local": "p", "remote": "x", "protocol": "npipe"}, 500, "named pipes are not supported by this platform"),
        (
            {"local": "/s", "remote": "http://1.2.3.4:5", "protocol": "unix"},
            500,
            "remote protocol for unix forwarder is not implemented: http",
        ),
        (
            {"local": "/s", "remote": "ssh-tunnel://user@1.2.3.4/s", "protocol": "unix"},
            500,
            "key not provided for unix-ssh connection",
        ),
        (
            {"local": "/s", "remote": "ssh-tunnel://user@1.2.3.4/?key=/k", "protocol": "unix"},
            500,
            "remote uri must contain a path to a socket file",
        ),
    ],
)
async def test_what_cannot_be_exposed(curl: Curl, body: object, status: int, text: str) -> None:
    assert await curl("/services/forwarder/expose", *post(body)) == Answer(status, TEXT, f"{text}\n", True)
    assert (await curl("/services/forwarder/all")).body == "[]\n"


async def test_what_is_exposed_already(curl: Curl) -> None:
    wanted = post({"local": ":6443", "remote": "192.168.127.2:6443"})
    assert (await curl("/services/forwarder/expose", *wanted)).status == 200
    answer = await curl("/services/forwarder/expose", *wanted)
    assert (answer.status, answer.body) == (500, "proxy already running for tcp on :6443\n")


async def test_a_port_that_somebody_has(curl: Curl, operator: FixedOperator) -> None:
    await operator.expose("127.0.0.1:16443:1")
    answer = await curl("/services/forwarder/expose", *post({"local": ":16443", "remote": "192.168.127.2:6443"}))
    assert (answer.status, answer.body) == (500, "listen tcp :16443: bind: address already in use\n")
    assert list(map(str, operator.specs)) == ["127.0.0.1:16443:1"], "the half that could be had is gone again"


async def test_get_is_told_to_post(curl: Curl) -> None:
    for where in ("/services/forwarder/expose", "/services/forwarder/unexpose"):
        assert await curl(where) == Answer(400, TEXT, "post only\n", True)


async def test_nothing_to_unexpose(curl: Curl) -> None:
    answer = await curl("/services/forwarder/unexpose", *post({"local": ":6443"}))
    assert (answer.status, answer.body) == (500, "proxy not found\n")


async def test_an_unknown_path(curl: Curl) -> None:
    assert await curl("/services/nothing") == Answer(404, TEXT, "404 page not found\n", True)


async def test_leases_and_switch(curl: Curl) -> None:
    expected = '{"192.168.65.1":"f6:16:36:bc:f9:c6","192.168.65.3":"02:50:00:00:00:01"}\n'
    assert await curl("/services/dhcp/leases") == Answer(200, TEXT, expected, True)
    assert (await curl("/leases")).body == expected
    assert (await curl("/cam")).body == '{"02:50:00:00:00:01":1}\n'


async def test_stats_has_every_key(curl: Curl) -> None:
    answer = await curl("/stats")
    stats = json.loads(answer.body)
    assert answer.content_type == TEXT
    assert (
        list(stats)
        == sorted(stats)
        == sorted(["ARP", "BytesReceived", "BytesSent", "DroppedPackets", "ICMP", "IGMP", "IP", "NICs", "TCP", "UDP"])
    )
    assert (stats["BytesSent"], stats["BytesReceived"]) == (98765432, 123456)
    assert stats["NICs"]["Tx"] == {"Bytes": 98765432, "Packets": 3400}
    assert stats["TCP"]["CurrentEstablished"] == 1
    assert stats["ICMP"]["V4"]["PacketsSent"]["ICMPv4PacketStats"]["EchoReply"] == 0
    assert len(stats["TCP"]) == 31
    assert len(stats["ARP"]) == 12


async def test_a_tunnel_says_ok_and_no_http(path: Path) -> None:
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(b"POST /tunnel?ip=192.168.65.3&port=22 HTTP/1.1\r\nHost: unix\r\n\r\nhello")
        received = b""
        while len(received) < 22:
            received += await stream.receive_some()
        assert received == b"OKSSH-2.0-guest\r\nhello"
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        await stream.send_eof()
        assert await stream.receive_some() == b""


@pytest.mark.parametrize("where", ["ip=192.168.65.9&port=22", "ip=nobody&port=22", "ip=192.168.65.3&port=0"])
async def test_a_tunnel_to_nobody_ends(path: Path, where: str) -> None:
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(f"GET /tunnel?{where} HTTP/1.1\r\nHost: unix\r\n\r\n".encode())
        received = b""
        while data := await stream.receive_some():
            received += data
        assert received == b"OK"


async def test_a_tunnel_without_an_end(curl: Curl) -> None:
    assert await curl("/tunnel") == Answer(500, TEXT, "ip is mandatory\n", True)
    answer = await curl("/tunnel?ip=192.168.65.3&port=ssh")
    assert answer == Answer(500, TEXT, 'strconv.Atoi: parsing "ssh": invalid syntax\n', True)

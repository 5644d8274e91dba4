"""curl and a WebSocket in a guest, with squid and tinyproxy as the proxies that its traffic goes by."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import ssl
from contextlib import contextmanager

import pytest
import trustme

from tests.interop.guest_tools import GATEWAY, REMOTE, Directory, Server, receive_exactly, running, wait_for
from tests.interop.proxies import Squid, Tinyproxy
from tests.interop.servers import Web, WebServer

pytestmark = [pytest.mark.program("squid"), pytest.mark.program("tinyproxy"), pytest.mark.program("curl")]

SQUID, TINYPROXY = 3128, 8888  # on the host's loopback
WS = 8081
NAME = "www.interop.example"
HOSTS = f"{REMOTE} {NAME}\n{REMOTE} direct.example\n{REMOTE} forbidden.example\n"
BYTES = 300_000
ACCEPT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


@pytest.fixture(scope="module")
def files():
    with Directory() as path:
        (path / "hosts").write_text(HOSTS)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(path / "ca.pem"))
        (path / "ca.pem").chmod(0o644)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(NAME, "direct.example", "forbidden.example").configure_cert(context)
        yield path, context


@pytest.fixture(scope="module")
def seen():
    """The heads that the web servers heard."""
    return []


@pytest.fixture(scope="module")
def world(lab, files, seen):
    """Web servers on the remote host: in clear, by TLS, and a WebSocket that echoes."""
    path, context = files

    class Noting(Web):
        def do_GET(self) -> None:
            seen.append(dict(self.headers))
            super().do_GET()

    plain, tls = (WebServer(lab.remote, path, REMOTE, port) for port in (80, 443))
    for server in (plain, tls):
        server._server.RequestHandlerClass = functools.partial(Noting, directory=str(path))
    tls._server.socket = context.wrap_socket(tls._server.socket, server_side=True, do_handshake_on_connect=False)
    with plain, tls, Server(lab.remote.listen(REMOTE, WS), web_socket) as echoing:
        yield
    assert not echoing.failures


def web_socket(connection):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    lines = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if line)
    assert lines[b"upgrade"] == b"websocket"
    key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")).split()[1]
    accept = base64.b64encode(hashlib.sha1(key + ACCEPT).digest())
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    while data := connection.recv(65536):
        connection.sendall(data)


@pytest.fixture(scope="module")
def squid(lab):
    made = Squid(lab.host, SQUID, HOSTS)
    yield made
    made.close()


@pytest.fixture(scope="module")
def tinyproxy(lab):
    made = Tinyproxy(lab.host, TINYPROXY, HOSTS)
    yield made
    made.close()


def settings(port: int, secret: str, **more) -> str:
    """A configuration; `host.internal` is the host, for the proxy as for guests."""
    url = f"http://{secret}@host.internal:{port}"
    ports = {"transparent_http_ports": [80, WS], "transparent_https_ports": [443]}
    return json.dumps({"http": url, "https": url, "exclude": "*.local direct.example", **ports, **more})


SECRETS = {SQUID: "us%40er:pa%3Ass", TINYPROXY: "user:secret"}


@contextmanager
def proxied(lab, files, text):
    path = files[0] / "http.json"
    path.write_text(text)
    with running(lab.host, "root", "--http-proxy", str(path), "--hosts", str(files[0] / "hosts")) as guest:
        yield guest


@pytest.fixture(scope="module", params=[SQUID, TINYPROXY], ids=["squid", "tinyproxy"])
def guest(request, lab, files, world, squid, tinyproxy):
    with proxied(lab, files, settings(request.param, SECRETS[request.param])) as made:
        made.proxy = squid if request.param == SQUID else tinyproxy
        yield made


MODES = {"explicit": ("-x", f"http://{GATEWAY}:3128"), "for https": ("-x", f"http://{GATEWAY}:3129"), "transparent": ()}


def curl(guest, files, *words, check=True, **options):
    common = ("curl", "-sS", "--max-time", "15", "--cacert", str(files[0] / "ca.pem"))
    return guest.run(*common, *words, check=check, text=False, **options)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("mode", MODES)
def test_curl(guest, files, mode, scheme):
    """The proxy is told the name, also where the guest only called an address."""
    before = len(guest.proxy.lines())
    done = curl(guest, files, *MODES[mode], f"{scheme}://{NAME}/bytes/{BYTES}")
    assert len(done.stdout) == BYTES
    wait_for(lambda: len(guest.proxy.lines()) > before, "the proxy has a line for it")
    assert NAME in str(guest.proxy.lines()[before:])


def test_two_requests_of_one_connection(guest, files):
    url = f"http://{NAME}/bytes/10"
    done = curl(guest, files, "-w", "%{num_connects} ", url, url)
    assert done.stdout.split()[-1].endswith(b"0")


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("mode", MODES)
def test_an_excluded_host(guest, files, seen, mode, scheme):
    before = len(guest.proxy.lines())
    seen.clear()
    assert len(curl(guest, files, *MODES[mode], f"{scheme}://direct.example/bytes/10").stdout) == 10
    assert "Proxy-Authorization" not in seen[0]
    assert len(guest.proxy.lines()) == before


def test_upload(guest, files):
    data = bytes(range(256)) * 2000
    done = curl(guest, files, "-T", "-", f"http://{NAME}/", input=data)  # in chunks
    assert done.stdout.decode() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("mode", ["explicit", "transparent"])
def test_a_web_socket(guest, mode):
    explicit = mode == "explicit"
    # tinyproxy does not know of Upgrade
    host = "direct.example" if not explicit and isinstance(guest.proxy, Tinyproxy) else NAME
    with guest.connect(3128 if explicit else WS, GATEWAY if explicit else REMOTE) as connection:
        if explicit:
            connection.sendall(f"CONNECT {NAME}:{WS} HTTP/1.1\r\nHost: {NAME}:{WS}\r\n\r\n".encode())
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += receive_exactly(connection, 1)
            assert b" 200 " in head
        key = base64.b64encode(bytes(16))
        connection.sendall(
            f"GET / HTTP/1.1\r\nHost: {host}:{WS}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key.decode()}\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += receive_exactly(connection, 1)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert base64.b64encode(hashlib.sha1(key + ACCEPT).digest()) in head
        frame = b"\x81\x85" + bytes(4) + b"hello"  # a masked text, RFC 6455 section 5.2
        for _ in range(3):
            connection.sendall(frame)
            assert receive_exactly(connection, len(frame)) == frame


def test_what_squid_forbids(lab, files, world, squid):
    with proxied(lab, files, settings(SQUID, SECRETS[SQUID])) as guest:
        done = curl(guest, files, "-o", "/dev/null", "-w", "%{http_code}", "http://forbidden.example/")
        assert done.stdout == b"403"
        assert curl(guest, files, "https://forbidden.example/", check=False).returncode == 35  # reset in the handshake
        done = curl(guest, files, "-x", f"{GATEWAY}:3128", "https://forbidden.example/", check=False)
        assert done.returncode == 56
        assert b"403" in done.stderr
        assert "403" in guest.log()


def test_allow_list_and_changes(lab, files, world):
    """From a file that changes, and by the API."""
    text = json.dumps({"allow_enabled": True, "allow": ["direct.example"], "allow_error_msg": "no %s here"})
    with proxied(lab, files, text) as guest:
        assert len(curl(guest, files, "http://direct.example/bytes/10").stdout) == 10
        assert len(curl(guest, files, "https://direct.example/bytes/10").stdout) == 10
        assert b"no www.interop.example here" in curl(guest, files, f"http://{NAME}/").stdout
        assert curl(guest, files, f"https://{NAME}/", check=False).returncode == 35
        path = files[0] / "http.json"
        path.write_text("{ broken")
        fetch = functools.partial(curl, guest, files, f"http://{NAME}/bytes/10", check=False)
        wait_for(lambda: b"here" in fetch().stdout and "still holds" in guest.log(), "it says why", 10)
        path.write_text("{}")
        wait_for(lambda: len(fetch().stdout) == 10, "it is read again", 10)
        control = str(guest.directory.path / "vpnkit/default.sock")
        api = ("curl", "-sS", "--unix-socket", control, "http://localhost/http_proxy.json")
        assert json.loads(lab.host.run(*api))["transparent_http_ports"] == [80]
        assert lab.host.run(*api, "-d", "{").startswith("Failed to parse .json: ")
        assert lab.host.run(*api, "-d", text) == ""
        assert json.loads(lab.host.run(*api))["allow"] == ["direct.example"]
        assert b"no www.interop.example here" in fetch().stdout
        assert lab.host.run(*api, "-X", "DELETE") == ""
        assert len(fetch().stdout) == 10
        assert curl(guest, files, "-x", f"{GATEWAY}:3128", f"http://{NAME}/", check=False).returncode == 7  # refused


def test_the_proxy_reaches_what_the_guest_reaches(lab, files, world, web):
    with proxied(lab, files, "{}") as guest:
        explicit = ("-x", f"{GATEWAY}:3128", "-o", "/dev/null", "-w", "%{http_code}")
        for host, code in (
            *(("host.internal", b"200"), ("192.168.65.2", b"200"), ("localhost", b"200")),
            *(("127.0.0.1", b"403"), ("[::1]", b"403"), ("0.0.0.0", b"403"), ("[::ffff:127.0.0.1]", b"403")),
            *(("192.168.65.1", b"403"), ("gateway.internal", b"403"), ("169.254.169.254", b"403")),
        ):
            assert curl(guest, files, *explicit, f"http://{host}:{web.port}/bytes/1").stdout == code, host

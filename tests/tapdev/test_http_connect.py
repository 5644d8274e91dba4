from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from tapdev.http_connect import MAX_METHOD, MAX_REQUEST, looks_like_http, serve_either, serve_upgrade
from tapdev.vmnet import HANDSHAKE_SECONDS, HandshakeError, Refused
from tests.tapdev.test_vmnet import FIRST, FRAMES, GUEST, INIT, JOIN, VIF, Lan, read_all

GVFORWARDER = b"POST /connect HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n\r\n"


async def serve(stream, received=b""):
    return None, await serve_upgrade(stream, received)


async def either(stream):
    return await serve_either(stream, Lan(), mtu=1500)


async def converse(data, server=serve, *, split=None, half_close=True):
    """`server` with a client that says `data`: what it returned or raised, what it left unread, what it answered."""
    ours, theirs = memory_stream_pair()

    async def client():
        if split is not None:
            await theirs.send_all(data[:split])
            await wait_all_tasks_blocked()
        await theirs.send_all(data[split or 0 :])
        if half_close:
            await theirs.send_stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client)
        try:
            came_to = await server(ours)
        except (HandshakeError, Refused) as error:
            came_to = error
    left = await read_all(ours) if half_close else b""
    await ours.aclose()
    return came_to, left, await read_all(theirs)


# The first octets


@pytest.mark.parametrize(
    ("first", "verdict"),
    [
        (b"", None),
        (b"V", None),
        (b"VMN", None),
        (b"VMN3", False),
        (b"VMN3T", False),
        (INIT, False),
        (b"VMNE", None),
        (b"VMNET", False),
        (b"P", None),
        (b"POST", None),
        (b"POST ", True),
        (GVFORWARDER, True),
        (b"GET /connect", True),
        (b"VERSION ", True),
        (b"post ", False),
        (b" ", False),
        (b"\x00\x00\x00\x2a", False),
        (b"\x16\x03\x01", False),
        (b"GET\r\n", False),
        (b"A" * MAX_METHOD, None),
        (b"A" * MAX_METHOD + b" ", True),
        (b"A" * (MAX_METHOD + 1), False),
    ],
)
def test_what_looks_like_http(first, verdict):
    assert looks_like_http(first) is verdict


@pytest.mark.parametrize("whole", [INIT + JOIN, GVFORWARDER, b"\xff" * 64, b"VMNOP", b"X" * 64 + b" /"])
def test_no_verdict_is_taken_back_and_few_octets_decide(whole):
    verdicts = [looks_like_http(whole[:size]) for size in range(len(whole) + 1)]
    undecided = verdicts.count(None)
    assert undecided <= MAX_METHOD + 1
    assert verdicts[:undecided] == [None] * undecided
    assert len(set(verdicts[undecided:])) <= 1


# gvforwarder and others who are let in


async def test_gvforwarder_gets_no_answer_and_loses_no_frame():
    (_, surplus), left, answer = await converse(GVFORWARDER + FRAMES)
    assert surplus + left == FRAMES
    assert answer == b""


@pytest.mark.parametrize("server", [serve, either])
@pytest.mark.parametrize("split", range(len(GVFORWARDER + FRAMES) + 1))
async def test_a_request_in_two_pieces(split, server):
    (registration, surplus), left, answer = await converse(GVFORWARDER + FRAMES, server, split=split)
    assert registration is None
    assert surplus + left == FRAMES
    assert answer == b""


@pytest.mark.parametrize("already", range(len(GVFORWARDER + FRAMES) + 1))
async def test_octets_that_were_read_before(already):
    data = GVFORWARDER + FRAMES

    async def server(stream):
        return await serve(stream, data[:already])

    (_, surplus), left, _ = await converse(data[already:], server)
    assert surplus + left == FRAMES


@pytest.mark.parametrize("behind", [b"\r\n\r\n", b"POST /connect HTTP/1.1\r\n\r\n", b"\x00" * 5000, bytes(range(256))])
async def test_whatever_follows_is_not_http(behind):
    (_, surplus), left, answer = await converse(GVFORWARDER + behind)
    assert surplus + left == behind
    assert answer == b""


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /connect HTTP/1.1\r\nHost: gateway\r\n\r\n",
        b"PUT /connect HTTP/1.1\r\nHost:\r\n\r\n",
        b"CONNECT /connect HTTP/1.1\r\nHost: \r\n\r\n",
        b"FROB /vms/7/connect HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /connect?mtu=1500 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST http://gateway/connect HTTP/1.1\r\nHost: gateway\r\n\r\n",
        b"POST /connect HTTP/1.0\r\n\r\n",
        b"POST /connect HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /connect HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: frames\r\n\r\n",
        b"POST /connect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /connect HTTP/1.1\nHost: x\n\n",
        b"POST /connect HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (MAX_REQUEST - 60) + b"\r\n\r\n",
    ],
)
async def test_who_is_let_in(request_):
    (_, surplus), left, answer = await converse(request_ + FRAMES)
    assert surplus + left == FRAMES
    assert answer == b""


# Who is not


@pytest.mark.parametrize(
    ("request_", "status", "why"),
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", b"404 Not Found", "/ is not here"),
        (b"POST /connected HTTP/1.1\r\nHost: x\r\n\r\n", b"404 Not Found", "/connected is not here"),
        (b"POST /a?/connect HTTP/1.1\r\nHost: x\r\n\r\n", b"404 Not Found", "/a is not here"),
        (b"CONNECT gateway:80 HTTP/1.1\r\nHost: x\r\n\r\n", b"404 Not Found", "gateway:80 is not here"),
        (b"POST /\xff HTTP/1.1\r\nHost: x\r\n\r\n", b"4", ""),
        (b"POST /connect HTTP/1.1\r\n\r\n", b"400 Bad Request", "Host"),
        (b"POST /connect HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", b"400 Bad Request", "Host"),
        (b"POST /connect HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody", b"400 Bad Request", "no body"),
        (b"POST /connect HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", b"400 Bad Request", "Content-Length"),
        (b"POST /connect HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", b"400 Bad Request", ""),
        (
            b"POST /connect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            b"400 Bad Request",
            "no body",
        ),
        (
            b"POST /connect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"400 Bad Request",
            "chunk header",
        ),
        (b"POST /connect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", b"501 Not Implemented", "chunked"),
        (b"POST /connect\r\n\r\n", b"400 Bad Request", "request line"),
        (b"POST  /connect HTTP/1.1\r\nHost: x\r\n\r\n", b"400 Bad Request", "request line"),
        (b"POST /connect HTTP/1.1\r\nno colon\r\n\r\n", b"400 Bad Request", "header line"),
        (b"POST /connect HTTP/1.1\r\n folded\r\n\r\n", b"400 Bad Request", "continuation line"),
        (b"POST /connect HTTP/1.1\r\n" + b"x" * 9000 + b"\r\n\r\n", b"400 Bad Request", "header line"),
        (b"POST /" + b"x" * 30000, b"431 Request Header Fields Too Large", "too long"),
        (b"POST /connect HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 5000, b"431 Request Header Fields Too Large", ""),
    ],
)
@pytest.mark.parametrize("server", [serve, either])
async def test_who_is_told_off(request_, status, why, server):
    error, _, answer = await converse(request_, server)
    assert isinstance(error, HandshakeError)
    assert why in str(error)
    assert len(str(error)) < 300
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    assert head.endswith(b"\r\nConnection: close")


async def test_a_flood_of_headers_is_not_read_to_its_end():
    _, left, _ = await converse(b"POST /connect HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 100_000)
    assert len(left) > 500_000


@pytest.mark.parametrize("server", [serve, either])
@pytest.mark.parametrize("offset", range(len(GVFORWARDER)))
async def test_a_client_that_closes_early(offset, server):
    error, _, answer = await converse(GVFORWARDER[:offset], server)
    assert isinstance(error, HandshakeError)
    assert answer == b""


@pytest.mark.parametrize("server", [serve, either])
@pytest.mark.parametrize("offset", range(len(GVFORWARDER)))
async def test_a_client_that_falls_silent(offset, server, autojump_clock):
    error, _, answer = await converse(GVFORWARDER[:offset], server, half_close=False)
    assert str(error) == "no complete handshake within 10 seconds"
    assert answer == b""
    assert trio.current_time() == HANDSHAKE_SECONDS


async def test_a_client_that_is_gone_before_its_404():
    ours, theirs = socket.socketpair()
    theirs.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    theirs.close()
    async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
        with pytest.raises(HandshakeError, match=r"^the connection broke"):
            await serve_upgrade(stream, b"")


# One socket for both


@pytest.mark.parametrize("split", range(len(INIT + JOIN + FRAMES) + 1))
async def test_vmn3t_on_a_socket_for_both(split):
    (registration, surplus), left, answer = await converse(INIT + JOIN + FRAMES, either, split=split)
    assert registration == FIRST
    assert surplus + left == FRAMES
    assert answer == INIT + VIF


async def test_the_lan_is_asked_only_for_vmn3t():
    lan = Lan("No IP addresses available.")

    async def server(stream):
        return await serve_either(stream, lan, mtu=1500)

    assert (await converse(GVFORWARDER, server))[0] == (None, b"")
    assert lan.asked == []
    refusal, _, answer = await converse(INIT + JOIN, server)
    assert isinstance(refusal, Refused)
    assert answer[49:51] == b"\x02\x1a"
    assert lan.asked == [(GUEST, None)]


@pytest.mark.parametrize(
    ("data", "answered", "why"),
    [
        (b"", b"", "after b''"),
        (b"VMN", b"", "after b'VMN'"),
        (b"VMNET", INIT, "version 0"),
        (b"VMN3X" + INIT, b"", "starts with b'VMN3X'"),
        (b"\x00\x00\x00\x2a" + bytes(42), b"", "starts with"),
        (b"\r\n\r\n\r\n", b"", "starts with"),
    ],
)
async def test_who_speaks_neither(data, answered, why):
    error, _, answer = await converse(data, either)
    assert isinstance(error, HandshakeError)
    assert why in str(error)
    assert answer == answered


async def test_both_parts_share_one_time_limit(autojump_clock):
    ours, theirs = memory_stream_pair()

    async def client():
        await trio.sleep(6)
        await theirs.send_all(INIT)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client)
        with pytest.raises(HandshakeError, match="within 10 seconds"):
            await serve_either(ours, Lan(), mtu=1500)
    assert trio.current_time() == HANDSHAKE_SECONDS

"""Whatever a client says, and however it arrives: success, Refused or HandshakeError, within the time limit."""

from __future__ import annotations

import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair

from tapdev.http_connect import looks_like_http, serve_either, serve_upgrade
from tapdev.vmnet import (
    HANDSHAKE_SECONDS,
    Disconnect,
    HandshakeError,
    Refused,
    Vif,
    connect_handshake,
    decode_command,
    decode_init,
    decode_response,
    encode_disconnect,
    encode_vif,
    serve_handshake,
)
from tests.tapdev.test_http_connect import GVFORWARDER
from tests.tapdev.test_vmnet import FIRST, FRAMES, GUEST, INIT, JOIN, JOIN_AT_250, VIF, Lan, read_all

CLIENTS = [
    INIT + JOIN + FRAMES,
    INIT + JOIN_AT_250 + FRAMES,
    INIT + b"\x01" + bytes(40) + FRAMES,
    GVFORWARDER + FRAMES,
    b"GET /connect HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n" + FRAMES,
    b"POST /connect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + FRAMES,
]
SERVERS = [INIT + VIF + FRAMES, INIT + b"\x02\x1aNo IP addresses available." + bytes(230) + FRAMES]


@st.composite
def spoilt(draw, originals):
    """One of `originals`, with a few octets changed, left out, put in, or cut off."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.integers(0, 3))
        data[at : at + gone] = draw(st.binary(max_size=4))
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


def talk(originals):
    return st.binary(max_size=400) | spoilt(originals)


cuts = st.lists(st.integers(0, 400), max_size=6).map(sorted)


def run(handshake, data, cuts, hangs_up):
    """What `handshake` (a function of the stream) comes to with a peer that says `data` in pieces, then closes or not.

    Returns also what it left unread and what it said itself.
    """

    async def main():
        ours, theirs = memory_stream_pair()
        came_to = []

        async def served():
            async with ours:
                try:
                    came_to.append(await handshake(ours))
                    await theirs.send_stream.aclose()
                    came_to.append(await read_all(ours))
                except (HandshakeError, Refused) as error:
                    came_to.extend((error, b""))

        async def peer():
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                try:
                    await theirs.send_all(data[start:end])
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return
                await trio.sleep(0.1)
            if hangs_up:
                await theirs.send_stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer)
            await served()
            nursery.cancel_scope.cancel()
        assert trio.current_time() <= HANDSHAKE_SECONDS
        return *came_to, await read_all(theirs)

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def unlike(error):
    return not isinstance(error, HandshakeError | Refused)


@given(talk(CLIENTS), cuts, st.booleans(), st.sampled_from([None, "No IP addresses available."]))
@example(INIT + JOIN, [], False, None)
@example(b"VMNET", [2], True, None)
@example(INIT + JOIN, [], True, "No IP addresses available.")
def test_any_octets_at_a_vmn3t_server(data, cuts, hangs_up, reason):
    lan = Lan(reason)
    came_to, left, said = run(lambda stream: serve_handshake(stream, lan, mtu=1500), data, cuts, hangs_up)
    if unlike(came_to):
        assert came_to == (FIRST, b"")
        assert said == INIT + VIF
        assert data[:9] == INIT[:9]
        assert data[90:].startswith(left)
        assert len(lan.asked) == 1
    elif isinstance(came_to, Refused):
        assert said == INIT + SERVERS[1][49:307]
    else:
        assert said in (b"", INIT)
        assert lan.asked == []


@given(talk(CLIENTS), st.integers(0, 400))
def test_any_octets_that_were_read_before(data, already):
    lan = Lan()
    rest = data[already:]
    came_to, left, _ = run(
        lambda stream: serve_handshake(stream, lan, mtu=1500, received=data[:already]), rest, [], True
    )
    if unlike(came_to):
        registration, surplus = came_to
        assert registration == FIRST
        assert surplus + left == data[90:]


@given(talk(CLIENTS), cuts, st.booleans())
def test_any_octets_at_an_http_server(data, cuts, hangs_up):
    came_to, left, said = run(lambda stream: serve_upgrade(stream, b""), data, cuts, hangs_up)
    if unlike(came_to):
        assert said == b""
        assert b"/connect" in data
        assert came_to + left in data
    else:
        assert said == b"" or said.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501 "))


@given(talk(CLIENTS), cuts, st.booleans())
@example(b"VMN", [1, 2], False)
def test_any_octets_at_a_server_of_both(data, cuts, hangs_up):
    came_to, left, said = run(lambda stream: serve_either(stream, Lan(), mtu=1500), data, cuts, hangs_up)
    if unlike(came_to):
        registration, surplus = came_to
        assert surplus + left in data
        assert (registration, said) in ((None, b""), (FIRST, INIT + VIF))
        assert (registration is None) is looks_like_http(data)


@given(talk(SERVERS), cuts, st.booleans())
def test_any_octets_at_our_client(data, cuts, hangs_up):
    came_to, _, said = run(lambda stream: connect_handshake(stream, GUEST), data, cuts, hangs_up)
    assert (INIT + JOIN).startswith(said)
    if unlike(came_to):
        assert isinstance(came_to, Vif)
        assert said == INIT + JOIN


@given(st.binary(min_size=49, max_size=49), st.binary(min_size=41, max_size=41), st.binary(min_size=258, max_size=258))
def test_any_octets_at_the_decoders(init, command, response):
    for decode, data in ((decode_init, init), (decode_command, command), (decode_response, response)):
        try:
            decode(data)
        except HandshakeError:
            pass


@given(st.text(max_size=400))
def test_any_reason_fits_and_reads_back(reason):
    data = encode_disconnect(Disconnect(reason))
    assert len(data) == 258
    assert decode_response(data) == Disconnect(reason.encode("ascii", "replace")[:255].decode())


@given(st.integers(0, 65535), st.integers(0, 65535), st.binary(min_size=6, max_size=6))
def test_any_vif_reads_back(mtu, max_packet_size, mac):
    vif = Vif(mtu, max_packet_size, mac)
    assert decode_response(encode_vif(vif)) == vif

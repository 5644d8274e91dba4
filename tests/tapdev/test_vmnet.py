from __future__ import annotations

import socket
from uuid import UUID

import pytest
import trio
from trio.testing import lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from tapdev.vmnet import (
    COMMIT,
    HANDSHAKE_SECONDS,
    Command,
    Disconnect,
    HandshakeError,
    Init,
    Refused,
    Registration,
    Vif,
    connect_handshake,
    decode_command,
    decode_init,
    decode_response,
    encode_command,
    encode_disconnect,
    encode_init,
    encode_vif,
    serve_handshake,
)

# The worked bytes of vpnkit.md 1.1.
INIT = bytes.fromhex("564d4e335416000000") + b"0123456789" * 4
UUID_TEXT = b"d1d9cd61-d0dc-4715-9bb3-4c11da7ad7a5"
JOIN = b"\x01" + UUID_TEXT + bytes(4)
VIF = bytes.fromhex("01dc050e06025000000001") + bytes(247)

JOIN_AT_250 = b"\x08" + UUID_TEXT + bytes.fromhex("fa41a8c0")
GUEST = UUID(UUID_TEXT.decode())
FIRST = Registration(mac=bytes.fromhex("025000000001"), ip=bytes([192, 168, 65, 3]))
FRAMES = b"\x0e\x00" + bytes(range(14)) + b"\x3c\x00" + bytes(60)

REFUSALS = [
    "Preferred IP address out of range.",
    "Preferred IP address 192.168.65.250 already used.",
    "No IP addresses available.",
    "UUID already assigned to a different IP than the IP requested by the client",
]


class Lan:
    """Registers everybody as FIRST, or refuses for `reason`, and remembers who came."""

    def __init__(self, reason: str | None = None):
        self.reason = reason
        self.asked = []

    def __call__(self, uuid, wanted):
        self.asked.append((uuid, wanted))
        if self.reason is not None:
            raise Refused(self.reason)
        return FIRST


async def read_exactly(stream, size):
    data = b""
    while len(data) < size:
        chunk = await stream.receive_some(size - len(data))
        assert chunk, f"end of the stream after {data!r}"
        data += chunk
    return data


async def read_all(stream):
    data = b""
    while chunk := await stream.receive_some(4096):
        data += chunk
    return data


async def converse(client, lan, *, mtu=1500, pair=memory_stream_pair):
    """Serve `client` (a function of its end of the stream) and hang up: what the server and the client came to."""
    ours, theirs = pair()
    came_to = []

    async def serve():
        async with ours:
            try:
                came_to.append(await serve_handshake(ours, lan, mtu=mtu))
            except (HandshakeError, Refused) as error:
                came_to.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with theirs:
            got = await client(theirs)
    return came_to[0], got


def says(data, *, split=None):
    """A client that sends `data`, in two writes when told so, and then reads all that comes until the end."""

    async def client(stream):
        if split is not None:
            await stream.send_all(data[:split])
            await wait_all_tasks_blocked()
        await stream.send_all(data[split:] if split is not None else data)
        return await read_all(stream)

    return client


# The codec


def test_the_worked_bytes():
    assert encode_init(Init(22)) == INIT
    assert decode_init(INIT) == Init(22, COMMIT)
    assert encode_command(Command(GUEST)) == JOIN
    assert decode_command(JOIN) == Command(GUEST, None)
    assert encode_vif(Vif(1500, 1550, FIRST.mac)) == VIF
    assert decode_response(VIF) == Vif(1500, 1550, FIRST.mac)
    assert (len(INIT), len(JOIN), len(VIF)) == (49, 41, 258)


def test_a_preferred_address_is_the_dotted_quad_reversed():
    assert encode_command(Command(GUEST, bytes([192, 168, 65, 250]))) == JOIN_AT_250
    assert decode_command(JOIN_AT_250) == Command(GUEST, bytes([192, 168, 65, 250]))


def test_no_uuid_is_36_nuls():
    assert encode_command(Command(None)) == b"\x01" + bytes(40)
    assert decode_command(b"\x01" + bytes(40)) == Command(None, None)
    assert decode_command(b"\x08" + bytes(36) + b"\x09\x41\xa8\xc0") == Command(None, bytes([192, 168, 65, 9]))


def test_the_address_of_command_1_is_ignored():
    assert decode_command(b"\x01" + UUID_TEXT + b"\xff\xff\xff\xff") == Command(GUEST, None)


def test_a_uuid_is_the_same_in_either_case():
    assert decode_command(b"\x01" + UUID_TEXT.upper() + bytes(4)) == Command(GUEST, None)


@pytest.mark.parametrize(
    "text",
    [
        b"{d1d9cd61-d0dc-4715-9bb3-4c11da7ad7}",
        b"urn:uuid:d1d9cd61d0dc47159bb34c11da7",
        b"d1d9cd61d0dc47159bb34c11da7ad7a5----",
        b"d1d9cd61-d0dc-4715-9bb3-4c11da7ad7ag",
        b"d1d9cd6-1d0dc-4715-9bb3-4c11da7ad7a5",
        b"d1d9cd61-d0dc-4715-9bb3-4c11da7ad7a\n",
        b"d1d9cd61-d0dc-4715-9bb3-4c11da7ad7a\x00",
        b"\x00" * 35 + b"0",
        b"\xff" * 36,
        b" " * 36,
    ],
)
def test_what_is_no_uuid(text):
    with pytest.raises(HandshakeError, match="is no UUID"):
        decode_command(b"\x01" + text + bytes(4))


@pytest.mark.parametrize("number", [0, 2, 7, 9, 255])
def test_an_unknown_command(number):
    with pytest.raises(HandshakeError, match=f"^command {number} is unknown"):
        decode_command(bytes([number]) + UUID_TEXT + bytes(4))


def test_command_6_is_for_vmnetd():
    with pytest.raises(HandshakeError, match="vmnetd"):
        decode_command(b"\x06" + UUID_TEXT + bytes(4))


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_disconnect(reason):
    data = encode_disconnect(Disconnect(reason))
    assert data == bytes([2, len(reason)]) + reason.encode() + bytes(256 - len(reason))
    assert decode_response(data) == Disconnect(reason)


@pytest.mark.parametrize("length", [0, 1, 254, 255])
def test_a_reason_of_any_length(length):
    assert decode_response(encode_disconnect(Disconnect("x" * length))) == Disconnect("x" * length)


def test_a_long_reason_is_cut_where_its_length_field_ends():
    data = encode_disconnect(Disconnect("y" * 300))
    assert data == b"\x02\xff" + b"y" * 255 + b"\x00"


def test_a_reason_is_ascii():
    assert encode_disconnect(Disconnect("für\U0001f600"))[:7] == b"\x02\x04f?r?\x00"
    assert decode_response(b"\x02\x02\xff\x07" + bytes(254)) == Disconnect("\\xff\x07")


@pytest.mark.parametrize("kind", [0, 3, 255])
def test_a_response_of_another_type(kind):
    with pytest.raises(HandshakeError, match=f"type {kind}"):
        decode_response(bytes([kind]) + bytes(257))


# The clients of vpnkit.md 1.3


async def go_client(stream, command=JOIN):
    await stream.send_all(INIT)
    assert len(await read_exactly(stream, 49)) == 49  # which it does not look at
    await stream.send_all(command[:1])
    await stream.send_all(command[1:37])
    await stream.send_all(command[37:])
    kind = (await read_exactly(stream, 1))[0]
    if kind == 1:
        vif = await read_exactly(stream, 10)
        assert await read_exactly(stream, 247) == bytes(247)
        return int.from_bytes(vif[:2], "little"), int.from_bytes(vif[2:4], "little"), vif[4:]
    return await read_exactly(stream, (await read_exactly(stream, 1))[0])


async def hyperkit(stream):
    await stream.send_all(b"VMN3T" + (22).to_bytes(4, "little") + b"3b8a1fb" * 5 + b"01234")
    answer = await read_exactly(stream, 49)
    assert answer[:9] == b"VMN3T\x16\x00\x00\x00"
    await stream.send_all(b"\x08" + UUID_TEXT.upper() + bytes(reversed([192, 168, 65, 250])))
    return await read_exactly(stream, 258)


async def tap_vsockd(stream):
    await stream.send_all(b"VMN3T")
    await stream.send_all((22).to_bytes(4, "little"))
    await stream.send_all(bytes(40))
    assert await read_exactly(stream, 5) == b"VMN3T"
    assert await read_exactly(stream, 4) == b"\x16\x00\x00\x00"
    await read_exactly(stream, 40)
    await stream.send_all(b"\x01")
    await stream.send_all(bytes(40))
    return await read_exactly(stream, 258)


@pytest.mark.parametrize("pair", [memory_stream_pair, lockstep_stream_pair])
async def test_the_go_client(pair):
    lan = Lan()
    assert await converse(go_client, lan, pair=pair) == ((FIRST, b""), (1500, 1550, FIRST.mac))
    assert lan.asked == [(GUEST, None)]


async def test_the_go_client_that_is_refused():
    refusal, reason = await converse(go_client, Lan(REFUSALS[2]))
    assert isinstance(refusal, Refused)
    assert reason == REFUSALS[2].encode()


@pytest.mark.parametrize("pair", [memory_stream_pair, lockstep_stream_pair])
async def test_hyperkit(pair):
    lan = Lan()
    assert await converse(hyperkit, lan, pair=pair) == ((FIRST, b""), VIF)
    assert lan.asked == [(GUEST, bytes([192, 168, 65, 250]))]


@pytest.mark.parametrize("pair", [memory_stream_pair, lockstep_stream_pair])
async def test_tap_vsockd(pair):
    lan = Lan()
    assert await converse(tap_vsockd, lan, pair=pair) == ((FIRST, b""), VIF)
    assert lan.asked == [(None, None)]


async def test_two_connections_with_one_uuid_are_two_registrations_of_it():
    lan = Lan()
    for _ in range(2):
        await converse(go_client, lan)
    assert lan.asked == [(GUEST, None)] * 2


@pytest.mark.parametrize(
    ("mtu", "told"), [(1500, "dc050e06"), (65485, "cdffffff"), (65486, "ceffffff"), (65520, "f0ffffff")]
)
async def test_max_packet_size_is_50_more_as_far_as_its_field_goes(mtu, told):
    _, got = await converse(says(INIT + JOIN), Lan(), mtu=mtu)
    assert got[49:] == b"\x01" + bytes.fromhex(told) + FIRST.mac + bytes(247)


# How it arrives


@pytest.mark.parametrize("split", range(len(INIT + JOIN) + 1))
async def test_a_handshake_in_two_pieces(split):
    lan = Lan()
    assert await converse(says(INIT + JOIN, split=split), lan) == ((FIRST, b""), INIT + VIF)
    assert lan.asked == [(GUEST, None)]


async def test_a_handshake_octet_by_octet():
    async def client(stream):
        for octet in INIT + JOIN:
            await stream.send_all(bytes([octet]))
            await wait_all_tasks_blocked()
        return await read_all(stream)

    assert await converse(client, Lan()) == ((FIRST, b""), INIT + VIF)


async def test_the_server_speaks_only_when_it_was_spoken_to(autojump_clock):
    async def client(stream):
        await stream.send_all(INIT[:-1])
        with trio.move_on_after(1) as silence:
            await stream.receive_some()
        assert silence.cancelled_caught
        await stream.send_all(INIT[-1:])
        return await read_exactly(stream, 49)

    _, got = await converse(client, Lan())
    assert got == INIT


async def test_frames_in_the_same_write_are_not_lost():
    ours, theirs = memory_stream_pair()
    await theirs.send_all(INIT + JOIN + FRAMES)
    registration, surplus = await serve_handshake(ours, Lan(), mtu=1500)
    assert registration == FIRST
    await theirs.send_stream.aclose()
    assert surplus + await read_all(ours) == FRAMES


@pytest.mark.parametrize("already", range(len(INIT + JOIN + FRAMES) + 1))
async def test_octets_that_were_read_before(already):
    data = INIT + JOIN + FRAMES
    ours, theirs = memory_stream_pair()
    await theirs.send_all(data[already:])
    registration, surplus = await serve_handshake(ours, Lan(), mtu=1500, received=data[:already])
    assert registration == FIRST
    await theirs.send_stream.aclose()
    assert surplus + await read_all(ours) == FRAMES


# What is dropped, and with how much of an answer


@pytest.mark.parametrize(
    ("data", "answered", "why"),
    [
        (b"VMN2T" + INIT[5:], b"", "starts with b'VMN2T'"),
        (b"GET / HTTP/1.1\r\n\r\n", b"", "starts with b'GET /'"),
        (b"\x00\x00\x00\x0e" + bytes(14), b"", "starts with"),
        (b"VMNET", INIT, "version 0"),
        (b"VMN3T\x15\x00\x00\x00" + bytes(40), INIT, "version 21, only version 22"),
        (b"VMN3T\x01\x00\x00\x00" + bytes(40), INIT, "version 1,"),
        (b"VMN3T\x00\x00\x00\x16" + bytes(40), INIT, "version 369098752"),
        (INIT + b"\x06" + JOIN[1:], INIT, "command 6"),
        (INIT + b"\x02" + JOIN[1:], INIT, "command 2 is unknown"),
        (INIT + b"\x01" + b"x" * 36 + bytes(4), INIT, "is no UUID"),
    ],
)
async def test_who_is_dropped(data, answered, why):
    lan = Lan()
    error, got = await converse(says(data), lan)
    assert isinstance(error, HandshakeError)
    assert why in str(error)
    assert got == answered
    assert lan.asked == []


@pytest.mark.parametrize("offset", range(len(INIT + JOIN)))
async def test_a_client_that_closes_early(offset):
    async def client(stream):
        await stream.send_all((INIT + JOIN)[:offset])
        await stream.send_stream.aclose()
        return await read_all(stream)

    lan = Lan()
    error, got = await converse(client, lan)
    assert isinstance(error, HandshakeError)
    assert "octets short of its" in str(error)
    assert got == (INIT if offset >= len(INIT) else b"")
    assert lan.asked == []


@pytest.mark.parametrize("offset", range(len(INIT + JOIN)))
async def test_a_client_that_falls_silent(offset, autojump_clock):
    started = trio.current_time()
    error, _ = await converse(says((INIT + JOIN)[:offset]), Lan())
    assert isinstance(error, HandshakeError)
    assert str(error) == "no complete handshake within 10 seconds"
    assert trio.current_time() - started == HANDSHAKE_SECONDS


async def test_a_client_that_drips(autojump_clock):
    async def client(stream):
        for sent, octet in enumerate(INIT + JOIN):
            try:
                await stream.send_all(bytes([octet]))
            except trio.BrokenResourceError:
                return sent
            await trio.sleep(1)
        return len(INIT + JOIN)

    error, sent = await converse(client, Lan())
    assert isinstance(error, HandshakeError)
    assert sent in (10, 11)  # at one octet per second


async def test_a_deadline_of_the_caller(autojump_clock):
    ours, theirs = memory_stream_pair()
    async with theirs:
        with pytest.raises(HandshakeError, match="no complete handshake"):
            await serve_handshake(ours, Lan(), mtu=1500, deadline=trio.current_time() + 3)
        assert trio.current_time() == 3


@pytest.mark.parametrize("reason", REFUSALS)
async def test_a_refusal_tells_why(reason):
    refusal, got = await converse(says(INIT + JOIN_AT_250), Lan(reason))
    assert isinstance(refusal, Refused)
    assert str(refusal) == reason
    assert got == INIT + bytes([2, len(reason)]) + reason.encode() + bytes(256 - len(reason))


# A response that nobody takes: who was registered must still reach the caller, who alone can undo it.


async def test_a_client_that_does_not_take_its_response_is_registered(autojump_clock):
    async def client(stream):
        await stream.send_all(INIT)
        await read_exactly(stream, 49)
        await stream.send_all(JOIN)
        await trio.sleep(2 * HANDSHAKE_SECONDS)

    came_to, _ = await converse(client, Lan(), pair=lockstep_stream_pair)
    assert came_to == (FIRST, b"")


async def test_a_refused_client_that_does_not_listen_is_still_refused(autojump_clock):
    async def client(stream):
        await stream.send_all(INIT)
        await read_exactly(stream, 49)
        await stream.send_all(JOIN)
        await trio.sleep(2 * HANDSHAKE_SECONDS)

    came_to, _ = await converse(client, Lan(REFUSALS[0]), pair=lockstep_stream_pair)
    assert isinstance(came_to, Refused)


@pytest.mark.parametrize("reason", [None, REFUSALS[0]])
async def test_a_client_that_is_gone_before_its_response(reason):
    ours, theirs = socket.socketpair()
    lan = Lan(reason)

    def register(uuid, wanted):
        theirs.close()
        return lan(uuid, wanted)

    theirs.sendall(INIT + JOIN)
    async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
        if reason is None:
            assert await serve_handshake(stream, register, mtu=1500) == (FIRST, b"")
        else:
            with pytest.raises(Refused, match=reason):
                await serve_handshake(stream, register, mtu=1500)


async def test_a_connection_that_is_reset():
    ours, theirs = socket.socketpair()
    async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
        theirs.sendall(INIT)
        await stream.send_all(b"not read")
        theirs.close()
        with pytest.raises(HandshakeError, match=r"broke|short"):
            await serve_handshake(stream, Lan(), mtu=1500)


async def test_a_dropped_client_reads_its_answer_although_it_sent_more():
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"VMN3T\x15\x00\x00\x00" + bytes(40) + JOIN)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
            with pytest.raises(HandshakeError, match="version 21"):
                await serve_handshake(stream, Lan(), mtu=1500)
        assert theirs.recv(4096) == INIT


async def test_a_cancelled_handshake_is_cancelled():
    ours, theirs = memory_stream_pair()
    async with theirs, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve_handshake(ours, Lan(), mtu=1500))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


# Our own client


@pytest.mark.parametrize("pair", [memory_stream_pair, lockstep_stream_pair])
@pytest.mark.parametrize("uuid", [GUEST, None])
@pytest.mark.parametrize("wanted", [None, bytes([192, 168, 65, 250])])
async def test_both_ends_are_ours(pair, uuid, wanted):
    async def client(stream):
        return await connect_handshake(stream, uuid, wanted)

    lan = Lan()
    assert await converse(client, lan, pair=pair) == ((FIRST, b""), Vif(1500, 1550, FIRST.mac))
    assert lan.asked == [(uuid, wanted)]


async def test_our_client_raises_the_reason_of_its_refusal():
    async def client(stream):
        with pytest.raises(Refused) as refusal:
            await connect_handshake(stream, GUEST)
        return str(refusal.value)

    _, reason = await converse(client, Lan(REFUSALS[3]))
    assert reason == REFUSALS[3]


async def answered_with(data, *, hang_up=True):
    """Our client at a server that says `data` whatever it hears; returns also what the client left in the stream."""
    ours, theirs = memory_stream_pair()
    await theirs.send_all(data)
    if hang_up:
        await theirs.send_stream.aclose()
    vif = await connect_handshake(ours, GUEST)
    return vif, await read_all(ours), await theirs.receive_some()


async def test_our_client_at_gvproxy():
    gvproxy = INIT + bytes.fromhex("01dc05ea05025000000001") + bytes(247) + FRAMES
    vif, left, said = await answered_with(gvproxy)
    assert vif == Vif(1500, 1514, FIRST.mac)
    assert left == FRAMES
    assert said == INIT + JOIN


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"VMNET" + INIT[5:], "b'VMNET'"),
        (b"VMN3T\x17\x00\x00\x00" + bytes(40), "version 23, not 22"),
        (INIT + b"\x03" + bytes(257), "type 3"),
    ],
)
async def test_a_server_that_is_none(data, why):
    with pytest.raises(HandshakeError, match=why):
        await answered_with(data)


@pytest.mark.parametrize("offset", [*range(0, 306, 17), 48, 49, 50, 306])
async def test_a_server_that_closes_early(offset):
    with pytest.raises(HandshakeError, match="short of its"):
        await answered_with((INIT + VIF)[:offset])


@pytest.mark.parametrize("offset", [0, 48, 49, 50, 306])
async def test_a_server_that_falls_silent(offset, autojump_clock):
    with pytest.raises(HandshakeError, match="no complete handshake"):
        await answered_with((INIT + VIF)[:offset], hang_up=False)
    assert trio.current_time() == HANDSHAKE_SECONDS

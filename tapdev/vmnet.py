"""VMN3T version 22: how HyperKit, RootlessKit and vpnkit-tap-vsockd put a guest's network card on a stream.

Both ends say Init, the client sends a Command, the server answers with a Vif or a Disconnect of the same size, and
Ethernet frames follow both ways (vpnkit.md 1.1 and 1.3).  Integers are little-endian.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias
from uuid import UUID

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

HANDSHAKE_SECONDS: Final = 10.0  # the slowest client answers in a round trip; a silent one must not stay for ever

MAGIC: Final = b"VMN3T"
MAGIC_OF_VERSION_0: Final = b"VMNET"  # nothing followed it
VERSION: Final = 22
COMMIT: Final = b"0123456789" * 4  # vpnkit's own; nobody looks at it

INIT: Final = struct.Struct("<5sI40s")
COMMAND: Final = struct.Struct("<B36s4s")
VIF: Final = struct.Struct("<BHH6s247x")
DISCONNECT: Final = struct.Struct("<BB256s")
MAX_REASON: Final = 255  # octets: what the length field can say

ETHERNET: Final = 1  # any address, or the one that the UUID had before
BIND_IPV4: Final = 6  # for the privileged helper of the original, never for a network
PREFERRED_IPV4: Final = 8  # this address or none

TYPE_VIF: Final = 1
TYPE_DISCONNECT: Final = 2

PACKET_OVERHEAD: Final = 50  # what the original adds to the MTU for its max_packet_size
MAX_U16: Final = 65535

NO_UUID: Final = bytes(36)
UUID_TEXT: Final = re.compile(rb"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")  # UUID() takes more than this


class HandshakeError(Exception):
    """The other end does not speak the protocol; the connection is dropped without an answer."""


class Refused(Exception):
    """A client that may not join; str() is the reason it is told."""


@dataclass(frozen=True, slots=True)
class Registration:
    """What a guest gets."""

    mac: bytes  # 6 octets
    ip: bytes  # 4 octets


@dataclass(frozen=True, slots=True)
class Init:
    version: int
    commit: bytes = COMMIT  # 40 octets


@dataclass(frozen=True, slots=True)
class Command:
    uuid: UUID | None  # None: the server makes one
    wanted: bytes | None = None  # an IPv4 address in network order: Preferred_ipv4, else Ethernet


@dataclass(frozen=True, slots=True)
class Vif:
    mtu: int
    max_packet_size: int  # octets of a frame, with room to spare
    mac: bytes


@dataclass(frozen=True, slots=True)
class Disconnect:
    reason: str


# Called with the client's UUID (None: it has none) and the IPv4 address it insists on, if any.  Raises Refused.
Register: TypeAlias = Callable[[UUID | None, bytes | None], Registration]


def encode_init(init: Init) -> bytes:
    return INIT.pack(MAGIC, init.version, init.commit)


def decode_init(data: bytes) -> Init:
    """From 49 octets, whatever the version.  Raises HandshakeError for another magic."""
    magic, version, commit = INIT.unpack(data)
    if magic != MAGIC:
        raise HandshakeError(f"the other end starts with {magic!r}, not with {MAGIC!r}")
    return Init(version, commit)


def encode_command(command: Command) -> bytes:
    """41 octets for every command."""
    number = ETHERNET if command.wanted is None else PREFERRED_IPV4
    uuid = NO_UUID if command.uuid is None else str(command.uuid).encode()
    return COMMAND.pack(number, uuid, (command.wanted or bytes(4))[::-1])


def decode_command(data: bytes) -> Command:
    """From 41 octets.  Raises HandshakeError for what the original drops: another command, an unreadable UUID."""
    number, text, address = COMMAND.unpack(data)
    if number == BIND_IPV4:
        raise HandshakeError("command 6 (Bind_ipv4) is for vmnetd; a network takes 1 (Ethernet) or 8 (Preferred_ipv4)")
    if number not in (ETHERNET, PREFERRED_IPV4):
        raise HandshakeError(f"command {number} is unknown; a network takes 1 (Ethernet) or 8 (Preferred_ipv4)")
    if text != NO_UUID and not UUID_TEXT.fullmatch(text):
        raise HandshakeError(f"{text!r} is no UUID; 8-4-4-4-12 hexadecimal digits or 36 NULs are")
    uuid = None if text == NO_UUID else UUID(text.decode())
    return Command(uuid, address[::-1] if number == PREFERRED_IPV4 else None)


def encode_vif(vif: Vif) -> bytes:
    """258 octets."""
    return VIF.pack(TYPE_VIF, vif.mtu, vif.max_packet_size, vif.mac)


def encode_disconnect(disconnect: Disconnect) -> bytes:
    """258 octets; the reason is cut at 255, and what is not ASCII becomes a question mark."""
    reason = disconnect.reason.encode("ascii", "replace")[:MAX_REASON]
    return DISCONNECT.pack(TYPE_DISCONNECT, len(reason), reason)


def decode_response(data: bytes) -> Vif | Disconnect:
    """From 258 octets.  Raises HandshakeError for a type that is neither."""
    if data[0] == TYPE_VIF:
        return Vif(*VIF.unpack(data)[1:])
    if data[0] == TYPE_DISCONNECT:
        _, length, reason = DISCONNECT.unpack(data)
        return Disconnect(reason[:length].decode("ascii", "backslashreplace"))
    raise HandshakeError(f"a response of type {data[0]} is unknown; 1 (Vif) and 2 (Disconnect) are not")


async def serve_handshake(
    stream: trio.abc.Stream,
    register: Register,
    *,
    mtu: int,
    received: bytes = b"",
    deadline: float | None = None,
) -> tuple[Registration, bytes]:
    """The server's side, up to the first frame; returns also the octets of `received` that belong to frames.

    `received` is what was read from the stream before; `deadline` is on trio's clock, HANDSHAKE_SECONDS from now when
    None.  Raises HandshakeError, and Refused after the client was told why.  A client that leaves before it has its
    response is still registered: its link will say that it is gone.  The stream is the caller's to close.
    """
    if deadline is None:
        deadline = trio.current_time() + HANDSHAKE_SECONDS
    buffer = bytearray(received)
    with conversation(deadline):
        await _serve_init(stream, buffer)
        command = decode_command(await _read(stream, buffer, COMMAND.size, "Command"))
    try:
        registration = register(command.uuid, command.wanted)
    except Refused as refusal:
        await _respond(stream, encode_disconnect(Disconnect(str(refusal))), deadline)
        raise
    vif = Vif(mtu, min(mtu + PACKET_OVERHEAD, MAX_U16), registration.mac)
    await _respond(stream, encode_vif(vif), deadline)
    return registration, bytes(buffer)


async def connect_handshake(stream: trio.abc.Stream, uuid: UUID | None, wanted: bytes | None = None) -> Vif:
    """The client's side: joins as `uuid` (None lets the server make one), with IPv4 address `wanted` or any.

    Reads not one octet of the first frame.  Raises Refused with the server's reason, and HandshakeError.
    """
    buffer = bytearray()
    with conversation(trio.current_time() + HANDSHAKE_SECONDS):
        await stream.send_all(encode_init(Init(VERSION)))
        answer = decode_init(await _read(stream, buffer, INIT.size, "Init"))
        if answer.version != VERSION:
            raise HandshakeError(f"the server speaks version {answer.version}, not {VERSION}")
        await stream.send_all(encode_command(Command(uuid, wanted)))
        response = decode_response(await _read(stream, buffer, VIF.size, "response"))
    if isinstance(response, Disconnect):
        raise Refused(response.reason)
    return response


@contextmanager
def conversation(deadline: float) -> Iterator[None]:
    """Makes a HandshakeError of whatever ends a handshake early: `deadline` on trio's clock, a broken connection."""
    try:
        with trio.fail_at(deadline):
            yield
    except trio.TooSlowError:
        raise HandshakeError(f"no complete handshake within {HANDSHAKE_SECONDS:g} seconds") from None
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise HandshakeError("the connection broke during the handshake") from error


async def _serve_init(stream: trio.abc.Stream, buffer: bytearray) -> None:
    """Read the client's Init and answer it.  A client of another version is told ours before it is dropped."""
    magic = await _read(stream, buffer, len(MAGIC), "Init")
    ours = encode_init(Init(VERSION))
    if magic == MAGIC_OF_VERSION_0:
        await stream.send_all(ours)
        raise HandshakeError(f"the client speaks version 0, only version {VERSION} is served")
    if magic != MAGIC:
        raise HandshakeError(f"the client starts with {magic!r}, not with {MAGIC!r}")
    theirs = decode_init(magic + await _read(stream, buffer, INIT.size - len(MAGIC), "Init"))
    await stream.send_all(ours)
    if theirs.version != VERSION:
        raise HandshakeError(f"the client speaks version {theirs.version}, only version {VERSION} is served")


async def _read(stream: trio.abc.Stream, buffer: bytearray, size: int, what: str) -> bytes:
    """Exactly `size` octets, first those of `buffer`.  Reads none too many."""
    while len(buffer) < size:
        chunk = await stream.receive_some(size - len(buffer))
        if not chunk:
            raise HandshakeError(f"the other end closed the connection {size - len(buffer)} octets short of its {what}")
        buffer += chunk
    taken = bytes(buffer[:size])
    del buffer[:size]
    return taken


async def _respond(stream: trio.abc.Stream, response: bytes, deadline: float) -> None:
    """Send `response` as far as the client lets us."""
    with trio.move_on_at(deadline):
        try:
            await stream.send_all(response)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

"""What an operator writes for a way into a VM: `--link URL`, as a value.

`FORMS` is the whole language.  Nothing here opens anything: a value says what was asked for, and `tapdev.sources`
does it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Kind(StrEnum):
    """What stands before the first colon."""

    TAP = "tap"
    FD = "fd"
    QEMU = "qemu"
    QEMU_CONNECT = "qemu-connect"
    DGRAM = "dgram"
    VMNET = "vmnet"
    VFKIT = "vfkit"
    BESS = "bess"
    STDIO = "stdio"
    VSOCK = "vsock"
    FC_VSOCK = "fc-vsock"
    HYPERKIT = "hyperkit"


FORMS: Final[Mapping[Kind, str]] = {
    Kind.TAP: "tap:NAME[?netns=PATH]",
    Kind.FD: "fd:N",
    Kind.QEMU: "qemu:PATH, qemu:tcp:HOST:PORT or qemu:fd:N",
    Kind.QEMU_CONNECT: "qemu-connect:PATH or qemu-connect:tcp:HOST:PORT",
    Kind.DGRAM: "dgram:LOCAL[,REMOTE] or dgram:fd:N",
    Kind.VMNET: "vmnet:PATH or vmnet:fd:N",
    Kind.VFKIT: "vfkit:PATH or vfkit:fd:N",
    Kind.BESS: "bess:PATH or bess:fd:N",
    Kind.STDIO: "stdio:",
    Kind.VSOCK: "vsock:[CID:]PORT",
    Kind.FC_VSOCK: "fc-vsock:PATH:PORT",
    Kind.HYPERKIT: "hyperkit:PATH:PORT",
}
EXAMPLES: Final[Mapping[Kind, str]] = {
    Kind.TAP: "tap:tap0",
    Kind.FD: "fd:3",
    Kind.QEMU: "qemu:/run/vm.sock or qemu:tcp:127.0.0.1:1234",
    Kind.QEMU_CONNECT: "qemu-connect:/run/vm.sock or qemu-connect:tcp:127.0.0.1:1234",
    Kind.DGRAM: "dgram:/run/net.sock,/run/vm.sock",
    Kind.VMNET: "vmnet:/run/vm.sock",
    Kind.VFKIT: "vfkit:/run/vm.sock",
    Kind.BESS: "bess:/run/vm.sock",
    Kind.STDIO: "stdio:",
    Kind.VSOCK: "vsock:1024",
    Kind.FC_VSOCK: "fc-vsock:/run/v.sock:1024",
    Kind.HYPERKIT: "hyperkit:/run/vm:1024",
}

JUMBO: Final = 65520  # passt's and slirp4netns's: the largest multiple of 8 below 64 KiB that leaves room for a frame
ETHERNET: Final = 1500
# Octets of an IP datagram.  What a program at the other end has agreed to is kept small; a descriptor for a kind has
# that kind's, and `fd:N` that of what it turns out to be.
DEFAULT_MTU: Final[Mapping[Kind, int]] = {
    kind: JUMBO if kind in (Kind.TAP, Kind.FD, Kind.QEMU, Kind.QEMU_CONNECT, Kind.DGRAM) else ETHERNET for kind in Kind
}

MAX_NAME: Final = 15  # octets of a device name: IFNAMSIZ without the NUL
MAX_FD: Final = 2**31 - 1
MAX_PORT: Final = 65535
VSOCK_ANY: Final = 2**32 - 1  # VMADDR_CID_ANY and VMADDR_PORT_ANY
DEVICE: Final = re.compile(r"[^\s/:%?]+")
NUMBER: Final = re.compile(r"[0-9]{1,10}")
HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}")
ZONE: Final = re.compile(r"[A-Za-z0-9._-]{1,15}")


class LinkSpecError(ValueError):
    """One line: what was written, what is wrong with it, and what would be right."""


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """One `--link`; a field that its kind does not have is None.  `str` gives the form that `parse` reads back."""

    text: str = field(compare=False)  # as it was typed
    kind: Kind
    path: str | None = (
        None  # of a socket: ours, or QEMU's where we connect; what a vsock port is added to; a TAP's name
    )
    remote: str | None = None  # path of the other end's datagram socket
    host: str | None = None  # name or address, without brackets
    port: int | None = None  # TCP or vsock
    cid: int | None = None
    fd: int | None = None
    netns: str | None = None  # where the TAP device is: a path, or a name without a slash as of `ip netns`

    def __str__(self) -> str:
        if self.fd is not None:
            return f"fd:{self.fd}" if self.kind is Kind.FD else f"{self.kind}:fd:{self.fd}"
        if self.host is not None:
            return f"{self.kind}:{tcp_text(self.host, self.port or 0)}"
        if self.kind is Kind.TAP:
            return f"tap:{self.path}" + (f"?netns={self.netns}" if self.netns is not None else "")
        if self.kind is Kind.DGRAM:
            return f"dgram:{self.path}" + (f",{self.remote}" if self.remote is not None else "")
        parts = [self.kind, self.path, self.cid, self.port]
        return ":".join(str(part) for part in parts if part is not None) + (":" if self.kind is Kind.STDIO else "")


def parse(text: str) -> LinkSpec:
    """What `text` asks for.  Raises LinkSpecError and nothing else."""
    word, _, rest = text.partition(":")
    try:
        kind = Kind(word)
    except ValueError:
        raise LinkSpecError(_unknown(text, word)) from None
    try:
        _check_octets(rest)
        return LinkSpec(text, kind, **PARSERS[kind](rest))
    except LinkSpecError as error:
        raise LinkSpecError(f"link {text!r}: {error}; write {FORMS[kind]}, for example {EXAMPLES[kind]}") from None


def tcp_text(host: str, port: int) -> str:
    """The form `tcp:HOST:PORT`, an IPv6 address in brackets."""
    return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"


def _unknown(text: str, word: str) -> str:
    if word == "vhost-user":
        return f"link {text!r}: vhost-user is not there yet; QEMU can use qemu:PATH"
    kinds = ", ".join(Kind)
    hint = (
        f"; a path needs its protocol before it, for example qemu:{text}" if "/" in word and text.isprintable() else ""
    )
    return f"link {text!r}: {word!r} is none of {kinds}{hint or '; for example ' + EXAMPLES[Kind.VMNET]}"


def _check_octets(rest: str) -> None:
    try:
        octets = os.fsencode(rest)
    except UnicodeEncodeError:
        raise LinkSpecError("it has characters that no file name can have") from None
    if b"\0" in octets:
        raise LinkSpecError("it has a NUL octet")


def _number(text: str, what: str, highest: int) -> int:
    if not NUMBER.fullmatch(text) or int(text) > highest:
        raise LinkSpecError(f"{text!r} is not a {what} (0 to {highest})")
    return int(text)


def _fd(text: str) -> dict[str, Any]:
    return {"fd": _number(text, "descriptor number", MAX_FD)}


def _path(text: str) -> dict[str, Any]:
    if not text:
        raise LinkSpecError("the path is missing")
    return {"path": text}


def _path_or_fd(text: str) -> dict[str, Any]:
    if text.startswith("fd:"):
        return _fd(text.removeprefix("fd:"))
    return _path(text)


def _path_or_tcp(text: str) -> dict[str, Any]:
    if not text.startswith("tcp:"):
        return _path(text)
    host, colon, port = text.removeprefix("tcp:").rpartition(":")
    if not colon:
        raise LinkSpecError("the port is missing")
    return {"host": _host(host), "port": _number(port, "TCP port", MAX_PORT)}


def _host(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        address, percent, zone = text[1:-1].partition("%")
        try:
            canonical = str(IPv6Address(address))
        except ValueError:
            raise LinkSpecError(f"{address!r} is not an IPv6 address") from None
        if percent and not ZONE.fullmatch(zone):
            raise LinkSpecError(f"{zone!r} is not the zone of an IPv6 address")
        return canonical + percent + zone
    if ":" in text:
        raise LinkSpecError("an IPv6 address is written in brackets, [::1]")
    if not HOST.fullmatch(text):
        raise LinkSpecError(f"{text!r} is not a host name or an address")
    return text


def _qemu(text: str) -> dict[str, Any]:
    return _path_or_fd(text) if text.startswith("fd:") else _path_or_tcp(text)


def _qemu_connect(text: str) -> dict[str, Any]:
    if text.startswith("fd:"):
        raise LinkSpecError("a descriptor is connected already, which is qemu:fd:N")
    fields = _path_or_tcp(text)
    if fields.get("port") == 0:
        raise LinkSpecError("nobody can be reached at port 0")
    return fields


def _dgram(text: str) -> dict[str, Any]:
    if text.startswith("fd:"):
        return _fd(text.removeprefix("fd:"))
    local, comma, remote = text.partition(",")
    if comma and not remote:
        raise LinkSpecError("the remote path after ',' is missing")
    fields = _path(local)
    if local == remote:
        raise LinkSpecError("the local and the remote path are the same")
    return {**fields, "remote": remote or None}


def _tap(text: str) -> dict[str, Any]:
    device, question, options = text.partition("?")
    if not DEVICE.fullmatch(device) or device in (".", "..") or len(os.fsencode(device)) > MAX_NAME:
        raise LinkSpecError(f"{device!r} is not a device name (1 to {MAX_NAME} octets, no space, '/', ':' or '%')")
    if not question:
        return {"path": device}
    key, _, netns = options.partition("=")
    if key != "netns" or not netns:
        raise LinkSpecError(f"{options!r} is not an option of tap; netns=PATH is")
    return {"path": device, "netns": netns}


def _stdio(text: str) -> dict[str, Any]:
    if text:
        raise LinkSpecError(f"{text!r} is too much")
    return {}


def _vsock(text: str) -> dict[str, Any]:
    cid, colon, port = text.rpartition(":")
    return {
        "cid": _number(cid, "context identifier", VSOCK_ANY - 1) if colon else None,
        "port": _number(port, "vsock port", VSOCK_ANY - 1),
    }


def _vsock_path(text: str) -> dict[str, Any]:
    path, colon, port = text.rpartition(":")
    if not colon:
        raise LinkSpecError("the port is missing")
    return {**_path(path), "port": _number(port, "vsock port", VSOCK_ANY - 1)}


PARSERS: Final[Mapping[Kind, Callable[[str], dict[str, Any]]]] = {
    Kind.TAP: _tap,
    Kind.FD: _fd,
    Kind.QEMU: _qemu,
    Kind.QEMU_CONNECT: _qemu_connect,
    Kind.DGRAM: _dgram,
    Kind.VMNET: _path_or_fd,
    Kind.VFKIT: _path_or_fd,
    Kind.BESS: _path_or_fd,
    Kind.STDIO: _stdio,
    Kind.VSOCK: _vsock,
    Kind.FC_VSOCK: _vsock_path,
    Kind.HYPERKIT: _vsock_path,
}

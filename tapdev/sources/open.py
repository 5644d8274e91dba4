"""From what an operator wrote to an open way in."""

from __future__ import annotations

import socket
import stat
import sys
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from tapdev.link import ETHERNET_HEADER, MAX_FRAME
from tapdev.sources.adopted import LISTENING, UNCONNECTED, adopt_socket, check_open
from tapdev.sources.bind import SEQPACKET, BoundSocket, bind_tcp, bind_unix, bind_vsock
from tapdev.sources.connecting import ConnectingSource
from tapdev.sources.connections import Serve, Vmnet, packets, qemu
from tapdev.sources.datagram import VFKIT_HELLO, DatagramSource
from tapdev.sources.host import Complaints, LinkError, Source
from tapdev.sources.listening import ListeningSource
from tapdev.sources.single import ConnectionSource
from tapdev.sources.stdio import open_stdio
from tapdev.spec import DEFAULT_MTU, Kind
from tapdev.stream import VMNET
from tapdev.unix_path import PathError, check_length
from tapdev.vsock import hybrid_path, hyperkit_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tapdev.spec import LinkSpec

MIN_MTU: Final = 68  # RFC 791: what every IPv4 link carries
MAX_MTU: Final[Mapping[Kind, int]] = {
    kind: VMNET.max_length - ETHERNET_HEADER
    if kind in (Kind.VMNET, Kind.STDIO, Kind.VSOCK, Kind.FC_VSOCK, Kind.HYPERKIT)
    else MAX_FRAME - ETHERNET_HEADER
    for kind in Kind
}
NOTHING: Final[Mapping[str, int]] = MappingProxyType({})


def open_source(
    spec: LinkSpec, *, mtu: int | None = None, offload: bool = True, inherited: Mapping[str, int] = NOTHING
) -> Source:
    """Bind, make or adopt everything that `spec` names, at once.  Raises LinkError, with everything given up again.

    `mtu` is in octets of an IP datagram, None for the default of the kind.  `inherited` are bound sockets of socket
    activation: `socket_key` of each, and its descriptor.  Those that this source would bind it takes over instead, and
    never unlinks.  A descriptor that an error is about stays open.
    """
    if spec.fd is not None:
        return _open_fd(spec, spec.fd, mtu, offload)
    size = _mtu(spec.kind, mtu)
    if spec.kind is Kind.TAP:
        if sys.platform != "linux":
            raise LinkError(f"{sys.platform} has no TAP devices that we could make; take another kind of link")
        from tapdev.sources.tap import open_tap_source  # of Linux

        return open_tap_source(spec, size, offload)
    if spec.kind is Kind.STDIO:
        return open_stdio(spec, size)
    if spec.kind is Kind.QEMU_CONNECT:
        _check_length(spec.path)
        return ConnectingSource(spec, qemu(size))
    if spec.kind in (Kind.DGRAM, Kind.VFKIT):
        _check_length(spec.remote)
        return _datagrams(spec, spec.kind, bind_unix(spec.path or "", socket.SOCK_DGRAM, inherited), size)
    bound = _bind(spec, inherited)
    if spec.host is not None and not spec.port:
        spec = replace(spec, port=bound[0].sock.getsockname()[1])  # for who asks the source what it is
    complaints = Complaints(str(spec))
    return ListeningSource(spec, bound, _serve(spec.kind, size, complaints), complaints)


def bound_path(spec: LinkSpec) -> str | None:
    """The path of the unix socket that `open_source` binds for `spec`, if it binds one."""
    if spec.path is None or spec.kind in (Kind.TAP, Kind.QEMU_CONNECT):
        return None
    if spec.kind is Kind.FC_VSOCK:
        return hybrid_path(spec.path, spec.port or 0)
    if spec.kind is Kind.HYPERKIT:
        return hyperkit_path(spec.path, spec.port or 0)
    return spec.path


def _bind(spec: LinkSpec, inherited: Mapping[str, int]) -> list[BoundSocket]:
    """Listening sockets."""
    path = bound_path(spec)
    if path is not None:
        return [bind_unix(path, SEQPACKET if spec.kind is Kind.BESS else socket.SOCK_STREAM, inherited)]
    if spec.host is not None:
        return bind_tcp(spec.host, spec.port or 0, inherited)
    return [bind_vsock(spec.cid, spec.port or 0, inherited)]


def _serve(kind: Kind, mtu: int, complaints: Complaints) -> Serve:
    if kind is Kind.QEMU:
        return qemu(mtu)
    if kind in (Kind.BESS, Kind.DGRAM, Kind.VFKIT):
        return packets(mtu)
    return Vmnet(mtu, complaints)


def _datagrams(spec: LinkSpec, kind: Kind, bound: BoundSocket, mtu: int) -> DatagramSource:
    hello = VFKIT_HELLO if kind is Kind.VFKIT else b""
    return DatagramSource(spec, bound, mtu=mtu, hello=hello, remote=spec.remote)


def _open_fd(spec: LinkSpec, fd: int, mtu: int | None, offload: bool) -> Source:
    if sys.platform == "linux" and spec.kind is Kind.FD and stat.S_ISCHR(check_open(fd).st_mode):
        from tapdev.sources.tap import adopt_tap_source

        tap = adopt_tap_source(spec, fd, _mtu(Kind.TAP, mtu), offload)
        if tap is not None:
            return tap
    sock, kind, role = adopt_socket(fd, spec.kind)
    try:
        size = _mtu(kind, mtu)
        if role == UNCONNECTED:
            return _datagrams(spec, kind, BoundSocket(sock), size)
        complaints = Complaints(str(spec))
        serve = _serve(kind, size, complaints)
        if role == LISTENING:
            return ListeningSource(spec, [BoundSocket(sock)], serve, complaints)
        return ConnectionSource(spec, sock, serve)
    except BaseException:
        sock.detach()
        raise


def _mtu(kind: Kind, wanted: int | None) -> int:
    if wanted is None:
        return DEFAULT_MTU[kind]
    if not MIN_MTU <= wanted <= MAX_MTU[kind]:
        raise LinkError(f"MTU {wanted} is out of range for {kind}: {MIN_MTU} to {MAX_MTU[kind]}")
    return wanted


def _check_length(path: str | None) -> None:
    try:
        check_length(path or "")
    except PathError as error:
        raise LinkError(str(error)) from None

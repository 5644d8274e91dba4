"""How sockets of macOS differ from Linux's, put over `socket.socket`, as far as that is cheap.

What cannot be had here: the numbers of errno and of every constant, the layout of addresses and ancillary data, a
full backlog of a unix listener (ECONNREFUSED, as if nobody had the path), `O_NONBLOCK` inherited through `accept`,
EPROTOTYPE from `send` in the moment of a peer's reset, and the identity of unix peers (LOCAL_PEERCRED).
"""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import ClassVar

MAX_PATH = 103  # octets of sun_path without its NUL
UNIX_DATAGRAM = 2048  # net.local.dgram.maxdgram
UDP_DATAGRAM = 9216  # net.inet.udp.maxdgram
MAX_SOCKET_BUFFER = 8 << 20  # kern.ipc.maxsockbuf

LEVELS = {socket.SOL_SOCKET: "SO_", socket.IPPROTO_IP: "IP_", socket.IPPROTO_TCP: "TCP_", socket.IPPROTO_IPV6: "IPV6_"}

_poll = select.poll
_HUP = select.POLLHUP
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as fresh:
    DEFAULT_SNDBUF = fresh.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def _error(number):
    return OSError(number, os.strerror(number))


def _is_over(sock):
    """Neither side will send any more."""
    if sock.type != socket.SOCK_STREAM or sock.fileno() < 0:
        return False
    try:
        Plain.getpeername(sock)
    except OSError:
        return False
    poller = _poll()
    poller.register(sock.fileno(), 0)
    return any(bits & _HUP for _, bits in poller.poll(0))


def _check_path(sock, address):
    if sock.family == socket.AF_UNIX and isinstance(address, (str, bytes)):
        name = os.fsencode(address)
        if len(name) > MAX_PATH:
            raise OSError("AF_UNIX path too long")
        if name.startswith(b"\0"):
            raise _error(errno.ENOENT)


def _check_size(sock, size):
    if sock.type != socket.SOCK_DGRAM:
        return
    limit = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    if limit == DEFAULT_SNDBUF:  # nobody has set it
        limit = UNIX_DATAGRAM if sock.family == socket.AF_UNIX else UDP_DATAGRAM
    if size > limit:
        raise _error(errno.EMSGSIZE)


class Plain:
    """The methods as they were."""

    bind = socket.socket.bind
    connect = socket.socket.connect
    connect_ex = socket.socket.connect_ex
    getpeername = socket.socket.getpeername
    recvmsg = socket.socket.recvmsg
    send = socket.socket.send
    sendmsg = socket.socket.sendmsg
    sendto = socket.socket.sendto
    setsockopt = socket.socket.setsockopt
    shutdown = socket.socket.shutdown
    init = socket.socket.__init__


class Mac:
    """The methods as macOS has them."""

    shut_down = staticmethod(lambda fd: None)  # told of every `shutdown`
    options: ClassVar[dict[int, frozenset[int]]] = {}  # level: what `setsockopt` knows
    flags = 0  # what `recvmsg` and `sendmsg` know

    def __init__(self, family=-1, type=-1, proto=-1, fileno=None):  # noqa: A002
        if fileno is None and family == socket.AF_UNIX and type == socket.SOCK_SEQPACKET:
            raise _error(errno.EPROTONOSUPPORT)
        if fileno is None and type == socket.SOCK_DGRAM and proto == socket.IPPROTO_ICMP:
            # Allowed to everybody there, and it shows the IP header and keeps the identifier, as a raw socket here.
            type = socket.SOCK_RAW  # noqa: A001
        Plain.init(self, family, type, proto, fileno)

    def bind(self, address):
        _check_path(self, address)
        return Plain.bind(self, address)

    def connect(self, address):
        _check_path(self, address)
        return Plain.connect(self, address)

    def connect_ex(self, address):
        _check_path(self, address)
        return Plain.connect_ex(self, address)

    def getpeername(self):
        if _is_over(self):
            raise _error(errno.EINVAL)
        return Plain.getpeername(self)

    def setsockopt(self, level, option, *value):
        if level != socket.IPPROTO_ICMP and option not in Mac.options.get(level, ()):
            raise _error(errno.ENOPROTOOPT)
        if _is_over(self):
            raise _error(errno.EINVAL)
        buffer = level == socket.SOL_SOCKET and option in (socket.SO_SNDBUF, socket.SO_RCVBUF)
        if buffer and value[0] > MAX_SOCKET_BUFFER:
            raise _error(errno.ENOBUFS)
        return Plain.setsockopt(self, level, option, *value)

    def shutdown(self, how):
        if _is_over(self):
            raise _error(errno.ENOTCONN)
        Plain.shutdown(self, how)
        if how != socket.SHUT_RD:
            Mac.shut_down(self.fileno())

    def send(self, data, flags=0):
        _check_size(self, len(data))
        return _full(self, Plain.send, data, flags)

    def sendto(self, data, *rest):
        _check_size(self, len(data))
        return _full(self, Plain.sendto, data, *rest)

    def sendmsg(self, buffers, ancillary=(), flags=0, address=None):
        buffers = list(buffers)
        if flags & ~Mac.flags or any(level != socket.SOL_SOCKET for level, _, _ in ancillary):
            raise _error(errno.EINVAL)
        _check_size(self, sum(map(len, buffers)))
        return _full(self, Plain.sendmsg, buffers, ancillary, flags, address)

    def recvmsg(self, size, ancillary=0, flags=0):
        if flags & ~Mac.flags:
            raise _error(errno.EINVAL)
        return Plain.recvmsg(self, size, ancillary, flags)


def _full(sock, method, *arguments):
    """A unix datagram socket whose peer has no room says ENOBUFS, also a blocking one."""
    try:
        return method(sock, *arguments)
    except BlockingIOError:
        if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_DGRAM:
            raise _error(errno.ENOBUFS) from None
        raise


def _socketpair(plain):
    def socketpair(family=None, type=socket.SOCK_STREAM, proto=0):  # noqa: A002
        if type == socket.SOCK_SEQPACKET:
            raise _error(errno.EPROTONOSUPPORT)
        return plain(family, type, proto)

    return socketpair


def install(shut_down):
    """After the names are gone that macOS has not: what is left says which options there are."""
    Mac.shut_down = staticmethod(shut_down)
    values = {name: value for name, value in vars(socket).items() if isinstance(value, int)}
    for level, prefix in LEVELS.items():
        Mac.options[level] = frozenset(value for name, value in values.items() if name.startswith(prefix))
    for name, value in values.items():
        if name.startswith("MSG_"):
            Mac.flags |= value
    for name, method in vars(Mac).items():
        if (not name.startswith("_") and name not in ("shut_down", "options", "flags")) or name == "__init__":
            setattr(socket.socket, name, method)
    socket.socketpair = _socketpair(socket.socketpair)

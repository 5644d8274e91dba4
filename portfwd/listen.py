"""The sockets of the host that a forward listens on, and what stands in the way of having them.

A forward that names no host address listens on both loopback addresses, where there are both, at the same port.
Sockets never have SO_REUSEPORT: a port that somebody has is an error, never shared silently.  An IPv6 address is
IPv6 only.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, TypeAlias

from portfwd.errors import ForwardError
from portfwd.helper.client import HelperError, ask
from portfwd.helper.wire import Bind
from portfwd.owner import who_listens

if TYPE_CHECKING:
    from collections.abc import Callable

    from portfwd.spec import Spec

# A socket bound to a path, listening with a backlog, and what takes the path away again while it is still open.
# Raises ForwardError with the reason alone.
UnixListen: TypeAlias = "Callable[[str, int], tuple[socket.socket, Callable[[], None]]]"

LOOPBACK: Final = ("127.0.0.1", "::1")
PORT_ATTEMPTS: Final = 16  # to find a port that is free on both loopback addresses
PRIVILEGED: Final = 1024  # ports below it
NO_SUCH_FAMILY: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})


async def listen_on(spec: Spec, helper: str | None = None) -> list[socket.socket]:
    """The listeners, or for udp the bound sockets, of a forward of a port.  Raises ForwardError, with all closed.

    `helper` is the path of who binds ports that we may not.
    """
    if spec.host_address is not None:
        return [await _bind(spec, spec.host_address, spec.host_port, helper)]
    for attempt in range(1, PORT_ATTEMPTS + 1):
        first = await _bind_if_there(spec, LOOPBACK[0], spec.host_port, helper)
        port = first.getsockname()[1] if first else spec.host_port
        try:
            second = await _bind_if_there(spec, LOOPBACK[1], port, helper)
        except BaseException as error:
            if first:
                first.close()
            if isinstance(error, ForwardError) and spec.host_port == 0 and attempt < PORT_ATTEMPTS:
                continue  # the port that was free on one is not on the other
            raise
        if listeners := [listener for listener in (first, second) if listener]:
            return listeners
        break
    raise ForwardError(f"cannot forward {spec}: this host has no loopback address")


def listen_at(spec: Spec, listen: UnixListen | None) -> tuple[socket.socket, Callable[[], None]]:
    """The listener of a forward of a unix socket; directories that are missing are made.  Raises ForwardError."""
    assert spec.host_path is not None
    if listen is None:
        raise ForwardError(f"cannot forward {spec}: unix sockets are not served here")
    try:
        os.makedirs(os.path.dirname(spec.host_path), exist_ok=True)
        return listen(spec.host_path, spec.options.backlog)
    except OSError as error:
        where = error.filename or spec.host_path
        raise ForwardError(f"cannot forward {spec}: {where}: {error.strerror}") from error
    except ForwardError as error:
        raise ForwardError(f"cannot forward {spec}: {error}") from error


def place(address: str, port: int) -> str:
    """An address and a port for people."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


async def _bind_if_there(spec: Spec, address: str, port: int, helper: str | None) -> socket.socket | None:
    try:
        return await _bind(spec, address, port, helper)
    except ForwardError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_SUCH_FAMILY:
            return None
        raise


async def _bind(spec: Spec, address: str, port: int, helper: str | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    is_stream = spec.protocol == "tcp"
    made = None
    try:
        made = socket.socket(family, socket.SOCK_STREAM if is_stream else socket.SOCK_DGRAM)
        # For UDP it would let two share the port, and on Windows it means to take a port away from its owner.
        if is_stream and sys.platform != "win32":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            made.bind((address, port))
        except PermissionError as error:
            made.close()
            if helper is None or port >= PRIVILEGED:
                raise
            made = await _asked(spec, address, port, helper, error)
        if is_stream:
            made.listen(spec.options.backlog)
    except OSError as error:
        if made:
            made.close()
        raise ForwardError(f"cannot forward {spec}: {_explain(error, spec, address, port)}") from error
    return made


async def _asked(spec: Spec, address: str, port: int, helper: str, refusal: OSError) -> socket.socket:
    """The socket from the helper.  Raises OSError as bind(2) does, and ForwardError when the helper does not help."""
    try:
        return await ask(helper, Bind(spec.protocol, ip_address(address), port))
    except HelperError as error:
        words = f"{_explain(refusal, spec, address, port)}, and {error}"
    except PermissionError:
        words = f"{place(address, port)} needs privilege, and the port helper at {helper} does not allow it"
    raise ForwardError(f"cannot forward {spec}: {words}") from refusal


def _explain(error: OSError, spec: Spec, address: str, port: int) -> str:
    where = place(address, port)
    if error.errno == errno.EADDRINUSE:
        owner = who_listens(address, port, spec.protocol)
        return f"{where} is in use by {owner}" if owner else f"{where} is in use"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{address} is not an address of this host"
    if error.errno == errno.EACCES and port < PRIVILEGED:
        return f"{where} needs privilege; ports from 1024 up do not (see sysctl net.ipv4.ip_unprivileged_port_start)"
    return f"cannot listen on {where}: {error.strerror}"

"""The original's sockets beside --ethernet: who connects to one is served as its flag says."""

from __future__ import annotations

import logging
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from portfwd.accept import Acceptor
from tapdev.sources import LinkError, bound_path
from tapdev.sources.bind import bind_vsock
from vpnkit.control.listen import listening, permitted, process_of
from vpnkit.errors import ConfigError, VpnkitError
from vpnkit.net.capture_reading import read_ring, writer_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tapdev.spec import LinkSpec
    from vpnkit.cli.original.state import State
    from vpnkit.net.network import Network

    Serve: TypeAlias = Callable[[trio.SocketStream], Awaitable[None]]

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 8  # of one socket
SEND_SECONDS: Final = 30.0  # for a tar; who takes no octet of a capture for so long is gone, too
ALL: Final = "all.pcap"


@contextmanager
def endpoint(flag: str, spec: LinkSpec) -> Iterator[trio.SocketListener]:
    """A listener at the address of a flag.  Raises VpnkitError."""
    path = bound_path(spec)
    if spec.fd is not None:
        made = inherited(flag, spec.fd)
    elif path is not None:
        with listening(Path(path), f"--{flag} socket", f"choose another --{flag}") as listener:
            yield listener
        return
    else:
        try:
            made = bind_vsock(spec.cid, spec.port or 0, {}).sock
        except LinkError as error:
            raise VpnkitError(f"--{flag}: {error}") from error
    with made:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(made))
        try:
            yield listener
        finally:
            listener.socket.close()


def inherited(flag: str, fd: int) -> socket.socket:
    """The socket with that number, which is bound, listening.  Raises ConfigError."""
    try:
        made = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError(f"--{flag} fd:{fd}: {error.strerror}") from None
    try:
        made.listen()
    except OSError as error:
        made.detach()
        raise ConfigError(f"--{flag} fd:{fd} is no bound stream socket: {error.strerror}") from None
    made.set_inheritable(False)
    return made


async def serve_each(flag: str, listener: trio.SocketListener, serve: Serve) -> None:
    """`serve` everybody who may connect, until cancelled."""
    acceptor = Acceptor(listener, f"--{flag}")
    serving = 0

    async def one(stream: trio.SocketStream) -> None:
        nonlocal serving
        try:
            await serve(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            log.debug("--%s: a client went away", flag)
        except Exception:  # the containment boundary of one connection
            log.exception("--%s: a connection failed", flag)
        finally:
            serving -= 1
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        while True:
            stream = await acceptor.accept()
            if not permitted(stream) or serving >= MAX_CONNECTIONS:
                log.warning("--%s: refused a client: of another user, or the %dth", flag, serving + 1)
                await trio.aclose_forcefully(stream)
            else:
                serving += 1
                nursery.start_soon(one, stream)


def diagnostics(state: State) -> Serve:
    """The state as a tar, then the end."""

    async def serve(stream: trio.SocketStream) -> None:
        with trio.fail_after(SEND_SECONDS):
            await stream.send_all(state.tar())
            await stream.send_eof()

    return serve


def pcap(network: Network) -> Serve:
    """The link's packets, those of the ring first, until the reader goes."""
    captures = network.options.captures
    assert captures is not None

    async def serve(stream: trio.SocketStream) -> None:
        async def send(data: bytes) -> None:
            with trio.fail_after(SEND_SECONDS):
                await stream.send_all(data)

        line = captures.audited("follow", ALL, process_of(stream))
        ring = captures.ring(ALL)
        await read_ring(captures, ring, writer_for(captures, ring, "pcap"), send, line, follow=True)

    return serve

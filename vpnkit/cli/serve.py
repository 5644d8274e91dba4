"""`vpnkit serve`: the network of whoever comes in over the links, until a signal.

Every socket is bound before anything is said and before any guest is served, so that what cannot be had is one error
and leaves nothing behind.  The end waits for nobody: everything is cancelled, the guests' connections are reset and
the paths are unlinked.

Signals: SIGTERM, SIGINT and SIGHUP end us in order, SIGHUP not when it was ignored at the start (nohup).  From then on
they have their default disposition, so the next one kills.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from portfwd.mux.dialer import Forwarder
from portfwd.mux.reach import connect
from tapdev.sources import LinkError, open_source
from tapdev.spec import DEFAULT_MTU, Kind
from vpnkit.cli.activation import addresses, adopt, inherited_sockets
from vpnkit.cli.limits import raise_descriptor_limit
from vpnkit.cli.readiness import ServiceManager, ready_line, write_ready
from vpnkit.control.agents import Agents
from vpnkit.control.http import serve_http
from vpnkit.control.listen import P9_SOCKET, listening
from vpnkit.control.p9.server import serve_p9
from vpnkit.control.p9.tree import instance_tree
from vpnkit.control.serving import start_control
from vpnkit.errors import VpnkitError
from vpnkit.net.network import Network, NetworkOptions
from vpnkit.wire.checksum import enable_fast_sums

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from portfwd.auto.rules import Rule
    from portfwd.mux.address import ForwarderAddress
    from tapdev.sources import Source
    from tapdev.spec import LinkSpec
    from vpnkit.cli.options import NetSettings
    from vpnkit.net.plan import Plan

log = logging.getLogger(__name__)

STDOUT: Final = 1
STDERR: Final = 2


class ServeError(VpnkitError):
    """A link cannot be had, or broke for good."""


def serve(
    links: Sequence[LinkSpec],
    plan: Plan,
    settings: NetSettings,
    forwards: Sequence[str],
    *,
    mtu: int | None = None,
    ready_fd: int | None = None,
    forwarder: ForwarderAddress | None = None,
    agents: Rule | None = None,
    also: Callable[[Network, trio.Nursery, ExitStack], Awaitable[None]] | None = None,
    quiet: bool = False,
) -> int:
    """Serve until a signal, or until no link can bring a guest any more; returns the exit status.

    `mtu` is for every link; None leaves it to each.  `forwarder` is where the forwarder in the guest is, `agents` what
    agents in guests may have forwarded.  `also` starts what else belongs to it; with `quiet` there is no ready line.
    Raises what stands in the way of the start, with everything closed and unlinked.
    """
    if ready_fd is not None:
        os.set_inheritable(ready_fd, False)
    raise_descriptor_limit()
    endings = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        endings.append(signal.SIGHUP)
    for number in endings:
        signal.signal(number, signal.SIG_DFL)  # what trio puts back, once the first has come

    adopted = adopt(
        inherited_sockets(os.environ),
        [*(address for spec in links for address in addresses(spec)), *map(str, settings.socket_paths)],
        {spec.fd for spec in links if spec.fd is not None},
    )
    options = NetworkOptions(
        name=settings.name,
        dns=settings.dns,
        dns_zones=settings.dns_zones,
        hosts=settings.hosts,
        dns_log=settings.dns_log,
        verify_checksums=settings.verify_checksums,
        max_connections=settings.max_connections,
        max_guest_connections=settings.max_guest_connections,
        allowed_bind_addresses=settings.allowed_bind_addresses,
        port_helper=settings.port_helper,
        udp_filtering=settings.udp_filtering,
        leasing=settings.leasing,
        ipv6=settings.ipv6,
        nat64=settings.nat64,
        http_proxy=settings.http_proxy,
        isolate=settings.isolate,
        captures=settings.captures(),
        connect_mtu=mtu or DEFAULT_MTU[Kind.STDIO],
    )
    if any(spec.kind is not Kind.TAP for spec in links):
        enable_fast_sums()  # now, not in the middle of a guest's first transfer

    async def main() -> None:
        with ExitStack() as closing:  # after the tasks that use it
            manager = ServiceManager(os.environ)
            closing.callback(manager.close)
            async with trio.open_nursery() as nursery:
                await nursery.start(_end_on_signal, endings, nursery.cancel_scope)
                network = Network(plan, options)
                await nursery.start(network.run)
                sources = []
                for spec in links:
                    source = _open(spec, mtu, settings.offload, adopted)
                    closing.callback(source.close)
                    sources.append(source)
                listener = closing.enter_context(_listening(settings.control_path, adopted))
                if agents is not None:
                    Agents(network, agents)
                if forwarder is not None:
                    await _use_forwarder(network, forwarder, nursery)
                exposed = [str(forward.spec) for text in forwards for forward in await network.expose(text)]

                router, control_tcp = start_control(network, nursery, closing, settings.control_tcp)
                nursery.start_soon(serve_http, listener, router)
                if settings.p9 is not None:
                    p9_listener = closing.enter_context(_listening(settings.p9, adopted, *P9_SOCKET))
                    nursery.start_soon(serve_p9, p9_listener, instance_tree(network))
                if also is not None:
                    await also(network, nursery, closing)
                nursery.start_soon(_run, sources, network, nursery.cancel_scope)
                nursery.start_soon(manager.feed_watchdog)
                urls = [str(source.spec) for source in sources]
                on_stdio = any(spec.kind is Kind.STDIO for spec in links)
                line = ready_line(str(settings.control_path), urls, exposed, control_tcp)
                if not quiet:
                    _say(line, STDERR if on_stdio else STDOUT)
                if ready_fd is not None:
                    write_ready(ready_fd)
                manager.ready(f"Serving {plan.subnet} on {', '.join(urls)}")
                closing.callback(manager.stopping)

    trio.run(main)
    return 0


async def _use_forwarder(network: Network, address: ForwarderAddress, nursery: trio.Nursery) -> None:
    made = Forwarder(str(address), partial(connect, address), handshake=address.handshake)
    await nursery.start(made.run)
    network.forwards.use_forwarder(made.connect, made)


def _open(spec: LinkSpec, mtu: int | None, offload: bool, adopted: Mapping[str, int]) -> Source:
    try:
        return open_source(spec, mtu=mtu, offload=offload, inherited=adopted)
    except LinkError as error:
        raise ServeError(f"--link {spec}: {error}") from error


async def _run(sources: Sequence[Source], network: Network, scope: trio.CancelScope) -> None:
    """Run them all; end everything when the last of them has nobody to wait for."""
    async with trio.open_nursery() as nursery:
        for source in sources:
            nursery.start_soon(_run_one, source, network)
    log.info("no link can bring a guest any more")
    scope.cancel()


async def _run_one(source: Source, network: Network) -> None:
    try:
        await source.run(network)
    except LinkError as error:
        raise ServeError(f"--link {source.spec}: {error}") from error
    log.info("link %s has ended", source.spec)


@contextmanager
def _listening(path: Path, adopted: Mapping[str, int], *words: str) -> Iterator[trio.SocketListener]:
    """A listener on a socket of ours, which the service manager may have made.  `words` are those of `listening`."""
    fd = adopted.get(str(path))
    if fd is None:
        with listening(path, *words) as listener:
            yield listener
        return
    with socket.socket(fileno=fd) as server:
        try:
            yield trio.SocketListener(trio.socket.from_stdlib_socket(server))
        except ValueError as error:
            raise ServeError(f"socket {path} of socket activation: {error}; ListenStream= makes one") from error


async def _end_on_signal(
    numbers: Sequence[signal.Signals],
    scope: trio.CancelScope,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(*numbers) as received:
        task_status.started()
        async for number in received:
            log.info("%s", signal.Signals(number).name)
            break
    scope.cancel()


def _say(line: str, fd: int) -> None:
    """Write a line for whoever waits for it, past every buffer; that nobody reads it any more is no failure."""
    if (sys.stdout if fd == STDOUT else sys.stderr) is None:
        return  # it was closed, and its number may be anything by now
    try:
        os.write(fd, f"{line}\n".encode())
    except OSError as error:
        log.info("cannot say %r: %s", line, error.strerror)

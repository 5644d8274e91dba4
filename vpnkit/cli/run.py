"""`vpnkit run`: a command in a network namespace whose only link is us.

The order is for speed.  The namespace is forked first, while this process is small, has one thread and has the
limits and signal mask that the command is to have; it sets itself up while we import.  The command runs when the
network, the forwards and its device are all up, and everything ends with it.

Signals: the command is in our process group, so the terminal's reach it without us, and are none of our business
from then on.  What another process sends us we pass on.  Before the command runs, any of them ends us.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from portfwd.spec import parse
from tapdev.netns import GuestConfig, NamespaceError, spawn
from tapdev.signals import SignalDescriptor
from vpnkit.cli.limits import raise_descriptor_limit
from vpnkit.net.plan import LEAST_MTU6, guest_mac

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import trio

    from portfwd.auto.rules import Rule
    from portfwd.table import Forward
    from tapdev.netns import NamespaceGuest
    from vpnkit.control.routes import Router
    from vpnkit.control.token import TcpControl
    from vpnkit.net.network import Network, NetworkOptions
    from vpnkit.net.plan import Plan

# Those that end a process which does not care, and of the others what a command may want to know.
ENDING: Final = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM}
FORWARDED: Final = ENDING | {signal.SIGCONT, signal.SIGWINCH}


def run(
    argv: Sequence[str],
    plan: Plan,
    forwards: Sequence[str],
    options: Callable[[], NetworkOptions],
    *,
    offload: bool = True,
    control: Path | None = None,
    control_tcp: TcpControl | None = None,
    p9: Path | None = None,
    ipv6: str = "off",
    auto: Rule | None = None,
) -> int:
    """Run `argv` as the first guest of the network `plan`; returns the exit status, 128+N for signal N.

    `control` is the path of the control socket; None for the default name, or one with our process id when another
    instance has that.  `control_tcp` is where it answers over TCP as well, `p9` where 9P is served.  `ipv6` is a key of
    IPV6_OFFERS, `auto` what is forwarded of what the command listens on.  `options` is called when the namespace is on
    its way: to make NetworkOptions means to import the network.  Raises what the network and the forwards raise.
    """
    address6, gateway6 = _ipv6_inside(plan, ipv6)
    inside = [str(plan.guest_ip), *([address6] if address6 else [])]
    config = GuestConfig(
        mac=guest_mac(1),
        mtu=plan.mtu,
        address=str(plan.guest_ip),
        prefix_length=plan.subnet.prefixlen,
        gateway=str(plan.gateway_ip),
        nameserver=str(plan.gateway_ip),
        search=plan.search or ((plan.domain,) if plan.domain else ()),
        address6=address6,
        gateway6=gateway6,
        vnet_header=offload,
        watch=auto is not None,
    )
    terminal = _own_terminal()
    try:
        guest = spawn(config, argv)
    except NamespaceError as error:
        return _fail(error)
    signals = SignalDescriptor(FORWARDED)
    try:
        raise_descriptor_limit()  # the command was forked already and keeps its own
        return _serve(guest, signals, plan, forwards, options, offload, control, control_tcp, p9, auto, inside)
    except NamespaceError as error:
        return _fail(error)
    finally:
        guest.close()
        _take_back(terminal)
        signals.close()


def _ipv6_inside(plan: Plan, offer: str) -> tuple[str, str]:
    """The guest's IPv6 address and gateway, which are empty where there is none; as things are at the start."""
    from vpnkit.flow.host import has_ipv6

    world = offer == "on" or (offer == "auto" and has_ipv6())
    if plan.prefix6 is None or plan.mtu < LEAST_MTU6 or not (world or offer == "local"):
        return "", ""
    return str(plan.prefix6[3]), str(plan.gateway6) if world else ""


def _serve(
    guest: NamespaceGuest,
    signals: SignalDescriptor,
    plan: Plan,
    forwards: Sequence[str],
    options: Callable[[], NetworkOptions],
    offload: bool,
    control: Path | None,
    control_tcp: TcpControl | None,
    p9: Path | None,
    auto: Rule | None,
    inside: Sequence[str],
) -> int:
    """`inside` are the guest's addresses."""
    import logging

    import trio

    from tapdev.tap import TapLink
    from vpnkit.control.serving import start_control
    from vpnkit.net.network import Network

    log = logging.getLogger(__name__)
    started = False

    async def pass_signals_on(status: list[int], scope: trio.CancelScope) -> None:
        while True:
            await trio.lowlevel.wait_readable(signals)
            while (received := signals.receive()) is not None:
                if started and received.from_process:
                    guest.signal(received.number)
                elif not started and received.number in ENDING:
                    status.append(128 + received.number)
                    scope.cancel()

    async def main() -> int:
        nonlocal started
        status: list[int] = []
        failure: Exception | None = None
        with ExitStack() as closing:  # after the tasks that use it
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pass_signals_on, status, nursery.cancel_scope)
                try:
                    network = Network(plan, options())
                    await nursery.start(network.run)
                    fd, vnet_header = guest.receive_tap()
                    link = TapLink(fd, mtu=plan.mtu, vnet_header=vnet_header, offload=offload)
                    closing.callback(link.close)
                    await nursery.start(network.serve_guest, link, guest_mac(1), plan.guest_ip)
                    for text in forwards:
                        for forward in await network.expose(text):
                            _say_chosen_port(text, forward)
                    router, place = start_control(network, nursery, closing, control_tcp)
                    if place:
                        print(f"vpnkit run: the control API is at {place} too", file=sys.stderr)
                    path = await _start_control(nursery, router, control)
                    guest.remove_when_killed(str(path))
                    if p9 is not None:
                        await nursery.start(_serve_p9, p9, network)
                        guest.remove_when_killed(str(p9))
                    await guest.wait_configured()
                    network.assign(guest_mac(1), plan.guest_ip)
                    for warning in guest.warnings:
                        log.warning("%s", warning)
                    if auto is not None:
                        from vpnkit.cli.auto import follow

                        await nursery.start(follow, guest, network, auto, inside)
                    started = True
                    guest.start()
                    status.append(await guest.wait())
                except Exception as error:  # raised below, without the group that a nursery makes of it
                    failure = error
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return status[0]

    return trio.run(main)


async def _start_control(nursery: trio.Nursery, router: Router, control: Path | None) -> Path:
    from vpnkit.control.api import serve_control
    from vpnkit.control.paths import served_by, socket_path

    if control is None:
        control = socket_path("default")
        if served_by(control) is not None:
            control = socket_path(f"run-{os.getpid()}")
    await nursery.start(serve_control, control, router)
    return control


async def _serve_p9(path: Path, network: Network, *, task_status: trio.TaskStatus[None]) -> None:
    from vpnkit.control.listen import P9_SOCKET, listening
    from vpnkit.control.p9.server import serve_p9
    from vpnkit.control.p9.tree import instance_tree

    with listening(path, *P9_SOCKET) as listener:
        task_status.started()
        await serve_p9(listener, instance_tree(network))


def _say_chosen_port(text: str, forward: Forward) -> None:
    if any(spec.host_port == 0 and spec.host_path is None for spec in parse(text)):
        print(f"vpnkit run: {text} is {forward.spec}", file=sys.stderr)


def _own_terminal() -> int | None:
    """The descriptor of our terminal if we are in its foreground."""
    for fd in (0, 1, 2):
        try:
            if os.tcgetpgrp(fd) == os.getpgrp():
                return fd
        except OSError:
            continue
    return None


def _take_back(terminal: int | None) -> None:
    """A shell inside made itself the foreground and could not put us back: it has no number for our process group."""
    if terminal is None:
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        if os.tcgetpgrp(terminal) != os.getpgrp():
            os.tcsetpgrp(terminal, os.getpgrp())
    except OSError:
        pass  # it hung up
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _fail(error: NamespaceError) -> int:
    print(f"vpnkit run: {error}", file=sys.stderr)
    return 1

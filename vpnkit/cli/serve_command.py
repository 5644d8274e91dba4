"""`vpnkit serve`: its options.  What it does is in `serve`, which is imported when they are right."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from portfwd.auto.rules import parse_rule
from portfwd.mux.address import parse_forwarder
from portfwd.spec import parse as parse_forward
from tapdev.spec import Kind
from tapdev.spec import parse as parse_link
from vpnkit.cli.logs import configure
from vpnkit.cli.options import network_options, parsed, plan_from, settings_from
from vpnkit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from portfwd.auto.rules import Rule
    from portfwd.mux.address import ForwarderAddress
    from portfwd.spec import Spec
    from tapdev.spec import LinkSpec

EXAMPLE: Final = "vpnkit serve --link qemu:/tmp/vm.sock"
STANDARD_DESCRIPTORS: Final = 3


@click.command("serve")
@parsed(parse_link, "--link", "links", metavar="URL", multiple=True, help="A way for VMs to come in; may be repeated.")
@network_options
@parsed(
    parse_forward,
    "-p",
    "--publish",
    metavar="SPEC",
    multiple=True,
    help="Forward a port of this host: [HOST_IP:]HOST_PORT:[GUEST_IP:]GUEST_PORT[/udp], or PORT, or ranges, or what "
    "`vpnkit expose --help` has; may be repeated.",
)
@parsed(
    parse_forwarder,
    "--forwarder",
    metavar="LINK",
    help="Where the forwarder in the guest is, for HOST_PORT:unix:GUEST_PATH and ports of his 127.0.0.1: unix:PATH, "
    "tcp:HOST:PORT, vsock:CID[:PORT], hyperkit:DIRECTORY[:PORT] or fc-vsock:PATH[:PORT], port 62373 by default.",
)
@parsed(
    parse_rule,
    "--allow-agent",
    metavar="[=RULE]",
    is_flag=False,
    flag_value="auto",
    help="Let `vpnkit agent` in guests forward what listens there to themselves, by a rule as of `vpnkit run -p auto`; "
    "ports below 1024 only where the rule names them.  [RULE: auto]",
)
@click.option(
    "--ready-fd",
    metavar="N",
    type=click.IntRange(min=STANDARD_DESCRIPTORS),
    help="Write 1 to this descriptor, and close it, when every socket accepts.",
)
def serve_command(
    links: tuple[LinkSpec, ...],
    publish: tuple[list[Spec], ...],
    forwarder: ForwarderAddress | None,
    allow_agent: Rule | None,
    ready_fd: int | None,
    **options: Any,
) -> int:
    """Be the network of one or more VMs.

    Every --link is a way in, all of them lead to one network: 192.168.65.0/24 with a gateway that is us.  Guests reach
    what this user reaches; `host.internal` is this host's 127.0.0.1.  A guest that goes away may come back.

    \b
    qemu:PATH, qemu:tcp:HOST:PORT     QEMU -netdev stream or socket that connects to us (libkrun's unixstream too)
    qemu-connect:PATH                 QEMU -netdev stream,server=on; also tcp:HOST:PORT
    dgram:LOCAL[,REMOTE]              QEMU -netdev dgram
    vfkit:PATH                        vfkit, krunkit and others with a unix datagram socket
    vmnet:PATH                        HyperKit, RootlessKit, vpnkit-tap-vsockd: many guests on one socket
    bess:PATH                         user-mode Linux, transport=bess
    vsock:[CID:]PORT, fc-vsock:PATH:PORT, hyperkit:PATH:PORT
                                      the same as vmnet over vsock, Firecracker's, HyperKit's
    tap:NAME[?netns=PATH], fd:N       a TAP device that we make, or one that is open already
    stdio:                            frames on our standard input and output

    When every socket accepts it prints `ready control=PATH link=URL...` on stdout (on stderr with stdio:), and tells
    the service manager if there is one.  SIGTERM, SIGINT and SIGHUP (unless started with nohup) end it, with status 0,
    at once for everybody; a second one kills it.  It also ends when no link can bring a guest any more, as with stdio:
    alone.

    \b
    vpnkit serve --link qemu:/tmp/vm.sock -p 2222:22
    qemu-system-x86_64 ... -device virtio-net-pci,netdev=n \\
        -netdev stream,id=n,server=off,addr.type=unix,addr.path=/tmp/vm.sock
    """
    settings = settings_from(options)
    plan = replace(plan_from(options), agents=allow_agent is not None)
    if not links:
        raise click.UsageError(f"There is no --link, so nobody could come in; for QEMU: {EXAMPLE}.")
    _check_distinct(links, settings.control_path, settings.p9)
    if ready_fd is not None:
        _check_open(ready_fd)
    configure(options["log_level"], options["log_json"])

    from vpnkit.cli.serve import serve

    forwards = [str(spec) for specs in publish for spec in specs]
    return serve(
        links, plan, settings, forwards, mtu=options["mtu"], ready_fd=ready_fd, forwarder=forwarder, agents=allow_agent
    )


def _check_distinct(links: Sequence[LinkSpec], control: Path, p9: Path | None) -> None:
    """Raises ConfigError when two of them are one place."""
    taken: dict[object, str] = {os.path.realpath(control): f"--control {control}"}
    if p9 is not None:
        taken[os.path.realpath(p9)] = f"--9p {p9}"
    for spec in links:
        if spec.host is not None and spec.port == 0:
            continue  # the system chooses one for each
        place = _place(spec)
        if place in taken:
            raise ConfigError(f"--link {spec} is the same place as {taken[place]}; each needs one of its own")
        taken[place] = f"--link {spec}"


def _place(spec: LinkSpec) -> object:
    """What only one link can have, whatever it speaks there."""
    if spec.kind is Kind.TAP:
        return ("tap", spec.path, spec.netns)
    if spec.path is not None:
        path = os.path.realpath(spec.path)
        return path if spec.port is None else (path, spec.port)
    return (spec.host, spec.port, spec.cid, spec.fd)  # all None for stdio:


def _check_open(fd: int) -> None:
    try:
        os.fstat(fd)
    except OSError:
        raise ConfigError(f"--ready-fd {fd} is no open descriptor; the caller has to pass it on") from None

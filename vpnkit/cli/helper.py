"""`vpnkit helper`: ports below 1024 for who may not bind them."""

from __future__ import annotations

import os
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from portfwd.helper import DEFAULT_PATH
from vpnkit.cli.logs import LEVELS, configure
from vpnkit.cli.options import bind_network, parsed
from vpnkit.errors import ConfigError, VpnkitError

if TYPE_CHECKING:
    import socket
    from ipaddress import IPv4Network, IPv6Network

    from portfwd.helper.server import Allowed

EVERYBODY: Final = 0o666  # the mode of the socket: who asks is looked at, not who may connect
PRIVILEGED: Final = "1-1023"
LOOPBACK: Final = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


def parse_ports(text: str) -> tuple[range, ...]:
    """Ports and ranges, `80,443,1000-1023`.  Raises ValueError, saying what would be right."""
    found = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        words = (first, last) if dash else (first, first)
        if not all(word.isascii() and word.isdecimal() and len(word) <= 5 for word in words):
            raise ValueError(f"{part!r} is not a port or a range like 80 or 1000-1023")
        low, high = map(int, words)
        if not 1 <= low <= high <= 65535:
            raise ValueError(f"{part!r} is not within 1 to 65535, the lower port first")
        found.append(range(low, high + 1))
    return tuple(found)


def user(text: str) -> int:
    """The number of a user that is given by number or name.  Raises ValueError."""
    if text.isascii() and text.isdecimal() and len(text) <= 10:
        return int(text)
    import pwd

    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise ValueError(f"{text!r} is neither the number nor the name of a user") from None


@click.command("helper")
@parsed(
    user,
    "--allow-uid",
    "uids",
    metavar="USER",
    multiple=True,
    help="Serve processes of this user, a number or a name; may be repeated.",
)
@parsed(
    parse_ports,
    "--allow",
    "ports",
    metavar="PORTS",
    multiple=True,
    help=f"Bind these ports, as in 80,443,1000-1023; may be repeated.  [default: {PRIVILEGED}]",
)
@parsed(
    bind_network,
    "--allow-address",
    "networks",
    metavar="ADDRESS|CIDR",
    multiple=True,
    help="Bind on these addresses; 0.0.0.0 and :: stand for any of this host at once, and are allowed as themselves "
    "or with 0.0.0.0/0 and ::/0; may be repeated.  [default: 127.0.0.0/8 and ::1]",
)
@click.option(
    "--listen",
    metavar="PATH",
    type=click.Path(path_type=Path),
    default=DEFAULT_PATH,
    show_default=True,
    help="The socket; one of systemd's socket activation is taken instead, if there is one.",
)
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="What is logged.")
@click.option("--log-json", is_flag=True, help="Log one JSON object per line.")
def helper(
    uids: tuple[int, ...],
    ports: tuple[tuple[range, ...], ...],
    networks: tuple[IPv4Network | IPv6Network, ...],
    listen: Path,
    log_level: str,
    log_json: bool,
) -> int:
    """Bind ports below 1024 for vpnkit, which needs no privilege then.

    It binds, hands the socket over, and that is all: no byte of anybody's traffic comes here.  It needs
    CAP_NET_BIND_SERVICE, which root has.  `vpnkit run` and `serve` ask it where they may not bind themselves (see their
    --port-helper); so does what speaks the protocol of the original's vmnetd.

    \b
    sudo vpnkit helper --allow-uid $USER --allow 80,443 &
    vpnkit run -p 80:80 -- python3 -m http.server 80
    """
    if not uids:
        raise click.UsageError(f"There is no --allow-uid, so nobody could ask; yours is --allow-uid {os.getuid()}.")
    configure(log_level, log_json)

    from portfwd.helper.server import Allowed

    wanted = tuple(port for some in ports for port in some) or parse_ports(PRIVILEGED)
    return _serve(Allowed(frozenset(uids), wanted, networks or LOOPBACK), listen)


def _serve(allowed: Allowed, path: Path) -> int:
    import signal

    import trio

    from portfwd.helper.server import Helper
    from tapdev.unix_path import peer_credentials
    from vpnkit.cli.readiness import ServiceManager

    async def main() -> None:
        with ExitStack() as closing:
            manager = ServiceManager(os.environ)
            closing.callback(manager.close)
            server = _activated(path) or _claimed(path, closing)
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(server))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Helper(allowed, peer_credentials).serve, listener)
                nursery.start_soon(manager.feed_watchdog)
                with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
                    manager.ready(f"Binding ports for uid {', '.join(map(str, sorted(allowed.uids)))}")
                    print(f"ready helper={path}", flush=True)
                    async for _ in received:
                        break
                nursery.cancel_scope.cancel()

    trio.run(main)
    return 0


def _activated(path: Path) -> socket.socket | None:
    """The socket that the service manager made, if it made one.  Raises ConfigError for one at another path."""
    import socket

    from vpnkit.cli.activation import adopt, inherited_sockets

    inherited = inherited_sockets(os.environ)
    if not inherited:
        return None
    fd = adopt(inherited, [str(path)]).get(str(path))
    if fd is None:
        raise ConfigError(f"socket activation has no socket for --listen {path}")
    server = socket.socket(fileno=fd)
    if server.type != socket.SOCK_STREAM:
        server.close()
        raise ConfigError(f"the socket {path} of socket activation is no stream; ListenStream= makes one")
    return server


def _claimed(path: Path, closing: ExitStack) -> socket.socket:
    """A listener at `path` that everybody may connect to.  Raises VpnkitError."""
    import socket

    from tapdev import unix_path

    try:
        server, owned = unix_path.claim(path, socket.SOCK_STREAM)
    except unix_path.PathError as error:
        raise VpnkitError(f"port helper {error}") from error
    closing.callback(owned.unlink)
    os.chmod(path, EVERYBODY)
    return server

"""`vpnkit agent`: in a guest, tells the host what listens here."""

from __future__ import annotations

import click

from portfwd.auto.agent import place, run
from portfwd.auto.report import PORT
from vpnkit.cli.options import parsed


def _place(text: str) -> tuple[str, int]:
    try:
        host, port = place(text)
    except ValueError:
        raise ValueError(f"{text!r} is not ADDRESS[:PORT]") from None
    if not host or not 1 <= port <= 65535:
        raise ValueError(f"{text!r} is not ADDRESS[:PORT]")
    return host, port


@click.command("agent")
@parsed(_place, "--connect", metavar="ADDRESS[:PORT]", help=f"Where the host is.  [default: the gateway, port {PORT}]")
@click.option("--once", is_flag=True, help="End when the host does, instead of looking for it again.")
@click.option("--quiet", is_flag=True, help="Do not print what is forwarded.")
def agent(connect: tuple[str, int] | None, once: bool, quiet: bool) -> int:
    """In a guest: let the host forward what listens here, to where it listens, while it does.

    The host is `vpnkit serve --allow-agent`.  TCP and UDP, IPv4 and IPv6; what listens on 127.0.0.1 or ::1 alone is
    left out, as it cannot be reached from outside.  No privilege is needed; as root it knows of listeners at once,
    else within less than a second.

    \b
    vpnkit agent
    python3 -m portfwd.auto.agent      the same, which needs nothing but the standard library
    """
    return run(connect, once=once, quiet=quiet)

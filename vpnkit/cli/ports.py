"""`vpnkit ports`, `vpnkit expose` and `vpnkit unexpose`: the forward table of a running instance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from portfwd.listen import place
from portfwd.spec import SpecError, parse
from vpnkit.cli.logs import configure
from vpnkit.cli.query import answer, change, query_options
from vpnkit.cli.text import table
from vpnkit.net.report import ForwardReport

if TYPE_CHECKING:
    from collections.abc import Iterable

FORWARDS: Final = "/v1/forwards"


def checked(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    """The forwards on the command line, each of which can be one."""
    for text in texts:
        try:
            parse(text)
        except SpecError as error:
            raise click.BadParameter(f"{error}.", ctx, param) from None
    return texts


SPECS: Final = click.argument("specs", metavar="SPEC...", nargs=-1, required=True, callback=checked)


@click.command("ports")
@query_options
def ports(**options: Any) -> None:
    """The forwards of a running instance, one line for each address of this host that listens.

    OPEN are the connections (of UDP the clients) that are there now, ACCEPTED those so far, FAILED those that could not
    be delivered (of UDP the datagrams), REFUSED those that were too many.  FORWARD is what `vpnkit unexpose` takes.
    """
    answer(options, FORWARDS, list[ForwardReport], show)


@click.command("expose")
@SPECS
@query_options
def expose(specs: tuple[str, ...], **options: Any) -> None:
    """Forward ports of this host to a guest of a running instance, and print each as `vpnkit unexpose` takes it.

    \b
    [HOST_IP:]HOST_PORT:[GUEST_IP:]GUEST_PORT[/tcp|udp]   IPv6 in brackets; ranges 8000-8010:8000-8010; port 0 for any
    unix:HOST_PATH:[GUEST_IP:]GUEST_PORT                  a unix socket of this host
    [HOST_IP:]HOST_PORT:vsock:CID:PORT                    a vsock port of a guest
    [HOST_IP:]HOST_PORT:unix:GUEST_PATH                   a unix socket in the guest, by the forwarder there

    Without HOST_IP it listens on 127.0.0.1 and ::1.  Options follow after commas:

    \b
    source=client    the guest sees the client's own address, where it can answer it
    proxy=v1|v2      the client's address in a PROXY protocol header
    backlog=N        connections that may wait to be accepted, 128
    idle=SECONDS     end what was silent for so long; UDP clients 300, connections never

    A SPEC is forwarded whole or not at all; those before one that fails stay.
    """
    configure(options["log_level"], as_json=False)
    for text in specs:
        _say(change("POST", FORWARDS, {"spec": text}, list[ForwardReport], options), options)


@click.command("unexpose")
@SPECS
@click.option("--close", is_flag=True, help="Reset the connections that are open, too.")
@query_options
def unexpose(specs: tuple[str, ...], close: bool, **options: Any) -> None:
    """Stop forwarding what `vpnkit ports` shows as FORWARD; options after a comma may be left out.

    Connections that are open go on until one of their ends closes them, unless --close is there.  Clients of UDP are
    forgotten.
    """
    configure(options["log_level"], as_json=False)
    for text in specs:
        target = f"{FORWARDS}?spec={quote(text, safe='')}" + ("&connections=reset" if close else "")
        _say(change("DELETE", target, None, list[ForwardReport], options), options)


def _say(reports: list[ForwardReport], options: dict[str, Any]) -> None:
    if options["as_json"]:
        import msgspec

        click.echo(msgspec.json.encode(reports))
    else:
        for spec in dict.fromkeys(report.spec for report in reports):
            click.echo(spec)


def show(reports: Iterable[ForwardReport]) -> str:
    """One line per address."""
    rows = [
        [
            report.protocol,
            report.host_path or place(report.host_address, report.host_port),
            _guest(report),
            str(report.connections),
            str(report.accepted),
            str(report.failures),
            str(report.refused),
            report.spec,
        ]
        for report in reports
    ]
    return table(["proto", "host", "guest", "open", "accepted", "failed", "refused", "forward"], rows)


def _guest(report: ForwardReport) -> str:
    if report.guest_path is not None:
        return f"unix:{report.guest_path}"
    if report.guest_cid is not None:
        return f"vsock:{report.guest_cid}:{report.guest_port}"
    return place(report.guest_address, report.guest_port) if report.guest_address else f"first:{report.guest_port}"

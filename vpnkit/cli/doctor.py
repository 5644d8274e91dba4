"""`vpnkit doctor`."""

from __future__ import annotations

import click

from vpnkit.cli.text import printable


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def doctor(as_json: bool) -> int:
    """What this machine allows, and how to mend what it does not.

    Nothing is changed, and nothing is left behind.  The exit status is 0 when `vpnkit run` can work here.
    """
    import msgspec

    from vpnkit.cli.checks import Check, checks

    found: list[Check] = []
    for check in checks():
        found.append(check)
        if not as_json:
            click.echo(f"{check.state:7}  {check.name:16}  {printable(check.detail)}")
            if check.mend:
                click.echo(f"{'':7}  {'':16}  -> {check.mend}")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)))
    return 1 if any(check.needed and check.state == "missing" for check in found) else 0

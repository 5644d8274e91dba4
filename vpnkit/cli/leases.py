"""`vpnkit leases`."""

from __future__ import annotations

from typing import Any

import click

from vpnkit.cli.query import answer, query_options
from vpnkit.cli.text import duration, table
from vpnkit.net.report import LeaseReport


@click.command("leases")
@query_options
def leases(**options: Any) -> None:
    """The addresses that DHCP of a running instance gave or promised."""
    answer(options, "/v1/leases", list[LeaseReport], show)


def show(reports: list[LeaseReport]) -> str:
    """One line per address."""
    rows = [
        [
            lease.ip,
            lease.mac,
            lease.hostname,
            lease.client_id,
            "never" if lease.expires_in_seconds is None else duration(max(lease.expires_in_seconds, 0)),
            lease.state,
        ]
        for lease in reports
    ]
    return table(["ip", "mac", "host name", "client id", "expires", "state"], rows)

"""`vpnkit guests`."""

from __future__ import annotations

from typing import Any

import click

from vpnkit.cli.query import answer, query_options
from vpnkit.cli.text import size, table
from vpnkit.net.report import GuestReport


@click.command("guests")
@query_options
def guests(**options: Any) -> None:
    """The guests of a running instance: their links, and what the links can do."""
    answer(options, "/v1/guests", list[GuestReport], show)


def show(reports: list[GuestReport]) -> str:
    """One line per guest."""
    rows = [
        [
            str(guest.id),
            guest.link,
            guest.mac or "",
            guest.ip or "",
            str(guest.mtu),
            ",".join(guest.offloads),
            size(guest.bytes_to_host),
            size(guest.bytes_to_guest),
        ]
        for guest in reports
    ]
    return table(["id", "link", "mac", "ip", "mtu", "offloads", "to host", "to guest"], rows)

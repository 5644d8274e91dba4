"""`vpnkit guests`."""

from __future__ import annotations

from ipaddress import ip_address
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
            _addresses(guest),
            str(guest.mtu),
            ",".join(guest.offloads),
            size(guest.bytes_to_host),
            size(guest.bytes_to_guest),
        ]
        for guest in reports
    ]
    return table(["id", "link", "mac", "ip", "mtu", "offloads", "to host", "to guest"], rows)


def _addresses(guest: GuestReport) -> str:
    """His IPv4 address and the first IPv6 one, the link-local one only when there is no other of either family."""
    six = [ip_address(text) for text in guest.addresses if ":" in text]
    others = [str(address) for address in six if not address.is_link_local]
    found = [*([guest.ip] if guest.ip else []), *others[:1]] or [str(address) for address in six[:1]]
    return ",".join(found)

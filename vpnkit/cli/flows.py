"""`vpnkit flows`."""

from __future__ import annotations

from typing import Any

import click

from vpnkit.cli.query import answer, query_options
from vpnkit.cli.text import duration, size, table
from vpnkit.net.report import FlowReport


@click.command("flows")
@query_options
def flows(**options: Any) -> None:
    """The connections and associations of a running instance.

    GUEST is the guest's end, REMOTE what the guest addressed, HOST what our own socket talks to: they differ where
    the guest talks to the gateway or to the host alias.
    """
    answer(options, "/v1/flows", list[FlowReport], show)


def show(reports: list[FlowReport]) -> str:
    """One line per flow."""
    rows = [
        [
            str(flow.id),
            flow.protocol,
            flow.direction,
            flow.guest,
            flow.remote,
            flow.host,
            flow.state,
            size(flow.bytes_to_host),
            size(flow.bytes_to_guest),
            duration(flow.age_seconds),
            duration(flow.idle_seconds),
            "" if flow.rtt_us is None else f"{flow.rtt_us / 1000:.2f} ms",
            str(flow.retransmissions),
        ]
        for flow in reports
    ]
    header = ["id", "proto", "dir", "guest", "remote", "host", "state", "to host", "to guest", "age", "idle", "rtt"]
    return table([*header, "retrans"], rows)

"""`vpnkit status`."""

from __future__ import annotations

from typing import Any

import click

from vpnkit.cli.query import answer, query_options
from vpnkit.cli.text import duration, printable, size
from vpnkit.net.report import StatusReport


@click.command("status")
@query_options
def status(**options: Any) -> None:
    """A running instance at a glance: its network, its guests, what went through it."""
    answer(options, "/v1/status", StatusReport, show)


def show(report: StatusReport) -> str:
    """One line per fact; counters that are 0 are left out."""
    host = f"host {report.host}" if report.host else "no host alias"
    facts = [
        ("name", f"{report.name}, pid {report.pid}, vpnkit {report.version}, up {duration(report.uptime_seconds)}"),
        ("network", f"{report.subnet}, gateway {report.gateway}, {host}, mtu {report.mtu}"),
        *_ipv6(report),
        ("dns", ", ".join(report.dns)),
        ("guests", str(report.guests)),
        ("flows", ", ".join(f"{protocol} {count}" for protocol, count in report.flows.items())),
        ("to host", f"{size(report.bytes_to_host)} in {report.frames_to_host} frames"),
        ("to guest", f"{size(report.bytes_to_guest)} in {report.frames_to_guest} frames"),
        *((name, str(count)) for name, count in report.counters.items() if count),
        *(("warning", warning) for warning in report.warnings),
    ]
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name.ljust(width)}  {printable(value)}" for name, value in facts)


def _ipv6(report: StatusReport) -> list[tuple[str, str]]:
    """A line about IPv6 while it is offered."""
    if report.prefix6 is None:
        return []
    host = f"host {report.host6}" if report.host6 else "no host alias"
    return [("ipv6", f"{report.prefix6}, gateway {report.gateway6}, {host}")]

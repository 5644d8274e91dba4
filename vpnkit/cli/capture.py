"""`vpnkit capture ...`: the packets of a running instance."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from urllib.parse import quote, urlencode

import click

from vpnkit.cli.logs import configure
from vpnkit.cli.query import answer, change, fetch, query_options, streamed
from vpnkit.cli.text import size, table
from vpnkit.errors import ConfigError, VpnkitError
from vpnkit.net.capture_report import DIRECTIONS, AuditReport, CaptureReport, CaptureRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

CAPTURES: Final = "/v1/captures"
SUFFIX: Final = ".pcap"
UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

FORMAT: Final = click.option(
    "--format", "form", type=click.Choice(["pcapng", "pcap"]), default="pcapng", show_default=True, help="Of the file."
)
OUTPUT: Final = click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file.  [default: standard output]"
)


class CommandOrder(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group("capture", cls=CommandOrder)
def capture() -> None:
    """The packets of a running instance.

    Rings in memory keep the last packets of every guest: all.pcap, dns.pcap, ntp.pcap, icmp.pcap, http_proxy.pcap, and
    bad.pcap for what is malformed.  More can be added.  Filters are tcpdump's, and `name *.example.com`.

    \b
    vpnkit capture read dns | tshark -r -
    vpnkit capture follow 'tcp port 443 and not host 10.0.0.1' | wireshark -k -i -
    """


def octets(ctx: click.Context, param: click.Parameter, text: str) -> int:
    """A number of octets, perhaps with k, m or g behind it."""
    number, unit = text.lower().removesuffix("b").removesuffix("i"), ""
    if number[-1:].isalpha():
        number, unit = number[:-1], number[-1]
    if not (number.isascii() and number.isdigit() and unit in UNITS):
        raise click.BadParameter(f"{text!r} is not a size like 65536, 64k or 4m.", ctx, param)
    return int(number) * UNITS[unit]


def filter_text(text: str) -> str:
    """`text`, which is a filter.  Raises ConfigError, and says on stderr where it is wrong."""
    from pcap.filter import FilterError, compile_filter

    try:
        compile_filter(text)
    except FilterError as error:
        click.echo("\n".join(error.explain().split("\n")[:2]), err=True)
        raise ConfigError(f"the filter is wrong at {error}") from None
    return text


@capture.command("list")
@query_options
def list_captures(**options: Any) -> None:
    """The rings.  PACKETS and BYTES are there now, DROPPED went for newer ones; RING is the memory it may take."""
    answer(options, CAPTURES, list[CaptureReport], show)


def show(reports: list[CaptureReport]) -> str:
    """One line for each ring."""
    rows = [
        [
            report.name,
            str(report.packets),
            size(report.bytes),
            str(report.dropped),
            size(report.ring),
            str(report.snaplen),
            report.direction + (", private" if report.private else ""),
            report.filter or "everything",
        ]
        for report in reports
    ]
    return table(["name", "packets", "bytes", "dropped", "ring", "snaplen", "direction", "filter"], rows)


@capture.command("read")
@click.argument("ring", metavar="NAME")
@FORMAT
@OUTPUT
@click.option("--print", "as_text", is_flag=True, help="A line of text for each packet instead.")
@query_options
def read(ring: str, form: str, output: Path | None, as_text: bool, **options: Any) -> None:
    """What the ring NAME holds, as a file.  The suffix .pcap may be left out."""
    configure(options["log_level"], as_json=False)
    target = f"{CAPTURES}/{quote(ring, safe='')}?format={'pcapng' if as_text else form}"
    if as_text:
        _print(streamed(target, options))
    else:
        _write(streamed(target, options), output)


@capture.command("follow")
@click.argument("wanted", metavar="NAME_or_FILTER")
@FORMAT
@OUTPUT
@click.option("--snaplen", type=click.IntRange(1, 65549), help="Octets of each packet.  [default: all of it]")
@click.option("--private", is_flag=True, help="Headers only, and hashes for the names in DNS.")
@query_options
def follow(wanted: str, form: str, output: Path | None, snaplen: int | None, private: bool, **options: Any) -> None:
    """Packets as they come, until interrupted: what a ring holds and goes on to get, or what a filter wants.

    Whoever reads slower than packets come misses some, which the file says.  The guest does not notice.

    \b
    vpnkit capture follow 'udp port 53' | wireshark -k -i -
    """
    configure(options["log_level"], as_json=False)
    name = _ring(wanted, options)
    if name is not None:
        if snaplen is not None or private:
            raise ConfigError(f"{name} is a ring, whose snaplen and privacy are fixed; these options are for filters")
        target = f"{CAPTURES}/{quote(name, safe='')}?{urlencode({'format': form, 'follow': 'true'})}"
    else:
        query = {"filter": filter_text(wanted), "format": form, "private": str(private).lower()}
        target = f"/v1/follow?{urlencode(query if snaplen is None else query | {'snaplen': str(snaplen)})}"
    _write(streamed(target, options), output)


@capture.command("add")
@click.argument("ring_name", metavar="NAME")
@click.argument("text", metavar="FILTER")
@click.option("--snaplen", type=click.IntRange(1, 65549), default=1500, show_default=True, help="Of each packet.")
@click.option("--ring", "limit", metavar="SIZE", callback=octets, default="256k", show_default=True, help="Its memory.")
@click.option("--direction", type=click.Choice(DIRECTIONS), default="both", show_default=True, help="in: from guests.")
@click.option("--private", is_flag=True, help="Headers only, and hashes for the names in DNS.")
@query_options
def add(ring_name: str, text: str, snaplen: int, limit: int, direction: str, private: bool, **options: Any) -> None:
    """Keep what FILTER wants in a new ring NAME."""
    configure(options["log_level"], as_json=False)
    request = CaptureRequest(ring_name, filter_text(text), snaplen, limit, direction, private)
    change("POST", CAPTURES, request, CaptureReport, options)


@capture.command("remove")
@click.argument("ring", metavar="NAME")
@query_options
def remove(ring: str, **options: Any) -> None:
    """Forget the ring NAME and its packets."""
    configure(options["log_level"], as_json=False)
    change("DELETE", f"{CAPTURES}/{quote(ring, safe='')}", None, CaptureReport, options)


@capture.command("audit")
@query_options
def audit(**options: Any) -> None:
    """Who read which captures, and changed them; LOST are packets that a reader was too slow for."""
    answer(options, "/v1/capture-audit", list[AuditReport], show_audit)


def show_audit(lines: list[AuditReport]) -> str:
    """One line for each."""
    rows = [
        [
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line.time)),
            "" if line.uid is None else str(line.uid),
            "" if line.pid is None else str(line.pid),
            line.action,
            line.rule or "everything",
            str(line.packets),
            size(line.bytes),
            str(line.lost),
            "" if line.ended else "going on",
        ]
        for line in lines
    ]
    return table(["time", "uid", "pid", "action", "rule", "packets", "bytes", "lost", "state"], rows)


def _ring(wanted: str, options: dict[str, Any]) -> str | None:
    """The name of the ring that `wanted` is; None when it is a filter."""
    import msgspec

    body = fetch(CAPTURES, options["name"], options["control"])
    names = [report.name for report in msgspec.json.decode(body, type=list[CaptureReport])]
    return next((name for name in (wanted, wanted + SUFFIX) if name in names), None)


def _write(pieces: Iterable[bytes], output: Path | None) -> None:
    """To the file or standard output, each piece at once; a reader who goes away ends it."""
    if output is None and sys.stdout.isatty():
        raise ConfigError("packets are not for a terminal: `-o FILE`, or `| wireshark -k -i -`")
    file = standard_output() if output is None else _opened(output)
    try:
        for piece in pieces:
            file.write(piece)
            file.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
    finally:
        if output is not None:
            file.close()


def standard_output() -> BinaryIO:
    """Where packets go without `-o`."""
    return sys.stdout.buffer


def _opened(output: Path) -> BinaryIO:
    try:
        return output.open("wb")
    except OSError as error:
        raise VpnkitError(f"{output}: {error.strerror}") from error


def _print(pieces: Iterable[bytes]) -> None:
    from pcap.reader import read as packets_of
    from pcap.show import show as lines_of

    for line in lines_of(packet for packet, _ in packets_of(b"".join(pieces))):
        click.echo(line)

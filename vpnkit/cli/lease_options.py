"""The NET options that are about DHCP."""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from vpnkit.errors import ConfigError
from vpnkit.net.lease_options import LeaseOptions, StaticLease

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAC: Final = re.compile(r"[0-9a-fA-F]{2}(?:([:-])[0-9a-fA-F]{2})(?:\1[0-9a-fA-F]{2}){4}")
LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
LONGEST_BOOT_FILE: Final = 255  # octets of option 67


def static_lease(text: str) -> StaticLease:
    """MAC=IP[,NAME] of `--lease`.  Raises ValueError, saying what would be right."""
    mac, equals, rest = text.partition("=")
    address, comma, name = rest.partition(",")
    if not equals:
        raise ValueError(f"{text!r} is not a lease like 02:50:00:00:00:09=192.168.65.9,db")
    if not MAC.fullmatch(mac):
        raise ValueError(f"{mac!r} is not a MAC address like 02:50:00:00:00:09")
    octets = bytes.fromhex(mac.replace(mac[2], ""))
    if octets[0] & 1 or not any(octets):
        raise ValueError(f"{mac!r} is no station's MAC address: its first octet must be even, and not all may be 0")
    try:
        ip = IPv4Address(address)
    except ValueError:
        raise ValueError(f"{address!r} is not an IPv4 address") from None
    if comma and not LABEL.fullmatch(name):
        raise ValueError(f"{name!r} is not a host name: letters, digits and hyphens, at most 63")
    return StaticLease(octets, ip, name)


def _parsed(parse: Callable[[str], object]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback that takes a text, or several, through a function that raises ValueError."""

    def convert(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            if isinstance(value, tuple):
                return tuple(parse(text) for text in value)
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(f"{error}.", ctx, param) from None

    return convert


def _boot_file(text: str) -> str:
    if not text or not text.isprintable() or len(text.encode()) > LONGEST_BOOT_FILE:
        raise ValueError(f"{text!r} is not a path or URL of at most {LONGEST_BOOT_FILE} octets")
    return text


def _address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv4 address") from None


LEASE_OPTIONS: Final = (
    click.option(
        "--lease",
        "leases",
        metavar="MAC=IP[,NAME]",
        callback=_parsed(static_lease),
        multiple=True,
        help="DHCP gives this address, and host name, to the guest with this MAC address; may be repeated.",
    ),
    click.option(
        "--boot-file",
        metavar="FILE",
        callback=_parsed(_boot_file),
        help="What DHCP tells guests to boot: a path on --next-server, or a URL for iPXE.",
    ),
    click.option(
        "--next-server",
        metavar="ADDRESS",
        callback=_parsed(_address),
        help="The TFTP server with the boot file.  [default: our address]",
    ),
    click.option(
        "--ntp-server",
        "ntp_servers",
        metavar="ADDRESS",
        callback=_parsed(_address),
        multiple=True,
        help="A time server that DHCP tells guests of; may be repeated.",
    ),
    click.option(
        "--dhcp-json",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help='A JSON file with "domainName" and "searchDomains" for guests, read again when it changes.',
    ),
    click.option(
        "--state",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Keep DHCP leases and the addresses of VMN3T clients in this file, so that guests have theirs again.",
    ),
)


def leases_from(options: Mapping[str, Any]) -> LeaseOptions:
    """What LEASE_OPTIONS amount to.  Raises ConfigError when they do not go together."""
    static: tuple[StaticLease, ...] = tuple(options["leases"])
    for kind in ("mac", "ip"):
        values = [getattr(lease, kind) for lease in static]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            shown = twice.hex(":") if isinstance(twice, bytes) else twice
            raise ConfigError(f"--lease: {shown} is there twice")
    if options["next_server"] is not None and not options["boot_file"]:
        raise ConfigError("--next-server has no meaning without --boot-file")
    return LeaseOptions(
        static=static,
        next_server=options["next_server"],
        boot_file=options["boot_file"] or "",
        ntp=tuple(options["ntp_servers"]),
        dhcp_json=options["dhcp_json"],
        state=options["state"],
    )

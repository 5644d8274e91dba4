"""Which of a guest's listeners are forwarded, as people write it.

    [HOST_IP:]auto[:ITEM[,ITEM]...]

    PORT, FIRST-LAST        these ports of the guest, at the same port of the host
    PORT=HOST_PORT          this one at another, ranges of the same length likewise
    !PORT, !FIRST-LAST      not these, whatever else is said
    *                       all the others

Each may end in /tcp or /udp, else it is for both.  Without an item that takes some in, all are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from portfwd.options import SpecError

MAX_ITEMS: Final = 256
EPHEMERAL: Final = 32768  # and above: ports that UDP clients are given, which listen for nobody in particular
UDP_CLIENTS: Final = frozenset({68, 546})  # of DHCP
_TEXT: Final = re.compile(r"(?:(?:\[([^\[\]]*)\]|([0-9.]+)):)?auto(/tcp|/udp)?(?::(.*))?", re.DOTALL)
_ITEM: Final = re.compile(
    r"(!?)(?:(\*)|([0-9]{1,5})(?:-([0-9]{1,5}))?(?:=([0-9]{1,5})(?:-([0-9]{1,5}))?)?)(/tcp|/udp)?"
)
FORM: Final = "auto:8000-9000,!8080,80=8080"


@dataclass(frozen=True, slots=True)
class Item:
    ports: range
    to: int  # the host's port for the first of them
    protocols: frozenset[str]
    is_exclusion: bool = False
    is_rest: bool = False  # it was *


BOTH: Final = frozenset({"tcp", "udp"})


@dataclass(frozen=True, slots=True)
class Rule:
    """What of a guest is forwarded, and where on the host."""

    items: tuple[Item, ...] = ()
    host_address: str | None = None  # None: the loopback addresses
    protocols: frozenset[str] = BOTH

    def names(self, protocol: str, port: int) -> bool:
        """Whether a guest's port is there by its number, and not as one of all the others."""
        return any(protocol in item.protocols and port in item.ports for item in self.items if not item.is_rest)

    def host_port(self, protocol: str, port: int) -> int | None:
        """The host's port for a guest's; None when it is not to be forwarded."""
        if protocol not in self.protocols:
            return None
        mine = [item for item in self.items if protocol in item.protocols and port in item.ports]
        if any(item.is_exclusion for item in mine):
            return None
        for item in mine:
            if not item.is_rest:
                return item.to + port - item.ports.start
        takes_all = all(item.is_exclusion for item in self.items) or any(item.is_rest for item in mine)
        is_client = protocol == "udp" and (port >= EPHEMERAL or port in UDP_CLIENTS)
        return port if takes_all and not is_client else None


def parse_rule(text: str) -> Rule:
    """Raises SpecError."""
    try:
        return _parse(text)
    except SpecError as error:
        raise SpecError(f"rule {text!r}: {error}") from None


def _parse(text: str) -> Rule:
    found = _TEXT.fullmatch(text)
    if found is None:
        raise SpecError(f"[HOST_IP:]auto[:ITEM,...] is the form, as in {FORM}")
    address = found[1] or found[2]
    if address is not None:
        try:
            address = str(ip_address(address))
        except ValueError:
            raise SpecError(f"{address!r} is not an IP address") from None
        if (":" in address) != (found[1] is not None):
            raise SpecError("IPv6 addresses and only they have brackets")
    texts = found[4].split(",") if found[4] is not None else []
    if len(texts) > MAX_ITEMS:
        raise SpecError(f"more than {MAX_ITEMS} items")
    protocols = BOTH if found[3] is None else frozenset({found[3][1:]})
    return Rule(tuple(map(_item, texts)), address, protocols)


def _item(text: str) -> Item:
    found = _ITEM.fullmatch(text)
    if found is None:
        raise SpecError(f"{text!r} is none of PORT, FIRST-LAST, PORT=HOST_PORT, !PORT and *")
    exclusion, star, first, last, to, to_last, protocol = found.groups()
    protocols = BOTH if protocol is None else frozenset({protocol[1:]})
    if star:
        if exclusion:
            raise SpecError("!* would forward nothing")
        return Item(range(1, 65536), 1, protocols, is_rest=True)
    ports = _range(first, last)
    if to is None:
        return Item(ports, ports.start, protocols, bool(exclusion))
    if exclusion:
        raise SpecError(f"{text!r} is an exclusion and has no other port")
    hosts = _range(to, to_last)
    if len(hosts) != len(ports):
        raise SpecError(f"the ranges of {text!r} differ in length: {len(ports)} and {len(hosts)}")
    return Item(ports, hosts.start, protocols)


def _range(first: str, last: str | None) -> range:
    ports = range(int(first), int(last or first) + 1)
    if not (1 <= ports.start <= 65535 and ports.stop <= 65536):
        raise SpecError(f"a port of {first}{'-' + last if last else ''} is out of range: 1 to 65535")
    if not ports:
        raise SpecError(f"the range {first}-{last} runs backwards")
    return ports

"""What an agent in a guest says to the host, and what he hears: JSON, one object in a line.

The agent says `{"version": 1, "listeners": [{"protocol": "tcp", "address": "0.0.0.0", "port": 80, "only6": false}]}`:
all that listen there, at the start and whenever that changed.  The host answers each with
`{"forwards": ["8080:192.168.65.3:80"], "problems": ["..."]}`.  Neither says an address of the other: a guest is who he
is by where his connection comes from.  Standard library only.
"""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from portfwd.auto.sock_diag import Listener

if TYPE_CHECKING:
    from collections.abc import Iterable

PORT: Final = 62374  # TCP, at the gateway; the one above the original's forwarder
VERSION: Final = 1
MAX_LINE: Final = 128 * 1024  # octets
MAX_LISTENERS: Final = 1024  # of one report


class ReportError(Exception):
    """What came is no report, or no answer to one."""


def encode_report(listeners: Iterable[Listener]) -> bytes:
    """The line of an agent; those with the highest ports are left out where there are more than MAX_LISTENERS."""
    first = sorted(listeners, key=lambda listener: (listener.port, listener))[:MAX_LISTENERS]
    said = [{"protocol": one.protocol, "address": one.address, "port": one.port, "only6": one.only6} for one in first]
    return json.dumps({"version": VERSION, "listeners": said}, separators=(",", ":")).encode() + b"\n"


def decode_report(line: bytes) -> set[Listener]:
    """Raises ReportError."""
    said = _object(line)
    if said.get("version") != VERSION:
        raise ReportError(f"version {str(said.get('version'))[:20]}; {VERSION} is spoken here")
    listeners = said.get("listeners")
    if not isinstance(listeners, list) or len(listeners) > MAX_LISTENERS:
        raise ReportError(f"no list of at most {MAX_LISTENERS} listeners")
    return set(map(_listener, listeners))


def encode_answer(forwards: Iterable[str], problems: Iterable[str]) -> bytes:
    """The line of the host."""
    said = {"forwards": list(forwards), "problems": list(problems)}
    return json.dumps(said, separators=(",", ":")).encode() + b"\n"


def decode_answer(line: bytes) -> tuple[list[str], list[str]]:
    """Forwards and problems.  Raises ReportError."""
    said = _object(line)
    found = []
    for name in ("forwards", "problems"):
        texts = said.get(name)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ReportError(f"no list of {name}")
        found.append(texts)
    return found[0], found[1]


def _object(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        raise ReportError("a line that is not JSON") from None
    if not isinstance(said, dict):
        raise ReportError("a line that is no JSON object")
    return said


def _listener(said: object) -> Listener:
    if not isinstance(said, dict):
        raise ReportError("a listener that is no object")
    protocol, port, address, only6 = (said.get(name) for name in ("protocol", "port", "address", "only6"))
    if protocol not in ("tcp", "udp"):
        raise ReportError("a listener whose protocol is neither tcp nor udp")
    if type(port) is not int or not 1 <= port <= 65535:
        raise ReportError("a listener without a port from 1 to 65535")
    try:
        where = ip_address(address) if isinstance(address, str) else None
    except ValueError:
        where = None
    if where is None or "%" in str(where):
        raise ReportError("a listener without an IP address")
    return Listener(str(protocol), port, str(where), only6 is True)

"""What an HTTP/1.1 intermediary changes in a message: its target and its fields, RFC 9110 section 7 and RFC 9112.

A field is (name, value) in octets, as h11 has them, and keeps its spelling and its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from vpnkit.errors import WireError
from vpnkit.proto.http_proxy import Destination, parse_authority

if TYPE_CHECKING:
    from collections.abc import Iterable

Field: TypeAlias = tuple[bytes, bytes]

# RFC 9110 section 7.6.1: they are about one connection
HOP_BY_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade", b"proxy-authorization"}
)
# RFC 9110 section 6.5.1: not in trailers, whatever the sender thinks
NOT_IN_TRAILERS: Final = HOP_BY_HOP | {
    *(b"content-length", b"host", b"authorization", b"cookie", b"set-cookie", b"content-encoding", b"content-type"),
    *(b"content-range", b"trailer", b"cache-control", b"expect", b"range", b"proxy-authenticate", b"via", b"location"),
}
REFUSED_UPGRADES: Final = frozenset({b"h2c", b"tls"})  # what is inside them would escape the rules
SCHEME: Final = "http://"


class Target(NamedTuple):
    """Who is asked, and for what: an origin-form, `*`, or nothing for CONNECT."""

    destination: Destination
    path: bytes


def parse_target(method: bytes, target: bytes, host: bytes | None, *, to: Destination | None) -> Target:
    """Whom a request means (RFC 9112 section 3.2).

    `host` is the value of Host.  `to` is the address that the guest called, for a connection that was intercepted: its
    port counts, and its host where nothing else names one.  Raises WireError.
    """
    text = target.decode("ascii", "replace")
    if not text.isascii() or "#" in text:
        raise WireError("target of the request")
    if method == b"CONNECT":
        return Target(parse_authority(text, None), b"")
    path = text
    authority = host.decode("ascii", "replace").strip() if host else ""
    if text[: len(SCHEME)].lower() == SCHEME:
        authority, slash, rest = _split(text[len(SCHEME) :])
        path = slash + rest if slash == "/" else f"/{slash}{rest}"
        if method == b"OPTIONS" and not slash:
            path = "*"
    elif not (text.startswith("/") or (text == "*" and method == b"OPTIONS")):
        raise WireError("target of the request: neither a URI of http nor a path")
    elif to is None and not authority:
        raise WireError("request must contain an absolute URI")
    if not authority and to is not None:
        return Target(to, path.encode())
    found = parse_authority(authority, 80 if to is None else to.port)
    return Target(found if to is None else Destination(found.host, to.port), path.encode())


def _split(text: str) -> tuple[str, str, str]:
    """The authority, what ends it, and the rest."""
    at = min((index for mark in "/?" if (index := text.find(mark)) >= 0), default=len(text))
    return text[:at], text[at : at + 1], text[at + 1 :]


def host_field(destination: Destination) -> Field:
    text = destination.bracketed if destination.port == 80 else destination.authority
    return b"Host", text.encode()


def absolute(target: Target) -> bytes:
    """The target of a request to a proxy, its port always written, as the original does."""
    path = b"" if target.path == b"*" else target.path
    return b"http://" + target.destination.authority.encode() + path


def tokens(fields: Iterable[Field], name: bytes) -> set[bytes]:
    """The members of a list, in lower case."""
    values = (value for field, value in fields if field.lower() == name)
    return {token.strip().lower() for value in values for token in value.split(b",")} - {b""}


def upgrade_of(fields: list[Field], version: bytes) -> bytes | None:
    """The protocol that the client wants to change to, if it may."""
    if version < b"1.1" or b"upgrade" not in tokens(fields, b"connection"):
        return None
    wanted = b", ".join(value for name, value in fields if name.lower() == b"upgrade")
    names = {token.partition(b"/")[0].strip() for token in wanted.lower().split(b",")}
    return wanted if wanted and not names & REFUSED_UPGRADES else None


def request_fields(
    fields: list[Field], destination: Destination, via: bytes, authorization: bytes | None, upgrade: bytes | None
) -> list[Field]:
    """The fields to go on.  `authorization` is for the proxy that is asked, and only then not None."""
    kept = [host_field(destination)]
    kept += _end_to_end(fields, frozenset({b"host"}))
    options = []
    if b"chunked" in tokens(fields, b"transfer-encoding"):
        kept.append((b"Transfer-Encoding", b"chunked"))
    if b"trailers" in tokens(fields, b"te"):
        kept.append((b"TE", b"trailers"))
        options.append(b"TE")
    if upgrade is not None:
        kept.append((b"Upgrade", upgrade))
        options.append(b"Upgrade")
    if options:
        kept.append((b"Connection", b", ".join(options)))
    if authorization is not None:
        kept.append((b"Proxy-Authorization", authorization))
    kept.append((b"Via", via))
    return kept


def response_fields(fields: list[Field], via: bytes, upgrade: bytes | None = None) -> list[Field]:
    """Likewise, back to the guest; `upgrade` is what both change to, of a 101."""
    kept = _end_to_end(fields, frozenset())
    if b"chunked" in tokens(fields, b"transfer-encoding"):
        kept = [field for field in kept if field[0].lower() != b"content-length"]
        kept.append((b"Transfer-Encoding", b"chunked"))
    if upgrade is not None:
        kept += [(b"Upgrade", upgrade), (b"Connection", b"Upgrade")]
    kept.append((b"Via", via))
    return kept


def trailer_fields(fields: Iterable[Field]) -> list[Field]:
    return [(name, value) for name, value in fields if name.lower() not in NOT_IN_TRAILERS]


def _end_to_end(fields: list[Field], besides: frozenset[bytes]) -> list[Field]:
    named = tokens(fields, b"connection") - {b"content-length", b"host", b"via"}
    return [field for field in fields if (name := field[0].lower()) not in HOP_BY_HOP | besides and name not in named]

"""Who may ask, apart from what: one guard for each way in.

On the unix socket it is the owner, by the mode of the socket and the credentials of the process.  Over TCP it is who
knows the token.  A web page may never: a browser will send its requests anywhere, from any process's user, so whatever
has an Origin is refused, and over TCP also whatever came by a name that an attacker's DNS may have pointed at us
(CVE-2018-5702 and its relatives).
"""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Protocol

from vpnkit.control.listen import permitted
from vpnkit.control.message import JSON, HttpError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import trio

    from vpnkit.control.message import Request

READING: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class Guard(Protocol):
    """What a way into the control API demands."""

    def admits(self, stream: trio.SocketStream) -> bool:
        """Whether anything at all is said to this connection."""
        ...

    def check(self, request: Request, authority: str | None) -> None:
        """Raises HttpError, before the body of `request` is read.

        `authority` is where the client thinks it is: the request target's when it is in absolute form, else Host.
        """
        ...


class OwnerGuard:
    """On a unix socket: our own user and root."""

    def admits(self, stream: trio.SocketStream) -> bool:
        return permitted(stream)

    def check(self, request: Request, authority: str | None) -> None:
        _refuse_pages(request)


class TokenGuard:
    """Over TCP: who has the token, and came by an address or a name that is ours."""

    def __init__(self, token: str, names: Iterable[str] = ()) -> None:
        """`names` are host names, beside `localhost`, by which we are reached."""
        self._token = token.encode()
        self._names = frozenset({"localhost", *(name.lower() for name in names)})

    def admits(self, stream: trio.SocketStream) -> bool:
        return True

    def check(self, request: Request, authority: str | None) -> None:
        _refuse_pages(request)
        check_authority(authority, self._names)
        scheme, _, given = (request.header("authorization") or "").partition(" ")
        known = hmac.compare_digest(given.strip().encode(), self._token)
        if scheme.lower() != "bearer" or not known:
            challenge = (("WWW-Authenticate", 'Bearer realm="vpnkit"'),)
            message = "Authorization: Bearer TOKEN is needed here, with the token of --control-token-file"
            raise HttpError(401, "unauthorized", message, challenge, close=True)
        if request.method not in READING and request.media_type() != JSON and _has_body(request):
            message = f"over TCP a body has to be {JSON}, and Content-Type has to say so"
            raise HttpError(415, "unsupported_media_type", message, close=True)


class GuestGuard:
    """At the gateway: every guest, but no web page that a browser in a guest shows."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(name.lower() for name in names)

    def admits(self, stream: trio.SocketStream) -> bool:
        return True

    def check(self, request: Request, authority: str | None) -> None:
        _refuse_pages(request)
        check_authority(authority, self._names)


def check_authority(authority: str | None, names: frozenset[str]) -> None:
    """Raises HttpError unless `authority`, HOST[:PORT], is an address or one of `names`.

    An address cannot be rebound.  The port is not looked at: forwards and proxies change it.
    """
    host = host_of(authority or "")
    if host.lower() in names:
        return
    try:
        ip_address(host)
    except ValueError:
        message = f"Host {authority!r} is no address and no name of ours; names can be made to point anywhere"
        raise HttpError(421, "misdirected", message, close=True) from None


def host_of(authority: str) -> str:
    """HOST of HOST[:PORT], without the brackets of an IPv6 address and a final dot; empty when it is no such thing."""
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        return host if bracket and ":" in host and _is_port(rest) else ""
    host, colon, port = authority.partition(":")
    return host.removesuffix(".") if _is_port(colon + port) else ""


def _is_port(text: str) -> bool:
    return text in ("", ":") or (text[0] == ":" and text[1:].isascii() and text[1:].isdigit())


def _has_body(request: Request) -> bool:
    length = request.header("content-length")
    return request.header("transfer-encoding") is not None or (length is not None and int(length) > 0)


def _refuse_pages(request: Request) -> None:
    if request.header("origin") is not None:  # our own clients never send this
        raise HttpError(403, "foreign_origin", "requests from web pages are refused", close=True)

"""The rules of the HTTP proxy: its configuration, who is excluded and who is allowed, and where a request goes.

The configuration is the original's JSON.  A rule is an address, a network, or a pattern of a name: labels are compared
from the right, and one that is empty or `*` is any label, so `mit.edu` fits itself and everything below, `.mit.edu`
only what is below.  A target that is an address is fitted by addresses and networks only, a name by patterns only.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import quote, unquote_to_bytes

import msgspec

from vpnkit.errors import ConfigError, WireError

if TYPE_CHECKING:
    from collections.abc import Iterable

HTTP_PORT: Final = 3128  # of the gateway; requests go by the upstream `http`
HTTPS_PORT: Final = 3129  # by `https`
MAX_RULES: Final = 4096  # of one list
MESSAGE: Final = "Connections to %s are forbidden by policy. Please contact your IT administrator."

NAME: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*")
LIKE_A_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")  # a C library may read such a name as an address
AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:@/?#\[\]\s]+)(?::([0-9]{1,5})?)?")
UPSTREAM: Final = re.compile(r"(?:(\w+)://)?(?:([^@/\s]*)@)?(\[[0-9A-Fa-f:.]+\]|[^:@/?#\[\]\s]+):([0-9]{1,5})/?")
SEPARATORS: Final = re.compile(r"[,\s]+")


@dataclass(frozen=True, slots=True)
class Destination:
    """A host, in lower case or an address in its usual form, and a port."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        return f"{self.bracketed}:{self.port}"

    @property
    def bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


@dataclass(frozen=True, slots=True)
class Upstream:
    """A proxy of the operator's.  `https` is one that is spoken to by TLS."""

    scheme: Literal["http", "https", "socks5"]
    host: str
    port: int
    user: bytes | None = None
    password: bytes = b""

    @property
    def authorization(self) -> bytes | None:
        """The value of Proxy-Authorization, RFC 7617."""
        if self.user is None:
            return None
        return b"Basic " + base64.b64encode(self.user + b":" + self.password)

    def __str__(self) -> str:
        """As in the configuration, with the password."""
        user = "" if self.user is None else f"{quote(self.user, safe='')}:{quote(self.password, safe='')}@"
        return f"{self.scheme}://{user}{Destination(self.host, self.port).authority}"


def parse_upstream(text: str) -> Upstream | None:
    """`[SCHEME://][USER:PASSWORD@]HOST:PORT`; None for an empty text.  Raises ConfigError, without the password."""
    if not text.strip():
        return None
    match = UPSTREAM.fullmatch(text.strip())
    shown = text.rpartition("@")[2]
    if match is None:
        raise ConfigError(f"proxy {shown!r} is not like http://USER:PASSWORD@proxy.example:3128, with the port")
    scheme = (match[1] or "http").lower().replace("socks5h", "socks5")
    if scheme not in ("http", "https", "socks5"):
        raise ConfigError(f"proxy {shown!r}: {scheme} is none of http, https and socks5")
    try:
        host, port = host_of(match[3]), port_of(match[4])
    except WireError as error:
        raise ConfigError(f"proxy {shown!r}: {error}") from None
    user, _, password = (match[2] or "").partition(":")
    secret = None if match[2] is None else unquote_to_bytes(user)
    if secret is not None and (len(secret) > 255 or len(unquote_to_bytes(password)) > 255):
        raise ConfigError(f"proxy {shown!r}: user and password have at most 255 octets")
    return Upstream(scheme, host, port, secret, unquote_to_bytes(password))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Rule:
    text: str
    network: IPv4Network | IPv6Network | None
    labels: tuple[str, ...] = ()

    def fits(self, host: str) -> bool:
        """Whether `host` of a Destination is meant."""
        try:
            address = ip_address(host)
        except ValueError:
            theirs = host.split(".")
            if self.network is not None or len(theirs) < len(self.labels):
                return False
            pairs = zip(reversed(self.labels), reversed(theirs), strict=False)
            return all(label in ("", "*", their) for label, their in pairs)
        return self.network is not None and address in self.network


def parse_rule(text: str) -> Rule:
    """Raises ConfigError for a network that is none."""
    try:
        return Rule(text, ip_network(text.removeprefix("[").removesuffix("]"), strict=False))
    except ValueError:
        if "/" in text or not text.isprintable():
            raise ConfigError(f"{text!r} is no network, address or pattern of names") from None
    return Rule(text, None, tuple(text.lower().removesuffix(".").split(".")))


class ProxyFile(msgspec.Struct, frozen=True):
    """The original's JSON.  Other keys are ignored."""

    http: str | None = None
    https: str | None = None
    exclude: str = ""
    transparent_http_ports: tuple[int, ...] = (80,)
    transparent_https_ports: tuple[int, ...] = (443,)
    allow_enabled: bool = False
    allow: tuple[str, ...] = ()
    allow_error_msg: str = MESSAGE


@dataclass(frozen=True)
class ProxyConfig:
    """One configuration.  `file` is what it was made of."""

    file: ProxyFile
    http: Upstream | None
    https: Upstream | None
    exclude: tuple[Rule, ...]
    allow: tuple[Rule, ...]

    def upstream(self, secure: bool, *hosts: str) -> Upstream | None:
        """By which proxy something goes that is known as `hosts`, its name and its address; None: by none."""
        found = self.https if secure else self.http
        return None if found is None or any(fits(self.exclude, host) for host in hosts) else found

    def allows(self, host: str) -> bool:
        return not self.file.allow_enabled or fits(self.allow, host)

    def refusal(self, host: str) -> str:
        """What is said about a host that is not allowed."""
        return self.file.allow_error_msg.replace("%s", host)

    def intercepts(self, port: int) -> Literal["http", "https"] | None:
        """How connections of guests to `port` of the world are taken, if they are.  Where there is an allow list they
        are taken also without a proxy to go by."""
        if port in self.file.transparent_http_ports and (self.http is not None or self.file.allow_enabled):
            return "http"
        if port in self.file.transparent_https_ports and (self.https is not None or self.file.allow_enabled):
            return "https"
        return None

    def encode(self) -> bytes:
        """As JSON that `parse_config` takes again."""
        return msgspec.json.encode(self.file)


def parse_config(raw: bytes) -> ProxyConfig:
    """Raises ConfigError, saying what is wrong."""
    try:
        file = msgspec.json.decode(raw, type=ProxyFile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(str(error)) from None
    return config_of(file)


def config_of(file: ProxyFile) -> ProxyConfig:
    """Raises ConfigError."""
    excluded = [text for text in SEPARATORS.split(file.exclude) if text]
    if len(excluded) > MAX_RULES or len(file.allow) > MAX_RULES:
        raise ConfigError(f"more than {MAX_RULES} rules")
    for port in (*file.transparent_http_ports, *file.transparent_https_ports):
        if not 0 < port < 65536:
            raise ConfigError(f"{port} is no port")
    return ProxyConfig(
        file,
        parse_upstream(file.http or ""),
        parse_upstream(file.https or ""),
        tuple(map(parse_rule, excluded)),
        tuple(map(parse_rule, file.allow)),
    )


def from_url(text: str) -> ProxyConfig:
    """One proxy for everything.  Raises ConfigError."""
    return config_of(ProxyFile(http=text, https=text))


def fits(rules: Iterable[Rule], host: str) -> bool:
    return any(rule.fits(host) for rule in rules)


def host_of(text: str) -> str:
    """A host as a Destination has it: an address, or a name that no C library takes for one.  Raises WireError."""
    bracketed = text.startswith("[") and text.endswith("]")
    bare = text[1:-1] if bracketed else text
    try:
        address = ip_address(bare)
    except ValueError:
        name = text.lower().removesuffix(".")
        if len(name) > 253 or not NAME.fullmatch(name) or LIKE_A_NUMBER.fullmatch(name):
            raise WireError(f"{text!r} is no host") from None
        return name
    if (address.version == 6) is not bracketed:
        raise WireError(f"{text!r}: brackets belong to IPv6 addresses")
    return str(address)


def port_of(text: str) -> int:
    """Raises WireError."""
    number = int(text)
    if not 0 < number < 65536:
        raise WireError(f"{text} is no port")
    return number


def parse_authority(text: str, default_port: int | None) -> Destination:
    """HOST[:PORT].  Raises WireError."""
    match = AUTHORITY.fullmatch(text)
    if match is None:
        raise WireError(f"{text!r} is not HOST:PORT")
    if match[2]:
        return Destination(host_of(match[1]), port_of(match[2]))
    if default_port is None:
        raise WireError(f"{text!r} has no port")
    return Destination(host_of(match[1]), default_port)

"""The NET options: the same for every command that is a network, and what they amount to."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from portfwd.helper import DEFAULT_PATH
from vpnkit.cli.lease_options import LEASE_OPTIONS, leases_from
from vpnkit.cli.logs import LEVELS
from vpnkit.control.paths import check_length, check_name, socket_path
from vpnkit.control.token import TcpControl, parse_address, read_token
from vpnkit.errors import ConfigError
from vpnkit.net.lease_options import LeaseOptions
from vpnkit.net.plan import DEFAULT_PREFIX6, HOST_NAMES, IPV6_OFFERS, LEAST_MTU6, Plan
from vpnkit.services.dns_sources import parse_source, parse_zone

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vpnkit.net.captures import Captures
    from vpnkit.proto.dns_upstreams import Server
    from vpnkit.proto.http_proxy import ProxyConfig

Command = TypeVar("Command", bound="Callable[..., Any]")

DISABLED: Final = "none"
MAX_MTU: Final = 65520
# Loopback, mapped and translated IPv4, link-local and multicast
NOT_FOR_GUESTS: Final = tuple(
    map(IPv6Network, ("::/96", "::ffff:0:0/96", "64:ff9b::/64", "64:ff9b:1::/48", "fe80::/10", "ff00::/8"))
)
DOMAIN_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")


@dataclass(frozen=True)
class NetSettings:
    """What is not in the Plan: how an instance behaves and where it is found."""

    offload: bool = True
    verify_checksums: bool = False
    dns: tuple[Server | Path, ...] = ()  # servers to ask, or files that name some; empty: the host's own
    dns_zones: Mapping[bytes, Sequence[Server]] = field(default_factory=dict)  # servers for names in domains
    hosts: tuple[str, ...] = ()  # hosts files
    dns_log: bool = False
    max_connections: int | None = None  # None: as many as the descriptor limit allows
    max_guest_connections: int | None = None  # None: all of them
    allowed_bind_addresses: tuple[IPv4Network | IPv6Network, ...] = ()  # that forwards may listen on; empty: any
    port_helper: str | None = DEFAULT_PATH  # the path of who binds ports that we may not
    udp_filtering: str = "address"  # who may answer a guest's datagram; see NetworkOptions
    nat64: bool = False  # IPv4 hosts under 64:ff9b::/96
    isolate: bool = False  # guests may not speak to each other
    http_proxy: ProxyConfig | Path | None = None  # of guests' web traffic
    snaplen: int | None = None  # octets that all.pcap keeps of a packet; None: as is usual
    capture: bool = True  # rings of the last packets are kept in memory
    ring_file: Path | None = None  # a directory in which they outlive the process
    ipv6: str = "auto"  # what is offered of it; a key of IPV6_OFFERS
    leasing: LeaseOptions = field(default_factory=LeaseOptions)
    name: str = "default"
    control: Path | None = None  # None: where `name` puts it
    control_tcp: TcpControl | None = None  # the control API over TCP as well
    p9: Path | None = None  # the 9P socket, if there is to be one
    log_level: str = "warning"
    log_json: bool = False

    @property
    def control_path(self) -> Path:
        """The control socket."""
        return self.control or socket_path(self.name)

    def captures(self) -> Captures | None:
        """The captures of an instance, or None.  Raises ConfigError."""
        from pcap.rules import default_rules
        from vpnkit.net.captures import Captures

        if not self.capture:
            return None
        captures = Captures(None if self.snaplen is None else default_rules(self.snaplen))
        if self.ring_file is not None:
            captures.keep(self.ring_file)
        return captures

    @property
    def socket_paths(self) -> list[Path]:
        """Every unix socket that is ours to make."""
        return [self.control_path, *([self.p9] if self.p9 is not None else [])]


def subnet(text: str) -> IPv4Network:
    """An IPv4 network in CIDR notation.  Raises ValueError, as all of these do, saying what would be right."""
    try:
        network = IPv4Network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv4 network like 192.168.65.0/24") from None
    address, separator, _ = text.partition("/")
    if not separator:
        raise ValueError(f"{text!r} has no prefix length; 192.168.65.0/24 has one")
    if network.network_address != IPv4Address(address):
        raise ValueError(f"{text!r} is an address inside {network}")
    if network.prefixlen < 8 or network.is_multicast or network.is_loopback:
        raise ValueError(f"{text!r} is no network for guests; 192.168.65.0/24 is one")
    return network


def prefix6(text: str) -> IPv6Network | str:
    """An IPv6 network in CIDR notation that guests can make addresses in, or DISABLED."""
    if text == DISABLED:
        return DISABLED
    example = "fd65:7670:6e6b::/64"
    try:
        network = IPv6Network(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv6 network like {example}, nor '{DISABLED}'") from None
    if network.prefixlen != 64:
        raise ValueError(f"{text!r} is no /64, which guests need to make their addresses; {example} is one")
    if any(network.overlaps(other) for other in NOT_FOR_GUESTS):
        raise ValueError(f"{text!r} is no network for guests; {example} is one")
    return network


def address(text: str) -> IPv4Address:
    """An IPv4 address."""
    try:
        return IPv4Address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv4 address") from None


def host_address(text: str) -> IPv4Address | str:
    """An IPv4 address, or DISABLED."""
    return DISABLED if text == DISABLED else address(text)


def domain_name(text: str) -> str:
    """A domain name, without its final dot."""
    name = text.removesuffix(".")
    if len(name) > 253 or not DOMAIN_NAME.fullmatch(name):
        raise ValueError(f"{text!r} is not a domain name like vm.example")
    return name


def hosts_file(text: str) -> str:
    """The path of a file that is there."""
    if not Path(text).is_file():
        raise ValueError(f"{text!r} is not a file")
    return text


def bind_network(text: str) -> IPv4Network | IPv6Network:
    """An address, or a network in CIDR notation."""
    try:
        return ip_network(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither an address like 127.0.0.1 nor a network like 127.0.0.0/8") from None


def http_proxy(text: str) -> ProxyConfig | Path:
    """A proxy, or the path of a file that is there."""
    from vpnkit.proto.http_proxy import UPSTREAM, from_url, parse_upstream

    if "://" not in text and Path(text).is_file():
        return Path(text)
    if "://" not in text and not UPSTREAM.fullmatch(text):
        raise ValueError(f"{text!r} is neither a file nor a proxy like http://proxy.example:3128")
    parse_upstream(text)
    return from_url(text)


def parsed(parse: Callable[[str], object], *declarations: str, **attributes: Any) -> Callable[[Command], Command]:
    """A click option whose text, or each of whose texts, goes through `parse`."""

    def convert(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            if isinstance(value, tuple):
                return tuple(parse(text) for text in value)
            return None if value is None else parse(value)
        except (ValueError, ConfigError) as error:
            raise click.BadParameter(f"{error}.", ctx, param) from None

    return click.option(*declarations, callback=convert, **attributes)


OPTIONS: Final = (
    parsed(
        subnet, "--subnet", metavar="CIDR", default="192.168.65.0/24", show_default=True, help="The virtual network."
    ),
    parsed(address, "--gateway-ip", metavar="ADDRESS", help="Our address.  [default: the subnet's first]"),
    parsed(
        host_address,
        "--host-ip",
        metavar="ADDRESS",
        help="The address that reaches this host's 127.0.0.1; 'none' disables it.  [default: the subnet's second]",
    ),
    parsed(address, "--guest-ip", metavar="ADDRESS", help="The first guest's address.  [default: the subnet's third]"),
    click.option(
        "--mtu",
        metavar="N",
        type=click.IntRange(576, MAX_MTU),
        help="Octets of the largest packet.  [default: what the link can carry, 65520 or 1500]",
    ),
    click.option("--no-offload", is_flag=True, help="Do without checksum and segmentation offload."),
    click.option("--verify-checksums", is_flag=True, help="Verify checksums also where the link cannot corrupt."),
    click.option(
        "--ipv6",
        type=click.Choice(list(IPV6_OFFERS)),
        default="auto",
        show_default=True,
        help="What of IPv6 guests are offered: auto, all while this host has it; on, all; local, no way out; off.",
    ),
    parsed(
        prefix6,
        "--ipv6-prefix",
        metavar="PREFIX",
        default=str(DEFAULT_PREFIX6),
        show_default=True,
        help="The guests' IPv6 network, a /64; 'none' for no IPv6 at all.",
    ),
    parsed(
        parse_source,
        "--dns",
        metavar="SERVER[#PORT]|tls:SERVER[#NAME]|host|FILE",
        multiple=True,
        help="Who is asked about names: a server, one over TLS whose certificate has NAME, this host's own resolver, "
        "or a file with nameserver, zone, timeout and order lines; may be repeated.  [default: /etc/resolv.conf's]",
    ),
    parsed(
        parse_zone,
        "--dns-zone",
        metavar="ZONE=SERVER[,SERVER]",
        multiple=True,
        help="Who is asked about names in ZONE; may be repeated.",
    ),
    parsed(
        hosts_file,
        "--hosts",
        metavar="FILE",
        multiple=True,
        help="Names with addresses, as in /etc/hosts; read again when it changes; may be repeated.",
    ),
    click.option("--dns-log", is_flag=True, help="Log each DNS query."),
    parsed(domain_name, "--domain", metavar="NAME", help="The guest's own domain."),
    parsed(
        domain_name, "--search", metavar="NAME", multiple=True, help="A domain the guest searches; may be repeated."
    ),
    parsed(
        domain_name,
        "--host-name",
        metavar="NAME",
        multiple=True,
        help="One more name for --host-ip, besides host.internal; may be repeated.",
    ),
    click.option("--no-host-loopback", is_flag=True, help="No address reaches this host's 127.0.0.1."),
    click.option(
        "--max-connections",
        metavar="N",
        type=click.IntRange(min=1),
        help="Host sockets at once.  [default: as the descriptor limit allows]",
    ),
    click.option(
        "--max-guest-connections",
        metavar="N",
        type=click.IntRange(min=1),
        help="Those of one guest, so that he leaves some to the others.  [default: all of them]",
    ),
    parsed(
        bind_network,
        "--allowed-bind-addresses",
        metavar="ADDRESS|CIDR",
        multiple=True,
        help="Forwards may listen on these addresses of this host only; may be repeated.  [default: on any]",
    ),
    click.option(
        "--port-helper",
        metavar="PATH",
        default=DEFAULT_PATH,
        show_default=True,
        help="Where `vpnkit helper` is, which is asked for ports of forwards that this user may not bind.",
    ),
    click.option(
        "--udp-filtering",
        type=click.Choice(["address", "endpoint"]),
        default="address",
        show_default=True,
        help="Who may send to a guest's UDP port: hosts it spoke to, or anybody (endpoint-independent).",
    ),
    click.option(
        "--nat64",
        is_flag=True,
        help="Let guests reach IPv4 hosts by IPv6, under 64:ff9b::/96, and give names such addresses (DNS64); "
        "IPv6 is offered then also where this host has none.",
    ),
    parsed(
        http_proxy,
        "--http-proxy",
        metavar="FILE|URL",
        help="What guests' web traffic goes by: http://, https:// or socks5://[USER:PASSWORD@]HOST:PORT, or a JSON "
        "file as the original's --http, read again when it changes.  Guests have a proxy at the gateway's ports 3128 "
        "and 3129, and what they send to ports 80 and 443 is taken there.",
    ),
    *LEASE_OPTIONS,
    click.option("--no-capture", is_flag=True, help="Keep no packets in memory, and let nobody capture any."),
    click.option(
        "--ring-file",
        metavar="DIR",
        type=click.Path(path_type=Path, file_okay=False),
        help="Keep the captures' rings in this directory, too, across restarts.",
    ),
    click.option("--isolate", is_flag=True, help="Guests may not speak to each other."),
    click.option("--name", metavar="NAME", default="default", show_default=True, help="The name of this instance."),
    click.option(
        "--control",
        type=click.Path(path_type=Path),
        help="The control socket.  [default: $XDG_RUNTIME_DIR/vpnkit/NAME.sock]",
    ),
    parsed(
        parse_address,
        "--control-tcp",
        metavar="ADDR:PORT",
        help="Answer the control API over TCP too, to who knows the token.",
    ),
    click.option(
        "--control-token-file",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="The token for --control-tcp; it is made, with mode 0600, where there is none.",
    ),
    click.option(
        "--gateway-api",
        is_flag=True,
        help="Let guests forward ports of this host to themselves, at port 80 of the gateway, as gvproxy does.",
    ),
    click.option(
        "--9p",
        "p9",
        metavar="PATH",
        type=click.Path(path_type=Path),
        help="Serve 9P on this unix socket: forwards and the instance's state as files.",
    ),
    click.option(
        "--log-level", type=click.Choice(LEVELS), default="warning", show_default=True, help="What is logged on stderr."
    ),
    click.option("--log-json", is_flag=True, help="Log one JSON object per line."),
)


def network_options(command: Command) -> Command:
    """Give `command` the NET options; it hands its keyword arguments to `plan_from` and `settings_from`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def offer_from(options: Mapping[str, Any]) -> str:
    """What of IPv6 is offered, a key of IPV6_OFFERS; with NAT64 it is a way out whatever this host has.

    Raises ConfigError when there is none to translate from.
    """
    offer: str = options["ipv6"]
    if not options["nat64"]:
        return offer
    if offer in ("local", "off"):
        raise ConfigError(f"--nat64 is a way out by IPv6, and --ipv6 {offer} has none")
    return "on"


def plan_from(options: Mapping[str, Any]) -> Plan:
    """The addresses and names.  Raises ConfigError when they do not fit together.

    Without --mtu its mtu is MAX_MTU, for links that have none of their own.
    """
    host = options["host_ip"]
    offer, prefix = offer_from(options), options["ipv6_prefix"]
    mtu = options["mtu"] or MAX_MTU
    if offer in ("on", "local"):
        wanted = "--nat64" if options["nat64"] else f"--ipv6 {offer}"
        if prefix == DISABLED:
            raise ConfigError(f"{wanted} needs a prefix, and --ipv6-prefix says '{DISABLED}'")
        if mtu < LEAST_MTU6:
            raise ConfigError(f"{wanted} needs an mtu of at least {LEAST_MTU6}, and --mtu says {mtu}")
    return Plan(
        subnet=options["subnet"],
        gateway=options["gateway_ip"],
        host=None if host == DISABLED else host,
        host_loopback=host != DISABLED and not options["no_host_loopback"],
        guest=options["guest_ip"],
        prefix6=None if offer == "off" or prefix == DISABLED else prefix,
        mtu=mtu,
        domain=options["domain"] or "",
        search=tuple(options["search"]),
        host_names=(*HOST_NAMES, *options["host_name"]),
        gateway_api=options["gateway_api"],
    )


def settings_from(options: Mapping[str, Any]) -> NetSettings:
    """Everything else.  Raises ConfigError for names and paths that cannot be."""
    settings = NetSettings(
        offload=not options["no_offload"],
        verify_checksums=options["verify_checksums"],
        dns=tuple(options["dns"]),
        dns_zones=dict(options["dns_zone"]),
        hosts=tuple(options["hosts"]),
        dns_log=options["dns_log"],
        max_connections=options["max_connections"],
        max_guest_connections=options["max_guest_connections"],
        allowed_bind_addresses=tuple(options["allowed_bind_addresses"]),
        port_helper=options["port_helper"] or None,
        udp_filtering=options["udp_filtering"],
        nat64=options["nat64"],
        isolate=options["isolate"],
        http_proxy=options["http_proxy"],
        capture=not options["no_capture"],
        ring_file=options["ring_file"],
        leasing=leases_from(options),
        ipv6=offer_from(options),
        name=check_name(options["name"]),
        control=options["control"],
        control_tcp=_tcp_control(options["control_tcp"], options["control_token_file"]),
        p9=options["p9"],
        log_level=options["log_level"],
        log_json=options["log_json"],
    )
    if settings.ring_file is not None and not settings.capture:
        raise ConfigError("--ring-file keeps captures, and --no-capture makes none: only one of them can be meant")
    if settings.control is not None and not settings.control.name:
        raise ConfigError(f"--control {settings.control} is not the path of a socket")
    check_length(settings.control_path)
    if settings.p9 is not None:
        if not settings.p9.name:
            raise ConfigError(f"--9p {settings.p9} is not the path of a socket")
        check_length(settings.p9)
        if os.path.realpath(settings.p9) == os.path.realpath(settings.control_path):
            raise ConfigError(f"--9p {settings.p9} is the control socket; each needs a path of its own")
    return settings


def _tcp_control(place: tuple[str, int] | None, token_file: Path | None) -> TcpControl | None:
    if place is None and token_file is None:
        return None
    if place is None or token_file is None:
        raise ConfigError("--control-tcp ADDR:PORT and --control-token-file FILE go together")
    return TcpControl(*place, read_token(token_file))

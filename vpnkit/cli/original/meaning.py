"""What the original's flags amount to: addresses, links, settings.  Nothing is opened here."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from portfwd.mux.address import parse_forwarder
from portfwd.options import MAX_BACKLOG, SpecError
from tapdev.spec import ETHERNET, LinkSpec, LinkSpecError
from tapdev.spec import parse as parse_link
from vpnkit.cli.options import MAX_MTU, NetSettings, domain_name
from vpnkit.control.paths import served_by, socket_path
from vpnkit.errors import ConfigError
from vpnkit.net.lease_options import LeaseOptions
from vpnkit.net.plan import GATEWAY_NAMES, HOST_NAMES, SERVER_MAC, VM_NAMES, GatewayForwards, Plan
from vpnkit.services.resolvconf import parse_server

if TYPE_CHECKING:
    from ipaddress import IPv6Network

    from portfwd.mux.address import ForwarderAddress
    from vpnkit.cli.original.flags import Given

ETHERNET_WANTED: Final = "Please provide an --ethernet argument"  # the original's words
HOSTS: Final = "/etc/hosts"
SNAPLEN: Final = 128
MAX_SNAPLEN: Final = 65535
MAX_FORWARDS: Final = 1024  # of the gateway's ports
ANY: Final = IPv4Address(0)
MAC: Final = re.compile(r"[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}")
VSOCK: Final = re.compile(r"vsock://([0-9]*):([0-9]+)")
HYPERKIT: Final = re.compile(r"hyperkit://:([0-9]+)/(.+)")
WINDOWS: Final = ("hyperv-connect://", "hyperv-listen://", "hvsock://", r"\\.\pipe")


@dataclass(frozen=True)
class Original:
    """What is to be started."""

    link: LinkSpec
    plan: Plan
    settings: NetSettings
    mtu: int
    snaplen: int = SNAPLEN
    debug: bool = False
    backlog: int | None = None
    forwarder: ForwarderAddress | None = None
    forwards: GatewayForwards = field(default_factory=dict)  # of the command line; stronger than the file's
    forwards_file: Path | None = None
    ports: tuple[LinkSpec, ...] = ()
    introspection: tuple[LinkSpec, ...] = ()
    diagnostics: tuple[LinkSpec, ...] = ()
    pcaps: tuple[LinkSpec, ...] = ()
    http_api: LinkSpec | None = None


def understand(given: Given) -> Original:
    """Raises click.UsageError and ConfigError."""
    ethernet = given.one("ethernet")
    if ethernet is None:
        raise click.UsageError(f"{ETHERNET_WANTED}.")
    _refuse_what_is_missing(given)
    forwards: GatewayForwards = {}
    for protocol in ("tcp", "udp"):
        forwards |= _listed(f"{protocol}v4-forwards", protocol, given.one(f"{protocol}v4-forwards") or "")
    file = given.one("gateway-forwards")
    mtu = _number(given, "mtu", 576, MAX_MTU, ETHERNET)
    backlog = given.one("listen-backlog")
    api = given.one("http-api-path")
    return Original(
        link=_socket("ethernet", ethernet),
        plan=_plan(given, mtu, dict(forwards)),
        settings=_settings(given),
        mtu=mtu,
        snaplen=_number(given, "pcap-snaplen", 1, MAX_SNAPLEN, SNAPLEN),
        debug="debug" in given.values or "VPNKIT_DEBUG" in os.environ,
        backlog=None if backlog is None else _number(given, "listen-backlog", 1, MAX_BACKLOG, 1),
        forwarder=_forwarder(given),
        forwards=forwards,
        forwards_file=None if file is None else Path(file),
        ports=_sockets(given, "port"),
        introspection=_sockets(given, "introspection"),
        diagnostics=_sockets(given, "diagnostics"),
        pcaps=_sockets(given, "pcap"),
        http_api=None if api is None else _socket("http-api-path", api),
    )


def gateway_forwards(text: str) -> GatewayForwards:
    """The file of --gateway-forwards.  Raises ConfigError."""
    try:
        entries = json.loads(text)
        found: GatewayForwards = {}
        for entry in entries[:MAX_FORWARDS]:
            protocol = entry["protocol"]
            if protocol not in ("tcp", "udp"):
                raise ValueError(f"protocol {protocol!r} is neither tcp nor udp")
            key = (protocol, _port(entry["external_port"]))
            found.setdefault(key, (str(IPv4Address(entry["internal_ip"])), _port(entry["internal_port"])))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{type(error).__name__}: {error}") from None
    return found


def _port(value: object) -> int:
    if not isinstance(value, int) or not 1 <= value <= 65535:
        raise ValueError(f"{value!r} is not a port")
    return value


def _refuse_what_is_missing(given: Given) -> None:
    if "forwards" in given.values:
        words = "tunnels for outgoing connections are not there; --gateway-forwards is another thing, and is"
        raise ConfigError(f"--forwards: {words}")


def _socket(flag: str, text: str) -> LinkSpec:
    """An address of the original's; the socket of a path is `vmnet:` whatever is spoken there."""
    if text.startswith(WINDOWS):
        raise ConfigError(f"--{flag} {text}: this is for Windows, which has no vpnkit of ours")
    made = f"vmnet:{text}"
    if (found := VSOCK.fullmatch(text)) is not None:
        made = f"vsock:{found[1]}:{found[2]}" if found[1] else f"vsock:{found[2]}"
    elif (found := HYPERKIT.fullmatch(text)) is not None:
        path = found[2].removeprefix("./") if found[2].startswith("./") else f"/{found[2]}"
        made = f"hyperkit:{path}:{found[1]}"
    elif "://" in text:
        raise ConfigError(f"--{flag} {text} is none of PATH, fd:N, vsock://[CID]:PORT, hyperkit://:PORT/DIRECTORY")
    try:
        return parse_link(made)
    except LinkSpecError as error:
        raise ConfigError(f"--{flag} {text}: {error}") from None


def _sockets(given: Given, name: str) -> tuple[LinkSpec, ...]:
    return tuple(_socket(name, text) for text in given.all(name))


def _forwarder(given: Given) -> ForwarderAddress | None:
    """HyperKit's socket `connect`, in the words of --forwarder."""
    text = given.one("port-forwards") or given.one("vsock-path")
    if not text:
        return None
    if text.startswith(WINDOWS):
        raise ConfigError(f"--port-forwards {text}: this is for Windows, which has no vpnkit of ours")
    directory, name = os.path.split(text.removeprefix("unix:"))
    if name != "connect":
        raise ConfigError(f"--port-forwards {text}: HyperKit's socket is called `connect`, as in /var/vms/0/connect")
    try:
        return parse_forwarder(f"hyperkit:{directory or '.'}")
    except SpecError as error:
        raise ConfigError(f"--port-forwards {text}: {error}") from None


def _number(given: Given, name: str, least: int, most: int, default: int) -> int:
    text = given.one(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and least <= int(text) <= most):
        raise ConfigError(f"--{name} {text!r} is not a number from {least} to {most}")
    return int(text)


def _address(given: Given, name: str, default: str) -> IPv4Address:
    text = given.one(name) or default
    try:
        return IPv4Address(text)
    except ValueError:
        raise ConfigError(f"--{name} {text!r} is not an IPv4 address") from None


def _names(given: Given, flag: str, default: tuple[str, ...]) -> tuple[str, ...]:
    text = given.one(flag)
    if text is None:
        return default
    try:
        return tuple(domain_name(name.strip()) for name in text.split(",") if name.strip())
    except ValueError as error:
        raise ConfigError(f"--{flag}: {error}") from None


def _plan(given: Given, mtu: int, forwards: GatewayForwards) -> Plan:
    gateway = _address(given, "gateway-ip", "192.168.65.1")
    lowest = _address(given, "lowest-ip", "192.168.65.3")
    highest = _address(given, "highest-ip", "192.168.65.254")
    if highest < lowest:
        raise ConfigError(f"--highest-ip {highest} is below --lowest-ip {lowest}")
    host: IPv4Address | None = _address(given, "host-ip", "192.168.65.2")
    has_alias = host != ANY
    subnet = _subnet([gateway, lowest, highest, *([host] if has_alias and host is not None else [])])
    if not has_alias:  # its place is not the guests' all the same
        others = (address for address in subnet.hosts() if address != gateway and not lowest <= address <= highest)
        host = next(others, None)
    mac = given.one("server-macaddr") or SERVER_MAC.hex(":")
    if not MAC.fullmatch(mac) or bytes.fromhex(mac[:2])[0] & 1:
        raise ConfigError(f"--server-macaddr {mac!r} is not the MAC address of a station, as f6:16:36:bc:f9:c6 is")
    domain = _names(given, "domain", ("",))
    return Plan(
        subnet=subnet,
        gateway=gateway,
        host=host,
        host_loopback=has_alias,
        guest=lowest,
        last_guest=highest,
        mtu=mtu,
        domain=domain[0] if domain else "",
        host_names=_names(given, "host-names", HOST_NAMES),
        gateway_names=_names(given, "gateway-names", GATEWAY_NAMES),
        vm_names=_names(given, "vm-names", VM_NAMES),
        server_mac=bytes.fromhex(re.sub("[:-]", "", mac)),
        gateway_forwards=forwards,
    )


def _subnet(addresses: list[IPv4Address]) -> IPv4Network:
    """The smallest network in which all of them can be hosts'."""
    for length in range(29, 7, -1):
        network = IPv4Network((int(addresses[0]), length), strict=False)
        edges = (network.network_address, network.broadcast_address)
        if all(address in network and address not in edges for address in addresses):
            return network
    raise ConfigError(f"no network has all of {', '.join(map(str, addresses))}")


def _settings(given: Given) -> NetSettings:
    dns = given.one("dns")
    hosts = given.one("hosts")
    dhcp = given.one("dhcp-path")
    http = given.one("http")
    for flag, file in (("dhcp-path", dhcp), ("http", http)):
        if file is not None and not Path(file).is_file():
            raise ConfigError(f"--{flag} {file} is not a file")
    control = socket_path("default")
    name = f"ethernet-{os.getpid()}" if served_by(control) is not None else "default"
    connections = _number(given, "max-connections", 1, 1 << 20, 0)
    return NetSettings(
        dns=(parse_server("host"),) if dns is None else (Path(dns),),
        hosts=(HOSTS if hosts is None else hosts,) if hosts != "" else (),
        max_connections=connections or None,
        allowed_bind_addresses=_bind_addresses(given),
        http_proxy=None if http is None else Path(http),
        leasing=LeaseOptions(dhcp_json=None if dhcp is None else Path(dhcp)),
        name=name,
        log_level="info",
    )


def _bind_addresses(given: Given) -> tuple[IPv4Network | IPv6Network, ...]:
    texts = [text.strip() for text in (given.one("allowed-bind-addresses") or "0.0.0.0").split(",") if text.strip()]
    try:
        networks = tuple(ip_network(text) for text in texts)
    except ValueError as error:
        raise ConfigError(f"--allowed-bind-addresses: {error}") from None
    return () if "0.0.0.0" in texts else networks


def _listed(flag: str, protocol: str, text: str) -> GatewayForwards:
    """PORT:IP:PORT,...  Raises ConfigError."""
    found: GatewayForwards = {}
    for part in text.split(",") if text else []:
        try:
            external, address, internal = part.strip().split(":")
            found.setdefault((protocol, _port(_whole(external))), (str(IPv4Address(address)), _port(_whole(internal))))
        except ValueError as error:
            raise ConfigError(f"--{flag}: {part!r} is not PORT:IP:PORT, as 123:127.0.0.1:123 is: {error}") from None
    return found


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5):
        raise ValueError(f"{text!r} is not a port")
    return int(text)

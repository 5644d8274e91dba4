"""One virtual LAN: the plan, what its gateway answers, its guests, and the ways in.

Everything hangs from here, so that two networks in one process know nothing of each other.
"""

from __future__ import annotations

import logging
import random
import resource
import socket
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING, Final

import trio

from portfwd.spec import parse
from tapdev.stream import VMNET, stream_link
from vpnkit.flow import host as host_sockets
from vpnkit.flow.poller import Poller
from vpnkit.net.events import EventHub, ForwardAdded, ForwardRemoved, GuestCame, GuestLeft, LeaseGiven, Warned
from vpnkit.net.guest import Guest
from vpnkit.net.http_proxying import HttpProxying
from vpnkit.net.identities import Identities
from vpnkit.net.lan import Lan
from vpnkit.net.lease_options import LeaseOptions
from vpnkit.net.leasing import dhcp_config, dhcpv6_server, follow, reserve
from vpnkit.net.memory import Memory
from vpnkit.net.naming import resolver_for
from vpnkit.net.reachability import Reachability
from vpnkit.net.reporting import forward_reports, guest_report, traffic
from vpnkit.net.ways_in import WaysIn
from vpnkit.proto.dhcp import DhcpServer
from vpnkit.proto.tcp.budget import Budget
from vpnkit.services.dhcp import DhcpService
from vpnkit.services.dhcpv6 import Dhcpv6Service
from vpnkit.services.dns import DnsService
from vpnkit.services.state_file import StateFile
from vpnkit.wire import ipv4

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence
    from ipaddress import IPv4Network, IPv6Network
    from pathlib import Path
    from uuid import UUID

    from portfwd.table import Forward
    from tapdev.link import Link
    from tapdev.vmnet import Registration
    from vpnkit.flow.host import HostSockets
    from vpnkit.net.captures import Captures
    from vpnkit.net.gateway import StreamService
    from vpnkit.net.plan import Plan
    from vpnkit.net.policy import Service
    from vpnkit.proto.dns_upstreams import Server
    from vpnkit.proto.http_proxy import ProxyConfig

log = logging.getLogger(__name__)

MAX_GUESTS: Final = 1024  # links at once
RESERVED_DESCRIPTORS: Final = 64  # for DNS, control and accepting, when flows have used up the rest


@dataclass
class NetworkOptions:
    """What is not an address: how one instance behaves."""

    name: str = "default"
    # servers to ask, or files of the original's that name some; empty: those of the host's resolv.conf
    dns: Sequence[Server | tuple[str, int] | Path] = ()
    dns_zones: Mapping[bytes, Sequence[Server]] = field(default_factory=dict)  # servers for names in domains
    hosts: Sequence[str] = ()  # paths of hosts files
    dns_log: bool = False  # a line for each query
    resolv_conf: str = "/etc/resolv.conf"
    verify_checksums: bool = False
    max_connections: int | None = None  # host sockets; None: as many as the descriptor limit allows
    max_guest_connections: int | None = None  # those of one guest; None: all of them
    extra_host_names: Sequence[str] = ()
    # RFC 4787 REQ-8, who may send to a mapping: "address", hosts that the guest spoke to, or "endpoint", anybody
    udp_filtering: str = "address"
    isolate: bool = False  # guests may not speak to each other
    leasing: LeaseOptions = field(default_factory=LeaseOptions)
    nat64: bool = False  # IPv4 hosts are reached by IPv6 too, under 64:ff9b::/96 (RFC 6146, RFC 6147)
    ipv6: str = "auto"  # what is offered of it, as far as the plan has any: a key of IPV6_OFFERS
    allowed_bind_addresses: Sequence[IPv4Network | IPv6Network] = ()  # that forwards may listen on; empty: any
    port_helper: str | None = None  # the path of who binds ports that we may not
    captures: Captures | None = None  # what every guest's frames are shown to
    http_proxy: ProxyConfig | Path | None = None  # what guests' web traffic goes by, or the file that says it
    connect_mtu: int = 1500  # octets, of guests that come by the control socket's /connect
    rng: random.Random = field(default_factory=random.SystemRandom)
    host: HostSockets = host_sockets  # the host's network, and
    poller: Callable[[], Poller] = Poller  # what knows when its sockets are ready


class Network:
    """The network of one or more guests.  `run` must run while any of the others is used."""

    def __init__(self, plan: Plan, options: NetworkOptions | None = None) -> None:
        self.plan = plan
        self.options = options = options or NetworkOptions()
        self.guests: list[Guest] = []
        self.warnings: list[str] = []
        self.events = EventHub()
        self.services: dict[Service, StreamService] = {}  # of the gateway, beside its own
        self.gone: Counter[str] = Counter()  # counters and traffic of guests that left
        self._numbers = 0
        self._nursery: trio.Nursery | None = None
        self.started = 0.0
        self.dhcp = DhcpServer(dhcp_config(plan, options.leasing))
        reserve(self.dhcp, plan, options.leasing.static)
        self._dhcp_service = DhcpService(self.dhcp)
        self._budget = Budget()
        self.ipv6 = Reachability(plan, options.host, options.ipv6)
        self.lan = Lan(plan, self.dhcp, isolate=options.isolate)
        self.dns = resolver_for(plan, options, self.ipv6, self.lan, self.dhcp)
        self.names = self.dns.names
        self.zones = self.dns.zones  # of the operator, which may change at run time
        self.http_proxy = HttpProxying(plan, options)
        self.dhcpv6 = dhcpv6_server(plan, self.lan)
        self._dhcpv6_service = Dhcpv6Service(self.dhcpv6, lambda: self.ipv6.offered) if self.dhcpv6 else None
        self._identities = Identities(self.dhcp, lambda mac: any(guest.station.mac == mac for guest in self.guests))
        if options.leasing.dhcp_json is not None:
            follow(options.leasing.dhcp_json, plan, self._dhcp_service, self._dhcpv6_service)
        self._memory = None
        if options.leasing.state is not None:
            self._memory = Memory(StateFile(options.leasing.state), self.dhcp, self._identities)
        self.ways_in = WaysIn(
            plan,
            self.lan,
            self.guests,
            self._admit,
            allowed=options.allowed_bind_addresses,
            nat64=options.nat64,
            helper=options.port_helper,
        )
        self.forwards = self.ways_in.forwards
        if options.captures is not None:
            options.captures.flow_number = self._flow_number
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._descriptors = max(soft - RESERVED_DESCRIPTORS, 1)
        self._limit = options.max_connections or self._descriptors

    # Life

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the tasks of this network until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.started = trio.current_time()
            if self._memory is not None:
                await nursery.start(self._memory.run)
            await nursery.start(self.dns.run)
            if self.options.captures is not None and self.options.captures.files is not None:
                nursery.start_soon(self.options.captures.files.run)
            task_status.started()
            await self.ipv6.watch()

    async def serve_guest(
        self,
        link: Link,
        mac: bytes | None = None,
        ip: IPv4Address | None = None,
        *,
        name: str = "",
        identity: Hashable = None,
        task_status: trio.TaskStatus[Guest] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve a guest until its link closes.

        `mac` and `ip` are those that it is known to have; else the first frame tells the one, DHCP or the first packet
        the other.  `name` is the link's, for people.  For `identity` see `Lan.attach`.
        """
        self._numbers += 1
        if self.options.captures is not None:
            name = name or type(link).__name__
            link = self.options.captures.wrap(link, name)
        async with trio.open_nursery() as nursery:
            guest = Guest(
                link,
                self.plan,
                self._dhcp_service,
                self.options.rng,
                nursery,
                number=self._numbers,
                name=name,
                ip=ip.packed if ip else None,
                mac=mac,
                lan=self.lan,
                identity=identity,
                verify_checksums=self.options.verify_checksums,
                udp_filtering=self.options.udp_filtering,
                nat64=self.options.nat64,
                budget=self._budget,
                ipv6=self.ipv6,
                admit=lambda: self._admit_of(guest),
                warn=self._warn,
                host=self.options.host,
                poller=self.options.poller(),
            )
            guest.gateway.dhcpv6_service = self._dhcpv6_service
            guest.gateway.dns = DnsService(
                self.dns,
                guest.poller,
                guest.deadlines,
                trio.current_time,
                self.options.rng,
                self.options.host.resolver_socket,
            )
            if mac is not None and ip is not None:
                self.dhcp.reserve(mac, ip.packed)
            guest.gateway.on_lease = self._lease_given
            guest.gateway.more = self.services
            guest.gateway.http_proxy = self.http_proxy
            self.guests.append(guest)
            self.events.publish(GuestCame(time=self.events.now(), guest=guest_report(guest)))
            task_status.started(guest)
            try:
                await guest.run()
            finally:
                self.guests.remove(guest)
                self.events.publish(GuestLeft(time=self.events.now(), guest=guest_report(guest)))
                self.gone.update(guest.counters)
                self.gone.update(guest.station.lost())
                self.gone.update(traffic(link))
            nursery.cancel_scope.cancel()

    # Guests that come by themselves (tapdev.sources.Host)

    def register(self, uuid: UUID | None, wanted: bytes | None) -> Registration:
        """The addresses of a VMN3T client.  Raises Refused."""
        return self._identities.register(uuid, wanted, trio.current_time())

    async def join(self, link: Link, name: str, registration: Registration | None = None) -> None:
        """Serve whoever is at the other end of `link` until it closes.  Takes over the link."""
        try:
            if len(self.guests) >= MAX_GUESTS:
                log.error("%s: refused a guest: there are %d already", name, MAX_GUESTS)
            elif registration is None:
                await self.serve_guest(link, name=name)
            else:
                address = IPv4Address(registration.ip)
                await self.serve_guest(link, registration.mac, address, name=name, identity=registration.mac)
        finally:
            link.close()

    async def connect(self, stream: trio.SocketStream, received: bytes) -> None:
        """Serve the guest of gvproxy's `/connect`: VMN3T's frames without its handshake.  Takes over the stream."""
        sock = socket.socket(fileno=stream.socket.detach())
        await self.join(stream_link(sock, VMNET, mtu=self.options.connect_mtu, received=received), "connect:")

    def assign(self, mac: bytes, ip: IPv4Address) -> None:
        """A guest has `ip` without having asked for it; its lease does not end."""
        self.dhcp.assign(mac, ip.packed, "", trio.current_time())

    def _warn(self, message: str) -> None:
        log.warning("%s", message)
        if message not in self.warnings:
            self.warnings.append(message)
        self.events.publish(Warned(time=self.events.now(), message=message))

    def _lease_given(self, guest: Guest, ip: bytes, mac: bytes) -> None:
        given = LeaseGiven(time=self.events.now(), guest=guest.number, ip=str(ip_address(ip)), mac=mac.hex(":"))
        self.events.publish(given)

    def _flow_number(self, protocol: int, key: bytes) -> int | None:
        """The id of an open flow by protocol, addresses and ports, the guest's first."""
        for guest in self.guests:
            if protocol == ipv4.TCP and (flow := guest.tcp.flows.get(key)) is not None:
                return flow.number
            if protocol == ipv4.UDP and (route := guest.udp.routes.get(key)) is not None:
                return route.mapping.number
        return None

    def _admit(self) -> bool:
        """Whether one more host socket is within the limit."""
        used = sum(len(guest.poller) for guest in self.guests) + self.ways_in.unpolled
        used += self.http_proxy.service.streams
        return used < self._limit and used + self.forwards.listeners < self._descriptors

    def _admit_of(self, guest: Guest) -> bool:
        """Whether this guest may have one more."""
        most = self.options.max_guest_connections
        return (most is None or len(guest.poller) < most) and self._admit()

    def dns_servers(self) -> Sequence[Server]:
        """Where queries go now that are for no zone."""
        return self.dns.routes().default

    # Ways in

    async def expose(self, text: str) -> Sequence[Forward]:
        """Listen on the host for all that the port spec `text` says, or for nothing, until the network ends.

        Raises SpecError for a text that is no port spec, and ForwardError for a port that cannot be had.
        """
        assert self._nursery is not None, "the network does not run"
        made = await self.forwards.expose_all(parse(text), self._nursery)
        reports = [report for forward in made for report in forward_reports(forward)]
        self.events.publish(ForwardAdded(time=self.events.now(), forwards=reports))
        return made

    async def unexpose(self, text: str, *, connections: bool = False) -> Sequence[Forward]:
        """Stop listening for what the port spec `text` says, and return what did; with `connections` reset those that
        are open.

        Raises SpecError for a text that is no port spec, and ForwardError, with everything as it was, when there is no
        such forward.
        """
        gone = await self.forwards.unexpose_all(parse(text), connections=connections)
        reports = [report for forward in gone for report in forward_reports(forward)]
        self.events.publish(ForwardRemoved(time=self.events.now(), forwards=reports))
        return gone

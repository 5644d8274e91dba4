"""From the host's side to guests: what leads to a port of a guest's network, and from whom it seems to come.

A forward is a call to the guest by the host alias, or by the client himself where the guest can answer him: an
address that the guest would reach through the gateway.  Others, the host's own loopback first, stay the alias.
"""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Final

import trio

from portfwd.errors import ForwardError
from portfwd.proxy_protocol import header_of
from portfwd.table import ForwardTable
from tapdev import unix_path
from vpnkit.flow import host as host_sockets
from vpnkit.net.policy import Host, Protocol, target
from vpnkit.net.udp_inbound import InboundMapping

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from ipaddress import IPv4Network, IPv6Network

    from portfwd.datagrams import Reply
    from portfwd.spec import Spec
    from vpnkit.net.guest import Guest
    from vpnkit.net.lan import Holder, Lan
    from vpnkit.net.plan import Plan

TUNNEL_PATIENCE: Final = 10.0  # seconds until a guest has to answer; gvproxy's
ASK_AGAIN_SECONDS: Final = 10.0  # after nobody had the first guest's IPv4 address


class WaysIn:
    """The forwards of one network, and what they do with its guests."""

    def __init__(
        self,
        plan: Plan,
        lan: Lan,
        guests: Sequence[Guest],
        admit: Callable[[], bool],
        *,
        allowed: Sequence[IPv4Network | IPv6Network] = (),
        nat64: bool = False,
        helper: str | None = None,
    ) -> None:
        """`admit` says whether one more host socket may be; `allowed` are the networks whose addresses forwards may
        have, none for any; `helper` is the path of who binds ports that we may not."""
        self._plan = plan
        self._lan = lan
        self._guests = guests
        self._nat64 = nat64
        self._looking = 0  # accepted connections whose guest is being looked for
        self._only6_until = 0.0  # nobody has the first guest's IPv4 address; until it is asked for again
        self.forwards = ForwardTable(
            self.deliver,
            datagrams=self,
            unix=claim_path,
            admit=admit,
            allowed=allowed,
            helper=helper,
        )

    @property
    def unpolled(self) -> int:
        """Host sockets of forwards that no guest's poller has: those that wait for a guest, and two for each
        connection that goes by another way than his network."""
        return self._looking + 2 * self.forwards.relayed

    # Streams

    async def deliver(self, stream: trio.SocketStream, spec: Spec) -> None:
        """Take an accepted connection to the guest, and return when it is over.  Raises OSError."""
        options = spec.options
        client = client_of(stream.socket)
        first = header_of(options.proxy, stream.socket) if options.proxy else b""
        host = socket.socket(fileno=stream.socket.detach())
        guest, destination = await self._found(host, lambda: self._destination(spec, client))
        await guest.calls.join(
            host,
            destination,
            spec.guest_port,
            caller=self._caller(spec, client, destination),
            first=first,
            idle=options.idle,
            name=f"unix:{spec.host_path}" if client is None else "",
        )

    async def tunnel(self, stream: trio.SocketStream, received: bytes, destination: bytes, port: int) -> None:
        """Take a connection, of which `received` was read, to `port` at the guest's `destination`, and return when it
        is over.  Takes over the stream.  Raises OSError."""
        host = socket.socket(fileno=stream.socket.detach())
        guest, _ = await self._found(host, lambda: destination)
        await guest.calls.join(host, destination, port, first=received, patience=TUNNEL_PATIENCE, name="tunnel")

    async def _found(self, host: socket.socket, destination: Callable[[], bytes]) -> tuple[Guest, bytes]:
        """The guest that `host` is to be joined with, and his address; it is reset, and OSError raised, when there is
        none."""
        self._looking += 1
        try:
            host.setblocking(False)
            holder = await self._asked(destination)
            address = destination()
            return self._guest_of(address, holder), address
        except BaseException:
            host_sockets.reset(host)  # not an end: nobody was there
            raise
        finally:
            self._looking -= 1

    async def _asked(self, destination: Callable[[], bytes]) -> Holder | None:
        """Who has the address, and what it is afterwards: a guest without IPv4 is called by IPv6, once he was asked."""
        address = destination()
        holder = await self._lan.resolve(address)
        if holder is None and address == self._plan.guest_ip.packed and self._guests:
            self._only6_until = trio.current_time() + ASK_AGAIN_SECONDS
        return holder or self._lan.holder(destination())

    # Datagrams (portfwd.datagrams.Datagrams)

    def open(self, spec: Spec, client: tuple[str, int], reply: Reply) -> InboundMapping:
        """A way to the guest for a client of a UDP forward.  Raises OSError when there is none now."""
        destination = self._destination(spec, client)
        guest = self._guest_of(destination, self._lan.holder(destination))
        caller = self._caller(spec, client, destination) or (self._plan.caller(destination), None)
        return InboundMapping(guest, destination, spec.guest_port, caller, client, reply)

    async def wait(self, spec: Spec, client: tuple[str, int]) -> bool:
        """Whether the guest that `open` did not find is there after all."""
        return await self._asked(lambda: self._destination(spec, client)) is not None

    # Who calls whom

    def _destination(self, spec: Spec, client: tuple[str, int] | None) -> bytes:
        """The guest's address.  Of a forward that names none: the first guest's, if he has one IPv6 for clients who
        keep theirs, and where nobody has IPv4."""
        if spec.guest_address is not None:
            return ip_address(spec.guest_address).packed
        if spec.options.source == "client" and client is not None and ":" in client[0]:
            address = self._first6(link_local=False)
            if address is not None:
                return address
        four = next((guest.ip for guest in self._guests if guest.ip is not None), None)
        if four is None and trio.current_time() < self._only6_until:
            four = self._first6(link_local=True)
        return four or self._plan.guest_ip.packed

    def _first6(self, *, link_local: bool) -> bytes | None:
        """The first IPv6 address of the first guest that has one, a link-local one at the most if it is the last."""
        prefix = self._plan.prefix6
        if prefix is None:
            return None
        found = [ip for guest in self._guests for ip in guest.station.addresses if len(ip) == 16]
        others = (ip for ip in found if link_local and IPv6Address(ip).is_link_local)
        return next((ip for ip in found if IPv6Address(ip) in prefix), next(others, None))

    def _guest_of(self, destination: bytes, holder: Holder | None) -> Guest:
        guest = next((g for g in self._guests if holder is not None and g.station is holder.station), None)
        if guest is None:
            raise OSError(errno.EHOSTUNREACH, f"no guest has {ip_address(destination)}")
        return guest

    def _caller(self, spec: Spec, client: tuple[str, int] | None, destination: bytes) -> tuple[bytes, int] | None:
        """The client's own address and port, if the guest is to be called from there and can be."""
        if spec.options.source == "client" and client is not None:
            address = ip_address(client[0].partition("%")[0])
            protocol = Protocol.TCP if spec.protocol == "tcp" else Protocol.UDP
            if len(address.packed) == len(destination) and self._is_answered(protocol, address):
                return address.packed, client[1]
        return None

    def _is_answered(self, protocol: Protocol, address: IPv4Address | IPv6Address) -> bool:
        """Whether a guest who answers `address` speaks to nobody but us, and means whom he says."""
        aim = target(protocol, address.packed, 1, self._plan, nat64=self._nat64)
        return isinstance(aim, Host) and aim.address == str(address)


def client_of(accepted: Any) -> tuple[str, int] | None:
    """Address and port of who was accepted; None for a unix socket's.  Raises OSError when he is gone."""
    if accepted.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    address, port = accepted.getpeername()[:2]
    return address, port


def claim_path(path: str, backlog: int) -> tuple[socket.socket, Callable[[], None]]:
    """A listener at `path`, mode 0600, in place of one that a dead process left.  Raises ForwardError."""
    try:
        made, owned = unix_path.claim(os.fspath(path), socket.SOCK_STREAM, backlog=backlog)
    except unix_path.PathError as error:
        raise ForwardError(str(error)) from error
    return made, owned.unlink

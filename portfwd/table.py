"""The forward table: every forward of one network, whatever its two ends are.

`unexpose` stops listening; connections that are open go on until either side ends them, or are reset if that is asked
for.  Clients of a UDP forward are forgotten with it.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from portfwd.connect import relay_to
from portfwd.datagrams import DatagramForward
from portfwd.errors import ForwardError
from portfwd.forward import Forward
from portfwd.listen import listen_at, listen_on, place
from portfwd.streams import StreamForward
from portfwd.vsock import connect_vsock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from ipaddress import IPv4Network, IPv6Network

    from portfwd.connect import Connector, Deliver
    from portfwd.datagrams import Datagrams
    from portfwd.listen import UnixListen
    from portfwd.spec import Spec

    AnyNetwork: TypeAlias = IPv4Network | IPv6Network

__all__ = ["Forward", "ForwardError", "ForwardTable"]

MAX_FORWARDS: Final = 4096  # sockets of listeners are descriptors, too

_MISSING: Final = {
    "unix": "a unix socket in the guest needs the forwarder there, and none is connected",
    "vsock": "there is no vsock here",
    "forwarder": "the guest's own loopback needs the forwarder there, and none is connected",
}


class ForwardTable:
    """Every forward of one network.  `deliver` takes an accepted connection to where its spec says, and owns it
    meanwhile; when it returns or raises, the connection is closed.
    """

    def __init__(
        self,
        deliver: Deliver,
        *,
        datagrams: Datagrams | None = None,
        unix: UnixListen | None = None,
        admit: Callable[[], bool] = lambda: True,
        allowed: Sequence[AnyNetwork] = (),
        helper: str | None = None,
    ) -> None:
        """`datagrams` is what UDP forwards lead to, `unix` how a path is bound, `admit` whether one more connection may
        be, `allowed` the networks of which forwards may have host addresses; empty: any.  `helper` is the path of who
        binds ports that we may not."""
        self._deliver = deliver
        self._datagrams = datagrams
        self._unix = unix
        self._admit = admit
        self._allowed = tuple(allowed)
        self._helper = helper
        self._forwards: list[Forward] = []
        self.listeners = 0  # sockets that forwards listen on
        self.relayed = 0  # connections that are open by a connector: each is two of our sockets
        # How guests' ends that are no ports of their networks are reached.
        self.connectors: dict[str, Connector] = {"vsock": connect_vsock}
        self._forwarder: Datagrams | None = None

    def use_forwarder(self, connector: Connector, datagrams: Datagrams) -> None:
        """There is a forwarder in the guest: it leads to his unix sockets and to his own loopback."""
        self.connectors["unix"] = self.connectors["forwarder"] = connector
        self._forwarder = datagrams

    async def expose(self, spec: Spec, nursery: trio.Nursery) -> Forward:
        """Listen for `spec`, serving in `nursery`.  Raises ForwardError, and then nothing listens."""
        await trio.lowlevel.checkpoint()
        self._check(spec)
        forward = await (self._datagram(spec) if spec.protocol == "udp" else self._stream(spec))
        try:
            self._check(spec)  # another may have been made while a helper was asked
        except ForwardError:
            forward.close()
            raise
        self._forwards.append(forward)
        self.listeners += len(forward.addresses) or 1
        forward.start(nursery)
        return forward

    def _remove(self, forward: Forward, *, connections: bool) -> None:
        self._forwards.remove(forward)
        self.listeners -= len(forward.addresses) or 1
        forward.close(connections=connections)

    async def expose_all(self, specs: Sequence[Spec], nursery: trio.Nursery) -> Sequence[Forward]:
        """Listen for all of `specs`.  Raises ForwardError, and then none of them listens."""
        made: list[Forward] = []
        try:
            for spec in specs:
                made.append(await self.expose(spec, nursery))  # noqa: PERF401 - what was made must be known
        except BaseException:
            for forward in made:
                self._remove(forward, connections=True)
            raise
        return made

    async def unexpose(self, spec: Spec, *, connections: bool = False) -> Forward:
        """Stop listening for `spec` (with the port that was chosen; options do not matter), and with `connections`
        reset those that are open.  Raises ForwardError when nothing did."""
        [gone] = await self.unexpose_all([spec], connections=connections)
        return gone

    async def unexpose_all(self, specs: Sequence[Spec], *, connections: bool = False) -> Sequence[Forward]:
        """The same for all of `specs`.  Raises ForwardError, and then all that listened still does."""
        await trio.lowlevel.checkpoint()
        known = {forward.spec.bare: forward for forward in self._forwards}
        for spec in specs:
            if spec.bare not in known:
                there = ", ".join(str(forward.spec) for forward in self._forwards) or "nothing is"
                raise ForwardError(f"{spec} is not forwarded; {there}")
        gone = [known[spec] for spec in dict.fromkeys(spec.bare for spec in specs)]
        for forward in gone:
            self._remove(forward, connections=connections)
        return gone

    def list(self) -> list[Forward]:
        """The forwards, oldest first."""
        return list(self._forwards)

    def _check(self, spec: Spec) -> None:
        for forward in self._forwards:
            if spec.bare == forward.spec.bare:
                raise ForwardError(f"{spec} is forwarded already")
            if where := _common(spec, forward):
                raise ForwardError(f"cannot forward {spec}: {where} is forwarded already, by {forward.spec}")
        if len(self._forwards) >= MAX_FORWARDS:
            raise ForwardError(f"cannot forward {spec}: there are {MAX_FORWARDS} forwards already")
        if self._allowed and spec.host_path is None:
            address = ip_address(spec.host_address or "127.0.0.1")
            if not any(address in network for network in self._allowed if network.version == address.version):
                allowed = ", ".join(map(str, self._allowed))
                raise ForwardError(f"cannot forward {spec}: {address} is not an address that is allowed: {allowed}")
        if spec.target != "net" and spec.target not in self.connectors:
            raise ForwardError(f"cannot forward {spec}: {_MISSING[spec.target]}")
        if spec.protocol == "udp" and spec.target == "net" and self._datagrams is None:
            raise ForwardError(f"cannot forward {spec}: udp is not served here")

    async def _stream(self, spec: Spec) -> StreamForward:
        deliver = self._deliver if spec.target == "net" else self._counted(relay_to(self.connectors[spec.target]))
        if spec.host_path is not None:
            listener, unlink = listen_at(spec, self._unix)
            return StreamForward(spec, [listener], deliver, self._admit, unlink)
        listeners = await listen_on(spec, self._helper)
        return StreamForward(replace(spec, host_port=listeners[0].getsockname()[1]), listeners, deliver, self._admit)

    def _counted(self, deliver: Deliver) -> Deliver:
        async def counted(stream: trio.SocketStream, spec: Spec) -> None:
            self.relayed += 1
            try:
                await deliver(stream, spec)
            finally:
                self.relayed -= 1

        return counted

    async def _datagram(self, spec: Spec) -> DatagramForward:
        datagrams = self._datagrams if spec.target == "net" else self._forwarder
        assert datagrams is not None
        sockets = await listen_on(spec, self._helper)
        return DatagramForward(replace(spec, host_port=sockets[0].getsockname()[1]), sockets, datagrams)


def _common(spec: Spec, forward: Forward) -> str | None:
    """Where both would listen, in words.  Another process in the way is for the system to find."""
    other = forward.spec
    if spec.host_path is not None or other.host_path is not None:
        return spec.host_path if spec.host_path == other.host_path else None
    if spec.protocol != other.protocol or spec.host_port != other.host_port:
        return None
    wanted = [spec.host_address] if spec.host_address is not None else ["127.0.0.1", "::1"]
    for text in wanted:
        address = ip_address(text)
        for bound, port in forward.addresses:
            there = ip_address(bound)
            if address.version == there.version and (
                address == there or address.is_unspecified or there.is_unspecified
            ):
                return place(bound, port)
    return None

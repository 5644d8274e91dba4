"""A client of a UDP forward, as the guest sees it: an address and a port that his answers go back to.

The host's socket is the forward's (`portfwd.datagrams`), which also knows when a client was silent for too long.
"""

from __future__ import annotations

import errno
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from tapdev.link import LinkClosed
from vpnkit.flow.host import text
from vpnkit.net.udp_mapping import Route, UdpMapping

if TYPE_CHECKING:
    from collections.abc import Sequence

    from portfwd.datagrams import Reply
    from vpnkit.net.guest import Guest

MAX_INBOUND: Final = 4096  # clients of all UDP forwards to one guest; another one is not heard


class InboundMapping(UdpMapping):
    """One client.  A datagram of the guest that finds its route goes back to him."""

    __slots__ = ("_guest", "_key", "_reply", "_source", "_source_port")

    def __init__(
        self,
        guest: Guest,
        destination: bytes,
        port: int,
        caller: tuple[bytes, int | None],
        client: tuple[str, int],
        reply: Reply,
    ) -> None:
        """`client` calls the guest's `destination` and `port` from `caller`, whose port may be replaced if it is taken.

        Raises OSError when there is no room, or no port.
        """
        table = guest.udp
        if len(table.inbound) >= MAX_INBOUND:
            guest.count("udp_inbound_limit")
            raise OSError(errno.ENOBUFS, f"more than {MAX_INBOUND} clients")
        source, source_port = caller
        tail = port.to_bytes(2, "big")
        for ours in guest.tcp.ports(source_port):
            key = destination + source + tail + ours.to_bytes(2, "big")
            if key not in table.routes:
                break
        else:
            raise OSError(errno.EADDRNOTAVAIL, "every port towards the guest is in use")
        super().__init__(table, guest.next_number(), key, destination, port, guest.mac_of(destination), None)
        self._guest = guest
        self._source = source
        self._source_port = ours
        self._reply: Reply | None = reply
        self.addressed = text((str(ip_address(source)), ours))
        self.remote = text(client)
        table.inbound[key] = self
        table.routes[key] = Route(self, source + ours.to_bytes(2, "big"), client)

    @property
    def is_open(self) -> bool:
        return self._reply is not None

    def send_to_guest(self, data: bytes, segment: int) -> None:
        """What the client sent: a datagram, or with `segment` many of that size.  Does not wait."""
        if self._reply is None:
            return
        now = self._guest.now()
        self.active_at = now
        self.bytes_to_guest += len(data)
        self.mac = self._guest.mac_of(self.address)
        try:
            self._table.emit(self._source, self._source_port, self, (data,), segment or len(data))
        except LinkClosed:
            pass  # the link's own task sees it too, and ends us

    def _send(self, parts: Sequence[memoryview], route: Route, size: int) -> None:
        if self._reply is not None:
            self.bytes_to_host += sum(map(len, parts))
            self._reply(parts, size)

    def close(self) -> None:
        """Forget the client.  Idempotent."""
        if self._reply is not None:
            self._reply = None
            self._train = []
            del self._table.inbound[self.key]
            self._table.routes.pop(self.key, None)

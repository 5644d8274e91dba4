"""A lab with IPv6: the host has a way to the IPv6 world, which is the remote host, a router, and what is behind it.

guest - (gateway) host - 2001:db8:1::2 remote - 2001:db8:2::2 far, with a smaller MTU on the last link.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.interop.guest_tools import Lab, Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX6 = "fd65:7670:6e6b::/64"
GATEWAY6 = "fd65:7670:6e6b::1"
ALIAS6 = "fd65:7670:6e6b::2"  # the host's ::1
GUEST6 = "fd65:7670:6e6b::3"  # of `vpnkit run`
HOST6 = "2001:db8:1::1"  # towards the remote host
REMOTE6 = "2001:db8:1::2"
ROUTER6 = "2001:db8:2::1"  # the remote host, from behind
FAR6 = "2001:db8:2::2"
FAR_MTU = 1400


def has_no_duplicates(namespace: Namespace) -> None:
    """Addresses may be used at once: what is detected takes a second."""
    for which in ("all", "default"):
        namespace.set(f"conf/{which}/accept_dad", 0, "ipv6")


class Lab6(Lab):
    """With `ipv4` the host has IPv4 too."""

    def __init__(self, *, ipv4: bool = True) -> None:
        super().__init__()
        self.far = Namespace.new()
        for namespace, device, address in (
            (self.host, "uplink", HOST6),
            (self.remote, "eth0", REMOTE6),
        ):
            namespace.run("ip", "address", "add", f"{address}/64", "dev", device, "nodad")
        if not ipv4:
            self.host.run("ip", "-4", "address", "flush", "dev", "uplink")
        self.host.run("ip", "-6", "route", "add", "default", "via", REMOTE6)
        self.remote.set("conf/all/forwarding", 1, "ipv6")
        mtu = ("mtu", str(FAR_MTU))
        self.remote.run("ip", "link", "add", "east", *mtu, "type", "veth", "peer", "west", "netns", self.far.path)
        self.remote.run("ip", "address", "add", f"{ROUTER6}/64", "dev", "east", "nodad")
        self.remote.run("ip", "link", "set", "east", "up")
        self.far.run("ip", "address", "add", f"{FAR6}/64", "dev", "west", "nodad")
        self.far.run("ip", "link", "set", "west", *mtu, "up")
        self.far.run("ip", "-6", "route", "add", "default", "via", ROUTER6)
        for namespace in (self.host, self.remote, self.far):
            namespace.set("icmp/ratelimit", 0, "ipv6")

    @contextmanager
    def without_ipv6(self) -> Iterator[None]:
        """The host has no way to the IPv6 world for a while."""
        self.host.run("ip", "-6", "route", "del", "default")
        try:
            yield
        finally:
            self.host.run("ip", "-6", "route", "add", "default", "via", REMOTE6)

    def forget_paths(self, *others: Namespace) -> None:
        """No path MTU that an earlier test found out."""
        for namespace in (self.host, *others):
            namespace.run("ip", "-6", "route", "flush", "cache")

    def close(self) -> None:
        super().close()
        self.far.close()

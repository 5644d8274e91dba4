"""A lab with IPv6: the host has a way to the IPv6 world, which is the remote host, a router, and what is behind it.

guest - (gateway) host - 2001:db8:1::2 remote - 2001:db8:2::2 far, with a smaller MTU on the last link.
"""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.interop.guest_tools import Directory, Lab, Namespace, wait_for
from tests.interop.link_guests import TAP, WAYS, LinkGuest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.interop.link_guests import Instance, Program

PREFIX6 = "fd65:7670:6e6b::/64"
GATEWAY6 = "fd65:7670:6e6b::1"
ALIAS6 = "fd65:7670:6e6b::2"  # the host's ::1
GUEST6 = "fd65:7670:6e6b::3"  # of `vpnkit run`
HOST6 = "2001:db8:1::1"  # towards the remote host
REMOTE6 = "2001:db8:1::2"
ROUTER6 = "2001:db8:2::1"  # the remote host, from behind
FAR6 = "2001:db8:2::2"
FAR_MTU = 1400


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


# Guests


class Guest6:
    """A guest that has no IPv4, on a link of `instance`: this kernel, and programs that resolve by `resolv_conf`."""

    def __init__(self, link: LinkGuest, directory: Path) -> None:
        self.link = link
        self.namespace = link.namespace
        self.resolv_conf = directory / "resolv.conf"
        self.resolv_conf.touch()

    def addresses(self, scope: str = "global") -> list[str]:
        """Those that may be used."""
        told = json.loads(self.namespace.run("ip", "-6", "-json", "address", "show", "dev", TAP, "scope", scope))
        found = [address for device in told for address in device.get("addr_info", ())]
        return [address["local"] for address in found if "local" in address and not address.get("tentative")]

    def wait_address(self, seconds: float = 10.0) -> str:
        """Its first address, once it may be used."""
        wait_for(lambda: bool(self.addresses()), "it has an address", seconds)
        return self.addresses()[0]

    def has_default_route(self) -> bool:
        return self.namespace.run("ip", "-6", "route", "show", "default") != ""

    def run(self, *argv: str, timeout: float = 30, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`argv` in the guest, with its own /etc/resolv.conf."""
        bind = f'mount --bind {self.resolv_conf} /etc/resolv.conf; exec "$@"'
        with self.namespace.entered():
            done = subprocess.run(
                ["unshare", "--mount", "sh", "-ec", bind, "sh", *argv],
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        assert not check or done.returncode == 0, f"{argv}: {done.returncode} {done.stdout} {done.stderr}"
        return done

    def resolve_by_rdnss(self) -> str:
        """Become a guest of RFC 8106: what a router says is its resolv.conf, which is returned."""
        heard = self.namespace.run("rdisc6", "-1", "-r", "3", "-w", "4000", TAP)
        servers = re.findall(r"Recursive DNS server +: (\S+)", heard)
        text = "".join(f"nameserver {server}\n" for server in servers)
        self.resolv_conf.write_text(text)
        return text


@contextmanager
def guest6(program: Program, instance: Instance, kind: str = "qemu", number: int = 1) -> Iterator[Guest6]:
    link = LinkGuest(program, instance, WAYS[kind], number=number)
    try:
        with Directory() as directory:
            yield Guest6(link, directory)
    finally:
        link.close()

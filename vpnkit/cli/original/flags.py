"""The table of the original's flags, and how its command line is read.

It is cmdliner's: long options, `--flag VALUE` or `--flag=VALUE`, and any prefix that fits one flag only, as in
`--dhcp FILE`.  Each flag is used, or accepted without effect because nothing here needs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag.  Without a `value` it is a switch."""

    name: str
    value: str  # what stands for it in help
    about: str
    many: bool = False  # may be repeated
    used: bool = True  # False: accepted, and nothing comes of it


FLAGS: Final = (
    Flag("ethernet", "ADDRESS", "where VMs come in, with VMN3T: PATH, fd:N, vsock://[CID]:PORT, hyperkit://:PORT/DIR"),
    Flag("port", "ADDRESS", "the 9P tree that makes forwards; addresses as above; may be repeated", many=True),
    Flag("introspection", "ADDRESS", "the state as a 9P tree that is only read; may be repeated", many=True),
    Flag("diagnostics", "ADDRESS", "the state as a tar for each who connects; may be repeated", many=True),
    Flag("pcap", "ADDRESS", "a pcap stream for each who connects; may be repeated", many=True),
    Flag("pcap-snaplen", "OCTETS", "of each packet in all.pcap, and so of --pcap (128)"),
    Flag("max-connections", "N", "host sockets at once"),
    Flag("port-forwards", "ADDRESS", "the forwarder in the VM: HyperKit's socket `connect`, for forwards of --port"),
    Flag("vsock-path", "ADDRESS", "another name for --port-forwards"),
    Flag("dns", "FILE", "name servers, followed; without it names are this host's resolver's to know"),
    Flag("http", "FILE", "the HTTP proxy that guests' web traffic goes by, as JSON, followed"),
    Flag("http-api-path", "PATH", "where the proxy's configuration is read and replaced"),
    Flag("hosts", "FILE", "names with addresses, followed; '' for none (/etc/hosts)"),
    Flag("host-names", "NAMES", "of the host alias, with commas (host.internal and others)"),
    Flag("gateway-names", "NAMES", "of the gateway, with commas (gateway.internal and others)"),
    Flag("vm-names", "NAMES", "of the guest that asks, with commas (vm.internal)"),
    Flag("listen-backlog", "N", "connections that may wait at a forward of --port (128)"),
    Flag("port-max-idle-time", "SECONDS", "connections are not ended for being idle", used=False),
    Flag("debug", "", "log everything; so does $VPNKIT_DEBUG"),
    Flag("server-macaddr", "MAC", "of the gateway (f6:16:36:bc:f9:c6)"),
    Flag("domain", "NAME", "that DHCP tells"),
    Flag("allowed-bind-addresses", "ADDRESSES", "that forwards may listen on, with commas (0.0.0.0: any)"),
    Flag("gateway-ip", "ADDRESS", "our address (192.168.65.1)"),
    Flag("host-ip", "ADDRESS", "that reaches this host's 127.0.0.1 (192.168.65.2); 0.0.0.0 disables it"),
    Flag("lowest-ip", "ADDRESS", "the first guest's (192.168.65.3)"),
    Flag("highest-ip", "ADDRESS", "the last guest's (192.168.65.254)"),
    Flag("dhcp-path", "FILE", "dhcp.json, followed"),
    Flag("mtu", "OCTETS", "of the largest packet (1500)"),
    Flag("udpv4-forwards", "LIST", "PORT:IP:PORT,...: UDP ports of the gateway that lead there, as this host sees it"),
    Flag("tcpv4-forwards", "LIST", "the same for TCP"),
    Flag("gateway-forwards", "FILE", "the same as JSON, followed"),
    Flag("forwards", "FILE", "tunnels for outgoing connections, as JSON"),
    Flag("gc-compact-interval", "SECONDS", "there is no heap to compact", used=False),
    Flag("log-destination", "NAME", "logs go to stderr; of versions before 0.6", used=False),
)
BY_NAME: Final = {flag.name: flag for flag in FLAGS}
OURS: Final = ("--help", "--version")  # answered as by every command here


@dataclass
class Given:
    """What a command line said."""

    values: dict[str, list[str]] = field(default_factory=dict)

    def all(self, name: str) -> list[str]:
        """Every value of a flag."""
        assert name in BY_NAME
        return self.values.get(name, [])

    def one(self, name: str) -> str | None:
        """The value of a flag, or None."""
        return next(iter(self.all(name)), None)

    def without_effect(self) -> list[str]:
        """The flags that were given and change nothing."""
        return [name for name in self.values if not BY_NAME[name].used]


def is_original(word: str) -> bool:
    """Whether a command line that begins with `word` is the original's."""
    return word.startswith("--") and word not in OURS and bool(_matching(word.partition("=")[0]))


def read(argv: Sequence[str]) -> Given:
    """The flags of a command line.  Raises click.UsageError."""
    given = Given()
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("--") or name == "--":
            raise click.UsageError(f"{word!r} is too much: every value follows a flag.")
        flag = _flag(name)
        if flag.value and not equals:
            if not words or (words[0].startswith("-") and len(words[0]) > 1):
                raise click.UsageError(f"{name} needs a value: --{flag.name} {flag.value}.")
            value = words.pop(0)
        if equals and not flag.value:
            raise click.UsageError(f"{name} takes no value.")
        found = given.values.setdefault(flag.name, [])
        if found and not flag.many:
            raise click.UsageError(f"--{flag.name} is there twice.")
        found.append(value)
    return given


def _flag(name: str) -> Flag:
    matching = _matching(name)
    if not matching:
        raise click.UsageError(f"{name} is none of the original's flags; docs/original.md has them.")
    if len(matching) > 1:
        names = ", ".join(f"--{flag.name}" for flag in matching)
        raise click.UsageError(f"{name} may be one of {names}.")
    return matching[0]


def _matching(name: str) -> list[Flag]:
    text = name.removeprefix("--")
    if text in BY_NAME:
        return [BY_NAME[text]]
    return [flag for flag in FLAGS if text and flag.name.startswith(text)]

"""The operating system's resolver: what the host's own programs would get, from whatever it asks.

That is hosts files, mDNS, a VPN's names and whatever else the system is told to ask, which no server in resolv.conf may
know.  It knows addresses of names and names of addresses, so other questions are for resolv.conf's servers; it tells no
TTL, so its answers have a short one, and it does not say whether what is missing is the name or the address, so both
families are asked for at once.

A name with a dot in it is asked for as it is: the host's search list is not for guests.  The C library does not find
such a name in /etc/hosts then, so that file is read here.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import trio

from vpnkit.proto.dns_names import reverse_address
from vpnkit.services.hosts import Hosts
from vpnkit.wire import dns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vpnkit.wire.dns import Query

HOST_TTL: Final = 10  # seconds
MAX_THREADS: Final = 16  # questions under way; the others wait
MISSING: Final = frozenset(
    getattr(socket, name)
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")
    if hasattr(socket, name)  # which of them there are differs
)
NO_ADDRESS: Final = MISSING - {socket.EAI_NONAME}


def is_for_host(query: Query) -> bool:
    """Whether the operating system can be asked `query`."""
    if query.qclass != dns.IN:
        return False
    return query.qtype in (dns.A, dns.AAAA) or (query.qtype == dns.PTR and reverse_address(query.name) is not None)


class HostResolver:
    """Asks in threads.  The two functions are the standard library's."""

    def __init__(
        self,
        getaddrinfo: Callable[..., Sequence[tuple[Any, ...]]] = socket.getaddrinfo,
        getnameinfo: Callable[..., tuple[str, str]] = socket.getnameinfo,
        hosts: str = "/etc/hosts",
    ) -> None:
        self._hosts = Hosts((hosts,))
        self._getaddrinfo = getaddrinfo
        self._getnameinfo = getnameinfo
        self._threads = trio.CapacityLimiter(MAX_THREADS)

    async def answer(self, query: Query) -> bytes:
        """The response to a query that `is_for_host`."""
        self._hosts.look()
        written = self._hosts.names.answer(query, b"")
        if written is not None and query.qtype != dns.PTR:
            return written
        look = self._reverse if query.qtype == dns.PTR else self._forward
        return await trio.to_thread.run_sync(look, query, abandon_on_cancel=True, limiter=self._threads)

    def _forward(self, query: Query) -> bytes:
        try:
            name = _text(query.name)
            found = self._getaddrinfo(name + "." if "." in name else name, None, socket.AF_UNSPEC, socket.SOCK_STREAM)
        except UnicodeError:
            return dns.encode_reply(query, dns.NXDOMAIN)  # no name of a host has such octets
        except socket.gaierror as error:
            return dns.encode_reply(query, _rcode(error))
        wanted = socket.AF_INET if query.qtype == dns.A else socket.AF_INET6
        addresses = dict.fromkeys(
            ip_address(str(sockaddr[0]).partition("%")[0]).packed
            for family, _, _, _, sockaddr in found
            if family == wanted and isinstance(sockaddr, tuple)
        )
        return dns.encode_reply(
            query, dns.NOERROR, [dns.encode_record(query.qtype, HOST_TTL, address) for address in addresses]
        )

    def _reverse(self, query: Query) -> bytes:
        address = reverse_address(query.name)
        assert address is not None
        try:
            name, _ = self._getnameinfo((str(ip_address(address)), 0), socket.NI_NAMEREQD)
            rdata = dns.encode_name(name)
        except (UnicodeError, ValueError):
            return dns.encode_reply(query, dns.SERVFAIL)
        except socket.gaierror as error:
            return dns.encode_reply(query, _rcode(error))
        return dns.encode_reply(query, dns.NOERROR, [dns.encode_record(dns.PTR, HOST_TTL, rdata)])


def _rcode(error: socket.gaierror) -> int:
    if error.errno in NO_ADDRESS:
        return dns.NOERROR
    return dns.NXDOMAIN if error.errno in MISSING else dns.SERVFAIL


def _text(name: bytes) -> str:
    """A name as the system writes it.  Raises UnicodeError for octets that no host's name has."""
    labels = []
    i = 0
    while length := name[i]:
        label = name[i + 1 : i + 1 + length].decode("ascii")
        if not label.replace("-", "").replace("_", "").isalnum():
            raise UnicodeError(f"{label!r} is not part of a host's name")
        labels.append(label)
        i += 1 + length
    return ".".join(labels)

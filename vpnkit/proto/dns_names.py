"""The names that are answered here: ours, and those of the operator's hosts files."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final

from vpnkit.wire import dns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vpnkit.wire.dns import Query

LOCAL_TTL: Final = 30  # seconds; asking us again costs nobody anything

_LOCALHOST: Final = b"\x09localhost\0"
_REVERSE_4: Final = b"\x07in-addr\x04arpa\0"
_REVERSE_6: Final = b"\x03ip6\x04arpa\0"
_LOOPBACKS: Final = (bytes((127, 0, 0, 1)), IPv6Address("::1").packed)


class LocalNames:
    """Names that are answered here.  `networks` are ours, as (address, prefix length): reverse queries about an
    address in them that nobody has are answered NXDOMAIN instead of being told to strangers.  When `is_partial`, only
    addresses of the names are known here, and not even those of localhost.

    Names are added by the operator, so the table is not bounded.
    """

    def __init__(self, networks: Iterable[tuple[bytes, int]] = (), *, is_partial: bool = False) -> None:
        self._is_partial = is_partial
        self._networks = [
            (len(address), 8 * len(address) - prefix, int.from_bytes(address, "big") >> (8 * len(address) - prefix))
            for address, prefix in networks
        ]
        self._names: dict[bytes, tuple[list[bytes], list[bytes]]] = {}  # records: A, AAAA
        self._askers: set[bytes] = set()
        self._asker = b""  # the first of them, which is what an asker's own address is called
        self._reverse: dict[bytes, bytes] = {}  # address to name
        self.addresses_of: Callable[[bytes], Sequence[bytes]] = lambda client: (client,)  # of an asker, his first
        if not is_partial:
            self.add("localhost", *_LOOPBACKS)

    def add(self, name: str, *addresses: bytes) -> None:
        """`name` has `addresses` (4 or 16 octets) too; the first name of an address is the one PTR tells.

        A name without addresses exists, and has none.  Raises ValueError when it is not a domain name.
        """
        key = dns.encode_name(name)
        records = self._names.setdefault(key, ([], []))
        for address in addresses:
            four = len(address) == 4
            record = dns.encode_record(dns.A if four else dns.AAAA, LOCAL_TTL, address)
            if record not in records[not four]:
                records[not four].append(record)
            self._reverse.setdefault(address, key)

    def remove(self, name: str) -> None:
        """Undo `add`; an unknown name is ignored."""
        key = dns.encode_name(name)
        self._names.pop(key, None)
        for address in [address for address, known in self._reverse.items() if known == key]:
            del self._reverse[address]

    def add_asker(self, name: str) -> None:
        """`name` is whoever asks for it.  Raises ValueError when it is not a domain name."""
        key = dns.encode_name(name)
        self._askers.add(key)
        self._asker = self._asker or key

    def answer(self, query: Query, client_ip: bytes) -> bytes | None:
        """Our answer to the client at `client_ip` (4 or 16 octets), or None: somebody else must know."""
        name = query.name
        known = self._names.get(name)
        if known is None:
            if name in self._askers:
                known = ([], [])
                for address in self.addresses_of(client_ip):
                    four = len(address) == 4
                    known[not four].append(dns.encode_record(dns.A if four else dns.AAAA, LOCAL_TTL, address))
            elif name.endswith(b"\x04arpa\0"):
                return self._answer_reverse(query, client_ip)
            elif name.endswith(_LOCALHOST) and not self._is_partial:
                known = self._names[_LOCALHOST]  # RFC 6761 section 6.3
            else:
                return None
        if query.qclass not in (dns.IN, dns.ANY):
            return None
        if query.qtype == dns.A:
            records = known[0]
        elif query.qtype == dns.AAAA:
            records = known[1]
        elif self._is_partial:
            return None
        else:
            records = known[0] + known[1] if query.qtype == dns.ANY else []
        return _reply(query, dns.NOERROR, records)

    def _answer_reverse(self, query: Query, client_ip: bytes) -> bytes | None:
        address = reverse_address(query.name)
        if address is None or query.qclass not in (dns.IN, dns.ANY):
            return None
        name = self._reverse.get(address)
        if name is None and self._asker and address in self.addresses_of(client_ip):
            name = self._asker
        if name:
            wanted = query.qtype in (dns.PTR, dns.ANY)
            return _reply(query, dns.NOERROR, [dns.encode_record(dns.PTR, LOCAL_TTL, name)] if wanted else [])
        number = int.from_bytes(address, "big")
        for length, shift, network in self._networks:
            if length == len(address) and number >> shift == network:
                return _reply(query, dns.NXDOMAIN, [])
        return None


def _reply(query: Query, rcode: int, records: Sequence[bytes]) -> bytes:
    if query.edns_version:
        return dns.encode_reply(query, dns.BADVERS)
    return dns.encode_reply(query, rcode, records, authoritative=True)


def reverse_address(name: bytes) -> bytes | None:
    """The address that a whole name under in-addr.arpa or ip6.arpa stands for, 4 or 16 octets; else None."""
    if name.endswith(_REVERSE_4):
        base, count, digits = name[: -len(_REVERSE_4)], 4, 10
    elif name.endswith(_REVERSE_6):
        base, count, digits = name[: -len(_REVERSE_6)], 32, 16
    else:
        return None
    parts: list[int] = []
    i = 0
    while i < len(base):
        label = base[i + 1 : i + 1 + base[i]]
        i += 1 + base[i]
        if not label.isalnum() or len(label) > (3 if digits == 10 else 1):
            return None
        try:
            parts.append(int(label, digits))
        except ValueError:
            return None
    if len(parts) != count or (digits == 10 and max(parts) > 255):
        return None
    parts.reverse()
    if digits == 10:
        return bytes(parts)
    return bytes(high << 4 | low for high, low in zip(parts[::2], parts[1::2], strict=True))

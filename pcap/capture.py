"""A capture: several rules that are fed the same frames, of all links, both ways, and never wait.

What a rule says of a packet of TCP or UDP is mostly the same for its whole flow.  So a flow is decided once, and from
then on a frame costs one look at its headers, one look into a table and one copy of its beginning for each ring.
Rules that look at more (lengths, flags, names) are asked about every frame.

Super-frames and partial checksums are recorded as the link carried them.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from pcap.headers import fault
from pcap.predicates import IPV4, IPV6, TCP, UDP, Predicate
from pcap.private import PrivateRing
from pcap.ring import PARTIAL, RECORD, Buffer, Direction, Ring, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

MAX_RULES: Final = 64
MAX_FLOWS: Final = 4096  # decisions, for each direction and protocol; then all are forgotten
MAX_INTERFACES: Final = 4096  # names of links; older ones lose theirs
LOOK: Final = 2048  # octets of a frame that a predicate sees

# EtherType 2 | version and IHL 1 | total length 2 | flags and fragment 2 | protocol 1 | addresses and ports 12 |
# UDP length 2: from octet 12 of an IPv4 frame without options
PLAIN: Final = struct.Struct("!HBxHxxHxBxx12sH").unpack_from
# payload length 2 | next header 1 | addresses and ports 36 | UDP length 2: from octet 18 of an IPv6 frame
PLAIN6: Final = struct.Struct("!HBx36sH").unpack_from
NOT_WHOLE: Final = 0x3FFF  # more fragments, or a fragment's offset


Place: TypeAlias = "tuple[Callable[[bytes], None], int]"
"""What takes records, and how long they may be."""


class Decision(NamedTuple):
    """Where a frame goes."""

    places: tuple[Place, ...]
    snaplen: int  # the greatest of them


NOWHERE: Final = Decision((), 0)


class Capture:
    """Rings by name.  Has the signature of a tap, so that `Tee(link, capture)` feeds it; `tap` is for several links."""

    def __init__(self, rules: Iterable[Rule] = (), *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self.counters: Counter[str] = Counter()
        self._clock_ns = clock_ns
        self._rings: dict[str, Ring] = {}
        self._attached: list[Ring] = []
        self._interfaces: dict[int, str] = {0: ""}
        self._next_interface = 1
        # By direction and protocol: addresses and ports -> decision of the rules that decide for a flow
        self._flows: tuple[dict[int, dict[bytes, Decision]], ...] = tuple({TCP: {}, UDP: {}} for _ in Direction)
        self._of_flow: tuple[_Watch, ...] = ()
        self._of_packet: tuple[_Watch, ...] = ()
        for rule in rules:
            self.add(rule)
        self._tap = self.tap()

    # Rules

    @property
    def rings(self) -> dict[str, Ring]:
        """The rings by name: a copy, in the order of their rules."""
        return dict(self._rings)

    def __getitem__(self, name: str) -> Ring:
        return self._rings[name]

    def add(self, rule: Rule) -> Ring:
        """Begin to keep what `rule` wants.  Raises ValueError when there is a ring of that name, or MAX_RULES."""
        if rule.name in self._rings:
            raise ValueError(f"there is a capture named {rule.name} already")
        if len(self._rings) >= MAX_RULES:
            raise ValueError(f"there are {MAX_RULES} captures already")
        ring = self._rings[rule.name] = make_ring(rule)
        self._rules_changed()
        return ring

    def remove(self, name: str) -> None:
        """Forget a rule and its ring.  Raises KeyError."""
        del self._rings[name]
        self._rules_changed()

    def attach(self, ring: Ring) -> None:
        """Feed a ring that is not among `rings`."""
        self._attached.append(ring)
        self._rules_changed()

    def detach(self, ring: Ring) -> None:
        """Feed it no longer.  Raises ValueError."""
        self._attached.remove(ring)
        self._rules_changed()

    def _rules_changed(self) -> None:
        watches = [_Watch(ring) for ring in [*self._rings.values(), *self._attached]]
        self._of_flow = tuple(watch for watch in watches if watch.of_flow)
        self._of_packet = tuple(watch for watch in watches if not watch.of_flow)
        for flows in self._flows:
            for decisions in flows.values():
                decisions.clear()

    # Links

    def interface(self, number: int) -> str:
        """The name of a link; empty when it was forgotten."""
        return self._interfaces.get(number, "")

    def interface_number(self, name: str) -> int:
        """The number of the link that is called so; a new one when there is none."""
        for number, known in self._interfaces.items():
            if known == name:
                return number
        return self._new_interface(name)

    def _new_interface(self, name: str) -> int:
        number = self._next_interface
        self._next_interface = number % 0xFFFF + 1
        self._interfaces.pop(number, None)
        self._interfaces[number] = name
        if len(self._interfaces) > MAX_INTERFACES:
            del self._interfaces[next(iter(self._interfaces))]
        return number

    def tap(self, name: str | None = None) -> Callable[[Sequence[Buffer], int, int, int, bool], None]:
        """What a link is to call with each frame; `name` is the link's."""
        number = 0 if name is None else self._new_interface(name)
        clock, pack = self._clock_ns, RECORD.pack
        tcp = tuple(flows[TCP].get for flows in self._flows)  # by direction
        udp = tuple(flows[UDP].get for flows in self._flows)

        def tap(
            parts: Sequence[Buffer],
            direction: int = Direction.UNKNOWN,
            gso_type: int = 0,
            gso_size: int = 0,
            checksum_partial: bool = False,
            /,
        ) -> None:
            """Show one frame, the concatenation of `parts`, to every rule."""
            first = parts[0]
            length = in_first = len(first)
            if len(parts) > 1:
                for part in parts[1:]:
                    length += len(part)
            decision = None
            try:
                kind, version, total, fragment, protocol, ends, size = PLAIN(first, 12)
                if kind == IPV4:
                    if version == 0x45 and not fragment & NOT_WHOLE and total + 14 <= length:
                        if protocol == TCP:
                            if 20 <= (first[46] >> 2 & 60) <= total - 20:
                                decision = tcp[direction](ends)
                        elif protocol == UDP and 8 <= size <= total - 20:
                            decision = udp[direction](ends)
                elif kind == IPV6:
                    total, protocol, ends, size = PLAIN6(first, 18)
                    if version >> 4 == 6 and total + 54 <= length:
                        if protocol == TCP:
                            if 20 <= (first[66] >> 2 & 60) <= total:
                                decision = tcp[direction](ends)
                        elif protocol == UDP and 8 <= size <= total:
                            decision = udp[direction](ends)
            except (struct.error, IndexError):
                pass  # a short one, or in many parts
            if decision is None or self._of_packet:
                decision = self._decide(parts, length, direction, decision)
            places, snaplen = decision
            if not places:
                return
            if in_first >= snaplen or in_first == length:
                data = bytes(first[:snaplen])
            elif len(parts) == 2:
                data = b"".join((first, parts[1][: snaplen - in_first]))
            else:
                data = _joined(parts, snaplen)
            flags = direction | PARTIAL if checksum_partial else direction
            record = pack(clock(), length, gso_size if gso_type else 0, number, flags) + data
            if len(places) == 1:
                places[0][0](record)
            else:
                for put, greatest in places:
                    put(record if len(record) <= greatest else record[:greatest])

        return tap

    def __call__(
        self,
        parts: Sequence[Buffer],
        direction: int = Direction.UNKNOWN,
        gso_type: int = 0,
        gso_size: int = 0,
        checksum_partial: bool = False,
        /,
    ) -> None:
        """Show one frame, the concatenation of `parts`, to every rule."""
        self._tap(parts, direction, gso_type, gso_size, checksum_partial)

    def _decide(self, parts: Sequence[Buffer], length: int, direction: int, of_flow: Decision | None) -> Decision:
        """Ask the rules; those that decide for a flow only if they have not been asked about this one."""
        head = bytes(parts[0][:LOOK]) if len(parts) == 1 else _joined(parts, LOOK)
        if of_flow is None:
            malformed = fault(head, length) != ""
            of_flow = _decision(
                [watch.place for watch in self._of_flow if watch.wants(head, length, direction, malformed)]
            )
            if not malformed:
                self._remember(head, direction, of_flow)
        else:
            malformed = False
        more = [watch.place for watch in self._of_packet if watch.wants(head, length, direction, malformed)]
        return _decision([*of_flow.places, *more]) if more else of_flow

    def _remember(self, head: bytes, direction: int, decision: Decision) -> None:
        """`decision` holds for every packet of the flow, if the frame belongs to one."""
        if len(head) < 42:
            return
        kind, version, _, fragment, protocol, ends, _ = PLAIN(head, 12)
        if kind == IPV6 and len(head) >= 62:
            protocol, ends = PLAIN6(head, 18)[1:3]
        elif kind != IPV4 or version != 0x45 or fragment & NOT_WHOLE:
            return
        decisions = self._flows[direction].get(protocol)
        if decisions is None:
            return
        if len(decisions) >= MAX_FLOWS:
            decisions.clear()
            self.counters["flows_forgotten"] += 1
        decisions[ends] = decision


def make_ring(rule: Rule) -> Ring:
    """A ring for `rule`, fed by nobody."""
    return PrivateRing(rule) if rule.private else Ring(rule)


class _Watch:
    """A rule and its ring."""

    __slots__ = ("_direction", "_malformed", "_matches", "of_flow", "place")

    def __init__(self, ring: Ring) -> None:
        rule = ring.rule
        when = rule.when
        self.of_flow = isinstance(when, Predicate) and when.of_flow
        self.place: Place = (ring.put, RECORD.size + rule.snaplen)
        self._direction = rule.direction
        self._malformed = rule.malformed
        self._matches = when.matches if isinstance(when, Predicate) else lambda head, length, direction: when(head)

    def wants(self, head: bytes, length: int, direction: int, malformed: bool) -> bool:
        return (
            self._malformed in (None, malformed)
            and self._direction in (Direction.UNKNOWN, direction)
            and self._matches(head, length, direction)
        )


def _decision(places: list[Place]) -> Decision:
    if not places:
        return NOWHERE
    return Decision(tuple(places), max(greatest for _, greatest in places) - RECORD.size)


def _joined(parts: Sequence[Buffer], limit: int) -> bytes:
    """The first octets of `parts`."""
    head = bytes(parts[0][:limit])
    for part in parts[1:]:
        room = limit - len(head)
        if room <= 0:
            break
        head += part[:room]
    return head

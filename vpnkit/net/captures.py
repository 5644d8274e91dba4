"""The captures of one network: the rings that every guest's link is shown to, who may add some, and who reads them.

Reading never holds a guest up: a reader who is slow misses packets, which is counted, and to prepare packets for him
takes a part of the processor's time at most.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pcap.capture import Capture, make_ring
from pcap.names import NameBook, NameRing
from pcap.predicates import udp
from pcap.ring import KIB, OVERHEAD, Direction, Ring, Rule
from pcap.rules import default_rules
from tapdev.wrappers import Tee
from vpnkit.errors import VpnkitError
from vpnkit.net.capture_report import DIRECTIONS, AuditReport, CaptureReport, CaptureRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pcap.predicates import Predicate
    from tapdev.link import Link
    from vpnkit.net.capture_files import CaptureFiles

log = logging.getLogger(__name__)

SUFFIX: Final = ".pcap"
DNS: Final = "dns.pcap"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
MENTIONS_NAMES: Final = re.compile(r"\bname\b")
MAX_SNAPLEN: Final = 65549  # octets of the largest super-frame
MAX_RING: Final = 64 << 20  # octets
MAX_MEMORY: Final = 256 << 20  # of all rings that were added
FOLLOW_RING: Final = 4 << 20  # what waits for a reader who follows a filter
MAX_AUDIT: Final = 1000  # lines; the oldest go


class CaptureError(VpnkitError):
    """A capture cannot be made, or is not there."""


class NoCapture(CaptureError):
    """There is no capture of that name."""


class CaptureExists(CaptureError):
    """There is one already, or there is no place for more."""


class Captures:
    """The captures of a network."""

    def __init__(self, rules: Sequence[Rule] | None = None, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self.capture = Capture(default_rules() if rules is None else rules, clock_ns=clock_ns)
        self.names = NameBook()
        # The number of the flow that packets with this protocol and key (addresses and ports, the guest's first) are of
        self.flow_number: Callable[[int, bytes], int | None] = lambda protocol, key: None
        self._clock_ns = clock_ns
        self._own = frozenset(self.capture.rings)
        self._audit: deque[AuditReport] = deque(maxlen=MAX_AUDIT)
        self._learnt = 0  # number of the first packet of DNS that nobody learnt from
        self._name_ring: NameRing | None = None
        self._warned: set[str] = set()
        self.files: CaptureFiles | None = None

    def keep(self, directory: Path) -> None:
        """Keep the rings in files of `directory`, and begin with what is there.  Raises ConfigError."""
        from vpnkit.net.capture_files import CaptureFiles

        self.files = CaptureFiles(self, directory)

    def warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            log.warning("%s", message)

    def wrap(self, link: Link, name: str) -> Tee:
        """`link`, with its frames shown to the rules."""
        return Tee(link, self.capture.tap(name))

    # Rules

    def reports(self) -> list[CaptureReport]:
        return [_report(ring) for ring in self.capture.rings.values()]

    def ring(self, name: str) -> Ring:
        """The ring of that name, with `.pcap` or without.  Raises NoCapture."""
        rings = self.capture.rings
        found = rings.get(name, rings.get(name + SUFFIX))
        if found is None:
            raise NoCapture(f"no capture is called {name!r}; there are {', '.join(rings)}")
        return found

    def predicate(self, text: str) -> Predicate:
        """The filter `text`.  Raises FilterError."""
        from pcap.filter import compile_filter  # half of what captures take to import, and mostly not needed

        predicate = compile_filter(text, self.names)
        if self._name_ring is None and MENTIONS_NAMES.search(text):
            self.learn_names()
            rule = Rule("names", udp(src_port=53), MAX_SNAPLEN, MAX_SNAPLEN + OVERHEAD, Direction.OUT)
            self._name_ring = NameRing(rule, self.names)
            self.capture.attach(self._name_ring)
        return predicate

    def add(self, wanted: CaptureRequest) -> CaptureReport:
        """Begin to keep.  Raises CaptureError, and FilterError."""
        if not NAME.fullmatch(wanted.name):
            raise CaptureError(f"capture name {wanted.name!r} is wrong: up to 63 letters, digits, '.', '_', '-'")
        if wanted.name.removesuffix(SUFFIX) in {name.removesuffix(SUFFIX) for name in self.capture.rings}:
            raise CaptureExists(f"there is a capture named {wanted.name} already")
        if not 1 <= wanted.snaplen <= MAX_SNAPLEN:
            raise CaptureError(f"snaplen {wanted.snaplen} is wrong: 1 to {MAX_SNAPLEN} octets")
        if not wanted.snaplen + OVERHEAD <= wanted.ring <= MAX_RING:
            least = wanted.snaplen + OVERHEAD
            raise CaptureError(f"ring {wanted.ring} is wrong: {least} (one packet) to {MAX_RING} octets")
        if wanted.direction not in DIRECTIONS:
            raise CaptureError(f"direction {wanted.direction!r} is none of {', '.join(DIRECTIONS)}")
        others = sum(r.rule.limit_bytes for name, r in self.capture.rings.items() if name not in self._own)
        if others + wanted.ring > MAX_MEMORY:
            raise CaptureExists(f"no place: rings that were added have {others} of {MAX_MEMORY} octets")
        rule = Rule(
            wanted.name,
            self.predicate(wanted.filter),
            wanted.snaplen,
            wanted.ring,
            Direction(DIRECTIONS.index(wanted.direction)),
            private=wanted.private,
        )
        try:
            return _report(self.capture.add(rule))
        except ValueError as error:
            raise CaptureExists(str(error)) from None

    def remove(self, name: str) -> CaptureReport:
        """Forget a capture.  Raises NoCapture."""
        ring = self.ring(name)
        self.capture.remove(ring.rule.name)
        return _report(ring)

    @contextmanager
    def filtered(self, text: str, *, snaplen: int = MAX_SNAPLEN, private: bool = False) -> Iterator[Ring]:
        """A ring of what `text` wants from now on, for one reader.  Raises FilterError."""
        snaplen = min(max(snaplen, 1), MAX_SNAPLEN)
        ring = make_ring(Rule("follow", self.predicate(text), snaplen, FOLLOW_RING, private=private))
        self.capture.attach(ring)
        try:
            yield ring
        finally:
            self.capture.detach(ring)

    # Readers

    def learn_names(self) -> None:
        """Learn from the DNS answers that came since this was called last."""
        ring = self.capture.rings.get(DNS)
        if ring is None:
            return
        while self._learnt < ring.seen:
            number, packets = ring.read(self._learnt, 64 * KIB)
            for packet in packets:
                if packet.direction == Direction.OUT:
                    self.names.learn(packet.data)
            self._learnt = number + len(packets)

    def audited(self, action: str, rule: str, process: tuple[int, int] | None) -> AuditReport:
        """A line of the audit log, which the caller may complete; `process` is (pid, uid)."""
        pid, uid = process if process is not None else (None, None)
        line = AuditReport(self._clock_ns() / 1e9, uid, pid, action, rule)
        self._audit.append(line)
        log.info("capture %s: %s by pid %s of uid %s", rule, action, pid, uid)
        return line

    def audit(self) -> list[AuditReport]:
        """Who read what, the oldest first."""
        return list(self._audit)


def _report(ring: Ring) -> CaptureReport:
    rule = ring.rule
    return CaptureReport(
        name=rule.name,
        filter=_text(rule),
        snaplen=rule.snaplen,
        ring=rule.limit_bytes,
        direction=DIRECTIONS[rule.direction],
        private=rule.private,
        packets=ring.packets,
        bytes=ring.captured,
        seen=ring.seen,
        dropped=ring.dropped,
    )


def _text(rule: Rule) -> str:
    text = str(rule.when)
    return "malformed" if rule.malformed else text

"""The captures as files, as the original's `--introspection` has them: `capture/all.pcap` and the others.

A file is made when it is opened, classic pcap.  Super-frames are not cut: nobody is to wait for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pcap.classic import Classic
from vpnkit.control.p9.nodes import Directory, Node, Text
from vpnkit.net.ordinary import completed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pcap.ring import Ring
    from vpnkit.net.captures import Captures

NAME = "capture"
SUFFIX = ".pcap"


class CaptureDirectory(Directory):
    """A file for each ring, as they come and go."""

    def __init__(self, parent: Node, captures: Captures) -> None:
        super().__init__(NAME, parent)
        self._captures = captures
        self._files: dict[Ring, Text] = {}

    def children(self) -> Iterable[Node]:
        rings = self._captures.capture.rings.values()
        for gone in self._files.keys() - set(rings):
            del self._files[gone]
        for ring in rings:
            if ring not in self._files:
                name = ring.rule.name.removesuffix(SUFFIX) + SUFFIX
                self._files[ring] = Text(name, self, self._rendering(ring))
        return list(self._files.values())

    def child(self, name: str) -> Node | None:
        return next((file for file in self.children() if file.name == name), None)

    def _rendering(self, ring: Ring) -> Callable[[], bytes]:
        def render() -> bytes:
            file = Classic(snaplen=ring.rule.snaplen)
            data = file.begin() + file.packets(map(completed, ring))
            line = self._captures.audited("read", ring.rule.name, None)
            line.packets, line.bytes, line.ended = len(ring), len(data), True
            return data

        return render

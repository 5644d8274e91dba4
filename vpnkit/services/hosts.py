"""The operator's hosts file, hosts(5), followed: names with addresses that are answered here.

What it says about addresses of a name is all there is: a name with an IPv4 address only has no IPv6 one, and is not
looked for elsewhere.  Other records of the name are not its business and are asked for as always.
"""

from __future__ import annotations

import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from vpnkit.proto.dns_names import LocalNames
from vpnkit.services.followed import Followed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MAX_FILE: Final = 8 << 20  # octets read of a hosts file


def parse(text: str) -> Iterator[tuple[str, bytes]]:
    """(name, address) in the file's order; lines that make no sense are skipped."""
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if len(words) < 2:
            continue
        try:
            address = ip_address(words[0].partition("%")[0]).packed
        except ValueError:
            continue
        for name in words[1:]:
            yield name, address


class Hosts:
    """Some hosts files, the first one first.  `clock` counts seconds."""

    def __init__(self, paths: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._files = [Followed(path, MAX_FILE, clock) for path in paths]
        self._texts = [""] * len(paths)
        self.names = LocalNames(is_partial=True)
        self.skipped = 0  # names that are none

    def __bool__(self) -> bool:
        return bool(self._files)

    def look(self) -> bool:
        """Read what changed; whether anything did."""
        any_news = False
        for i, file in enumerate(self._files):
            text = file.changed()
            if text is not None and text != self._texts[i]:
                self._texts[i] = text
                any_news = True
        if any_news:
            names = LocalNames(is_partial=True)
            self.skipped = 0
            for text in self._texts:
                for name, address in parse(text):
                    try:
                        names.add(name, address)
                    except (ValueError, UnicodeError):
                        self.skipped += 1
            self.names = names
        return any_news

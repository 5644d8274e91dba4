"""What this process may use."""

from __future__ import annotations

import resource
from typing import Final

# What macOS may grant where the hard limit says infinity: no more than kern.maxfilesperproc, OPEN_MAX at least.
GRANTED: Final = (1 << 16, 1 << 15, 1 << 14, 10240)


def raise_descriptor_limit() -> None:
    """As many descriptors as we may have: every connection of a guest is a socket of ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    for wanted in (hard, *(number for number in GRANTED if number > soft)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            continue
        return

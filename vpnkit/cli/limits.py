"""What this process may use."""

from __future__ import annotations

import resource


def raise_descriptor_limit() -> None:
    """As many descriptors as we may have: every connection of a guest is a socket of ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            pass  # macOS: no more than kern.maxfilesperproc, whatever the hard limit says

"""What can go wrong with a forward at run time.  Apart, so that it can be caught without importing trio."""

from __future__ import annotations


class ForwardError(Exception):
    """A forward cannot be made or unmade.  The message is for the operator."""

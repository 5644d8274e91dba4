"""The exceptions of this project, and where each is translated."""

from __future__ import annotations


class VpnkitError(Exception):
    """Base of everything below."""


class ConfigError(VpnkitError):
    """The command line or a configuration file is wrong.  Shown to the operator in one line; exit status 2."""


class WireError(VpnkitError):
    """Bytes from outside are not what they claim to be.  Counted; the next frame is read."""

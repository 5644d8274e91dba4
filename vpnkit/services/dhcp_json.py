"""The original's dhcp.json: `{"searchDomains": ["a.example"], "domainName": "example"}`, both optional, followed.

Whoever asks pays for the look: at most one stat a second.  When the file has gone, its settings have too, as in the
original; one that is broken, for instance half written, leaves what the last good one said.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Final

import msgspec

from vpnkit.errors import ConfigError
from vpnkit.wire.dhcp import encode_domains

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

MAX_FILE: Final = 64 * 1024  # octets
MAX_SEARCH: Final = 32  # domains
CHECK_SECONDS: Final = 1.0  # between two looks at the file


class DhcpSettings(msgspec.Struct, frozen=True, rename="camel"):
    """What one file says.  Other keys are ignored."""

    domain_name: str = ""
    search_domains: tuple[str, ...] = ()


def parse(raw: bytes) -> DhcpSettings:
    """Raises ConfigError, saying what is wrong."""
    if len(raw) > MAX_FILE:
        raise ConfigError(f"more than {MAX_FILE} octets")
    try:
        settings = msgspec.json.decode(raw, type=DhcpSettings)
        if settings.domain_name:
            encode_domains([settings.domain_name])
            settings.domain_name.encode("idna")
        encode_domains(settings.search_domains)
    except (msgspec.MsgspecError, ValueError) as error:  # not UTF-8, no JSON, wrong types, no domain name
        raise ConfigError(str(error)) from None
    if len(settings.search_domains) > MAX_SEARCH:
        raise ConfigError(f"more than {MAX_SEARCH} search domains")
    return settings


class DhcpJson:
    """One file.  Raises ConfigError when it cannot be read, or is broken, at the start.  `clock` counts seconds."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._checked = clock()
        try:
            self._signature: tuple[int, int, int] | None = self._stat()
            self._settings = parse(self._read())
        except OSError as error:
            raise ConfigError(f"--dhcp-json {path}: {error.strerror}") from None
        except ConfigError as error:
            raise ConfigError(f"--dhcp-json {path}: {error}") from None

    def settings(self) -> DhcpSettings:
        """What the file says now."""
        now = self._clock()
        if now - self._checked >= CHECK_SECONDS:
            self._checked = now
            self._look()
        return self._settings

    def _look(self) -> None:
        try:
            signature = self._stat()
            if signature == self._signature:
                return
            self._signature = signature
            self._settings = parse(self._read())
        except OSError as error:
            if self._signature is not None:
                log.warning("%s: %s; its domains are told no longer", self._path, error.strerror)
            self._signature = None
            self._settings = DhcpSettings()
        except ConfigError as error:
            log.warning("%s: %s; what it said before still holds", self._path, error)

    def _stat(self) -> tuple[int, int, int]:
        status = os.stat(self._path)
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> bytes:
        with open(self._path, "rb") as file:
            return file.read(MAX_FILE + 1)

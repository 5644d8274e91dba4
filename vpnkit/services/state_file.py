"""What an instance remembers between its runs, as a JSON file: written beside the old one, which it then replaces.

So the file is always a whole one, of before or after, whatever dies when.  A file that is not as expected is never
written over: to start with it is an error.  Times are those of the wall clock, as nothing else outlives a run.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final, Literal

import msgspec

from vpnkit.errors import ConfigError

MAX_FILE: Final = 4 << 20  # octets; every table that is kept is bounded, and far below


class SavedLease(msgspec.Struct, frozen=True):
    """A binding of DHCP.  Octets are hexadecimal."""

    ip: str
    mac: str
    client_id: str
    hostname: str
    expires: float | None  # in seconds of the Unix epoch; None: never
    state: Literal["bound", "released"]


class SavedIdentity(msgspec.Struct, frozen=True):
    """A VMN3T client."""

    uuid: str
    mac: str
    ip: str


class State(msgspec.Struct, frozen=True):
    """The whole file."""

    version: Literal[1] = 1
    leases: list[SavedLease] = []
    identities: list[SavedIdentity] = []
    identity_numbers: int = 0  # MAC addresses that VMN3T clients were given so far


class StateFile:
    """One file, which is ours until `close`.  Raises ConfigError when it cannot be, or another instance has it."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))  # what a link points to is replaced, not the link
        lock = f"{self.path}.lock"
        try:
            self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"--state {path}: {lock}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise ConfigError(f"--state {path}: another instance uses it; each needs a file of its own") from None

    def load(self) -> State:
        """What was saved; an empty state where there is no file.  Raises ConfigError for one that is broken."""
        try:
            with open(self.path, "rb") as file:
                raw = file.read(MAX_FILE + 1)
        except FileNotFoundError:
            return State()
        except OSError as error:
            raise ConfigError(f"--state {self.path}: {error.strerror}") from None
        try:
            if len(raw) > MAX_FILE:
                raise ValueError(f"more than {MAX_FILE} octets")
            return msgspec.json.decode(raw, type=State)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ConfigError(f"--state {self.path} is broken: {error}.  Mend it, or move it away.") from None

    def save(self, state: State) -> None:
        """Replace what was saved; it is on the disk then.  Raises OSError, and the old one is still there."""
        new = f"{self.path}.new"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(state), indent=1) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def close(self) -> None:
        """Let another have it.  Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

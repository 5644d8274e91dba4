"""Where the control socket of an instance is, and who may own that place.

`$XDG_RUNTIME_DIR/vpnkit/NAME.sock` where that directory exists and is ours (after `sudo` it is somebody else's),
otherwise a directory per user in the temporary directory.  The latter is writable by all, so ours is believed only if
it is a real directory of our own that nobody else may enter.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Final

from tapdev import unix_path
from tapdev.unix_path import MAX_PATH as MAX_PATH
from tapdev.unix_path import connected as connected
from tapdev.unix_path import served_by as served_by
from vpnkit.errors import ConfigError, VpnkitError

SUFFIX: Final = ".sock"
NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class ControlError(VpnkitError):
    """The control socket cannot be made, reached or understood."""


def check_name(name: str) -> str:
    """`name` itself when it can be the name of an instance.  Raises ConfigError."""
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigError(f"instance name {name!r} is wrong: up to 63 letters, digits, '.', '_', '-', no leading dot")
    return name


def check_length(path: Path) -> None:
    """Raises ConfigError when no socket can have this path."""
    try:
        unix_path.check_length(path)
    except unix_path.PathError as error:
        raise ConfigError(str(error)) from None


def runtime_directory() -> Path:
    """The directory of our control sockets; it need not exist yet."""
    configured = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(configured):
        try:
            status = os.stat(configured)
        except OSError:
            pass
        else:
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                return Path(configured, "vpnkit")
    return Path(tempfile.gettempdir(), f"vpnkit-{os.geteuid()}")


def check_private(directory: Path) -> None:
    """Raises ControlError unless `directory` is a real directory, ours, and closed to everybody else."""
    status = os.lstat(directory)  # a symbolic link could be pointed elsewhere at any time
    if not stat.S_ISDIR(status.st_mode):
        raise ControlError(f"{directory} is not a directory; remove it, or choose another place with --control")
    if status.st_uid != os.geteuid():
        raise ControlError(f"{directory} belongs to uid {status.st_uid}, not to us; choose another with --control")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise ControlError(f"{directory} has mode {mode:04o}; others must not enter: chmod 0700 {directory}")


def make_runtime_directory() -> Path:
    """`runtime_directory()`, made if needed, and checked."""
    directory = runtime_directory()
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise ControlError(f"cannot make {directory}: {error.strerror}") from error
    check_private(directory)
    return directory


def socket_path(name: str) -> Path:
    """The control socket of instance `name`, where nothing else was asked for."""
    return runtime_directory() / (check_name(name) + SUFFIX)


def instances() -> list[str]:
    """The names of the instances that answer now."""
    directory = runtime_directory()
    try:
        check_private(directory)
        names = sorted(entry.name for entry in os.scandir(directory) if entry.name.endswith(SUFFIX))
        return [name.removesuffix(SUFFIX) for name in names if served_by(directory / name)]
    except (OSError, ControlError):
        return []

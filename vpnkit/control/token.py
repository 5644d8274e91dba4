"""The control API over TCP: where it listens, and the token that who asks has to know.  Without trio, for the command
line reads it."""

from __future__ import annotations

import base64
import os
import re
import stat
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from vpnkit.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

MIN_TOKEN: Final = 16  # characters
MAX_TOKEN: Final = 1024
TOKEN_OCTETS: Final = 32  # of randomness in one that we make
# RFC 6750 section 2.1
TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")

_PORT: Final = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class TcpControl:
    """The control API at a TCP port, for who knows `token`."""

    host: str  # a literal address
    port: int  # 0: the system chooses
    token: str

    def __repr__(self) -> str:
        return f"TcpControl({self.host!r}, {self.port})"  # a token is not to be logged


def parse_address(text: str) -> tuple[str, int]:
    """The address and port of `ADDR:PORT`.  Raises ValueError, saying what would be right."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else "127.0.0.1" if host == "localhost" else host
    try:
        address = ip_address(host)
        if not colon or bracketed != (address.version == 6) or not _PORT.fullmatch(port) or int(port) > 65535:
            raise ValueError
    except ValueError:
        raise ValueError(f"{text!r} is not ADDR:PORT like 127.0.0.1:6060 or [::1]:6060") from None
    return str(address), int(port)


def read_token(path: Path) -> str:
    """The token in the file `path`, which is made, with a new one, where there is none.

    Raises ConfigError when others may read it, or when it is no token.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return _read(path)
    except OSError as error:
        raise ConfigError(f"--control-token-file {path} cannot be made: {error.strerror}") from error
    token = base64.urlsafe_b64encode(os.urandom(TOKEN_OCTETS)).decode().rstrip("=")
    with open(fd, "w", encoding="ascii") as file:
        file.write(f"{token}\n")
    return token


def _read(path: Path) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO is not waited for
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"--control-token-file {path} is not a file")
            text = os.read(fd, MAX_TOKEN + 2).decode("latin-1")
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(f"--control-token-file {path} cannot be read: {error.strerror}") from error
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(f"--control-token-file {path} has mode {mode:04o}; others can read it: chmod 0600 {path}")
    token = text.strip()
    if not MIN_TOKEN <= len(token) <= MAX_TOKEN or not TOKEN.fullmatch(token):
        wanted = f"{MIN_TOKEN} to {MAX_TOKEN} letters, digits and -._~+/="
        raise ConfigError(f"--control-token-file {path} has no token: {wanted}; remove it, and one is made")
    return token

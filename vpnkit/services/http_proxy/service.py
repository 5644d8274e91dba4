"""The proxy of one network: its configuration, which may change at any time, and the connections of guests."""

from __future__ import annotations

import logging
import secrets
import ssl
from collections import Counter
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import trio

from portfwd.connect import abort
from vpnkit.errors import ConfigError
from vpnkit.proto.http_proxy import HTTPS_PORT, Destination, parse_config
from vpnkit.services.http_proxy import tunnel
from vpnkit.services.http_proxy.exchange import Entrance, Exchange
from vpnkit.services.http_proxy.opening import Opener, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vpnkit.flow.host import Address
    from vpnkit.proto.http_proxy import ProxyConfig
    from vpnkit.services.http_proxy.opening import Environment

log = logging.getLogger(__name__)

MAX_STREAMS: Final = 256  # connections of one guest's address; one more is reset
MAX_OF_ALL: Final = 2048  # and of all guests
CHECK_SECONDS: Final = 1.0  # between two looks at the file
MAX_FILE: Final = 1 << 20  # octets
LOG_SECONDS: Final = 10.0  # between two lines about tunnels that failed


class HttpProxyService:
    """Nothing is intercepted, and nothing answers, while there is no configuration.

    `check` may raise ConfigError for a configuration that leads back to us.
    """

    def __init__(
        self,
        config: ProxyConfig | None = None,
        file: Path | None = None,
        *,
        check: Callable[[ProxyConfig], None] = lambda config: None,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """With `file` the configuration is what that says, now and whenever it changes.  Raises ConfigError."""
        self.name = f"vpnkit-{secrets.token_hex(8)}"  # in Via
        self.counters: Counter[str] = Counter()
        self._check = check
        self._tls = tls
        self._clock = clock
        self._file = file
        self._looked = float("-inf")
        self._signature: tuple[int, int, int] | None = None
        self._config: ProxyConfig | None = None
        self._complained = float("-inf")
        self._open: Counter[bytes] = Counter()
        if file is not None:
            try:
                self._signature = _signature(file)
                self.replace(parse_config(_read(file)))
            except OSError as error:
                raise ConfigError(f"--http-proxy {file}: {error.strerror}") from None
            except ConfigError as error:
                raise ConfigError(f"--http-proxy {file}: {error}") from None
        elif config is not None:
            self.replace(config)

    @property
    def streams(self) -> int:
        """Connections of guests now; each has one host socket at most."""
        return self._open.total()

    # Configuration

    def config(self) -> ProxyConfig | None:
        """What holds now."""
        if self._file is not None and (now := self._clock()) - self._looked >= CHECK_SECONDS:
            self._looked = now
            self._look(self._file)
        return self._config

    def replace(self, config: ProxyConfig | None) -> None:
        """From now on; None for none.  A file that is followed counts again when it changes.  Raises ConfigError."""
        if config is not None:
            self._check(config)
        self._config = config

    def _look(self, file: Path) -> None:
        try:
            signature = _signature(file)
            if signature == self._signature:
                return
            self._signature = signature
            self.replace(parse_config(_read(file)))
        except OSError as error:
            if self._signature is not None:
                log.warning("%s: %s; there is no HTTP proxy any more", file, error.strerror)
                self._config = None
            self._signature = None
        except ConfigError as error:
            log.warning("%s: %s; what it said before still holds", file, error)

    def intercepts(self, port: int) -> bool:
        """Whether connections of guests to `port` of the world are taken."""
        config = self.config()
        return config is not None and config.intercepts(port) is not None

    # Connections

    async def serve(
        self,
        stream: trio.abc.HalfCloseableStream,
        source: bytes,
        called: tuple[bytes, int],
        aim: Address | None,
        environment: Environment,
    ) -> None:
        """One connection of the guest at `source`.  `called` is the address and port that he called; `aim` is where
        that really is, None when it is the gateway itself."""
        config = self.config()
        if config is None or self._open[source] >= MAX_STREAMS or self._open.total() >= MAX_OF_ALL:
            self.counters["http_refused"] += 1
            abort(stream)
            return
        self._open[source] += 1
        try:
            await self._serve(stream, called, aim, config, environment)
        finally:
            self._open[source] -= 1
            if not self._open[source]:
                del self._open[source]

    async def _serve(
        self,
        stream: trio.abc.HalfCloseableStream,
        called: tuple[bytes, int],
        aim: Address | None,
        config: ProxyConfig,
        environment: Environment,
    ) -> None:
        opener = Opener(environment, self._tls)
        address, port = called
        if aim is None:
            entrance = Entrance(port == HTTPS_PORT)
        else:
            to = Destination(aim[0], port)
            if config.intercepts(port) == "https":
                await self._tunnel(stream, to, aim, config, opener)
                return
            entrance = Entrance(False, to, aim)
        log.debug("HTTP proxy: a guest called %s port %d", ip_address(address), port)
        await Exchange(stream, entrance, self.config, opener, self.name).serve()

    async def _tunnel(
        self,
        stream: trio.abc.HalfCloseableStream,
        to: Destination,
        aim: Address,
        config: ProxyConfig,
        opener: Opener,
    ) -> None:
        try:
            await tunnel.serve(stream, to, aim, config, opener, self.name)
        except Refusal as refusal:
            self.counters["http_tunnel_failed"] += 1
            now = self._clock()
            if now - self._complained >= LOG_SECONDS:
                self._complained = now
                log.warning("HTTP proxy: a connection to %s was reset: %s", to.authority, refusal)


def _signature(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(file: Path) -> bytes:
    with file.open("rb") as opened:
        raw = opened.read(MAX_FILE + 1)
    if len(raw) > MAX_FILE:
        raise ConfigError(f"more than {MAX_FILE} octets")
    return raw

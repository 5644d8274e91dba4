"""Sources on a bound datagram socket: vfkit, krunkit, QEMU's `-netdev dgram`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from tapdev.datagram import DatagramPort
from tapdev.link import LinkClosed
from tapdev.sources.host import contained, serve_link

if TYPE_CHECKING:
    from tapdev.sources.bind import BoundSocket
    from tapdev.sources.host import Host
    from tapdev.spec import LinkSpec

VFKIT_HELLO: Final = b"VFKT"  # gvproxy.md 1.6


class DatagramSource:
    """One guest at a time; the next one displaces it when it is gone.  With `remote` only that one."""

    def __init__(
        self, spec: LinkSpec, bound: BoundSocket, *, mtu: int, hello: bytes = b"", remote: str | None = None
    ) -> None:
        self.spec = spec
        self._bound = bound
        self._mtu = mtu
        self._hello = hello
        self._remote = remote
        self._port: DatagramPort | None = None

    async def run(self, host: Host) -> None:
        await trio.lowlevel.checkpoint()
        if self._bound.sock.fileno() < 0:
            return
        name = str(self.spec)
        self._port = DatagramPort(self._bound.sock, mtu=self._mtu, hello=self._hello, remote=self._remote)
        try:
            while True:
                link = await self._port.accept()
                await contained(serve_link(host, link, name), name)
        except LinkClosed:
            return
        finally:
            self.close()

    def close(self) -> None:
        if self._bound.owned is not None and self._bound.sock.fileno() >= 0:
            self._bound.owned.unlink()
        if self._port is not None:
            self._port.close()
        self._bound.sock.close()

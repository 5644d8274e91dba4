"""Accepting for ever, also when the process has run out of descriptors."""

from __future__ import annotations

import errno
import logging
from typing import Final

import trio

from portfwd.complaints import Complaints

log = logging.getLogger(__name__)

# accept(2): out of descriptors or memory.  The connection stays in the backlog, so the listener stays readable: an
# immediate retry would spin.
CAPACITY_ERRNOS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
BACK_OFF: Final = 0.1


class Acceptor:
    """A listener whose `accept` outlives what can go wrong outside: only a closed listener ends it.

    trio's own `accept` already ignores connections that died in the backlog (ECONNABORTED and its relatives).
    """

    def __init__(self, listener: trio.SocketListener, name: str) -> None:
        self.listener = listener
        self.name = name
        self.back_offs = 0
        self._complaints = Complaints(log)

    async def accept(self) -> trio.SocketStream:
        """The next connection.  Raises trio.ClosedResourceError when the listener was closed."""
        while True:
            try:
                return await self.listener.accept()
            except OSError as error:
                if error.errno not in CAPACITY_ERRNOS:
                    raise
                self.back_offs += 1
                self._complaints.warning(
                    "%s: cannot accept: %s; retrying every %g s", self.name, error.strerror, BACK_OFF
                )
            await trio.sleep(BACK_OFF)

    def close(self) -> None:
        """Stop listening.  A waiting `accept` raises.  Idempotent."""
        self.listener.socket.close()

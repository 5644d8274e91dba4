"""What a forward is, whatever it carries."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio

    from portfwd.spec import Spec


class Forward:
    """One exposed port or unix socket.  `spec` has the port that the system chose when 0 was asked for."""

    def __init__(self, spec: Spec, addresses: list[tuple[str, int]]) -> None:
        self.spec = spec
        self.addresses = addresses  # that it listens on; a unix socket has none, but a path in `spec`
        self.accepted = 0  # connections, or clients of a UDP forward, so far
        self.failures = 0  # connections, or datagrams, that could not be delivered
        self.refused = 0  # connections, or clients, because there were too many

    @property
    def connections(self) -> int:
        """Connections that are open now, or clients of a UDP forward that are known."""
        raise NotImplementedError

    def start(self, nursery: trio.Nursery) -> None:
        """Serve in `nursery` until closed."""
        raise NotImplementedError

    def close(self, *, connections: bool = False) -> None:
        """Stop listening, and with `connections` reset those that are open.  Idempotent."""
        raise NotImplementedError

"""`-p auto` of `vpnkit run`: what the command listens on is forwarded."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

from portfwd.auto.follow import Follower
from portfwd.auto.watch import Watcher
from tapdev.bind_notices import BindNotices
from vpnkit.control.agents import NetworkExposer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from portfwd.auto.rules import Rule
    from tapdev.netns import NamespaceGuest
    from vpnkit.net.network import Network


async def follow(
    guest: NamespaceGuest,
    network: Network,
    rule: Rule,
    addresses: Sequence[str],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Forward what listens in `guest`, who is configured and has not started, at his `addresses`, until cancelled."""
    diag, ends = (socket.socket(fileno=fd) for fd in guest.diag)
    guest.diag = []
    watcher = Watcher(diag, ends)
    async with trio.open_nursery() as nursery:

        def noticed(fd: int) -> None:
            nursery.start_soon(_hear, BindNotices(fd), watcher)

        guest.on_notices = noticed
        task_status.started()
        await watcher.run(Follower("auto", rule, NetworkExposer(network)), lambda: addresses)


async def _hear(notices: BindNotices, watcher: Watcher) -> None:
    try:
        watcher.told()
        while True:
            await trio.lowlevel.wait_readable(notices)
            if not notices.receive():
                break
            watcher.hint()
    finally:
        notices.close()

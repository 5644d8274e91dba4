"""Which modules of the project need Linux, and nothing else may."""

from __future__ import annotations

from typing import Final

FORBIDDEN: Final = (
    "tapdev.tap",
    "tapdev.netns",
    "tapdev.netns_tap",
    "tapdev.signals",
    "tapdev._namespace_init",
    "tapdev._namespace_mounts",
)
# Those, and what stands on them: `vpnkit run` behind its options, TAP devices as sources; and who listens in a guest.
FOR_LINUX: Final = frozenset(
    {*FORBIDDEN, "tapdev.sources.tap", "vpnkit.cli.run", "vpnkit.cli.demo_guest", "portfwd.auto.sock_diag"}
)

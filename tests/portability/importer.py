"""Run by `macos.py`: imports the modules that standard input names, and reports what of Linux can still be seen."""

from __future__ import annotations

import importlib
import json
import os
import platform
import resource
import select
import sys


def failures(names: list[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def left(names: dict[str, list[str]]) -> list[str]:
    """Of the modules that are imported by now; asyncio's and curses' are nobody's here."""
    return sorted(
        f"{module}.{name}"
        for module, missing in names.items()
        if module in sys.modules and module not in ("selectors", "_curses")
        for name in missing
        if hasattr(sys.modules[module], name)
    )


def raised_limit() -> int:
    from vpnkit.cli.limits import raise_descriptor_limit

    raise_descriptor_limit()
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def main() -> None:
    asked = json.load(sys.stdin)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    report = {
        "failed": failures(asked["modules"]),
        "pyroute2": not failures(["pyroute2"]),
        "left": left(asked["names"]),
        "visible": [place for place in ("/proc/self/fd", "/sys/class/net", "/dev/net/tun") if os.path.exists(place)],
        "platform": sys.platform,
        "system": platform.system(),
        "kqueue": hasattr(select, "kqueue"),
        "descriptors": [soft, hard == resource.RLIM_INFINITY, raised_limit()],
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()

"""What runs where: `macos.py` needs Linux to stand on, and the tests of kqueue need a kqueue, its or a Mac's."""

from __future__ import annotations

import select
import sys

collect_ignore = [] if hasattr(select, "kqueue") else ["test_kqueue.py"]
if sys.platform != "linux":
    collect_ignore += ["test_commands.py", "test_modules.py", "test_rooms.py", "test_serve.py", "test_stubs.py"]

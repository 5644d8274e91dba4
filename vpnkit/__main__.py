"""`python -m vpnkit`."""

from __future__ import annotations

import sys

from vpnkit.cli import main

if __name__ == "__main__":
    sys.exit(main())

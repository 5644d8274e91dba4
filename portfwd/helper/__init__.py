"""Ports below 1024 for who may not bind them: a small server that may, and hands the bound socket over."""

from __future__ import annotations

from typing import Final

DEFAULT_PATH: Final = "/var/run/com.docker.vmnetd.sock"  # the original's

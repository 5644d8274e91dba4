"""The list of names that macOS has not, and that nothing but the modules for Linux needs one of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.portability.macos_modules import FOR_LINUX
from tests.portability.stubs import only_on_linux

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("vpnkit", "tapdev", "portfwd", "pcap")


def test_what_is_known_to_be_linux():
    missing = only_on_linux()
    assert {"SO_PEERCRED", "AF_VSOCK", "SOCK_CLOEXEC", "SOCK_NONBLOCK", "MSG_ERRQUEUE", "AF_NETLINK"} <= missing[
        "socket"
    ]
    assert {"epoll", "EPOLLET"} <= missing["select"]
    assert {"eventfd", "memfd_create", "pidfd_open", "splice", "copy_file_range", "O_TMPFILE"} <= missing["os"]
    assert {"pidfd_send_signal", "sigtimedwait"} <= missing["signal"]
    assert "MAP_POPULATE" in missing["mmap"]


def test_what_macos_has_as_well():
    missing = only_on_linux()
    assert not {"AF_UNIX", "SO_RCVBUF", "SOCK_SEQPACKET", "TCP_NODELAY", "IP_TTL", "MSG_PEEK"} & missing["socket"]
    assert not {"O_CLOEXEC", "O_NOFOLLOW", "sendfile", "readv", "writev", "geteuid", "umask"} & missing["os"]
    assert "poll" not in missing["select"]


def module_of(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


def test_types_of_macos(tmp_path):
    """mypy knows both the names and the guards."""
    argv = [sys.executable, "-m", "mypy", "--platform", "darwin", "--no-warn-unreachable"]
    argv += ["--no-error-summary", "--cache-dir", str(tmp_path), *PACKAGES]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert not done.stderr
    found = re.findall(r"^([^:\n]+):(\d+): error: (Module has no attribute .*)$", done.stdout, re.MULTILINE)
    assert found, "the modules for Linux do need it"
    assert not [line for line in found if module_of(line[0]) not in FOR_LINUX]

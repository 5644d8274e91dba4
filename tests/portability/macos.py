"""Runs a Python program on this Linux as if it were macOS:  python macos.py MODULE [ARG]...

trio itself needs the real platform, so it is imported first and keeps the names that it uses.  Everything imported
after that finds `sys.platform` "darwin", the standard library without what macOS has not (`stubs`), a kqueue
(`kqueue`), sockets with macOS's manners (`sockets`), its descriptor limits, no /proc, /sys, /dev/net or /dev/vsock,
and none of the project's modules that are for Linux.
"""

from __future__ import annotations

import builtins
import errno
import importlib
import importlib.abc
import io
import os
import platform
import resource
import runpy
import select
import selectors
import shutil
import socket
import sys
import tempfile
import types
import urllib.request  # noqa: F401  # later it would ask macOS's own module for proxies
from pathlib import Path

import trio
import trio.testing

sys.path[0] = str(Path(__file__).parent.parent.parent)  # in place of this directory

from tests.portability import kqueue, sockets  # noqa: E402
from tests.portability.macos_modules import FORBIDDEN  # noqa: E402
from tests.portability.stubs import only_on_linux  # noqa: E402

HIDDEN = ("/proc", "/sys", "/dev/net", "/dev/vsock", "/run/netns")
SOFT_DESCRIPTORS, MAX_DESCRIPTORS = 256, 10240  # launchd's default; kern.maxfilesperproc
TOUCHED = ("open", "stat", "lstat", "listdir", "scandir", "readlink", "access")


class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in FORBIDDEN or name.partition(".")[0] == "pyroute2":
            raise ImportError(f"{name} is for Linux", name=name)


def keep_for_trio(modules):
    """trio, and the selectors that were made for this platform, go on with what is there now."""
    for module in list(sys.modules.values()):
        if module is selectors or getattr(module, "__name__", "").partition(".")[0] == "trio":
            for name, value in list(vars(module).items()):
                if isinstance(value, types.ModuleType) and value in modules:
                    kept = types.ModuleType(value.__name__)
                    vars(kept).update(vars(value))
                    setattr(module, name, kept)


def remove_names():
    missing = only_on_linux()
    present = {name: importlib.import_module(name) for name in missing if name in sys.modules or name in NEEDED}
    keep_for_trio([present[name] for name in ("select", "os", "signal", "errno", "fcntl", "resource", "time")])
    gone = {}
    for name, module in present.items():
        gone[name] = missing[name] & vars(module).keys()
        for attribute in gone[name]:
            delattr(module, attribute)
    for attribute in missing["socket"] & vars(trio.socket).keys():
        delattr(trio.socket, attribute)
    return gone


NEEDED = ("_socket", "errno", "fcntl", "mmap", "os", "posix", "resource", "select", "signal", "socket", "time")


def hide_files():
    def hidden(path):
        try:
            text = os.fsdecode(path)
        except TypeError:
            return False  # a descriptor
        return any(text == place or text.startswith(f"{place}/") for place in HIDDEN)

    def hiding(function):
        def call(path=".", *arguments, **keywords):
            if hidden(path):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            return function(path, *arguments, **keywords)

        return call

    for name in TOUCHED:
        setattr(os, name, hiding(getattr(os, name)))
    builtins.open = io.open = hiding(io.open)


def limit_descriptors():
    plain, limits = resource.setrlimit, [SOFT_DESCRIPTORS, resource.RLIM_INFINITY]

    def getrlimit(number, _plain=resource.getrlimit):
        return tuple(limits) if number == resource.RLIMIT_NOFILE else _plain(number)

    def setrlimit(number, wanted):
        if number == resource.RLIMIT_NOFILE:
            if not 0 <= wanted[0] <= MAX_DESCRIPTORS:
                raise ValueError("current limit exceeds maximum limit")
            limits[:] = wanted
            wanted = wanted[0], hard
        plain(number, wanted)

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    plain(resource.RLIMIT_NOFILE, (SOFT_DESCRIPTORS, hard))
    resource.getrlimit, resource.setrlimit = getrlimit, setrlimit


def become_macos():
    gone = remove_names()
    for name, value in vars(kqueue).items():
        if name.startswith("KQ_") or name in ("kqueue", "kevent"):
            setattr(select, name, value)
    sockets.install(kqueue.shut_down)
    os.uname = lambda: os.uname_result(("Darwin", "mac.local", "23.6.0", "Darwin Kernel Version 23.6.0", "arm64"))
    platform._uname_cache = None
    sys.platform = "darwin"
    for module in (shutil, tempfile):  # they look at the platform when they are imported
        importlib.reload(module)
    hide_files()
    limit_descriptors()
    sys.meta_path.insert(0, Refuse())
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tapdev", "vpnkit", "portfwd", "pcap")]:
        raise AssertionError(f"{name} was imported on Linux")
    return gone


if __name__ == "__main__":
    assert sys.platform == "linux", "here it is about doing without Linux"
    assert not hasattr(socket, "AF_SYSTEM")
    if sys.argv[1] == "pytest":  # whose tests may use scapy, which looks for the system's own interfaces
        for name in ("dhcp", "dns", "inet", "inet6", "l2"):
            importlib.import_module(f"scapy.layers.{name}")
    become_macos()
    sys.argv[:] = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

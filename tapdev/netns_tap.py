"""TAP devices of other people: made in a network namespace that has a name, or adopted as a descriptor.

A thread has a network namespace of its own, so one that lives for a moment enters the other namespace, and the rest of
the process never leaves its own.  The device stays where it was made, however its descriptor is used.  Linux only.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import threading
from dataclasses import dataclass
from typing import Final

from tapdev.tap import IFF_TAP, IFF_VNET_HDR, open_tap

TUNGETIFF: Final = 0x800454D2  # linux/if_tun.h
IFREQ: Final = struct.Struct("=16sH22x")
CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
NAMED: Final = "/run/netns"  # where `ip netns add NAME` keeps them


class NetnsError(OSError):
    """The namespace cannot be had, as opposed to the device."""


@dataclass(frozen=True, slots=True)
class TunDevice:
    """What a descriptor of the tun driver is.

    Whether it was made with IFF_NO_PI, as ours need, cannot be known: TUNGETIFF uses that bit for another flag.
    """

    name: str
    tap: bool  # Ethernet frames; else a TUN device, of IP packets
    vnet_header: bool


def tun_device(fd: int) -> TunDevice | None:
    """What `fd` is, or None when it is not an attached descriptor of the tun driver (nor a macvtap)."""
    if sys.platform != "linux":
        return None
    import fcntl

    try:
        name, flags = IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ.size)))
    except OSError:
        return None
    return TunDevice(os.fsdecode(name.rstrip(b"\0")), bool(flags & IFF_TAP), bool(flags & IFF_VNET_HDR))


def netns_path(netns: str) -> str:
    """The path of a namespace that was given as a path, or as the NAME of `ip netns`."""
    return netns if "/" in netns else f"{NAMED}/{netns}"


def open_tap_in(netns: str, name: str, *, vnet_header: bool = True) -> int:
    """A TAP device `name` in the network namespace `netns`; returns its descriptor.

    `netns` is a path, or a name as of `ip netns`.  The device is left down.  Raises NetnsError (EPERM: entering
    another namespace needs CAP_SYS_ADMIN), and OSError as `open_tap` does.
    """
    namespace = _open(netns_path(netns))
    results: list[int | OSError] = []

    def enter_and_open() -> None:
        try:
            _enter(namespace)
            results.append(open_tap(name, vnet_header=vnet_header))
        except OSError as error:
            results.append(error)

    try:
        thread = threading.Thread(target=enter_and_open, name="tap")
        thread.start()
        thread.join()
    finally:
        os.close(namespace)
    [result] = results
    if isinstance(result, OSError):
        raise result
    return result


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NetnsError(error.errno, f"network namespace {path}: {error.strerror}") from error


def _enter(namespace: int) -> None:
    """Move the calling thread.  Raises NetnsError."""
    import ctypes

    if sys.platform != "linux":
        raise NetnsError(errno.ENOSYS, "network namespaces need Linux")
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        number = ctypes.get_errno()
        reason = "this is not one" if number == errno.EINVAL else f"cannot enter it: {os.strerror(number)}"
        raise NetnsError(number, f"network namespace: {reason}")

"""What a network namespace needs to look different in the file system: /proc, /sys and /etc/resolv.conf.

All of it happens in a mount namespace of our own and ends with it; nothing is written to a disk.  Linux only.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# linux/mount.h
MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MNT_DETACH: Final = 0x2
INERT: Final = MS_NOSUID | MS_NODEV | MS_NOEXEC

SCRATCH_DIRECTORIES: Final = ("/tmp", "/mnt", "/var/tmp", "/srv")  # any that exists; covered for a moment
# glibc asks these before it reads resolv.conf (nss_resolve, nscd): the host's names and routes, not ours.
HOST_RESOLVERS: Final = ("/run/systemd/resolve/io.systemd.Resolve", "/var/run/nscd/socket")


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    """Raise the OSError of a C call that returned `result`."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2).  Raises OSError."""
    words = [word and os.fsencode(word) for word in (source, target, kind, data)]
    check(libc().mount(*words[:3], ctypes.c_ulong(flags), words[3]))


def set_up_mounts(nameserver: str, search: tuple[str, ...]) -> Iterable[str]:
    """Change the mounts of this namespace, which is a fresh one.  Yields what could not be done and matters, in words.

    Raises OSError when the mounts cannot be made private; nothing was mounted then.
    """
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    try:
        mount("proc", "/proc", "proc", INERT)
    except OSError:
        pass  # a container that masks parts of /proc: the command sees the pids of outside
    try:
        _mount_sys()
    except OSError:
        pass  # likewise: the command sees the devices of outside, in /sys only
    for path in HOST_RESOLVERS:
        try:
            mount("/dev/null", path, None, MS_BIND)
        except OSError:
            pass  # there is none
    try:
        _mount_resolv_conf(nameserver, search)
    except OSError as error:
        yield f"/etc/resolv.conf is that of the host: {error.strerror}"


def _mount_sys() -> None:
    """/sys/class/net shows the devices of this network namespace; what was mounted below /sys stays."""
    below: list[tuple[str, int]] = []
    try:
        with open("/proc/self/mountinfo") as file:
            points = [line.split()[4] for line in file]  # proc_pid_mountinfo(5): field 5 is the mount point
        for point in points:
            if point.startswith("/sys/") and not any(point.startswith(outer + "/") for outer, _ in below):
                below.append((point, os.open(point, os.O_PATH | os.O_CLOEXEC)))
        read_only = MS_RDONLY if os.statvfs("/sys").f_flag & os.ST_RDONLY else 0
        mount("sysfs", "/sys", "sysfs", INERT | read_only)
        for point, fd in below:
            try:
                mount(f"/proc/self/fd/{fd}", point, None, MS_BIND | MS_REC)
            except OSError:
                pass  # one less
    finally:
        for _, fd in below:
            os.close(fd)


def _mount_resolv_conf(nameserver: str, search: tuple[str, ...]) -> None:
    """Cover /etc/resolv.conf by a file that is on no disk.  Raises OSError: ENOENT when there is none to cover."""
    target = os.path.realpath("/etc/resolv.conf")
    os.stat(target)
    text = f"search {' '.join(search)}\n" if search else ""
    text += f"nameserver {nameserver}\n"
    for scratch in SCRATCH_DIRECTORIES:
        if os.path.isdir(scratch) and not target.startswith(scratch + "/"):
            break
    else:
        raise FileNotFoundError(errno.ENOENT, f"none of {', '.join(SCRATCH_DIRECTORIES)} exists")
    mount("tmpfs", scratch, "tmpfs", INERT, "size=64k,mode=755")
    try:
        path = os.path.join(scratch, "resolv.conf")
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, 0o644)
        mount(path, target, None, MS_BIND)
    finally:
        check(libc().umount2(os.fsencode(scratch), MNT_DETACH))  # the file lives on under its new name

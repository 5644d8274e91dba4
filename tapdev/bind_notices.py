"""Being told when a process binds or listens: a seccomp filter that asks us before each bind(2) and listen(2).

The call waits until it is let go, which `receive` does at once, so what is to be seen is there a moment later.  The
filter stays with the process and its children.  Only calls of the machine's own ABI are told; those of others (32-bit
programs), and io_uring's, just happen.  seccomp_unotify(2), Linux 5.5 and later.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from typing import Final

# include/uapi/linux/audit.h | seccomp(2), bind(2), listen(2) of asm/unistd.h
MACHINES: Final = {
    "x86_64": (0xC000003E, 317, 49, 50),
    "aarch64": (0xC00000B7, 277, 200, 201),
    "riscv64": (0xC00000F3, 277, 200, 201),
}
SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 8
SECCOMP_RET_ALLOW: Final = 0x7FFF0000
SECCOMP_RET_USER_NOTIF: Final = 0x7FC00000
SECCOMP_USER_NOTIF_FLAG_CONTINUE: Final = 1
SECCOMP_IOCTL_NOTIF_RECV: Final = 0xC0502100
SECCOMP_IOCTL_NOTIF_SEND: Final = 0xC0182101
NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")  # id | pid | flags | struct seccomp_data
RESPONSE: Final = struct.Struct("=QqiI")  # id | value | error | flags
LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS, linux/filter.h
EQUAL: Final = 0x15
RETURN: Final = 0x06
OFFSET_NUMBER: Final = 0
OFFSET_ARCH: Final = 4


def install() -> int:
    """Put the filter on the calling process, for good; the descriptor to hear it by.  Needs CAP_SYS_ADMIN in its user
    namespace, or no_new_privs.  Raises OSError."""
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(errno.ENOSYS, f"the system calls of {machine} are not known here")
    arch, seccomp, bind, listen = MACHINES[machine]
    instructions = (
        (LOAD, 0, 0, OFFSET_ARCH),
        (EQUAL, 0, 3, arch),
        (LOAD, 0, 0, OFFSET_NUMBER),
        (EQUAL, 2, 0, bind),
        (EQUAL, 1, 0, listen),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),
        (RETURN, 0, 0, SECCOMP_RET_USER_NOTIF),
    )
    octets = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    program = ctypes.create_string_buffer(octets, len(octets))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(instructions), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    fd = int(
        libc.syscall(
            ctypes.c_long(seccomp),
            ctypes.c_ulong(SECCOMP_SET_MODE_FILTER),
            ctypes.c_ulong(SECCOMP_FILTER_FLAG_NEW_LISTENER),
            header,
        )
    )
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


class BindNotices:
    """Hears, and lets go at once.  As long as it is there somebody has to call `receive` when it is readable."""

    def __init__(self, fd: int) -> None:
        """`fd` is of `install`, and is closed with this."""
        self._fd = fd
        self._poller = select.poll()
        self._poller.register(fd, select.POLLIN)

    def fileno(self) -> int:
        return self._fd

    def receive(self) -> bool:
        """Let all calls go that wait.  False when there is nobody left who could call."""
        import fcntl

        while found := self._poller.poll(0):
            events = found[0][1]
            if not events & select.POLLIN:
                return False
            try:
                heard = bytearray(NOTIFICATION.size)
                fcntl.ioctl(self._fd, SECCOMP_IOCTL_NOTIF_RECV, heard)
                answer = RESPONSE.pack(NOTIFICATION.unpack(heard)[0], 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE)
                fcntl.ioctl(self._fd, SECCOMP_IOCTL_NOTIF_SEND, answer)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINTR, errno.EINPROGRESS):  # a signal ended the call
                    raise
        return True

    def close(self) -> None:
        """Stop hearing; what is called afterwards fails.  Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

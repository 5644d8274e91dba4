"""Signals as data: a signalfd, which also says who sent each one.

A handler cannot tell Ctrl-C from `kill -INT`, and whoever passes signals on to a child in the same process group must:
the terminal sends its signals to the whole group, so the child has those already, while a signal from a process
reached us alone.  Python 3.11 has no signalfd; this one goes through ctypes.  Linux only.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

SFD_CLOEXEC: Final = os.O_CLOEXEC if sys.platform == "linux" else 0
SFD_NONBLOCK: Final = os.O_NONBLOCK
SIGSET_SIZE: Final = 128  # octets of glibc's and musl's sigset_t

# struct signalfd_siginfo, 128 octets: ssi_signo 4 | ssi_errno 4 | ssi_code 4 | ssi_pid 4 | ssi_uid 4 | ...
SIGINFO: Final = struct.Struct("=IiiII108x")


@dataclass(frozen=True, slots=True)
class ReceivedSignal:
    number: int
    code: int  # si_code, sigaction(2)
    pid: int  # of the sender; 0 when the kernel sent it or the sender is in no pid namespace of ours

    @property
    def from_process(self) -> bool:
        """A process sent it (kill, sigqueue, tgkill), not the terminal."""
        return self.code <= 0


class SignalDescriptor:
    """The given signals, blocked in this thread and readable from a descriptor instead, until `close`.

    Threads made meanwhile inherit the block; make it before there are any.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = frozenset(numbers)
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        try:
            self._fd = _signalfd(self._numbers)
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            raise

    def fileno(self) -> int:
        return self._fd

    def receive(self) -> ReceivedSignal | None:
        """The next pending signal, or None when there is none now.  Of a kind that is pending twice, one is lost."""
        try:
            number, _, code, pid, _ = SIGINFO.unpack(os.read(self._fd, SIGINFO.size))
        except BlockingIOError:
            return None
        return ReceivedSignal(number, code, pid)

    def close(self) -> None:
        """Put the signal mask back; what is pending still is dropped, not delivered.  Idempotent."""
        if self._fd < 0:
            return
        while self.receive():
            pass
        os.close(self._fd)
        self._fd = -1
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def _signalfd(numbers: Iterable[int]) -> int:
    """A non-blocking signalfd.  Raises OSError; ENOSYS where there is no such call."""
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "signalfd needs Linux")
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    mask = ctypes.create_string_buffer(SIGSET_SIZE)
    libc.sigemptyset(mask)
    for number in numbers:
        libc.sigaddset(mask, int(number))
    fd: int = libc.signalfd(-1, mask, SFD_NONBLOCK | SFD_CLOEXEC)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd

"""A guest that is a network namespace of this machine: a command whose only link is a TAP device of ours.

`spawn` forks before anything heavy is imported, so that the kernel, and the processes inside, work while the caller
imports trio and brings its network up.  It returns at once; then, in this order:

    guest = spawn(config, ["curl", "http://host.internal/"])
    fd, vnet_header = guest.receive_tap()
    ...                                         # serve the TAP
    await guest.wait_configured()
    guest.start()
    status = await guest.wait()                 # of the command
    guest.close()                               # in a finally

Nothing has to be removed afterwards, and nothing is left when either side is killed: the TAP device lives as long as
its one descriptor, the namespaces as long as their processes, and those as long as the channel to us is open
(`_namespace_init` says how).  No file is ever made on a disk, no mount and no device in a namespace of the host.

The process inside that we know is pid 1 of its pid namespace and our child: spawn makes us the subreaper for the
moment in which the process between the two ends.

Linux only.  Everything but the `async` methods works without trio.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tapdev import _namespace_init as inside

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h
PR_GET_CHILD_SUBREAPER: Final = 37
START_TIMEOUT: Final = 10.0  # seconds; 0.2 is usual, most of it an import
KILLED: Final = 128 + 9


class NamespaceError(Exception):
    """The namespace could not be made.  One line for the operator: what failed, why, what would help."""


@dataclass(frozen=True, kw_only=True)
class GuestConfig:
    """What the guest finds inside."""

    name: str = "tap0"
    mac: bytes
    mtu: int  # octets of an IP datagram
    address: str
    prefix_length: int
    gateway: str
    nameserver: str
    search: tuple[str, ...] = ()
    address6: str = ""  # of a /64, and routers are ignored; none: only what the guest makes himself
    gateway6: str = ""  # none: no IPv6 beyond the /64
    vnet_header: bool = True  # struct virtio_net_hdr_v1, 12 octets, before each frame of the TAP
    watch: bool = False  # say what it takes to see who listens inside: `diag` and `on_notices`
    configure: bool = True  # False: MAC, MTU and up; addresses and routes are left to DHCP or whoever comes


class NamespaceGuest:
    """A running guest.  Made by `spawn`; one task at a time may wait."""

    def __init__(self, channel: socket.socket, pid: int, pidfd: int, user_namespace: bool) -> None:
        self._channel = channel
        self._pidfd = pidfd
        self._user_namespace = user_namespace
        self._tap: int | None = None
        self._vnet_header = False
        self._configured = False
        self._status: int | None = None
        self._error: str | None = None
        self._ended = False
        self.pid: int | None = pid  # of pid 1 inside, as we see it; None when it has ended
        self.warnings: list[str] = []  # what is not as it should be inside, in words
        # With `watch`: two NETLINK_SOCK_DIAG sockets of the namespace, there when it is configured; the caller's.
        self.diag: list[int] = []
        # Called once with the descriptor for a BindNotices of the command, which is its own then.
        self.on_notices: Callable[[int], None] = os.close

    @property
    def netns(self) -> str:
        """The path of the network namespace, good while the guest lives."""
        return f"/proc/{self.pid}/ns/net"

    def command(self, argv: Sequence[str]) -> list[str]:
        """The argument vector that runs `argv` in this guest, in our working directory, with our environment."""
        user = ["-U", "--preserve-credentials"] if self._user_namespace else []
        return ["nsenter", "-t", str(self.pid), *user, "-n", "-m", "-p", f"--wd={os.getcwd()}", "--", *argv]

    def receive_tap(self, timeout: float = START_TIMEOUT) -> tuple[int, bool]:
        """The descriptor of the TAP device and whether its frames carry the virtio-net header.

        The caller owns the descriptor; the device goes when it is closed.  The device may not be up yet.  Raises
        NamespaceError, also after `timeout` seconds.
        """
        self._until(lambda: self._tap is not None, timeout)
        assert self._tap is not None
        fd, self._tap = self._tap, None
        return fd, self._vnet_header

    def wait_configured_sync(self, timeout: float = START_TIMEOUT) -> None:
        """Block until the device is up, with address and route if asked for.  Raises NamespaceError."""
        self._until(lambda: self._configured, timeout)

    async def wait_configured(self) -> None:
        """Return when the device is up, with address and route if asked for.  Raises NamespaceError."""
        await self._until_async(lambda: self._configured)
        self._fail_unless(self._configured)

    def start(self) -> None:
        """Run the command.  Call it once."""
        self._send(inside.GO)

    def remove_when_killed(self, path: str) -> None:
        """Should we be killed, the guest's init removes the file `path` of ours, and its directory if that is empty
        then, before it ends.  Raises OSError when there is no such file."""
        status = os.lstat(path)
        self._send(inside.LEFTOVER + inside.FILE_ID.pack(status.st_dev, status.st_ino) + os.fsencode(path))

    def signal(self, number: int) -> None:
        """Send the command a signal; nothing if it has not started or has ended."""
        self._send(inside.SIGNAL + bytes([number]))

    async def wait(self) -> int:
        """The exit status of the command when it and every process inside have ended: 0-255, 128+N for signal N.

        137 when somebody killed the guest's init, and all processes with it.  Raises NamespaceError.
        """
        import trio

        await self._until_async(lambda: self._status is not None)
        if self._error is not None:
            raise NamespaceError(self._error)
        if self.pid is not None:
            await trio.lowlevel.wait_readable(self._pidfd)
        status = self._reap()
        if self._status is not None:
            status = self._status
        if os.WIFSIGNALED(status):
            return 128 + os.WTERMSIG(status)
        return os.WEXITSTATUS(status)

    def close(self) -> None:
        """Kill every process inside and reap.  Blocks for some milliseconds.  Idempotent."""
        if self.pid is not None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._reap()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._channel.close()
        if self._tap is not None:
            os.close(self._tap)
            self._tap = None
        while self.diag:
            os.close(self.diag.pop())

    def _reap(self) -> int:
        """The wait status of our child; blocks until it has ended."""
        if self.pid is None:
            return KILLED - 128
        pid, self.pid = self.pid, None
        try:
            return os.waitpid(pid, 0)[1]
        except ChildProcessError:  # SIGCHLD is ignored here
            return KILLED - 128

    def _send(self, message: bytes) -> None:
        try:
            self._channel.send(message)
        except OSError:
            pass  # it has ended; `wait` says how

    def _receive(self) -> None:
        """Take in what has arrived."""
        while not self._ended:
            try:
                data, fds, _, _ = socket.recv_fds(self._channel, inside.MAX_MESSAGE, 2)
            except BlockingIOError:
                return
            except ConnectionResetError:  # it died with messages of ours unread
                data, fds = b"", []
            kind, body = data[:1], data[1:]
            if not kind:
                self._ended = True
            elif kind == inside.TAP:
                self._tap, self._vnet_header = fds[0], body == b"\x01"
                os.set_inheritable(self._tap, False)
            elif kind == inside.DIAG:
                self.diag = fds
                for fd in fds:
                    os.set_inheritable(fd, False)
            elif kind == inside.NOTICES:
                os.set_inheritable(fds[0], False)
                self.on_notices(fds[0])
            elif kind == inside.CONFIGURED:
                self._configured = True
            elif kind == inside.STATUS:
                (self._status,) = inside.WAIT_STATUS.unpack(body)
            elif kind == inside.WARNING:
                self.warnings.append(body.decode())
            elif kind == inside.ERROR and self._error is None:
                self._error = body.decode()

    def _until(self, done: Callable[[], bool], timeout: float) -> None:
        _poll_until(self._channel, self._receive, lambda: done() or self._hopeless, timeout)
        self._fail_unless(done())

    async def _until_async(self, done: Callable[[], bool]) -> None:
        import trio

        self._receive()
        while not done() and not self._hopeless:
            await trio.lowlevel.wait_readable(self._channel)
            self._receive()

    @property
    def _hopeless(self) -> bool:
        return self._ended or self._error is not None

    def _fail_unless(self, done: bool) -> None:
        if self._error is not None:
            raise NamespaceError(self._error)
        if not done:
            raise NamespaceError("the network namespace ended before it was ready" if self._ended else "timed out")


def spawn(config: GuestConfig, argv: Sequence[str]) -> NamespaceGuest:
    """Fork a guest that is to run `argv`.  Returns in a few milliseconds; `start` runs the command.

    To be called in the main thread, best before there are others.  The command gets our standard streams, what other
    inheritable descriptors we have, our environment, working directory, session, process group and limits as they are
    now.  Raises NamespaceError.
    """
    if sys.platform != "linux":
        raise NamespaceError("network namespaces need Linux")
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    before = ctypes.c_int(0)
    libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    started, write_started = os.pipe()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        first = os.fork()
        if first == 0:
            inside.first_child(config, argv, theirs, write_started, mask)
        theirs.close()
        os.waitpid(first, 0)  # it is two system calls and a fork
        os.set_blocking(started, False)
        try:
            pid, user_namespace = inside.STARTED.unpack(os.read(started, inside.STARTED.size))
        except (BlockingIOError, struct.error):
            raise NamespaceError(ours.recv(inside.MAX_MESSAGE)[1:].decode() or "the first process died") from None
        ours.setblocking(False)
        return NamespaceGuest(ours, pid, os.pidfd_open(pid), user_namespace)
    except BaseException:
        ours.close()
        raise
    finally:
        os.close(started)
        os.close(write_started)
        libc.prctl(PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _poll_until(channel: socket.socket, receive: Callable[[], None], done: Callable[[], bool], timeout: float) -> None:
    """Call `receive` as data arrives until `done` or `timeout` seconds have passed."""
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    deadline = time.monotonic() + timeout
    receive()
    while not done():
        left = deadline - time.monotonic()
        if left <= 0:
            return
        poller.poll(left * 1000)
        receive()

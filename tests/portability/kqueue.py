"""`select.kqueue` and `select.kevent` over epoll, as faithful as a program with sockets can tell.

From kqueue(2) and XNU's `filt_soread` and `filt_sowrite`:

* A knote is per descriptor *and filter*: what is ready both ways makes two events.
* EV_ADD of a knote that is there modifies it, and tells its state again.  EV_DELETE of one that is not is ENOENT.
* EV_CLEAR: told once per activation.  A knote activates at every wake-up of its socket buffer; each acknowledgement of
  the peer wakes the send buffer, so that a write event comes although nobody was told that there was no room.
* A filter is ready whatever the state before EV_ADD was.
* A read event has EV_EOF once the peer will send no more, also while octets wait; `fflags` is the socket's error.
* A write event has EV_EOF once we can send no more: after a failed connect, a reset, and after our own `shutdown`.
* A TCP socket that never was connected is ready for nothing (epoll says EPOLLHUP and EPOLLOUT).
* A change that fails raises, and the changes behind it are not made, unless there is room for events: then it is one.

`fflags` cannot be the socket's true error: to look at it would be to take it.  It is ECONNREFUSED before a handshake
and ECONNRESET after it, while there is an error, else 0.
"""

from __future__ import annotations

import _socket
import array
import errno
import fcntl
import os
import select
import termios
import weakref
from collections import deque

KQ_FILTER_READ, KQ_FILTER_WRITE = -1, -2
KQ_EV_ADD, KQ_EV_DELETE, KQ_EV_ENABLE, KQ_EV_DISABLE = 1, 2, 4, 8
KQ_EV_ONESHOT, KQ_EV_CLEAR = 0x10, 0x20
KQ_EV_ERROR, KQ_EV_EOF = 0x4000, 0x8000

# Kept: the names are about to go.
_epoll = select.epoll
_poll = select.poll
_eventfd, _EVENTFD_FLAGS = os.eventfd, os.EFD_CLOEXEC | os.EFD_NONBLOCK
_IN, _OUT, _HUP, _ERR, _RDHUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP, select.EPOLLERR, select.EPOLLRDHUP
_EDGE, _ONESHOT = select.EPOLLET, select.EPOLLONESHOT
_TCP_INFO = _socket.TCP_INFO
_ALWAYS = {KQ_FILTER_READ: _IN | _RDHUP, KQ_FILTER_WRITE: _OUT}

# linux/tcp_states.h: FIN_WAIT1, FIN_WAIT2, TIME_WAIT, LAST_ACK, CLOSING
_WE_FINISHED = frozenset({4, 5, 6, 9, 11})
_CLOSE = 7
_RTT = slice(68, 72)  # of struct tcp_info: 0 until the handshake is over
ONE = (1).to_bytes(8, "little")

_open: weakref.WeakSet[kqueue] = weakref.WeakSet()


class kevent:
    __slots__ = ("data", "fflags", "filter", "flags", "ident", "udata")

    def __init__(self, ident, filter=KQ_FILTER_READ, flags=KQ_EV_ADD, fflags=0, data=0, udata=0):  # noqa: A002
        self.ident = ident if isinstance(ident, int) else ident.fileno()
        self.filter = filter
        self.flags = flags
        self.fflags = fflags
        self.data = data
        self.udata = udata

    def __repr__(self):
        return f"<kevent {self.ident} {self.filter} {self.flags:#x} {self.fflags} {self.data}>"


class kqueue:
    def __init__(self):
        self._outer = _epoll()
        self._epolls = {filter_: _epoll() for filter_ in _ALWAYS}
        for inner in self._epolls.values():
            self._outer.register(inner.fileno(), _IN)
        self._knotes = {filter_: {} for filter_ in _ALWAYS}  # ident: flags of EV_ADD
        self._pending = deque()  # (ident, filter) that epoll does not tell
        self._alarm = _eventfd(0, _EVENTFD_FLAGS)
        self._outer.register(self._alarm, _IN)
        self.closed = False
        _open.add(self)

    def fileno(self):
        if self.closed:
            raise ValueError("I/O operation on closed kqueue object")
        return self._outer.fileno()

    def close(self):
        if not self.closed:
            self.closed = True
            os.close(self._alarm)
            for inner in (*self._epolls.values(), self._outer):
                inner.close()

    def control(self, changelist, max_events, timeout=None):
        self.fileno()
        if max_events < 0:
            raise ValueError(f"Length of eventlist must be 0 or positive, got {max_events}")
        events = []
        for change in changelist or ():
            try:
                self._change(change)
            except OSError as error:
                if len(events) == max_events:
                    raise
                events.append(kevent(change.ident, change.filter, KQ_EV_ERROR, 0, error.errno, change.udata))
        if events or not max_events:
            return events
        if timeout != 0:
            self._outer.poll(timeout)
        return self._collect(max_events)

    def _change(self, change):
        ident, knotes, inner = change.ident, self._knotes[change.filter], self._epolls[change.filter]
        if change.flags & KQ_EV_DELETE:
            if knotes.pop(ident, None) is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            try:
                inner.unregister(ident)
            except OSError:  # it was closed, which took its knotes along
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
            return
        if not change.flags & KQ_EV_ADD or change.flags & (KQ_EV_ENABLE | KQ_EV_DISABLE):
            raise NotImplementedError(f"flags {change.flags:#x}")
        mask = _ALWAYS[change.filter]
        mask |= _EDGE if change.flags & KQ_EV_CLEAR else 0
        mask |= _ONESHOT if change.flags & KQ_EV_ONESHOT else 0
        try:
            inner.register(ident, mask)
        except FileExistsError:
            inner.modify(ident, mask)
        knotes[ident] = change.flags

    def tell(self, ident, filter_):
        """Activate a knote."""
        if ident in self._knotes[filter_] and (ident, filter_) not in self._pending:
            self._pending.append((ident, filter_))
            os.write(self._alarm, ONE)

    def _collect(self, limit):
        waiting = dict.fromkeys(self._pending)
        self._pending.clear()
        for filter_, inner in self._epolls.items():
            for ident, _ in inner.poll(0, limit):
                waiting[ident, filter_] = None
                if filter_ == KQ_FILTER_READ and ident in self._knotes[KQ_FILTER_WRITE]:
                    waiting[ident, KQ_FILTER_WRITE] = None  # what came acknowledged something as well
        events = []
        for ident, filter_ in waiting:
            if len(events) == limit:
                self.tell(ident, filter_)
                continue
            event = self._event(ident, filter_)
            if event is not None:
                events.append(event)
        if not self._pending:
            try:
                os.read(self._alarm, 8)
            except BlockingIOError:
                pass
        return events

    def _event(self, ident, filter_):
        flags = self._knotes[filter_].get(ident)
        if flags is None:
            return None
        bits, eof = _state(ident)
        if filter_ == KQ_FILTER_READ:
            ended = bool(bits & _RDHUP)
            ready = bits & (_IN | _ERR) or ended
            data = _readable(ident)
        else:
            ended = eof
            ready = bits & (_OUT | _ERR) or ended
            data = 0 if ended else 65536
        if not ready:
            return None
        if flags & KQ_EV_ONESHOT:
            self._change(kevent(ident, filter_, KQ_EV_DELETE))
        number = 0
        if ended:
            flags |= KQ_EV_EOF
            number = _error(ident) if bits & _ERR else 0
        return kevent(ident, filter_, flags, number, data)


def shut_down(ident):
    """This process has shut down the sending side of a socket: epoll does not tell, the write filter does."""
    for queue in list(_open):
        if not queue.closed:
            queue.tell(ident, KQ_FILTER_WRITE)


def _state(ident):
    """What poll(2) says of the socket, with RDHUP wherever the peer will send no more, and whether we cannot send."""
    poller = _poll()
    poller.register(ident, _IN | _OUT | _RDHUP)
    bits = sum(found for _, found in poller.poll(0))
    info = _tcp_info(ident)
    if info is None:
        return bits | (_RDHUP if bits & _HUP else 0), bool(bits & _HUP)
    if info[0] == _CLOSE and not bits & (_RDHUP | _ERR):
        return 0, False  # never connected
    return bits | (_RDHUP if bits & _ERR else 0), info[0] in _WE_FINISHED or info[0] == _CLOSE


def _error(ident):
    info = _tcp_info(ident)
    return errno.ECONNREFUSED if info is not None and info[_RTT] == bytes(4) else errno.ECONNRESET


def _tcp_info(ident):
    """The struct tcp_info of a TCP socket, None of any other."""
    sock = _socket.socket(fileno=ident)
    try:
        return sock.getsockopt(_socket.IPPROTO_TCP, _TCP_INFO, 72)
    except OSError:
        return None
    finally:
        sock.detach()


def _readable(ident):
    count = array.array("i", [0])
    fcntl.ioctl(ident, termios.FIONREAD, count)
    return count[0]

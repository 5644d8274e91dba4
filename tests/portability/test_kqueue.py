"""What kqueue says of sockets, and what the poller makes of it.

On a Mac this asks the kernel; on Linux `test_rooms` runs it with the emulation, so that both are held to the same.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time

import pytest

from tests.vpnkit.flow.test_poller import Recorder
from vpnkit.flow.host import start_connect, tcp_socket
from vpnkit.flow.poller import HANGUP, READABLE, WRITABLE, Poller

READ, WRITE = select.KQ_FILTER_READ, select.KQ_FILTER_WRITE
ADD, CLEAR, DELETE = select.KQ_EV_ADD, select.KQ_EV_CLEAR, select.KQ_EV_DELETE
EOF, ERROR = select.KQ_EV_EOF, select.KQ_EV_ERROR
SECONDS = 5.0


@pytest.fixture
def queue():
    made = select.kqueue()
    yield made
    made.close()


@pytest.fixture
def pair():
    """Two connected TCP sockets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


@pytest.fixture
def poller():
    made = Poller()
    yield made
    made.close()


def add(queue, sock, *filters):
    queue.control([select.kevent(sock, filter_, ADD | CLEAR) for filter_ in filters], 0)


def now(queue):
    """The events that there are, by their filter."""
    events = queue.control(None, 8, 0)
    assert len({event.filter for event in events}) == len(events)
    return {event.filter: event for event in events}


def until(queue, filter_, condition=lambda event: True):
    """The next event of one filter that meets a condition."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for event in queue.control(None, 8, SECONDS):
            if event.filter == filter_ and condition(event):
                return event
    raise AssertionError("no such event came")


def ended(event):
    return event.flags & EOF


def refused_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# The kernel's side


def test_what_is_ready_both_ways_is_two_events(queue, pair):
    ours, theirs = pair
    theirs.send(b"four")
    add(queue, ours, READ, WRITE)
    event = until(queue, READ)
    assert (event.ident, event.data, event.flags & EOF) == (ours.fileno(), 4, 0)


def test_clear_tells_once_and_adding_again_tells_again(queue, pair):
    ours, theirs = pair
    theirs.send(b"x")
    add(queue, ours, READ)
    until(queue, READ)
    assert now(queue) == {}
    theirs.send(b"y")
    assert until(queue, READ).data == 2
    add(queue, ours, READ)
    assert now(queue)[READ].data == 2
    assert now(queue) == {}


def test_the_queue_itself_is_readable_while_it_has_events(queue, pair):
    ours, _ = pair
    assert not select.select([queue.fileno()], [], [], 0)[0]
    add(queue, ours, WRITE)
    assert select.select([queue.fileno()], [], [], SECONDS)[0]
    assert WRITE in now(queue)
    assert not select.select([queue.fileno()], [], [], 0)[0]


def test_the_end_is_told_while_octets_wait(queue, pair):
    ours, theirs = pair
    add(queue, ours, READ)
    theirs.send(b"last words")
    theirs.shutdown(socket.SHUT_WR)
    event = until(queue, READ, ended)
    assert (event.data, event.fflags) == (10, 0)
    assert ours.recv(100) == b"last words"
    assert ours.recv(100) == b""


def test_our_own_shutdown_ends_the_write_filter_without_an_error(queue, pair):
    ours, theirs = pair
    add(queue, ours, READ, WRITE)
    until(queue, WRITE)
    ours.shutdown(socket.SHUT_WR)
    assert until(queue, WRITE, ended).fflags == 0
    theirs.send(b"the other way goes on")
    assert not ended(until(queue, READ))


def test_a_reset_is_an_error_of_the_read_filter(queue, pair):
    ours, theirs = pair
    add(queue, ours, READ, WRITE)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    assert until(queue, READ, ended).fflags == errno.ECONNRESET


def test_a_refused_connection_is_an_error_of_the_write_filter(queue):
    with tcp_socket() as sock:
        assert sock.connect_ex(("127.0.0.1", refused_port())) == errno.EINPROGRESS
        add(queue, sock, READ, WRITE)
        event = until(queue, WRITE)
        assert event.flags & EOF
        assert event.fflags == errno.ECONNREFUSED
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


def test_a_socket_that_never_connected_is_ready_for_nothing(queue):
    with tcp_socket() as sock:
        add(queue, sock, READ, WRITE)
        assert now(queue) == {}
        with socket.create_server(("127.0.0.1", 0)) as server:
            sock.connect_ex(server.getsockname())
            assert not until(queue, WRITE).flags & EOF


def test_deleting_what_is_not_there(queue, pair):
    ours, _ = pair
    add(queue, ours, READ)
    with pytest.raises(FileNotFoundError):
        queue.control([select.kevent(ours, WRITE, DELETE), select.kevent(ours, READ, DELETE)], 0)
    (event,) = queue.control([select.kevent(ours, WRITE, DELETE)], 1, 0)
    assert (event.flags & ERROR, event.data) == (ERROR, errno.ENOENT)
    queue.control([select.kevent(ours, READ, DELETE)], 0)  # the failure came before it
    with pytest.raises(FileNotFoundError):
        queue.control([select.kevent(ours, READ, DELETE)], 0)


def test_closing_a_descriptor_takes_its_filters_along(queue):
    one, other = socket.socketpair()
    with other:
        add(queue, one, READ)
        number = one.fileno()
        one.close()
        with pytest.raises(FileNotFoundError):
            queue.control([select.kevent(number, READ, DELETE)], 0)


# The poller's side


def poll_until(poller, recorder, bits):
    end = time.monotonic() + SECONDS
    while not any(events & bits == bits for events in recorder.events):
        assert time.monotonic() < end, recorder.events
        select.select([poller._backend.fileno()], [], [], SECONDS)
        poller.poll()


def test_both_ways_are_told_at_once(poller, pair):
    ours, theirs = pair
    theirs.send(b"x")
    assert select.select([ours], [], [], SECONDS)[0]
    recorder = Recorder()
    poller.register(ours.fileno(), recorder)
    assert poller.poll() == 1
    assert recorder.events == [READABLE | WRITABLE]


def test_a_number_that_is_taken_again_does_not_get_the_other_half(poller, pair):
    """The first handler closes its socket; whoever gets the number next is told nothing of the old one."""
    ours, theirs = pair
    theirs.send(b"x")
    assert select.select([ours], [], [], SECONDS)[0]
    later = Recorder()
    with tcp_socket() as fresh:

        def replace() -> None:
            number = ours.fileno()
            poller.unregister(number)
            ours.close()
            assert fresh.dup().detach() == number
            poller.register(number, later)

        poller.register(ours.fileno(), Recorder(replace))
        poller.poll()
        assert later.events == []
        socket.close(next(iter(poller._handlers)))


def test_our_own_shutdown_is_no_hangup(poller, pair):
    ours, theirs = pair
    recorder = Recorder()
    poller.register(ours.fileno(), recorder)
    poll_until(poller, recorder, WRITABLE)
    ours.shutdown(socket.SHUT_WR)
    theirs.send(b"the other way goes on")
    poll_until(poller, recorder, READABLE)
    assert not any(events & HANGUP for events in recorder.events)
    theirs.close()
    poll_until(poller, recorder, HANGUP | READABLE)


def test_a_refused_connection_is_a_hangup(poller):
    recorder = Recorder()
    with tcp_socket() as sock:
        number = start_connect(sock, ("127.0.0.1", refused_port()))
        if number == errno.EINPROGRESS:
            poller.register(sock.fileno(), recorder)
            poll_until(poller, recorder, WRITABLE | HANGUP)
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        assert number == errno.ECONNREFUSED


def test_a_reset_is_a_hangup(poller, pair):
    ours, theirs = pair
    recorder = Recorder()
    poller.register(ours.fileno(), recorder)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    poll_until(poller, recorder, HANGUP | READABLE)
    with pytest.raises(ConnectionResetError):
        ours.recv(1)

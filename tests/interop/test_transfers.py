"""Nothing is lost: many transfers at once, of random sizes, half-closed early from either side, also on a bad link."""

from __future__ import annotations

import random
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.interop.guest_tools import Server, digest_of, receive_exactly, received, running, stream, wait_for

# What a client says first: who closes how | octets to the server | octets to the client | seed
REQUEST = struct.Struct("!BIII")
CLIENT_FIRST = 0  # the client sends all and says EOF; only then the server answers
SERVER_FIRST = 1  # the server sends all and says EOF; only then the client goes on
BOTH_AT_ONCE = 2
CLIENT_FIRST_AT_ONCE = 3  # both send at once, the client says EOF long before it has read all
MODES = (CLIENT_FIRST, SERVER_FIRST, BOTH_AT_ONCE, CLIENT_FIRST_AT_ONCE)
TO_CLIENT = 1 << 30  # the seed of that direction is another one


def send(connection, size, seed):
    for part in stream(size, seed):
        connection.sendall(part)
    connection.shutdown(socket.SHUT_WR)


def at_once(connection, size, seed):
    """Send and receive; returns the digest of what came."""
    sender = threading.Thread(target=send, args=(connection, size, seed))
    sender.start()
    digest = digest_of(received(connection))
    sender.join()
    return digest


def serve(connection):
    connection.settimeout(60)
    mode, up, down, seed = REQUEST.unpack(receive_exactly(connection, REQUEST.size))
    down_seed = seed + TO_CLIENT
    if mode == CLIENT_FIRST:
        digest = digest_of(received(connection))
        send(connection, down, down_seed)
    elif mode == SERVER_FIRST:
        send(connection, down, down_seed)
        digest = digest_of(received(connection))
    else:
        digest = at_once(connection, down, down_seed)
    assert digest == digest_of(stream(up, seed)), f"to the server: mode {mode}, {up} octets"


def fetch(guest, port, mode, up, down, seed):
    with guest.connect(port, timeout=60) as connection:
        connection.sendall(REQUEST.pack(mode, up, down, seed))
        if mode == CLIENT_FIRST:
            send(connection, up, seed)
            digest = digest_of(received(connection))
        elif mode == SERVER_FIRST:
            digest = digest_of(received(connection))
            send(connection, up, seed)
        else:
            digest = at_once(connection, up, seed)
        assert digest == digest_of(stream(down, seed + TO_CLIENT)), f"to the client: mode {mode}, {down} octets"


def sizes(dice):
    return int(2 ** dice.uniform(0, 22)) - 1  # from nothing to 4 MiB, every scale alike


def transfer(lab, guest, count, workers=200):
    dice = random.Random(count)
    jobs = [(MODES[i % 4], sizes(dice), sizes(dice), i) for i in range(count)]
    with Server(lab.host.listen(), serve) as server, ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(fetch, guest, server.port, *job) for job in jobs]:
            done.result()
    assert server.failures == []
    wait_for(lambda: not lab.host.tcp_sockets(), "every host socket is closed")


LINKS = {
    "offload": (),
    "mtu 1500": ("--mtu", "1500"),
    "no offload": ("--mtu", "1500", "--no-offload"),
}


@pytest.mark.parametrize("link", LINKS)
def test_forty_transfers_at_once(lab, link):
    with running(lab.host, "root", *LINKS[link]) as guest:
        transfer(lab, guest, 40)


@pytest.mark.program("nft")
@pytest.mark.parametrize("link", LINKS)
def test_forty_transfers_on_a_bad_link(lab, link):
    with running(lab.host, "root", *LINKS[link]) as guest:
        guest.drop(100 if link == "no offload" else 20)  # with offload a frame is 64 KiB, and there are few
        transfer(lab, guest, 40)
        assert min(guest.dropped()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("user", ["root", "nobody"])
@pytest.mark.parametrize("link", LINKS)
def test_two_hundred_transfers_at_once(lab, link, user):
    with running(lab.host, user, *LINKS[link]) as guest:
        transfer(lab, guest, 200)


@pytest.mark.slow
@pytest.mark.program("nft")
@pytest.mark.parametrize("link", LINKS)
def test_two_hundred_transfers_with_one_frame_in_a_hundred_lost(lab, link):
    with running(lab.host, "root", *LINKS[link]) as guest:
        guest.drop(100)
        transfer(lab, guest, 200)
        assert min(guest.dropped()) > 0

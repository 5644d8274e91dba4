"""Namespaces as guests, through the interface that other code uses."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import uuid

import pytest

from tapdev.netns import GuestConfig, NamespaceError, NamespaceGuest, spawn
from tests.tapdev.guests import as_user, environment, eventually, processes

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(sys.platform != "linux", reason="network namespaces need Linux"),
]

MAC = bytes.fromhex("025000000001")
VNET_HEADER = 12


def config(**changes):
    values = {
        "mac": MAC,
        "mtu": 1500,
        "address": "10.9.8.3",
        "prefix_length": 24,
        "gateway": "10.9.8.1",
        "nameserver": "10.9.8.2",
    }
    return GuestConfig(**{**values, **changes})


@pytest.fixture
def guest_of():
    """Spawn, and close at the end of the test; TAP descriptors too."""
    guests: list[NamespaceGuest] = []
    taps = []

    def make(*argv, **changes):
        guest = spawn(config(**changes), argv or ["sleep", "60"])
        guests.append(guest)
        fd, vnet_header = guest.receive_tap()
        taps.append(fd)
        assert vnet_header is changes.get("vnet_header", True)
        assert not os.get_inheritable(fd)
        guest.wait_configured_sync()
        return guest, fd

    yield make
    for guest in guests:
        guest.close()
    for fd in taps:
        os.close(fd)


def receive(fd, skip, ethertype):
    """The next frame of that ethertype, among those that the kernel sends of its own accord."""
    for _ in range(10):
        assert select.select([fd], [], [], 2)[0]
        frame = os.read(fd, 70000)[skip:]
        if frame[12:14] == ethertype.to_bytes(2, "big"):
            return frame
    raise AssertionError(f"no frame of type {ethertype:#06x}")


def output(guest, *argv):
    return subprocess.run(guest.command(argv), capture_output=True, text=True, check=True).stdout


async def test_status_of_the_command(guest_of):
    guest, _ = guest_of("sh", "-c", "exit 9")
    guest.start()
    assert await guest.wait() == 9
    assert guest.pid is None
    assert guest.warnings == []


async def test_signals_reach_the_command(guest_of):
    guest, _ = guest_of()
    guest.signal(signal.SIGTERM)  # not started yet: nothing to reach
    guest.start()
    guest.signal(signal.SIGUSR2)
    assert await guest.wait() == 128 + signal.SIGUSR2
    guest.signal(signal.SIGTERM)


async def test_killed_init_is_137(guest_of):
    guest, _ = guest_of()
    guest.start()
    os.kill(guest.pid, signal.SIGKILL)
    assert await guest.wait() == 137


async def test_wait_configured_is_immediate_when_it_is(guest_of):
    guest, _ = guest_of()
    await guest.wait_configured()


@pytest.mark.program("ping")
@pytest.mark.parametrize("vnet_header", [True, False])
def test_frames_come_with_the_header_that_was_asked_for(guest_of, vnet_header):
    guest, fd = guest_of("ping", "-c1", "10.9.8.1", vnet_header=vnet_header)
    guest.start()
    arp = receive(fd, VNET_HEADER if vnet_header else 0, 0x0806)
    assert arp[6:12] == MAC
    assert arp[28:32] == socket.inet_aton("10.9.8.3")
    assert arp[38:42] == socket.inet_aton("10.9.8.1")


def test_without_configuration_the_device_is_only_up(guest_of):
    guest, _ = guest_of(configure=False, name="eth0")
    assert "inet " not in output(guest, "ip", "address", "show", "eth0")
    assert "LOWER_UP" in output(guest, "ip", "link", "show", "eth0")
    assert MAC.hex(":") in output(guest, "ip", "link", "show", "eth0")
    assert output(guest, "ip", "route") == ""
    assert "LOWER_UP" in output(guest, "ip", "link", "show", "lo")


def test_two_guests_at_once_do_not_hold_each_other(guest_of):
    first, _ = guest_of()
    second, _ = guest_of(address="10.9.8.4")
    namespace = os.readlink(first.netns)
    assert namespace != os.readlink(second.netns)
    first.close()
    assert eventually(lambda: not processes(namespace))
    assert "10.9.8.4/24" in output(second, "ip", "address")
    assert "nameserver 10.9.8.2" in output(second, "cat", "/etc/resolv.conf")


def test_command_runs_where_we_are(guest_of, tmp_path, monkeypatch):
    guest, _ = guest_of()
    monkeypatch.chdir(tmp_path)
    assert output(guest, "pwd") == f"{tmp_path}\n"
    assert output(guest, "readlink", "/proc/1/ns/net").strip() == os.readlink(guest.netns)


def test_close_ends_everything_and_may_be_repeated(guest_of):
    marker = f"marker-{uuid.uuid4()}"
    guest, _ = guest_of("sh", "-c", f"sleep 60 & sleep 60; : {marker}")
    pid = guest.pid
    guest.start()
    guest.close()
    guest.close()
    assert guest.pid is None
    assert not processes(marker)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_close_at_once_and_without_taking_the_tap():
    for _ in range(5):
        spawn(config(), ["true"]).close()
    guest = spawn(config(), ["true"])
    guest.wait_configured_sync()
    guest.close()


def test_descriptors_of_ours_are_not_held_inside(guest_of):
    listener = socket.create_server(("127.0.0.1", 0))
    guest, _ = guest_of()
    links = [os.readlink(f"/proc/{guest.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{guest.pid}/fd")]
    assert os.readlink(f"/proc/self/fd/{listener.fileno()}") not in links
    listener.close()


def test_signal_mask_and_reaping_are_as_before(guest_of):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        guest, _ = guest_of()
        assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        with open(f"/proc/{guest.pid}/status") as file:
            assert f"PPid:\t{os.getpid()}\n" in file.read()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "no/good"}, "make the TAP device no/good: Invalid argument"),
        ({"mtu": 100000}, "set up tap0: "),
        ({"gateway": "10.1.1.1"}, "route through 10.1.1.1: Network is unreachable"),
        ({"address": "10.9.8.300"}, ""),
    ],
)
def test_failures_inside_are_told(changes, message):
    guest = spawn(config(**changes), ["true"])
    try:
        with pytest.raises(NamespaceError) as caught:
            guest.wait_configured_sync()
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)
    finally:
        guest.close()


async def test_failures_inside_are_told_to_who_waits():
    guest = spawn(config(mtu=100000), ["true"])
    try:
        with pytest.raises(NamespaceError, match="set up tap0"):
            await guest.wait_configured()
        with pytest.raises(NamespaceError, match="set up tap0"):
            await guest.wait()
    finally:
        guest.close()


# Other users, other kernels


def script(text):
    head = """
        import os, sys
        from tapdev.netns import GuestConfig, NamespaceError, spawn
        config = GuestConfig(mac=bytes.fromhex("025000000001"), mtu=1500, address="10.9.8.3", prefix_length=24,
                             gateway="10.9.8.1", nameserver="10.9.8.2")
    """
    return [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(text)]


def printed(argv):
    result = subprocess.run(argv, capture_output=True, text=True, env=environment(), timeout=10)
    assert result.stderr == ""
    return result.stdout


def test_command_for_an_unprivileged_guest():
    argv = script("""
        import subprocess
        guest = spawn(config, ["sleep", "60"])
        fd, header = guest.receive_tap()
        guest.wait_configured_sync()
        subprocess.run(guest.command(["sh", "-c", "ip -o -4 addr show tap0; id -u"]))
        guest.close()
    """)
    address, uid = printed(as_user("nobody", argv)).splitlines()
    assert "10.9.8.3/24" in address
    assert uid == "0"


def test_disabled_user_namespaces_are_one_clear_line():
    # A user namespace of its own, with a limit of its own and no id mapped: whoever runs there has no right at all.
    refuse = """
        import ctypes
        assert ctypes.CDLL(None).unshare(0x10000000) == 0
        with open("/proc/sys/user/max_user_namespaces", "w") as file:
            file.write("0")
        try:
            spawn(config, ["true"])
        except NamespaceError as error:
            print(error)
    """
    assert printed(script(refuse)) == (
        "make a user namespace: No space left on device; they are disabled here: "
        "sysctl -w user.max_user_namespaces=10000\n"
    )


def test_no_resolv_conf_is_a_warning():
    argv = script("""
        import ctypes
        libc = ctypes.CDLL(None)
        assert libc.unshare(0x20000) == 0 and libc.mount(b"none", b"/", None, 0x44000, None) == 0
        assert libc.mount(b"tmpfs", b"/etc", b"tmpfs", 0, None) == 0
        guest = spawn(config, ["true"])
        guest.wait_configured_sync()
        guest.close()
        print(guest.warnings)
    """)
    assert printed(argv) == "['/etc/resolv.conf is that of the host: No such file or directory']\n"


def test_resolvers_of_the_host_are_out_of_reach():
    argv = script("""
        import ctypes, socket, subprocess
        libc = ctypes.CDLL(None)
        assert libc.unshare(0x20000) == 0 and libc.mount(b"none", b"/", None, 0x44000, None) == 0
        assert libc.mount(b"tmpfs", b"/run", b"tmpfs", 0, None) == 0
        os.makedirs("/run/systemd/resolve")
        path = "/run/systemd/resolve/io.systemd.Resolve"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        connect = [sys.executable, "-c", "import socket; socket.socket(socket.AF_UNIX).connect('" + path + "')"]
        assert subprocess.run(connect).returncode == 0
        guest = spawn(config, ["true"])
        guest.wait_configured_sync()
        inside = subprocess.run(guest.command(connect), capture_output=True, text=True)
        guest.close()
        print(inside.stderr.splitlines()[-1])
    """)
    assert printed(argv) == "ConnectionRefusedError: [Errno 111] Connection refused\n"

"""`vpnkit run` leaves nothing behind, however it ends: the whole program's view of it, with traffic and forwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid

import pytest

from tests.interop.guest_tools import Directory, Guest, Server, receive_exactly, wait_for
from tests.tapdev.guests import as_user, environment, processes


class Ending:
    """How a run ends, and the exit status that this makes."""

    def __init__(self, guest: Guest) -> None:
        self.process = guest.process
        self.guest = guest

    def normal(self) -> int:
        self.process.stdin.close()
        return 0

    def sigterm(self) -> int:
        self.process.terminate()
        return 128 + signal.SIGTERM

    def sigkill_of_vpnkit(self) -> int:
        self.process.kill()
        return -signal.SIGKILL

    def sigkill_of_the_guest(self) -> int:
        os.kill(self.guest.init, signal.SIGKILL)
        return 128 + signal.SIGKILL


def paths_below(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def network_namespaces():
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.add(os.readlink(f"/proc/{name}/ns/net"))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("user", ["root", "nobody"])
@pytest.mark.parametrize("ending", ["normal", "sigterm", "sigkill_of_vpnkit", "sigkill_of_the_guest"])
def test_nothing_is_left(lab, user, ending):
    marker = f"marker-{uuid.uuid4()}"
    ends = []

    def serve(connection):
        connection.sendall(b"x")
        try:
            ends.append(connection.recv(1))
        except ConnectionResetError:
            ends.append(b"reset")

    links, listeners = lab.host.run("ip", "-o", "link"), lab.host.run("ss", "-Hltnu")
    with Directory(user) as temporary, Server(lab.host.listen(), serve) as server:
        # A daemon that has left the session, a connection in use, a forward in use, and the control socket.
        script = f"setsid sh -c 'sleep 100; : {marker}' & exec cat"
        guest = Guest(lab.host, user, "-p", "127.0.0.1:8060:7000", script=script, TMPDIR=str(temporary))
        try:
            runtime = guest.directory.path
            namespace = os.readlink(f"/proc/{guest.init}/ns/net")
            inside = guest.listen(7000)
            client = guest.connect(server.port)
            caller = lab.host.connect("127.0.0.1", 8060)
            with inside, client, caller:
                assert receive_exactly(client, 1) == b"x"
                assert paths_below(runtime) == ["vpnkit", "vpnkit/default.sock"]
                status = [sys.executable, "-m", "vpnkit", "status"]
                subprocess.run(
                    as_user(user, status),
                    check=True,
                    capture_output=True,
                    env=environment(XDG_RUNTIME_DIR=str(runtime)),
                )
                assert len(processes(marker)) >= 1
                expected = getattr(Ending(guest), ending)()
                # The sockets above are in the guest's namespace and keep it; they are ours and not the program's.
                assert guest.process.wait(5) == expected, guest.log()
                wait_for(lambda: not processes(marker), "the daemon is dead")
            wait_for(lambda: not processes(namespace), "no process is in the namespace")
            assert "Traceback" not in guest.log()
            wait_for(lambda: paths_below(runtime) == [], "the control socket is gone")
            assert paths_below(temporary) == []
        finally:
            guest.kill()
    wait_for(lambda: namespace not in network_namespaces(), "the namespace is gone")
    assert lab.host.run("ip", "-o", "link") == links
    assert lab.host.run("ss", "-Hltnu") == listeners
    wait_for(lambda: not lab.host.tcp_sockets(), "no host socket is left")
    assert len(ends) == 1

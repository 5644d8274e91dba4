"""`vpnkit run` as a process: statuses, signals, terminals, and that nothing is left of it.  The network is a fake."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from tests.tapdev.guests import NOBODY, as_user, environment, eventually, processes

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(sys.platform != "linux", reason="network namespaces need Linux"),
]

FAKE = str(Path(__file__).with_name("fake_network.py"))


@pytest.fixture(params=["root", "nobody"])
def user(request):
    return request.param


def run_argv(user, *argv):
    return as_user(user, [sys.executable, FAKE, *argv])


def run(user, *argv, stdin="", **env):
    return subprocess.run(
        run_argv(user, *argv), input=stdin, capture_output=True, text=True, timeout=10, env=environment(**env)
    )


@pytest.fixture
def start():
    """Popen with pipes, killed at the end; the first line of its standard output was "ready" and is gone."""
    started = []

    def popen(user, script, **env):
        process = subprocess.Popen(
            run_argv(user, "sh", "-c", script), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(**env)
        )
        started.append(process)
        if not env:
            assert process.stdout.readline() == b"ready\n", process.stderr.read()
        return process

    yield popen
    for process in started:
        if process.poll() is None:
            for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def init_of(process):
    """The pid of the guest's pid 1: the only child of `vpnkit run`."""
    (pid,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(pid)


# Statuses and streams


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["sh", "-c", "kill -PIPE $$"], 141),
    ],
)
def test_status_is_that_of_the_command(user, argv, status):
    result = run(user, *argv)
    assert (result.returncode, result.stderr) == (status, "")


def test_command_that_cannot_run(user):
    result = run(user, "no-such-command")
    assert (result.returncode, result.stderr) == (127, "no-such-command: No such file or directory\n")
    result = run(user, "/etc/passwd")
    assert (result.returncode, result.stderr) == (126, "/etc/passwd: Permission denied\n")


def test_script_without_interpreter_line_is_run_by_sh(tmp_path):
    script = tmp_path / "script"
    script.write_text("echo by $0 $1\n")
    script.chmod(0o755)
    assert run("root", str(script), "x").stdout == f"by {script} x\n"


def test_streams_pass_through(user):
    result = run(user, "sh", "-c", "cat; echo error >&2", stdin="in\n")
    assert (result.returncode, result.stdout, result.stderr) == (0, "in\n", "error\n")


def test_output_ends_when_the_command_closes_it(start):
    process = start("root", "echo ready; exec >&-; sleep 60")
    # vpnkit run itself holds its standard output, as any program does; pid 1 does not.
    links = [os.readlink(f"/proc/{init_of(process)}/fd/{fd}") for fd in (0, 1, 2)]
    assert links == ["/dev/null"] * 3


def test_inherited_descriptors_limits_and_directory(tmp_path):
    (tmp_path / "file").write_text("text\n")
    words = f"exec {sys.executable} {FAKE} sh -c 'pwd; ulimit -n; cat <&7'"
    result = subprocess.run(
        ["sh", "-c", f"ulimit -Sn 300; exec 7<file; {words}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert result.stdout == f"{tmp_path}\n300\ntext\n"


# What is inside


def test_only_link_is_ours(user):
    script = "ip -j address; ip -j route; cat /etc/resolv.conf; ls /sys/class/net; ls -d /proc/[0-9]* | wc -l"
    addresses, routes, *rest = run(user, "sh", "-c", script).stdout.splitlines()
    lo, tap = json.loads(addresses)
    assert (lo["ifname"], "UP" in lo["flags"]) == ("lo", True)
    assert (tap["ifname"], tap["address"], tap["mtu"], "UP" in tap["flags"]) == (
        "tap0",
        "02:50:00:00:00:01",
        65520,
        True,
    )
    assert [(a["local"], a["prefixlen"]) for a in tap["addr_info"] if a["family"] == "inet"] == [("192.168.65.3", 24)]
    default, subnet = json.loads(routes)
    assert (default["dst"], default["gateway"], default["dev"]) == ("default", "192.168.65.1", "tap0")
    assert subnet["dst"] == "192.168.65.0/24"
    assert rest[:2] == ["search example.org corp.example.org", "nameserver 192.168.65.1"]
    assert rest[2:4] == ["lo", "tap0"]
    assert int(rest[4]) <= 4  # pid 1, sh, ls, wc


@pytest.mark.program("ping")
def test_ping_works(user):
    assert run(user, "ping", "-c1", "-W1", "127.0.0.1").returncode == 0


def test_command_is_root_inside_and_itself_outside(start, user):
    process = start(user, "echo ready; id -u; exec sleep 60")
    assert process.stdout.readline() == b"0\n"
    init = init_of(process)
    (command,) = Path(f"/proc/{init}/task/{init}/children").read_text().split()
    assert os.stat(f"/proc/{command}").st_uid == (0 if user == "root" else NOBODY)


# Signals


@pytest.mark.parametrize("name", ["TERM", "INT", "USR1", "HUP", "QUIT", "WINCH"])
def test_signal_is_passed_on_and_handled(start, user, name):
    process = start(user, f"trap 'echo got; exit 3' {name}; echo ready; while :; do sleep 0.05; done")
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.communicate(timeout=5) == (b"got\n", b"")
    assert process.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_that_kills_the_command(start, user, number):
    process = start(user, "echo ready; exec sleep 60")
    process.send_signal(number)
    assert process.wait(5) == 128 + number


def test_signal_before_the_command_runs_ends_it_all(start, user):
    marker = f"marker-{uuid.uuid4()}"
    process = start(user, f"echo ran; : {marker}", FAKE_SLOW="1")
    assert process.stderr.readline() == b"slow\n"
    process.terminate()
    assert process.communicate(timeout=5) == (b"", b"")
    assert process.returncode == 143
    assert not processes(marker)


def test_ignored_signal_stays_ignored(user):
    result = subprocess.run(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *run_argv(user, "sh", "-c", "kill -HUP $$; echo alive")],
        capture_output=True,
        env=environment(),
    )
    assert result.stdout == b"alive\n"


# Terminals


def in_terminal(argv, conversation, timeout=8.0, **env):
    """What `argv` shows on a terminal of its own; each (text, keys) types the keys when the text has appeared."""
    pid, master = pty.fork()
    if pid == 0:
        try:
            os.execve(argv[0], argv, environment(PS1="", TERM="dumb", **env))
        finally:
            os._exit(99)
    shown = b""
    seen = 0
    deadline = time.monotonic() + timeout
    os.set_blocking(master, False)
    try:
        while time.monotonic() < deadline:
            try:
                data = os.read(master, 4096)
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:  # EIO: every process has closed it
                break
            else:
                shown += data
            if conversation and conversation[0][0] in shown[seen:]:
                seen = len(shown)
                os.write(master, conversation.pop(0)[1])
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(master)
    assert not conversation, shown
    return shown


def test_ctrl_c_reaches_the_command_once(user):
    # Pending twice is pending once: the command takes each at once, and vpnkit is late to pass on what it must not.
    script = """if True:
        import signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        print("ready", flush=True)
        count = 0
        while signal.sigtimedwait({signal.SIGINT}, 0.3):
            count += 1
        print("count", count)
    """
    argv = run_argv(user, sys.executable, "-c", script)
    assert b"count 1\r\n" in in_terminal(argv, [(b"ready", b"\x03")], FAKE_LAZINESS="1")


@pytest.mark.program("bash")
def test_ctrl_z_stops_it_and_fg_goes_on(user):
    words = " ".join(run_argv(user, "sh", "-c", "'echo ready; sleep 0.2; echo fin$((1))ished'"))
    shown = in_terminal(
        ["/bin/bash", "-m", "-c", f"{words}; echo stopped $?; sleep 0.3; echo still; fg; echo end $?"],
        [(b"ready", b"\x1a")],
    )
    assert shown.index(b"stopped 148") < shown.index(b"still") < shown.index(b"fin1ished") < shown.index(b"end 0")


@pytest.mark.program("bash")
def test_terminal_is_given_back_after_a_shell(user):
    words = " ".join(run_argv(user, "bash", "--norc", "-i"))
    shown = in_terminal(
        ["/bin/sh", "-c", f"echo begin; {words}; read line; echo got $line"],
        [(b"begin", b"echo inner $((6*7)); exit 5\n"), (b"inner 42", b"typed\n")],
    )
    assert b"got typed" in shown


# Nothing is left


def test_daemons_of_the_command_die_with_it(user):
    marker = f"marker-{uuid.uuid4()}"
    result = run(user, "sh", "-c", f"setsid sh -c 'sleep 60; : {marker}' >/dev/null 2>&1 & exit 4")
    assert result.returncode == 4
    assert not processes(marker)


@pytest.mark.program("lsns")
@pytest.mark.parametrize("victim", ["vpnkit", "init"])
def test_nothing_is_left_after_sigkill(start, user, victim):
    marker = f"marker-{uuid.uuid4()}"
    mounts = Path("/proc/self/mountinfo").read_text()
    process = start(
        user, f"echo ready; readlink /proc/self/ns/net; setsid sleep 60 & sh -c 'sleep 60; : {marker}'; : x"
    )
    namespace = process.stdout.readline().decode().strip()
    assert eventually(lambda: len(processes(namespace)) >= 4)
    os.kill(process.pid if victim == "vpnkit" else init_of(process), signal.SIGKILL)
    assert process.wait(5) == (-9 if victim == "vpnkit" else 137)
    assert eventually(lambda: not processes(marker) and not processes(namespace))
    number = namespace.strip("net:[]")
    assert number not in subprocess.run(["lsns", "-n", "-o", "NS"], capture_output=True, text=True).stdout.split()
    assert Path("/proc/self/mountinfo").read_text() == mounts


def test_stopped_init_dies_with_us(start):
    marker = f"marker-{uuid.uuid4()}"
    process = start("root", f"echo ready; sleep 60; : {marker}")
    init = init_of(process)
    os.kill(init, signal.SIGSTOP)
    process.kill()
    process.wait()
    gone = eventually(lambda: not processes(marker))
    if not gone:
        os.kill(init, signal.SIGKILL)
    assert gone


def test_no_files_mounts_or_devices_are_left(user, tmp_path):
    tmp_path.chmod(0o777)
    mounts = Path("/proc/self/mountinfo").read_text()
    resolv_conf = Path("/etc/resolv.conf").read_text()
    assert run(user, "true", TMPDIR=str(tmp_path)).returncode == 0
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert Path("/etc/resolv.conf").read_text() == resolv_conf
    assert not list(tmp_path.iterdir())
    assert "tap0" not in [name for _, name in socket.if_nameindex()]


@pytest.mark.parametrize(("argv", "env"), [(["-p", "bad"], {}), ([], {"FAKE_FAILURE": "1"})])
def test_failure_of_the_network_ends_the_command(user, argv, env):
    marker = f"marker-{uuid.uuid4()}"
    result = run(user, *argv, "sh", "-c", f"echo begun; sleep 60; : {marker}", **env)
    assert result.returncode == 1
    assert ("bad forward" if argv else "the network broke") in result.stderr
    assert result.stdout == ("" if argv else "begun\n")
    assert not processes(marker)


def test_closed_tun_device_is_one_clear_line():
    argv = as_user("nobody", ["--closed", sys.executable, FAKE, "true"])
    result = subprocess.run(argv, capture_output=True, text=True, env=environment())
    assert result.returncode == 1
    assert result.stderr == (
        "vpnkit run: open /dev/net/tun: Permission denied; make it readable and writable for you "
        "(chmod 0666 /dev/net/tun, as most distributions do)\n"
    )


def test_the_control_socket_goes_when_we_are_killed(start, user):
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # pytest's own is root's alone
        path = Path(directory)
        path.chmod(0o777)
        process = start(user, "echo ready; sleep 60", TMPDIR=directory)
        assert eventually(lambda: list(path.rglob("*.sock")))
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        process.wait()
        assert eventually(lambda: not list(path.iterdir()))

"""The console entry: what is imported, what an error looks like, what the process exits with."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

import vpnkit.cli
from portfwd.errors import ForwardError
from vpnkit.cli import COMMANDS, LazyGroup, main
from vpnkit.control.paths import ControlError
from vpnkit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m vpnkit ARGV` as a process."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "vpnkit", *argv], capture_output=True, text=True, env=env, timeout=30, check=False
    )


def test_help_as_a_process() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for name, (_, text) in COMMANDS.items():
        assert f"  {name}" in done.stdout
        assert text in done.stdout


def test_a_usage_error_as_a_process() -> None:
    done = run("run", "--subnet", "10.0.0.1/24", "true")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(
        "vpnkit: Invalid value for '--subnet': '10.0.0.1/24' is an address inside 10.0.0.0/24."
    )
    assert done.stderr.count("\n") == 1


def test_a_failure_as_a_process(tmp_path: Path) -> None:
    done = run("status", "--control", str(tmp_path / "x.sock"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"vpnkit: nobody listens on {tmp_path}/x.sock")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["status", "--help"], ["--version"]])
def test_asking_for_help_imports_no_event_loop(argv: list[str]) -> None:
    code = (
        "import sys; from vpnkit.cli import main; status = main(sys.argv[1:]);"
        "heavy = {'trio', 'pyroute2', 'dns', 'asyncio', 'h11'} & set(sys.modules);"
        "assert not heavy, heavy; sys.exit(status)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, env=env, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_every_command_is_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"Usage: vpnkit {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["statu"], "No such command 'statu'"),
        (["--colour"], "No such option"),
        (["run"], "Missing argument 'CMD"),
        (["run", "--colour", "true"], "No such option"),
        (["run", "--mtu", "70000", "true"], "70000 is not in the range"),
        (["run", "--mtu", "big", "true"], "'big' is not a valid"),
        (["run", "--gateway-ip", "::1", "true"], "'::1' is not an IPv4 address"),
        (["run", "--gateway-ip", "none", "true"], "'none' is not an IPv4 address"),
        (["run", "--gateway-ip", "10.0.0.1", "true"], "gateway address 10.0.0.1 is not a host address of subnet"),
        (["run", "--gateway-ip", "192.168.65.2", "true"], "is already the gateway address"),
        (["run", "--subnet", "10.0.0.0", "true"], "has no prefix length; 192.168.65.0/24 has one"),
        (["run", "--subnet", "10.0.0.0/30", "true"], "too small"),
        (["run", "--subnet", "x", "true"], "'x' is not an IPv4 network like 192.168.65.0/24"),
        (["run", "--subnet", "fd00::/64", "true"], "'fd00::/64' is not an IPv4 network"),
        (["run", "--subnet", "224.0.0.0/24", "true"], "no network for guests"),
        (["run", "--subnet", "0.0.0.0/0", "true"], "no network for guests"),
        (["run", "--dns", "dns.example", "true"], "'dns.example' is not a DNS server"),
        (["run", "--dns", "1.1.1.1#0", "true"], "must be 1 to 65535"),
        (["run", "--domain", "a b", "true"], "'a b' is not a domain name like vm.example"),
        (["run", "--host-name", "", "true"], "'' is not a domain name"),
        (["run", "--search", "x" * 64, "true"], "is not a domain name"),
        (["run", "--max-connections", "0", "true"], "0 is not in the range x>=1"),
        (["run", "--name", "../x", "true"], "instance name '../x' is wrong"),
        (["run", "--control", "/" + "x" * 200, "true"], "at most 10"),
        (["run", "--control", "/", "true"], "is not the path of a socket"),
        (["run", "--log-level", "loud", "true"], "'loud' is not one of 'debug'"),
        (["run", "-p", "80:80:80:80:80", "true"], "forward '80:80:80:80:80': too many parts"),
        (["run", "-p", "http", "true"], "'http' is not a port"),
        (["status", "--name", "/"], "instance name '/' is wrong"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vpnkit.cli.run.run", lambda *_args, **_options: pytest.fail("it ran"))
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vpnkit: ")
    assert message in err
    assert err.count("\n") == 1


def with_error(monkeypatch: pytest.MonkeyPatch, error: BaseException, level: str = "warning") -> int:
    """The exit status of a command that fails with `error`."""

    @click.command("fail")
    def fail() -> None:
        logging.getLogger().setLevel(level.upper())
        raise error

    monkeypatch.setattr(LazyGroup, "get_command", lambda *_: fail)
    return main(["fail"])


ERRORS: list[tuple[BaseException, int, str]] = [
    (ConfigError("wrong"), 2, "wrong"),
    (ControlError("taken"), 1, "taken"),
    (ForwardError("busy"), 1, "busy"),
    (ExceptionGroup("nursery", [ExceptionGroup("inner", [ControlError("taken")])]), 1, "taken"),
    (ExceptionGroup("nursery", [OSError("later"), ConfigError("wrong")]), 2, "wrong"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), 1, "/x: No such file or directory"),
    (OSError(errno.EMFILE, "Too many open files"), 1, "Too many open files"),
    (ControlError("two\nlines"), 1, "two lines"),
    (ZeroDivisionError("division by zero"), 1, "internal error: ZeroDivisionError: division by zero"),
    (click.ClickException("no"), 1, "no"),
]


@pytest.mark.parametrize(("error", "status", "message"), ERRORS)
def test_a_failure_is_one_line(
    error: BaseException,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert with_error(monkeypatch, error) == status
    err = capsys.readouterr().err
    assert err.startswith(f"vpnkit: {message}")
    assert err.count("\n") == 1


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert with_error(monkeypatch, ControlError("taken"), "debug") == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("\nvpnkit: taken\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BaseExceptionGroup("nursery", [KeyboardInterrupt()])])
def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    assert with_error(monkeypatch, error) == 130


def test_a_status_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as raised:
        with_error(monkeypatch, BaseExceptionGroup("nursery", [SystemExit(7)]))
    assert raised.value.code == 7


def test_a_function_is_a_command_without_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "plain", ("tests.vpnkit.cli.test_main:plain", "Nothing."))
    assert main(["plain"]) == 5
    assert main(["plain", "--nothing"]) == 2


def plain() -> int:
    return 5


def test_the_console_script_is_main() -> None:
    assert vpnkit.cli.main is main

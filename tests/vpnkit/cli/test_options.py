"""What the options of `run` amount to, and that the command's own are left alone."""

from __future__ import annotations

import json
import logging
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner

from vpnkit.cli import logs, vpnkit
from vpnkit.cli.options import NetSettings, network_options, plan_from, settings_from
from vpnkit.errors import ConfigError
from vpnkit.net.network import NetworkOptions
from vpnkit.net.plan import HOST_NAMES, Plan
from vpnkit.proto.dns_upstreams import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def resolve(*argv: str) -> tuple[Plan, NetSettings]:
    """The plan and the settings of a command line."""
    found = []

    @click.command
    @network_options
    def command(**options: Any) -> None:
        found.append((plan_from(options), settings_from(options)))

    command.main(argv, standalone_mode=False)
    return found[0]


def test_defaults_are_the_plans() -> None:
    plan, settings = resolve()
    assert plan == Plan()
    assert settings == NetSettings()


def test_every_option_arrives(tmp_path: Path) -> None:
    line = f"""
        --subnet 10.1.0.0/16 --gateway-ip 10.1.0.254 --host-ip 10.1.0.253 --guest-ip 10.1.9.1 --mtu 1500
        --no-offload --verify-checksums --dns 1.1.1.1 --dns 2001:db8::1#5353 --domain vm.example.
        --search a.example --search b.example --host-name build.example --max-connections 99
        --max-guest-connections 9 --allowed-bind-addresses 127.0.0.0/8 --allowed-bind-addresses ::1
        --port-helper /run/h --udp-filtering endpoint --name dev --control {tmp_path}/c.sock --log-level debug
        --log-json
    """
    plan, settings = resolve(*line.split())
    assert plan.subnet == IPv4Network("10.1.0.0/16")
    assert plan.gateway_ip == IPv4Address("10.1.0.254")
    assert plan.host_ip == IPv4Address("10.1.0.253")
    assert plan.guest_ip == IPv4Address("10.1.9.1")
    assert plan.mtu == 1500
    assert (plan.domain, plan.search) == ("vm.example", ("a.example", "b.example"))
    assert plan.host_names == (*HOST_NAMES, "build.example")
    assert settings == NetSettings(
        offload=False,
        verify_checksums=True,
        dns=(Server("1.1.1.1"), Server("2001:db8::1", 5353)),
        max_connections=99,
        max_guest_connections=9,
        allowed_bind_addresses=(IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
        port_helper="/run/h",
        udp_filtering="endpoint",
        name="dev",
        control=tmp_path / "c.sock",
        log_level="debug",
        log_json=True,
    )
    assert settings.control_path == tmp_path / "c.sock"


@pytest.mark.parametrize("argv", [["--host-ip", "none"], ["--no-host-loopback"]])
def test_the_alias_can_be_disabled(argv: list[str]) -> None:
    plan, _ = resolve(*argv)
    assert plan.host_ip is None


def test_ipv6_is_as_the_operator_says() -> None:
    plan, settings = resolve("--ipv6", "local", "--ipv6-prefix", "2001:db8:1::/64")
    assert plan.prefix6 == IPv6Network("2001:db8:1::/64")
    assert settings.ipv6 == "local"


def test_nat64_is_a_way_out_by_ipv6_whatever_the_host_has() -> None:
    _, settings = resolve("--nat64")
    assert (settings.nat64, settings.ipv6) == (True, "on")
    _, settings = resolve()
    assert (settings.nat64, settings.ipv6) == (False, "auto")


@pytest.mark.parametrize("argv", [["--ipv6", "off"], ["--ipv6-prefix", "none"], ["--ipv6", "off", "--mtu", "600"]])
def test_ipv6_can_be_disabled(argv: list[str]) -> None:
    plan, _ = resolve(*argv)
    assert plan.prefix6 is None


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("--ipv6 maybe", "auto"),
        ("--ipv6-prefix fd00::", "no /64"),
        ("--ipv6-prefix fd00::/48", "no /64"),
        ("--ipv6-prefix fd00::/65", "no /64"),
        ("--ipv6-prefix fd00::1/64", "not an IPv6 network like"),
        ("--ipv6-prefix 10.0.0.0/8", "not an IPv6 network like"),
        ("--ipv6-prefix fe80::/64", "no network for guests"),
        ("--ipv6-prefix ff02::/64", "no network for guests"),
        ("--ipv6-prefix 64:ff9b::/64", "no network for guests"),
        ("--ipv6-prefix ::/64", "no network for guests"),
        ("--ipv6 on --ipv6-prefix none", "--ipv6 on needs a prefix"),
        ("--ipv6 local --ipv6-prefix none", "--ipv6 local needs a prefix"),
        ("--ipv6 on --mtu 1279", "at least 1280"),
        ("--nat64 --ipv6 off", "--nat64 is a way out by IPv6, and --ipv6 off has none"),
        ("--nat64 --ipv6 local", "--ipv6 local has none"),
        ("--nat64 --ipv6-prefix none", "--nat64 needs a prefix"),
        ("--nat64 --mtu 1279", "--nat64 needs an mtu of at least 1280"),
    ],
)
def test_what_cannot_be_ipv6(line: str, complaint: str) -> None:
    with pytest.raises((click.UsageError, ConfigError)) as caught:
        resolve(*line.split())
    assert complaint in str(getattr(caught.value, "message", caught.value))


def test_the_name_says_where_the_control_socket_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    _, settings = resolve("--name", "dev")
    assert settings.control_path == tmp_path / "vpnkit" / "dev.sock"


class Recorder:
    """Stands in for `vpnkit.cli.run.run`."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.argv: list[str] = []
        self.forwards: list[str] = []
        self.options = NetworkOptions()
        self.offload = True

    def __call__(
        self,
        argv: Sequence[str],
        plan: Plan,
        forwards: Sequence[str],
        options: Callable[[], NetworkOptions],
        *,
        offload: bool = True,
        **_more: Any,
    ) -> int:
        self.argv, self.forwards, self.options, self.offload = list(argv), list(forwards), options(), offload
        return self.status


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr("vpnkit.cli.run.run", recorder)
    return recorder


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["ls"], ["ls"]),
        (["ls", "-l", "--name", "x", "-p", "80"], ["ls", "-l", "--name", "x", "-p", "80"]),
        (["--", "ls", "-l"], ["ls", "-l"]),
        (["ls", "--", "-l"], ["ls", "--", "-l"]),
        (["--name", "x", "--", "--weird"], ["--weird"]),
        (["sh", "-c", "exit 3"], ["sh", "-c", "exit 3"]),
        (["ls", "--help"], ["ls", "--help"]),
        (["ls", ""], ["ls", ""]),
    ],
)
def test_the_commands_options_are_its_own(recorder: Recorder, argv: list[str], expected: list[str]) -> None:
    assert CliRunner().invoke(vpnkit, ["run", *argv], standalone_mode=False).return_value == 0
    assert recorder.argv == expected


def test_forwards_and_behaviour_reach_the_network(recorder: Recorder) -> None:
    line = "run -p 8080:80 --publish 9000-9001 -p [::1]:53:53 --no-offload --dns 1.1.1.1#54 --name a --ipv6 on true"
    result = CliRunner().invoke(vpnkit, line.split(), standalone_mode=False)
    assert result.exception is None
    assert recorder.forwards == ["8080:80", "9000:9000", "9001:9001", "[::1]:53:53"]
    assert recorder.offload is False
    assert (recorder.options.name, list(recorder.options.dns)) == ("a", [Server("1.1.1.1", 54)])
    assert recorder.options.ipv6 == "on"


def test_the_commands_status_is_ours(recorder: Recorder) -> None:
    recorder.status = 143
    assert CliRunner().invoke(vpnkit, ["run", "x"], standalone_mode=False).return_value == 143


def test_logs_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", as_json=False)
    logging.getLogger("portfwd.table").info("forward %s", "8080:80")
    logging.getLogger("portfwd.table").debug("not this")
    err = capsys.readouterr().err
    assert err.endswith("INFO    portfwd.table: forward 8080:80\n")
    assert "not this" not in err


def test_logs_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", as_json=False)
    logs.configure("warning", as_json=True)  # replaces the first
    log = logging.getLogger("vpnkit.x")
    log.warning("one\ntwo %s", "é")
    try:
        raise ValueError("oops")
    except ValueError:
        log.exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first["message"] == "one\ntwo é"
    assert (first["level"], first["logger"]) == ("warning", "vpnkit.x")
    assert first["time"].endswith("Z")
    assert "exception" not in first
    assert "ValueError: oops" in second["exception"]


@pytest.mark.parametrize("text", ["localhost", "127.0.0.1/8", "10.0.0.0/33"])
def test_what_is_no_address_to_bind(text: str) -> None:
    with pytest.raises(click.UsageError, match=f"'{text}' is neither an address like 127.0.0.1 nor a network"):
        resolve("--allowed-bind-addresses", text)

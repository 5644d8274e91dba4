"""What the options of `serve` amount to."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from portfwd.auto.rules import parse_rule
from portfwd.mux.address import ForwarderAddress
from tests.tapdev.guests import environment
from vpnkit.cli import main, vpnkit
from vpnkit.proto.dns_upstreams import Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tapdev.spec import LinkSpec
    from vpnkit.cli.options import NetSettings
    from vpnkit.net.plan import Plan


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


class Recorder:
    """Stands in for `vpnkit.cli.serve.serve`."""

    def __call__(
        self, links: Sequence[LinkSpec], plan: Plan, settings: NetSettings, forwards: Sequence[str], **more: Any
    ) -> int:
        self.links, self.plan, self.settings, self.forwards, self.more = links, plan, settings, forwards, more
        return 0


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr("vpnkit.cli.serve.serve", recorder)
    return recorder


def test_every_option_arrives(recorder: Recorder) -> None:
    line = "serve --link qemu:/a -p 8080:80 --link vmnet:/b --mtu 9000 --isolate --dns 1.1.1.1 -p 9000-9001 --name vm"
    result = CliRunner().invoke(vpnkit, line.split(), standalone_mode=False)
    assert (result.exception, result.return_value) == (None, 0)
    assert [str(link) for link in recorder.links] == ["qemu:/a", "vmnet:/b"]
    assert recorder.forwards == ["8080:80", "9000:9000", "9001:9001"]
    assert (recorder.settings.isolate, recorder.settings.name) == (True, "vm")
    assert recorder.settings.dns == (Server("1.1.1.1"),)
    assert recorder.plan.mtu == 9000
    assert recorder.more == {"mtu": 9000, "ready_fd": None, "forwarder": None, "agents": None}
    assert not recorder.plan.agents


@pytest.mark.parametrize(("option", "rule"), [("--allow-agent", "auto"), ("--allow-agent=auto:80", "auto:80")])
def test_agents(recorder: Recorder, option: str, rule: str) -> None:
    assert main(["serve", option, "--link", "stdio:"]) == 0
    assert recorder.more["agents"] == parse_rule(rule)
    assert recorder.plan.agents


def test_a_forwarder(recorder: Recorder) -> None:
    assert main(["serve", "--link", "stdio:", "--forwarder", "fc-vsock:/v:9,handshake=no"]) == 0
    assert recorder.more["forwarder"] == ForwarderAddress("fc-vsock", "/v", 9, handshake=False)


def test_without_mtu_each_link_has_its_own(recorder: Recorder) -> None:
    assert main(["serve", "--link", "stdio:"]) == 0
    assert recorder.more["mtu"] is None
    assert recorder.plan.mtu == 65520
    assert recorder.settings.isolate is False


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "There is no --link, so nobody could come in; for QEMU: vpnkit serve --link qemu:/tmp/vm.sock."),
        (["--link", "/tmp/vm.sock"], "for example qemu:/tmp/vm.sock"),
        (["--link", "smoke:/x"], "'smoke' is none of tap, fd, qemu"),
        (["--link", "qemu:"], "the path is missing"),
        (["--link", "qemu:/x", "--forwarder", "/x"], "forwarder '/x' is none of unix:PATH"),
        (["--link", "qemu:/x", "--link", "qemu:/x"], "--link qemu:/x is the same place as --link qemu:/x"),
        (["--link", "qemu:/x", "--link", "vmnet:/y/../x"], "--link vmnet:/y/../x is the same place as --link qemu:/x"),
        (["--link", "stdio:", "--link", "stdio:"], "is the same place as --link stdio:"),
        (["--link", "fd:7", "--link", "qemu:fd:7"], "is the same place as --link fd:7"),
        (["--link", "tap:a", "--link", "tap:a"], "is the same place as --link tap:a"),
        (["--link", "vsock:9", "--link", "vsock:9"], "is the same place as --link vsock:9"),
        (["--link", "qemu:/x", "--control", "/x"], "--link qemu:/x is the same place as --control /x"),
        (["--link", "qemu:/x", "-p", "http"], "'http' is not a port"),
        (["--link", "qemu:/x", "--mtu", "70000"], "70000 is not in the range"),
        (["--link", "qemu:/x", "--ready-fd", "1"], "1 is not in the range x>=3"),
        (["--link", "qemu:/x", "--ready-fd", "12345"], "--ready-fd 12345 is no open descriptor"),
        (["--link", "qemu:/x", "true"], "unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], recorder: Recorder
) -> None:
    assert main(["serve", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vpnkit: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "links",
    [
        ["tap:a", "tap:a?netns=/b", "qemu:a"],
        ["qemu:tcp:127.0.0.1:0", "qemu:tcp:127.0.0.1:0"],
        ["vsock:9", "vsock:3:9", "fc-vsock:/x:9", "fc-vsock:/x:10", "qemu:/x"],
    ],
)
def test_places_that_are_not_the_same(links: list[str], recorder: Recorder) -> None:
    assert main(["serve", *(word for link in links for word in ("--link", link))]) == 0
    assert len(recorder.links) == len(links)


def test_asking_for_help_imports_no_event_loop() -> None:
    code = (
        "import sys; from vpnkit.cli import main; status = main(['serve', '--help']);"
        "heavy = {'trio', 'pyroute2', 'dns', 'asyncio', 'h11'} & set(sys.modules);"
        "assert not heavy, heavy; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    assert (done.returncode, done.stderr) == (0, "")
    for form in ("qemu:PATH", "dgram:LOCAL", "vmnet:PATH", "tap:NAME", "stdio:", "vsock:", "bess:", "--isolate"):
        assert form in done.stdout

"""contrib/: the units are right in systemd's eyes and in ours, and every command line there is one."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from portfwd.helper import DEFAULT_PATH
from tapdev.spec import parse
from vpnkit.cli.helper import helper
from vpnkit.cli.options import plan_from, settings_from
from vpnkit.cli.serve_command import serve_command

CONTRIB = Path(__file__).parents[3] / "contrib"
RUN = "/run/user/1000"  # what %t is in a user unit
TARGETS = (
    *(f"{name}.target" for name in ("sysinit", "basic", "sockets", "shutdown", "default", "network")),
    "-.slice",
    "system.slice",
)
KINDS = {"ListenStream": "stream", "ListenDatagram": "datagram", "ListenSequentialPacket": "seqpacket"}
TYPES = {"qemu": "stream", "vmnet": "stream", "bess": "seqpacket", "dgram": "datagram", "vfkit": "datagram"}


def unit(name: str) -> list[tuple[str, str]]:
    """The assignments of a unit, lines that go on joined."""
    text = (CONTRIB / name).read_text().replace("\\\n", " ")
    return [
        (key, value.strip())
        for key, separator, value in (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
        if separator
    ]


def value(name: str, key: str) -> str:
    (found,) = [text for this, text in unit(name) if this == key]
    return found


def parsed(words: list[str]) -> dict[str, object]:
    """The options of `vpnkit serve WORDS`.  Raises click's errors."""
    with serve_command.make_context("serve", words) as context:
        plan_from(context.params)
        settings_from(context.params)
        return dict(context.params)


def serve_lines() -> list[list[str]]:
    """The arguments of every `vpnkit serve` in the README, as a shell has them."""
    text = (CONTRIB / "README.md").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("vpnkit serve")]
    return [shlex.split(line.partition("&")[0], comments=True)[2:] for line in lines]


@pytest.mark.parametrize("words", serve_lines(), ids=" ".join)
def test_every_command_line_in_the_readme_is_one(words: list[str]) -> None:
    params = parsed(words)
    assert params["links"]
    for link in params["links"]:
        assert parse(str(link)) == link


def test_the_readme_has_every_kind_of_link() -> None:
    text = " ".join(" ".join(words) for words in serve_lines())
    assert set(re.findall(r"--link ([a-z-]+):", text)) >= {
        "qemu", "qemu-connect", "dgram", "vfkit", "vmnet", "bess", "tap", "vsock", "fc-vsock", "hyperkit", "stdio"
    }  # fmt: skip


def test_every_link_that_the_readme_mentions_is_one() -> None:
    text = (CONTRIB / "README.md").read_text()
    links = re.findall(r"--link ([^\s`]*[^\s`.])(?!\.\.)[\s`]", text)
    assert len(links) > 15
    for link in links:
        parse(link.strip("'"))


def test_the_service_is_a_command_line_of_ours() -> None:
    program, command, *words = shlex.split(value("vpnkit.service", "ExecStart").replace("%t", RUN))
    assert (Path(program).name, command) == ("vpnkit", "serve")
    assert parsed(words)["control"] == Path(RUN, "vpnkit/default.sock")  # where `vpnkit status` looks


def test_the_sockets_are_those_of_the_service() -> None:
    words = shlex.split(value("vpnkit.service", "ExecStart").replace("%t", RUN))[2:]
    params = parsed(words)
    wanted = {str(params["control"]): "stream", **{link.path: TYPES[link.kind] for link in params["links"]}}
    assert wanted == {text.replace("%t", RUN): KINDS[key] for key, text in unit("vpnkit.socket") if key in KINDS}


def test_the_helper_is_a_command_line_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    known = pwd.struct_passwd(("vpnkit", "x", 999, 999, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwnam", {"vpnkit": known}.__getitem__)
    program, command, *words = shlex.split(value("vpnkit-helper.service", "ExecStart").replace("%t", "/run"))
    assert (Path(program).name, command) == ("vpnkit", "helper")
    with helper.make_context("helper", words) as context:
        params = context.params
    assert [list(some) for some in params["ports"]] == [[range(80, 81), range(443, 444)]]
    [path] = [text.replace("%t", "/run") for key, text in unit("vpnkit-helper.socket") if key == "ListenStream"]
    assert str(params["listen"]) == path
    assert os.path.realpath(path) == os.path.realpath(DEFAULT_PATH)  # where --port-helper looks


def test_the_directory_of_the_sockets_outlives_the_service() -> None:
    assert value("vpnkit.service", "RuntimeDirectory") == "vpnkit"
    assert value("vpnkit.service", "RuntimeDirectoryPreserve") == "yes"
    assert all(text.startswith("%t/vpnkit/") for key, text in unit("vpnkit.socket") if key in KINDS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file system with our units, and as much of others' as ours refer to."""
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    for name in ("vpnkit.service", "vpnkit.socket", "vpnkit-helper.service", "vpnkit-helper.socket"):
        shutil.copy(CONTRIB / name, units)
    for name in TARGETS:
        (units / name).write_text("[Unit]\nDescription=stub\n")
    program = tmp_path / "usr/local/bin/vpnkit"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nvpnkit:x:999:999::/:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nvpnkit:x:999:\n")
    return tmp_path


def analyze(*argv: str, root: Path) -> tuple[int, str]:
    done = subprocess.run(
        ["systemd-analyze", *argv, f"--root={root}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.program("systemd-analyze")
@pytest.mark.parametrize("drop_ins", [False, True], ids=["alone", "with drop-ins"])
def test_systemd_has_nothing_to_say_against_the_units(root: Path, drop_ins: bool) -> None:
    if drop_ins:
        for name in ("vpnkit.service.d", "vpnkit.socket.d"):
            shutil.copytree(CONTRIB / name, root / "etc/systemd/system" / name)
    assert analyze("verify", "vpnkit.service", "vpnkit.socket", root=root) == (0, "")


@pytest.mark.program("systemd-analyze")
def test_systemd_has_nothing_to_say_against_the_helper(root: Path) -> None:
    assert analyze("verify", "vpnkit-helper.service", "vpnkit-helper.socket", root=root) == (0, "")
    status, said = analyze("security", "--offline=yes", "--threshold=25", "vpnkit-helper.service", root=root)
    assert status == 0, said[-200:]


@pytest.mark.program("systemd-analyze")
def test_systemd_does_complain_about_a_wrong_unit(root: Path) -> None:
    service = root / "etc/systemd/system/vpnkit.service"
    service.write_text(service.read_text().replace("LockPersonality=", "LockPersonalty="))
    assert "LockPersonalty" in analyze("verify", "vpnkit.service", root=root)[1]


@pytest.mark.program("systemd-analyze")
def test_the_system_unit_is_closed_off(root: Path) -> None:
    shutil.copytree(CONTRIB / "vpnkit.service.d", root / "etc/systemd/system/vpnkit.service.d")
    status, said = analyze("security", "--offline=yes", "--threshold=25", "vpnkit.service", root=root)
    assert status == 0, said[-200:]


def test_the_image_starts_a_command_line_of_ours() -> None:
    text = (CONTRIB / "Containerfile").read_text()
    entry, more = (re.findall(rf"^{word} \[(.*)\]$", text, re.MULTILINE)[0] for word in ("ENTRYPOINT", "CMD"))
    program, command, *words = [word.strip(' "') for word in f"{entry}, {more}".split(",")]
    assert (program, command) == ("vpnkit", "serve")
    assert parsed(words)["control"] == Path("/run/vpnkit/control.sock")
    assert "\nUSER vpnkit\n" in text


def test_a_wrong_command_line_would_be_found() -> None:
    with pytest.raises(click.BadParameter):
        parsed(["--link", "smoke:/x"])

"""The original's flags: how they are read, what each amounts to, and that docs/original.md has them all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from tapdev.spec import parse
from vpnkit.cli import main
from vpnkit.cli.original.flags import FLAGS, is_original, read
from vpnkit.cli.original.meaning import gateway_forwards, understand
from vpnkit.errors import ConfigError
from vpnkit.net.plan import Plan
from vpnkit.net.policy import Host, Protocol, Service, target

if TYPE_CHECKING:
    from vpnkit.cli.original.meaning import Original

ROOT = Path(__file__).parents[4]


def meant(line: str) -> Original:
    return understand(read(["--ethernet", "/e", *line.split()]))


# Reading


@pytest.mark.parametrize(
    ("word", "is_theirs"),
    [
        ("--ethernet", True),
        ("--ethernet=/x", True),
        ("--eth", True),
        ("--debug", True),
        ("--help", False),
        ("--version", False),
        ("--", False),
        ("--config", False),
        ("serve", False),
        ("-p", False),
        ("", False),
    ],
)
def test_whose_command_line_it_is(word: str, is_theirs: bool) -> None:
    assert is_original(word) is is_theirs


def test_every_way_to_write_a_value() -> None:
    given = read(["--ethernet", "/e", "--mtu=1400", "--dhcp", "/d", "--port", "/a", "--port=/b", "--debug", "--hosts="])
    assert given.values == {
        "ethernet": ["/e"],
        "mtu": ["1400"],
        "dhcp-path": ["/d"],
        "port": ["/a", "/b"],
        "debug": [""],
        "hosts": [""],
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--ethernet", "needs a value"),
        ("--ethernet --mtu 1500", "needs a value"),
        ("--ethernet /x --ethernet /y", "is there twice"),
        ("--ethernet /x more", "'more' is too much"),
        ("--ethernet /x --debug=yes", "takes no value"),
        ("--ethernet /x --host a", "may be one of --hosts, --host-names, --host-ip"),
        ("--ethernet /x --teapot a", "none of the original's flags"),
        ("--ethernet /x --vm-name a --vm-names b", "is there twice"),
        ("--mtu 1500", "Please provide an --ethernet argument"),
    ],
)
def test_what_is_no_command_line(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert words in capsys.readouterr().err


def test_help_has_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--ethernet", "/x", "--help"]) == 0
    said = capsys.readouterr().out
    for flag in FLAGS:
        assert f"--{flag.name}" in said


def test_the_documentation_has_every_flag() -> None:
    rows = re.findall(r"^\| `--([a-z0-9-]+)", (ROOT / "docs/original.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(flag.name for flag in FLAGS)


# Meaning


def test_defaults() -> None:
    wanted = meant("")
    assert wanted.plan == Plan(mtu=1500, host=IPv4Address("192.168.65.2"), last_guest=IPv4Address("192.168.65.254"))
    assert wanted.link == parse("vmnet:/e")
    assert (wanted.mtu, wanted.snaplen, wanted.debug, wanted.backlog) == (1500, 128, False, None)
    assert wanted.settings.hosts == ("/etc/hosts",)
    assert [str(server) for server in wanted.settings.dns] == ["host"]  # type: ignore[arg-type]
    assert wanted.settings.max_connections is None
    assert wanted.settings.allowed_bind_addresses == ()


def test_rootlesskits() -> None:
    """`rootlesskit --net=vpnkit [--disable-host-loopback]`."""
    words = ["--ethernet", "/run/user/1000/dockerd-rootless/vpnkit-ethernet.sock", "--mtu", "1500"]
    wanted = understand(read(words))
    assert str(wanted.link) == "vmnet:/run/user/1000/dockerd-rootless/vpnkit-ethernet.sock"
    assert wanted.plan.host_ip == IPv4Address("192.168.65.2")
    closed = understand(read([*words, "--host-ip", "0.0.0.0"]))
    assert closed.plan.host_ip is None
    assert closed.plan.host == IPv4Address("192.168.65.2")
    assert (closed.plan.gateway_ip, closed.plan.subnet) == (
        IPv4Address("192.168.65.1"),
        IPv4Network("192.168.65.0/24"),
    )


def test_docker_desktops(tmp_path: Path) -> None:
    """Of docker/for-mac#5022."""
    (tmp_path / "http.json").write_text("{}")
    (tmp_path / "dhcp.json").write_text("{}")
    (tmp_path / "f.json").write_text("[]")
    wanted = meant(
        f"--diagnostics fd:4 --pcap fd:5 --vsock-path vms/0/connect --gateway-forwards {tmp_path}/f.json"
        " --host-names host.docker.internal,docker.for.mac.host.internal --listen-backlog 32 --mtu 1500"
        f" --allowed-bind-addresses 0.0.0.0 --http {tmp_path}/http.json --dhcp {tmp_path}/dhcp.json"
        " --port-max-idle-time 300"
        " --max-connections 2000 --gateway-ip 192.168.65.1 --host-ip 192.168.65.2 --lowest-ip 192.168.65.3"
        " --highest-ip 192.168.65.254 --log-destination asl --gc-compact-interval 1800"
    )
    assert wanted.diagnostics[0].fd == 4
    assert wanted.pcaps[0].fd == 5
    assert str(wanted.forwarder) == "hyperkit:vms/0:62373"
    assert wanted.forwards_file == tmp_path / "f.json"
    assert wanted.plan.host_names == ("host.docker.internal", "docker.for.mac.host.internal")
    assert wanted.backlog == 32
    assert wanted.settings.http_proxy == tmp_path / "http.json"
    assert wanted.settings.allowed_bind_addresses == ()
    assert wanted.settings.leasing.dhcp_json == tmp_path / "dhcp.json"
    assert wanted.settings.max_connections == 2000


@pytest.mark.parametrize(
    ("address", "link"),
    [
        ("/a/b", "vmnet:/a/b"),
        ("fd:3", "vmnet:fd:3"),
        ("vsock://:1024", "vsock:1024"),
        ("vsock://2:1024", "vsock:2:1024"),
        ("hyperkit://:1024/tmp/vm", "hyperkit:/tmp/vm:1024"),
        ("hyperkit://:1024/./vm", "hyperkit:vm:1024"),
    ],
)
def test_addresses(address: str, link: str) -> None:
    for flag in ("--port", "--introspection", "--diagnostics", "--pcap"):
        wanted = meant(f"{flag} {address}")
        found = (*wanted.ports, *wanted.introspection, *wanted.diagnostics, *wanted.pcaps)
        assert [str(spec) for spec in found] == [link]
    assert str(understand(read(["--ethernet", address])).link) == link


def test_names_and_numbers(tmp_path: Path) -> None:
    wanted = meant(
        "--server-macaddr 02-00-00-00-00-99 --domain lan.example --gateway-names gw,gateway.lan --vm-names me"
        " --host-names= --pcap-snaplen 96 --allowed-bind-addresses 127.0.0.1,10.0.0.1 --debug --mtu 9000 --hosts="
        f" --dns {tmp_path}/dns"
    )
    plan = wanted.plan
    assert plan.server_mac == bytes.fromhex("020000000099")
    assert (plan.domain, plan.mtu, wanted.mtu) == ("lan.example", 9000, 9000)
    assert (plan.gateway_names, plan.vm_names, plan.host_names) == (("gw", "gateway.lan"), ("me",), ())
    assert (wanted.snaplen, wanted.debug) == (96, True)
    assert wanted.settings.allowed_bind_addresses == (IPv4Network("127.0.0.1/32"), IPv4Network("10.0.0.1/32"))
    assert wanted.settings.hosts == ()
    assert wanted.settings.dns == (tmp_path / "dns",)


def test_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPNKIT_DEBUG", "")
    assert meant("").debug


@pytest.mark.parametrize(
    ("line", "subnet", "pool"),
    [
        ("--highest-ip 192.168.65.20", "192.168.65.0/27", ("192.168.65.3", "192.168.65.20")),
        ("--lowest-ip 192.168.66.3 --highest-ip 192.168.66.9", "192.168.64.0/22", ("192.168.66.3", "192.168.66.9")),
        (
            "--gateway-ip 10.1.2.254 --host-ip 10.1.2.253 --lowest-ip 10.1.2.10 --highest-ip 10.1.2.10",
            "10.1.2.0/24",
            ("10.1.2.10", "10.1.2.10"),
        ),
        ("--host-ip 0.0.0.0 --gateway-ip 192.168.65.2", "192.168.65.0/24", ("192.168.65.3", "192.168.65.254")),
    ],
)
def test_networks(line: str, subnet: str, pool: tuple[str, str]) -> None:
    plan = meant(line).plan
    assert plan.subnet == IPv4Network(subnet)
    assert tuple(map(str, plan.pool())) == pool
    assert len({plan.gateway, plan.host, plan.guest}) == 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--mtu 100", "--mtu '100' is not a number from 576"),
        ("--mtu abc", "--mtu 'abc'"),
        ("--gateway-ip 1.2.3", "--gateway-ip '1.2.3' is not an IPv4 address"),
        ("--lowest-ip 192.168.65.9 --highest-ip 192.168.65.8", "is below"),
        ("--gateway-ip 192.168.65.3", "already"),
        ("--server-macaddr 01:00:00:00:00:01", "MAC address"),
        ("--host-names a..b", "domain name"),
        ("--dhcp-path /no/such", "is not a file"),
        ("--port hyperv-connect://x", "for Windows"),
        ("--port ftp://x", "none of PATH"),
        ("--port-forwards /tmp/other", "called `connect`"),
        ("--udpv4-forwards 53", "is not PORT:IP:PORT"),
        ("--tcpv4-forwards 0:127.0.0.1:53", "is not PORT:IP:PORT"),
        ("--allowed-bind-addresses here", "--allowed-bind-addresses"),
        ("--max-connections 0", "--max-connections '0'"),
        ("--forwards /f", "tunnels"),
        ("--http /no/such", "--http /no/such is not a file"),
    ],
)
def test_what_cannot_be(line: str, words: str) -> None:
    with pytest.raises((ConfigError, click.UsageError), match=re.escape(words)):
        meant(line)


# Ports of the gateway


def test_ports_of_the_gateway() -> None:
    wanted = meant("--udpv4-forwards 123:127.0.0.1:1123,53:10.0.0.1:5353 --tcpv4-forwards 80:127.0.0.1:8080")
    plan, gateway = wanted.plan, wanted.plan.gateway_ip.packed
    assert target(Protocol.UDP, gateway, 123, plan) == Host("127.0.0.1", 1123)
    assert target(Protocol.UDP, gateway, 53, plan) == Host("10.0.0.1", 5353)
    assert target(Protocol.TCP, gateway, 53, plan) is Service.DNS
    assert target(Protocol.TCP, gateway, 80, plan) == Host("127.0.0.1", 8080)
    assert target(Protocol.ICMP, gateway, 0, plan) is Service.ECHO


def test_the_file_of_forwards() -> None:
    entry = {"protocol": "tcp", "external_port": 53, "internal_ip": "127.0.0.1", "internal_port": 5353}
    assert gateway_forwards(json.dumps([entry, {**entry, "internal_port": 1}])) == {("tcp", 53): ("127.0.0.1", 5353)}
    assert gateway_forwards("[]") == {}
    for broken in (
        "", "{}x", "7", "[7]", '{"a": 1}', "[" * 100_000,
        *(json.dumps([{**entry, key: None}]) for key in entry),
        json.dumps([{**entry, "external_port": 65536}]),
        json.dumps([{**entry, "protocol": "sctp"}]),
        json.dumps([{**entry, "internal_ip": "::1"}]),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            gateway_forwards(broken)


def test_nothing_is_imported_for_our_own_command_lines() -> None:
    code = "import sys; from vpnkit.cli import main; main(['doctor', '--help']); "
    code += "assert 'vpnkit.cli.original' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)

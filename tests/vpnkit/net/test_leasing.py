"""What the operator says about DHCP, and what guests are told of it."""

from __future__ import annotations

import os
from ipaddress import IPv4Address

import pytest

from vpnkit.errors import ConfigError
from vpnkit.net.lease_options import LeaseOptions, StaticLease
from vpnkit.net.leasing import dhcp_config, follow, reserve
from vpnkit.net.plan import Plan
from vpnkit.proto.dhcp import DhcpServer
from vpnkit.proto.dhcpv6 import Dhcpv6Config, Dhcpv6Server
from vpnkit.services import dhcp_json
from vpnkit.services.dhcp import DhcpService
from vpnkit.services.dhcpv6 import Dhcpv6Service
from vpnkit.wire import dhcp, dhcpv6
from vpnkit.wire.dhcp import DhcpMessage

MAC = bytes.fromhex("025000000009")


def told(service: DhcpService) -> DhcpMessage:
    discover = DhcpMessage(1, 7, MAC, {53: bytes((dhcp.DISCOVER,))}).encode()
    answer = service.datagram(discover, MAC, bytes(4), 0.0)
    assert answer is not None
    return dhcp.decode(answer.payload)


def test_a_boot_file():
    options = LeaseOptions(boot_file="pxelinux.0", next_server=IPv4Address("192.168.65.2"))
    offer = told(DhcpService(DhcpServer(dhcp_config(Plan(), options))))
    assert (offer.siaddr, offer.file) == (bytes((192, 168, 65, 2)), b"pxelinux.0")


def test_time_servers():
    options = LeaseOptions(ntp=(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")))
    offer = told(DhcpService(DhcpServer(dhcp_config(Plan(), options))))
    assert offer.options[dhcp.NTP_SERVER] == bytes((10, 0, 0, 1, 10, 0, 0, 2, 192, 168, 65, 1))
    offer = told(DhcpService(DhcpServer(dhcp_config(Plan()))))
    assert offer.options[dhcp.NTP_SERVER] == bytes((192, 168, 65, 1))


def test_a_static_lease_outside_of_the_pool():
    server = DhcpServer(dhcp_config(Plan(guest=IPv4Address("192.168.65.100"))))
    reserve(server, Plan(), [StaticLease(MAC, IPv4Address("192.168.65.9"), "db")])
    offer = told(DhcpService(server))
    assert (offer.yiaddr, offer.options[dhcp.HOST_NAME]) == (bytes((192, 168, 65, 9)), b"db")


@pytest.mark.parametrize("ip", ["192.168.65.0", "192.168.65.1", "192.168.65.2", "192.168.65.255", "10.0.0.1"])
def test_a_static_lease_that_nobody_can_have(ip):
    with pytest.raises(ConfigError, match=ip):
        reserve(DhcpServer(dhcp_config(Plan())), Plan(), [StaticLease(MAC, IPv4Address(ip))])


class Services:
    def __init__(self, plan: Plan, path) -> None:
        self.dhcp = DhcpService(DhcpServer(dhcp_config(plan)))
        self.dhcpv6 = Dhcpv6Service(Dhcpv6Server(Dhcpv6Config(bytes(8), plan.server_mac, search=plan.search)))
        follow(path, plan, self.dhcp, self.dhcpv6)

    def told(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Domain and search list by DHCP, search list by DHCPv6."""
        options = told(self.dhcp).options
        question = dhcpv6.Dhcpv6Message(dhcpv6.INFORMATION_REQUEST, b"abc").encode()
        answer = self.dhcpv6.datagram(question, MAC, 0.0, multicast=True)
        assert answer is not None
        return options.get(15), options.get(119), dhcpv6.decode(answer.payload).get(dhcpv6.DOMAIN_LIST)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(dhcp_json, "CHECK_SECONDS", 0.0)
    path = tmp_path / "dhcp.json"
    path.write_text('{"domainName": "file.example", "searchDomains": ["a.example"]}')
    return path


def test_dhcp_json_is_told_and_followed(path):
    services = Services(Plan(), path)
    assert services.told() == (b"file.example", b"\1a\7example\0", b"\1a\7example\0")
    path.write_text('{"domainName": "other.example"}')
    os.utime(path, (5, 5))
    assert services.told() == (b"other.example", None, b"\5other\7example\0")
    path.unlink()
    assert services.told() == (None, None, None)


def test_the_command_line_is_stronger(path):
    services = Services(Plan(domain="line.example", search=("b.example",)), path)
    assert services.told() == (b"line.example", b"\1b\7example\0", b"\1b\7example\0")

"""Other people's proxies on the host: squid and tinyproxy."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

from tests.interop.guest_tools import Directory, Namespace, wait_for

if TYPE_CHECKING:
    from pathlib import Path

SQUID = """
http_port 127.0.0.1:{port}
pid_filename none
workers 1
cache deny all
cache_mem 8 MB
access_log stdio:{directory}/access
cache_log {directory}/log
coredump_dir {directory}
cache_effective_user nobody
cache_effective_group nogroup
shutdown_lifetime 0 seconds
pinger_enable off
netdb_filename none
via on
server_persistent_connections off
http_upgrade_request_protocols websocket allow all
dns_nameservers 127.0.0.1
hosts_file {directory}/hosts
auth_param basic program /bin/sh {directory}/helper
auth_param basic children 1
acl known proxy_auth REQUIRED
acl forbidden dstdomain forbidden.example
http_access deny forbidden
http_access allow known
"""
HELPER = """
while read -r user password rest; do
    if [ "$user $password" = "us@er pa:ss" ]; then echo OK; else echo ERR; fi
done
"""
BIND = 'mount --bind "$0/hosts" /etc/hosts; exec "$@"'
TINYPROXY = """
User nobody
Group nogroup
Port {port}
Listen 127.0.0.1
Timeout 60
MaxClients 50
LogFile "{directory}/log"
LogLevel Connect
BasicAuth user secret
"""


class Proxy:
    """One of them, in a network namespace, until `close`."""

    def __init__(self, host: Namespace, port: int, hosts: str) -> None:
        """`hosts` are the names that it knows, as in /etc/hosts."""
        self.port = port
        self._host = host
        self._directory = Directory("nobody")
        self.path = self._directory.path
        (self.path / "hosts").write_text(hosts)
        with host.entered():
            self._process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-ec", BIND, str(self.path), *self.command(self.path)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        try:
            wait_for(self._listens, f"{type(self).__name__} listens", 20)
        except BaseException:
            self.close()
            raise

    def command(self, path: Path) -> list[str]:
        raise NotImplementedError

    def _listens(self) -> bool:
        assert self._process.poll() is None, "it ended"
        return f":{self.port} " in self._host.run("ss", "-Hltn")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        with self._directory:
            pass


class Squid(Proxy):
    """It wants the user `us@er` with the password `pa:ss`."""

    def command(self, path: Path) -> list[str]:
        (path / "conf").write_text(SQUID.format(port=self.port, directory=path))
        (path / "helper").write_text(HELPER)
        return ["squid", "-N", "-n", f"vpnkit{os.getpid()}", "-f", str(path / "conf")]  # shared memory has that name

    def lines(self) -> list[tuple[str, str, str]]:
        """(method, URI, status) of what it was asked."""
        text = (self.path / "access").read_text()
        return [(m[2], m[3], m[1]) for m in re.finditer(r"\S+/(\d{3}) \d+ (\S+) (\S+)", text)]


class Tinyproxy(Proxy):
    """It wants the user `user` with the password `secret`."""

    def command(self, path: Path) -> list[str]:
        (path / "conf").write_text(TINYPROXY.format(port=self.port, directory=path))
        (path / "log").touch()
        for each in path.iterdir():
            each.chmod(0o666)
        return ["tinyproxy", "-d", "-c", str(path / "conf")]

    def lines(self) -> list[str]:
        """What it was asked, one request line each."""
        return re.findall(r"Request \(file descriptor \d+\): (.*)", (self.path / "log").read_text())

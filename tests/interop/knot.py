"""Knot DNS as the server that is asked: a signed zone with records of every kind, common, rare and unknown."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.interop.guest_tools import Directory, wait_for
from tests.tapdev.guests import environment

if TYPE_CHECKING:
    from tests.interop.guest_tools import Namespace

PORT = 5300
BIG = 30  # texts of 100 octets of big.knot.example

CONFIGURATION = """
server:
    rundir: "{path}"
    listen: 127.0.0.1@{port}
    user: root
log:
  - target: stderr
    any: warning
database:
    storage: "{path}"
policy:
  - id: signed
    algorithm: ecdsap256sha256
    nsec3: off
template:
  - id: default
    storage: "{path}"
    journal-content: all
    zonefile-sync: -1
zone:
  - domain: knot.example
    file: zone
    dnssec-signing: on
    dnssec-policy: signed
"""

ZONE = r"""
$ORIGIN knot.example.
$TTL 3600
@           SOA     ns admin 1 7200 900 1209600 300
@           NS      ns
@           MX      10 mail
@           TXT     "v=spf1 -all" "a second \"text\""
@           CAA     0 issue "ca.example"
@           HTTPS   1 . alpn=h2,h3 ipv4hint=192.0.2.1
ns          A       192.0.2.53
ns          AAAA    2001:db8::53
mail        A       192.0.2.25
www         A       192.0.2.1
www         A       192.0.2.2
www         AAAA    2001:db8::1
www      60 HINFO   "VAX" "VMS"
alias       CNAME   www
chain       CNAME   alias
outside     CNAME   www.elsewhere.example.
*.wild      A       192.0.2.77
tree        DNAME   other
x.other     A       192.0.2.9
_sip._tcp   SRV     10 60 5060 mail
_443._tcp.www TLSA  3 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
host        SSHFP   4 2 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
naptr       NAPTR   100 10 "u" "E2U+sip" "!^.*$!sip:info@knot.example!" .
loc         LOC     52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000m 10m
rp          RP      admin text
afsdb       AFSDB   1 mail
svcb        SVCB    1 mail port=5353
uri         URI     10 1 "https://knot.example/"
cert        CERT    PGP 0 0 AQIDBA==
dhcid       DHCID   AAIBY2/AuCccgoJbsaxcQc9TUapptP69lOjxfNuVAA2kjEA=
openpgp     OPENPGPKEY AQIDBA==
eui48       EUI48   00-00-5e-00-53-2a
eui64       EUI64   00-00-5e-ef-10-00-00-2a
unknown     TYPE65280 \# 5 0102030405
empty       TYPE65281 \# 0
ptr         PTR     www
kx          KX      10 mail
minfo       MINFO   admin admin
rt          RT      10 mail
child       NS      ns.child
child       DS      12345 13 2 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
ns.child    A       192.0.2.54
"""

QUESTIONS = (
    *("@ SOA", "@ NS", "@ MX", "@ TXT", "@ CAA", "@ HTTPS", "@ DNSKEY", "@ NSEC", "@ CDS", "www A", "www AAAA"),
    *("www HINFO", "www TXT", "alias A", "alias CNAME", "chain AAAA", "outside A", "a.wild A", "x.tree A"),
    *("tree DNAME", "_sip._tcp SRV", "_443._tcp.www TLSA", "host SSHFP", "naptr NAPTR", "loc LOC", "rp RP"),
    *("afsdb AFSDB", "svcb SVCB", "uri URI", "cert CERT", "dhcid DHCID", "openpgp OPENPGPKEY", "eui48 EUI48"),
    *("eui64 EUI64", "unknown TYPE65280", "empty TYPE65281", "ptr PTR", "kx KX", "minfo MINFO", "rt RT"),
    *("child DS", "ns.child A", "missing A", "missing AAAA", "a.b.missing TXT", "big TXT", "wWw A", "WWW.wILD A"),
)
"""Name below knot.example and type."""


class Knot:
    """The server, on 127.0.0.1 of `host`."""

    def __init__(self, host: Namespace) -> None:
        self.directory = Directory()
        path = self.directory.path
        big = "".join(f'big TXT "{number:03}{"x" * 97}"\n' for number in range(BIG))
        (path / "zone").write_text(ZONE.lstrip() + big)
        (path / "knot.conf").write_text(CONFIGURATION.format(path=path, port=PORT))
        with host.entered():
            self._process = subprocess.Popen(
                ["knotd", "-c", str(path / "knot.conf")], stderr=subprocess.PIPE, text=True, env=environment()
            )
        self._host = host
        try:
            wait_for(self._is_ready, "knotd answers with signatures")
        except BaseException:
            self.close()
            raise

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._process.communicate()[1]
        return "RRSIG" in self.dig("+dnssec", "+tries=1", "+timeout=1", "knot.example", "SOA", check=False)

    def dig(self, *words: str, check: bool = True, timeout: float = 60) -> str:
        """What dig on the host says about this server."""
        with self._host.entered():
            done = subprocess.run(
                ["dig", "@127.0.0.1", "-p", str(PORT), *words],
                capture_output=True,
                text=True,
                timeout=timeout,
                env=environment(HOME="/nonexistent"),
            )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()
        self.directory.__exit__()

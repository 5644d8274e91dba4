"""dig, kdig and dnsperf in a guest, and Knot DNS as the server on the host: what it says is what the guest hears."""

from __future__ import annotations

import re

import pytest

from tests.interop.guest_tools import Directory, running, wait_for
from tests.interop.knot import PORT, QUESTIONS, Knot

pytestmark = [pytest.mark.program("knotd"), pytest.mark.program("dig")]

VARIANTS = ("+noedns", "+edns=0 +nocookie", "+dnssec +bufsize=4096", "+tcp +dnssec", "+cdflag +noadflag")
"""How each question is asked; 250 queries."""


@pytest.fixture(scope="module")
def knot(lab):
    made = Knot(lab.host)
    yield made
    made.close()


@pytest.fixture(scope="module")
def guest(lab, knot):
    with running(lab.host, "root", "--dns", f"127.0.0.1#{PORT}") as made:
        yield made


def batch(variant: str) -> str:
    lines = []
    for question in QUESTIONS:
        name, rdtype = question.split()
        name = "knot.example" if name == "@" else f"{name}.knot.example"
        lines.append(f"{name} {rdtype} {variant} +noall +comments +question +answer +authority +additional\n")
    return "".join(lines)


def blocks(text: str) -> list[tuple[str, frozenset[str], tuple[str, ...], list[tuple[str, int]]]]:
    """For each answer of dig: status, flags but aa, what was asked, and the records with their TTLs."""
    found = []
    for block in text.split(";; ->>HEADER<<-")[1:]:
        status = re.search(r"status: (\w+)", block)
        flags = re.search(r"flags: ([a-z ]*);", block)
        assert status is not None
        assert flags is not None
        records = []
        section = ""
        for line in block.splitlines()[1:]:
            if line.startswith(";; ") and line.endswith("SECTION:"):
                section = line
            elif line and not line.startswith(";"):
                name, ttl, rest = line.split(None, 2)
                records.append((f"{section} {name} {' '.join(rest.split())}", int(ttl)))
        asked = tuple(re.findall(r"^;([^;\s]\S*\s+IN\s+\S+)$", block, re.MULTILINE))
        found.append((status[1], frozenset(flags[1].split()) - {"aa"}, asked, sorted(records)))
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_answer_is_the_servers(guest, knot, variant):
    """Passed on, and then from the cache, where TTLs count down."""
    with Directory() as path:
        (path / "batch").write_text(batch(variant))
        expected = blocks(knot.dig("-f", str(path / "batch")))
        first = blocks(guest.run("dig", "-f", str(path / "batch"), timeout=60).stdout)
        again = blocks(guest.run("dig", "-f", str(path / "batch"), timeout=60).stdout)
    assert len(expected) == len(QUESTIONS)
    assert [e[0] for e in expected].count("NXDOMAIN") == 3
    assert first == expected
    assert len(again) == len(expected)
    for mine, theirs in zip(again, expected, strict=True):
        assert mine[:3] == theirs[:3]
        assert [record for record, _ in mine[3]] == [record for record, _ in theirs[3]]
        assert all(0 <= ttl - less <= 60 for (_, less), (_, ttl) in zip(mine[3], theirs[3], strict=True))


def test_the_questions_are_of_many_types():
    assert len({question.split()[1] for question in QUESTIONS}) >= 25
    assert len(QUESTIONS) * len(VARIANTS) >= 200


def test_what_is_cut_says_so(guest, knot):
    words = ("+noedns", "+ignore", "+noall", "+comments", "big.knot.example", "TXT")
    [theirs] = blocks(knot.dig(*words))
    [passed] = blocks(guest.run("dig", *words).stdout)
    guest.run("dig", "+tcp", "big.knot.example", "TXT")  # now it is known whole
    [cut] = blocks(guest.run("dig", *words).stdout)
    assert theirs[:3] == passed[:3] == cut[:3]
    assert "tc" in cut[1]
    assert "retrying in TCP" in guest.run("dig", "+bufsize=512", "big.knot.example", "TXT").stdout


@pytest.mark.program("kdig")
@pytest.mark.parametrize("words", ["+dnssec", "+tcp +dnssec", "+noedns", "+bufsize=4096 +padding=128", "+nsid"])
def test_kdig_agrees(guest, lab, knot, words):
    names = ("www.knot.example AAAA", "knot.example HTTPS", "missing.knot.example A", "unknown.knot.example TYPE65280")
    for name in names:
        argv = [*words.split(), "+noheader", "+nocomments", "+nostats", "+nocrypto", "+generic", *name.split()]
        theirs = lab.host.run("kdig", "@127.0.0.1", "-p", str(PORT), *argv)
        mine = [guest.run("kdig", *argv).stdout for _ in range(2)]

        def lines(text):
            return sorted(re.sub(r"\t\d+\t", " ", line) for line in text.splitlines() if line and line[0] != ";")

        assert lines(mine[0]) == lines(mine[1]) == lines(theirs)
        assert lines(theirs)


@pytest.mark.program("dnsperf")
def test_dnsperf_loses_nothing(guest, knot):
    with Directory() as path:
        path.joinpath("queries").write_text("".join(f"h{n % 100}.wild.knot.example A\n" for n in range(1000)))
        for mode in ("udp", "tcp"):
            done = guest.run(
                *("dnsperf", "-s", "192.168.65.1", "-d", str(path / "queries"), "-m", mode, "-n", "5", "-q", "20"),
                timeout=60,
            )
            completed = re.search(r"Queries completed:\s+(\d+) \(100\.00%\)", done.stdout)
            assert completed is not None, done.stdout
            assert int(completed[1]) == 5000
            assert "NOERROR 5000 (100.00%)" in done.stdout


def test_a_zone_and_hosts_and_the_originals_file(lab, knot):
    """`--dns FILE` is followed, by name: it may be replaced."""
    with Directory() as path:
        servers = path / "servers"
        servers.write_text(f"nameserver 192.0.2.99#53\norder 1\nnameserver 127.0.0.1#{PORT}\nzone knot.example\n")
        (path / "hosts").write_text("192.0.2.200 Printer.example\n")
        options = ("--dns", str(servers), "--hosts", str(path / "hosts"))
        with running(lab.host, "root", *options) as guest:
            assert guest.run("dig", "+short", "www.knot.example", "HINFO").stdout == '"VAX" "VMS"\n'
            assert guest.run("dig", "+short", "printer.EXAMPLE").stdout == "192.0.2.200\n"
            (path / "new").write_text("192.0.2.201 printer.example\n")
            (path / "new").rename(path / "hosts")
            wait_for(lambda: guest.run("dig", "+short", "printer.example").stdout == "192.0.2.201\n", "the new address")
        with running(lab.host, "root", "--dns", "192.0.2.99", "--dns-zone", f"knot.example=127.0.0.1#{PORT}") as guest:
            assert guest.run("dig", "+short", "www.knot.example", "AAAA").stdout == "2001:db8::1\n"


def test_over_ipv6(lab, knot):
    """The gateway's IPv6 address answers too, over UDP and TCP, and our names have IPv6 addresses."""
    with running(lab.host, "root", "--ipv6", "on", "--dns", f"127.0.0.1#{PORT}") as guest:
        gateway = "@fd65:7670:6e6b::1"
        wait_for(
            lambda: guest.run("dig", gateway, "+short", "+tries=1", "+time=1", check=False).returncode == 0, "IPv6"
        )
        assert guest.run("dig", gateway, "+short", "host.internal", "AAAA").stdout == "fd65:7670:6e6b::2\n"
        assert guest.run("dig", gateway, "+short", "www.knot.example", "AAAA").stdout == "2001:db8::1\n"
        assert guest.run("dig", gateway, "+short", "+tcp", "www.knot.example", "HINFO").stdout == '"VAX" "VMS"\n'
        assert guest.run("dig", gateway, "+short", "-x", "fd65:7670:6e6b::1").stdout == "gateway.internal.\n"
        assert "192.168.65.3" in guest.run("dig", gateway, "+short", "vm.internal", "A").stdout

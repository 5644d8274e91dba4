"""Other people's programs in a guest of `vpnkit run`, as root and as nobody."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.interop.guest_tools import (
    ALIAS,
    GATEWAY,
    GUEST,
    REMOTE,
    Directory,
    digest_of,
    stream,
    vpnkit_run,
)
from tests.interop.servers import BIG_TEXT, NameServer, WebServer
from tests.tapdev.guests import environment


@pytest.fixture(scope="module", params=["root", "nobody"])
def user(request):
    return request.param


@pytest.fixture(scope="module")
def files():
    with Directory() as path:
        (path / "page").write_text("a page of the host\n")
        yield path


@pytest.fixture(scope="module")
def web(lab, files):
    with WebServer(lab.host, files) as server:
        yield server


@pytest.fixture(scope="module")
def remote_web(lab, files):
    with WebServer(lab.remote, files, REMOTE) as server:
        yield server


@pytest.fixture(scope="module")
def names(lab):
    with NameServer(lab.remote, REMOTE) as server:
        yield server


@pytest.fixture
def run(lab, user, names):
    """`vpnkit run ARGV` on the lab's host; its name server is the remote one."""

    def vpnkit(*argv, options=(), timeout=20, **settings):
        with lab.host.entered():
            return subprocess.run(
                vpnkit_run(user, "--dns", f"{REMOTE}#{names.port}", *options, "--", *argv),
                capture_output=True,
                text=True,
                timeout=timeout,
                env=environment(**settings),
                cwd="/",
            )

    return vpnkit


def shell(words):
    """A script for `sh -ec`, so that one guest serves several steps."""
    return ("sh", "-ec", words)


# curl


@pytest.mark.program("curl")
def test_curl_by_name_and_from_the_remote_host(run, web, remote_web):
    done = run(
        *shell(
            f"curl -sS http://host.internal:{web.port}/page;"
            f"curl -sS http://host.docker.internal:{web.port}/page;"
            f"curl -sS http://{ALIAS}:{web.port}/page;"
            f"curl -sS http://{REMOTE}:{remote_web.port}/page"
        )
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "a page of the host\n" * 4, "")


@pytest.mark.program("curl")
def test_curl_says_what_is_wrong(run, lab):
    with lab.host.listen() as closed:
        port = closed.getsockname()[1]
    done = run("curl", "-sS", f"http://host.internal:{port}/")
    assert done.returncode == 7, done.stderr  # CURLE_COULDNT_CONNECT; 28 would be a timeout


def transfer_both_ways(run, web, size, timeout):
    expected = digest_of(stream(size))
    generator = (
        f"import sys; sys.path.insert(0, {os.getcwd()!r})\n"
        "from tests.interop.guest_tools import stream\n"
        f"for part in stream({size}): sys.stdout.buffer.write(part)"
    )
    done = run(
        "sh",
        "-ec",
        f"curl -sSf http://host.internal:{web.port}/bytes/{size} | sha256sum;"
        f'"$0" -c "$1" | curl -sSf -T - -H Expect: http://host.internal:{web.port}/up',
        sys.executable,
        generator,
        timeout=timeout,
        PYTHONPATH=os.getcwd(),
    )
    assert done.stderr == ""
    assert done.stdout == f"{expected}  -\n{expected}"


@pytest.mark.program("curl")
@pytest.mark.program("sha256sum")
def test_download_and_upload(run, web):
    transfer_both_ways(run, web, (64 << 20) + 12345, timeout=30)


@pytest.mark.slow
@pytest.mark.program("curl")
@pytest.mark.program("sha256sum")
def test_gibibyte_each_way(run, web):
    transfer_both_ways(run, web, 1 << 30, timeout=110)


# dig


@pytest.mark.program("dig")
def test_dig(run, names):
    done = run(
        *shell(
            "dig +short any.example; dig +short +tcp any.example; dig +short HOST.internal;"
            "dig +short gateway.docker.internal; dig +short +tcp vm.internal; dig +short -x 192.168.65.2;"
            "dig +noall +comments missing.example | grep -o NXDOMAIN"
        )
    )
    found = ["203.0.113.77", "203.0.113.77", ALIAS, GATEWAY, GUEST]
    assert done.stdout.splitlines()[:5] == found, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "NXDOMAIN"


@pytest.mark.program("dig")
@pytest.mark.parametrize("options", [[], ["--mtu", "1500", "--no-offload"]], ids=["mtu 65520", "mtu 1500"])
def test_dig_for_a_big_answer(run, options):
    # In one datagram (in fragments when the MTU is small), cut and then by TCP, cut and left at that, by TCP at once.
    done = run(
        *shell(
            "dig +bufsize=4096 +ignore TXT big.example; echo ====; dig +bufsize=512 TXT big.example; echo ====;"
            "dig +noedns +ignore TXT big.example; echo ====; dig +tcp TXT big.example"
        ),
        options=options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    whole, retried, cut, streamed = done.stdout.split("====\n")
    for answer in (whole, retried, streamed):
        assert answer.count("x" * 97) == BIG_TEXT // 100, answer
    assert "(UDP)" in whole
    assert "Truncated, retrying in TCP mode" in retried
    assert "(TCP)" in retried
    assert "flags: qr tc rd" in cut
    assert "x" * 97 not in cut


# ping


@pytest.mark.program("ping")
def test_ping_of_our_own(run):
    done = run(*shell(f"ping -c2 -i0.01 -W2 {GATEWAY}; ping -c1 -W2 -s 9000 host.internal; ping -c1 -W2 -f {GATEWAY}"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 0% packet loss") == 3
    assert done.stderr == ""


@pytest.mark.program("ping")
def test_ping_of_the_remote_host(run, user):
    done = run("ping", "-c2", "-i0.2", "-W1", REMOTE)
    if user == "root":
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("bytes from 198.51.100.2") == 2
        assert done.stderr == ""
    else:  # net.ipv4.ping_group_range of a fresh network namespace is "1 0": for nobody
        assert done.returncode == 1
        assert done.stdout.count("Packet filtered") == 2, done.stdout
        assert done.stderr.count("ping to other hosts does not work") == 1, done.stderr
        assert "net.ipv4.ping_group_range" in done.stderr


@pytest.mark.program("ping")
def test_ping_with_an_unprivileged_socket(run, lab, user):
    lab.host.set("ping_group_range", "0 2147483647")
    try:
        done = run("ping", "-c1", "-W1", "-s", "3000", "-M", "dont", REMOTE)
    finally:
        lab.host.set("ping_group_range", "1 0")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "3008 bytes from 198.51.100.2" in done.stdout


# git


@pytest.mark.program("git")
def test_git_clone(run, user, files, web):
    settings = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    author = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    bare = files / f"{user}.git"
    with Directory() as work:

        def git(*words):
            subprocess.run(["git", *words], cwd=work, check=True, capture_output=True, env=environment(**settings))

        git("init", "--quiet", ".")
        for number in range(30):
            (work / f"file{number}").write_bytes(os.urandom(20000))
        git("add", ".")
        git(*author, "commit", "-q", "-m", "thirty files")
        git("clone", "--quiet", "--bare", ".", str(bare))
        git("-C", str(bare), "update-server-info")
        with Directory(user) as target:
            done = run(
                "git",
                "clone",
                "--quiet",
                f"http://host.internal:{web.port}/{user}.git",
                str(target / "clone"),
                HOME=str(target),
                **settings,
            )
            assert done.returncode == 0, done.stderr
            for number in range(30):
                assert (target / f"clone/file{number}").read_bytes() == (work / f"file{number}").read_bytes()


# The standard library's client, as a program that knows nothing of namespaces


def test_urllib_through_getaddrinfo(run, web):
    code = f"import urllib.request as r; print(r.urlopen('http://host.internal:{web.port}/page').read())"
    done = run(sys.executable, "-I", "-c", code)
    assert (done.returncode, done.stdout) == (0, "b'a page of the host\\n'\n"), done.stderr


# DHCP

LEASE = {"address": GUEST, "mask": "255.255.255.0", "router": GATEWAY, "dns": GATEWAY, "mtu": "65520"}


@pytest.fixture
def script_of():
    """An executable file in a directory of its own."""
    with Directory("nobody") as path:

        def script(text):
            file = path / "script"
            file.write_text(text)
            file.chmod(0o755)
            return file

        yield script


# What ip says of the device at the end, and whether the network works with what was leased.
CHECK = "ip -4 -o address show tap0 | grep -o 'inet [0-9./]*'; ip route show default; ping -c1 -W2 192.168.65.1"


def parsed_lease(text):
    line = next(line for line in text.splitlines() if line.startswith("lease "))
    return dict(word.split("=") for word in line.split()[1:])


@pytest.mark.program("udhcpc")
@pytest.mark.program("ping")
def test_udhcpc(run, script_of):
    script = script_of(
        "#!/bin/sh\n"
        '[ "$1" = bound ] || exit 0\n'
        "ip address add $ip/$mask dev $interface && ip route add default via $router\n"
        "echo lease address=$ip mask=$subnet router=$router dns=$dns mtu=$mtu\n"
    )
    done = run(*shell(f"ip address flush dev tap0; udhcpc -f -n -q -i tap0 -s {script}; {CHECK}"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert parsed_lease(done.stdout) == LEASE
    assert f"inet {GUEST}/24" in done.stdout


DHCLIENT_SCRIPT = """#!/bin/sh
case $reason in
BOUND|REBOOT|RENEW)
    ip address add $new_ip_address/24 dev $interface
    ip route add default via $new_routers
    echo lease address=$new_ip_address mask=$new_subnet_mask router=$new_routers \
        dns=$new_domain_name_servers mtu=$new_interface_mtu ;;
esac
"""


@pytest.mark.program("dhclient")
@pytest.mark.program("ping")
def test_dhclient(run, script_of):
    script = script_of(DHCLIENT_SCRIPT)
    options = f"-1 -cf /dev/null -pf {script.parent}/pid -lf {script.parent}/leases -sf {script}"
    (script.parent / "conf").write_text("request subnet-mask, routers, domain-name-servers, interface-mtu;\n")
    options = options.replace("/dev/null", f"{script.parent}/conf")
    done = run(*shell(f"ip address flush dev tap0; dhclient {options} tap0; {CHECK}; dhclient -x {options} tap0"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert parsed_lease(done.stdout) == LEASE
    assert f"inet {GUEST}/24" in done.stdout


@pytest.mark.program("dhclient")
@pytest.mark.program("udhcpc")
def test_both_clients_get_the_same_address_one_after_the_other(run, script_of):
    script = script_of('#!/bin/sh\n[ -n "$ip$new_ip_address" ] && echo got $ip$new_ip_address; exit 0\n')
    options = f"-1 -cf /dev/null -pf {script.parent}/pid -lf {script.parent}/leases -sf {script}"
    done = run(*shell(f"udhcpc -f -n -q -i tap0 -s {script}; dhclient {options} tap0; dhclient -x {options} tap0"))
    assert {line for line in done.stdout.splitlines() if line.startswith("got")} == {f"got {GUEST}"}


NETWORKD = "/lib/systemd/systemd-networkd"


@pytest.mark.program("systemctl")
@pytest.mark.parametrize("user", ["root"], indirect=True)  # it becomes a user that a namespace of one id does not have
def test_systemd_networkd(run, user):
    done = run(
        *shell(
            "mount -t tmpfs none /run/systemd; mount -t tmpfs none /etc/systemd/network;"
            "printf '[Match]\\nName=tap0\\n[Network]\\nDHCP=ipv4\\nIPv6AcceptRA=no\\nLinkLocalAddressing=no\\n"
            "[DHCPv4]\\nUseMTU=yes\\n' > /etc/systemd/network/tap.network;"
            "mkdir -p /run/systemd/netif; chown -R systemd-network /run/systemd/netif /run/systemd;"
            "mount -o remount,ro,bind /sys;"
            "ip address flush dev tap0;"
            f"SYSTEMD_LOG_LEVEL=debug {NETWORKD} 2>&1 & networkd=$!;"
            "for i in $(seq 200); do ip route show default | grep -q 192.168.65.1 && break; sleep 0.05; done;"
            f"{CHECK}; kill $networkd"  # it gives the address back
        )
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"inet {GUEST}/24" in done.stdout
    assert "default via 192.168.65.1" in done.stdout


# The Go client of VMN3T: one DISCOVER, without checksums and without padding, and no REQUEST

GO_DISCOVER = """
import socket
mac = bytes.fromhex("025000000001")
bootp = (bytes([1, 1, 6, 0]) + bytes.fromhex("01000000") + bytes(2) + bytes.fromhex("8000") + bytes(16)
         + mac + bytes(202) + bytes.fromhex("63825363") + bytes([53, 1, 1, 255]))
udp = (68).to_bytes(2, "big") + (67).to_bytes(2, "big") + (8 + len(bootp)).to_bytes(2, "big") + bytes(2) + bootp
ip = (bytes([0x45, 0]) + (20 + len(udp)).to_bytes(2, "big") + bytes.fromhex("7f61") + bytes(2) + bytes([0x40, 17])
      + bytes(2) + bytes(4) + bytes([255] * 4) + udp)
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
link.bind(("tap0", 0))
link.settimeout(3)
link.send(bytes([255] * 6) + mac + bytes.fromhex("0800") + ip)
while True:
    frame = link.recv(2048)
    data = frame[42:]
    if frame[:6] in (mac, bytes([255] * 6)) and frame[34:38] == bytes([0, 67, 0, 68]) and len(data) >= 243:
        break
assert data[0] == 2 and data[4:8] == bytes.fromhex("01000000")
assert data[240:243] == bytes([53, 1, 2]), data[240:243]
print(socket.inet_ntoa(data[16:20]))
"""


def test_discover_of_the_go_client(run):
    done = run(sys.executable, "-I", "-c", GO_DISCOVER)
    assert (done.returncode, done.stdout) == (0, f"{GUEST}\n"), done.stderr

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.options import Options, parse_options
from portfwd.spec import Spec, SpecError, parse

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

V4 = "127.0.0.1"
GUEST = "192.168.65.3"
V6 = "::1"

FORMS = {
    "8080:80": [Spec(8080, 80)],
    "80": [Spec(80, 80)],
    "53/udp": [Spec(53, 53, "udp")],
    "0:80": [Spec(0, 80)],
    "8080:80/tcp": [Spec(8080, 80)],
    "5353:53/udp": [Spec(5353, 53, "udp")],
    "127.0.0.1:8080:80": [Spec(8080, 80, host_address=V4)],
    "127.0.0.1::80": [Spec(0, 80, host_address=V4)],
    "127.0.0.1:8080:192.168.65.3:80": [Spec(8080, 80, host_address=V4, guest_address=GUEST)],
    "8080:192.168.65.3:80": [Spec(8080, 80, guest_address=GUEST)],
    "[::1]:8080:80": [Spec(8080, 80, host_address=V6)],
    "[::1]::80": [Spec(0, 80, host_address=V6)],
    "8080:[fd65::3]:80": [Spec(8080, 80, guest_address="fd65::3")],
    "[::]:8080:[fd65::3]:80/udp": [Spec(8080, 80, "udp", "::", "fd65::3")],
    "0.0.0.0:8080:80": [Spec(8080, 80, host_address="0.0.0.0")],
    "8000-8002:9000-9002": [Spec(8000, 9000), Spec(8001, 9001), Spec(8002, 9002)],
    "8000-8001": [Spec(8000, 8000), Spec(8001, 8001)],
    "8000-8000:80": [Spec(8000, 80)],
    "127.0.0.1:8000-8001:192.168.65.3:80-81": [
        Spec(8000, 80, host_address=V4, guest_address=GUEST),
        Spec(8001, 81, host_address=V4, guest_address=GUEST),
    ],
    "tcp:127.0.0.1:8080:tcp:192.168.65.3:80": [Spec(8080, 80, host_address=V4, guest_address=GUEST)],
    "udp:0.0.0.0:5353:udp:192.168.65.3:53": [Spec(5353, 53, "udp", "0.0.0.0", GUEST)],
    "tcp:[::1]:0:tcp:[fd65::3]:80": [Spec(0, 80, "tcp", V6, "fd65::3")],
    "unix:/run/h.sock:80": [Spec(0, 80, host_path="/run/h.sock")],
    "unix:/run/h.sock:192.168.65.3:80/tcp": [Spec(0, 80, guest_address=GUEST, host_path="/run/h.sock")],
    "unix:/run/h.sock:[fd65::3]:80": [Spec(0, 80, guest_address="fd65::3", host_path="/run/h.sock")],
    "unix:/run/h.sock:unix:/run/g.sock": [Spec(host_path="/run/h.sock", guest_path="/run/g.sock")],
    "unix:L3RtcA==:unix:L3Zhcg==": [Spec(host_path="/tmp", guest_path="/var")],
    "unix:L2E6LGI=:unix:L2MKZA==": [Spec(host_path="/a:,b", guest_path="/c\nd")],
    "unix:/run/h.sock:vsock:3:1024": [Spec(0, 1024, host_path="/run/h.sock", guest_cid=3)],
    "8080:vsock:3:4000000000": [Spec(8080, 4_000_000_000, guest_cid=3)],
    "127.0.0.1:8080:vsock:3:80": [Spec(8080, 80, host_address=V4, guest_cid=3)],
    "[::1]::vsock:3:80": [Spec(0, 80, host_address=V6, guest_cid=3)],
    "8080:unix:/run/x.sock": [Spec(8080, guest_path="/run/x.sock")],
    "127.0.0.1:0:unix:/run/udp/x": [Spec(host_address=V4, guest_path="/run/udp/x")],
    "8080:80,proxy=v2,source=client,backlog=512": [Spec(8080, 80, options=Options("client", "v2", 512))],
    "53/udp,idle=30": [Spec(53, 53, "udp", options=Options(idle=30))],
    "53/udp,source=client": [Spec(53, 53, "udp", options=Options("client"))],
    "8080:80,source=alias,backlog=128": [Spec(8080, 80)],
    "8000-8001:80-81,proxy=v1": [
        Spec(8000, 80, options=Options(proxy="v1")),
        Spec(8001, 81, options=Options(proxy="v1")),
    ],
    "unix:/h:80,proxy=v2": [Spec(0, 80, host_path="/h", options=Options(proxy="v2"))],
    "udp:127.0.0.1:53:udp:192.168.65.3:53,idle=5": [Spec(53, 53, "udp", V4, GUEST, options=Options(idle=5))],
}


@pytest.mark.parametrize("text", FORMS)
def test_forms(text: str) -> None:
    assert parse(text) == FORMS[text]


ERRORS = {
    "": "'' is not a port",
    ":": "'' is not a port",
    "http": "'http' is not a port",
    "8080:": "'' is not a port",
    ":80": "'' is not a port",
    "0": "guest port 0 is out of range: 1 to 65535",
    "8080:0": "guest port 0",
    "70000:80": "port 70000 is out of range",
    "80:65536": "port 65536 is out of range",
    "-1:80": "'-1' is not a port",
    "+80": "is not a port",
    "8_0:80": "is not a port",
    "٨٠:80": "is not a port",
    " 80:80": "is not a port",
    "80:80\n": "is not a port",
    "8010-8000": "runs backwards; 8000-8010 would not",
    "0-5:80-85": "begins at 0",
    "8000-8002:80": "differ in length: 3 and 1",
    "0:80-82": "differ in length: 1 and 3",
    "80/sctp": "protocol 'sctp' is neither tcp nor udp",
    "80/": "protocol '' is neither",
    "80/TCP": "protocol 'TCP' is neither",
    "localhost:8080:80": "'localhost' is not an IP address",
    "localhost:8080:192.168.65.3:80": "'localhost' is not an IP address",
    "127.0.0.256:8080:80": "'127.0.0.256' is not an IP address",
    "::1:8080:80": "too many parts; .* IPv6 addresses in brackets",
    "[::1:8080:80": "unexpected '\\['",
    "[::1]x:80": "unexpected 'x'",
    "[]:80:80": "'' is not an IP address",
    "[127.0.0.1]:80:80": "IPv6 addresses and only they have brackets: 127.0.0.1",
    "[fe80::1%eth0]:80:80": "has a zone",
    "8080:224.0.0.1:80": "multicast",
    "8080:0.0.0.0:80": "is no guest; leave it out",
    "1.2.3.4:1:1.2.3.4:1:1": "too many parts",
    "tcp:8080:80": "tcp:HOST_IP:HOST_PORT:tcp:GUEST_IP:GUEST_PORT is the form",
    "tcp:1.2.3.4:1:udp:1.2.3.4:1": "cannot be forwarded to 'udp'",
    "tcp:1.2.3.4:1-2:tcp:1.2.3.4:1-2": "has no ranges",
    "tcp:x:1:tcp:1.2.3.4:1": "'x' is not an IP address",
    "auto": "a rule that makes some",
    "unix:run:unix:run": "'run' is neither an absolute path nor one in base64",
    "unix:cnVu:unix:cnVu": "'run' is not the absolute path",
    "unix:L3Ru:unix:x": "'x' is neither an absolute path",
    "unix:LwA=:unix:LwA=": "has a NUL",
    "unix:/a": "are the forms with other sockets",
    "unix:/a:80:81:82": "are the forms with other sockets",
    "unix:a.sock:80": "'a.sock' is not the absolute path",
    "unix:/a:0": "guest port 0 is out of range: 1 to 65535",
    "unix:/a:80/udp": "unix and vsock are streams",
    "unix:/a:80-81": "have no ranges",
    f"unix:/{'x' * 107}:80": "has 108 octets, at most 107 fit",
    "unix:/\ud800:80": "cannot be encoded",
    "unix:/a\n:80": "unprintable",
    "8080:unix:x.sock": "'x.sock' is not the absolute path",
    "8080:unix:": "'' is not the absolute path",
    "8080:vsock:3": "'vsock' is not an IP address",
    "8080:vsock:x:80": "vsock CID 'x' is not a number",
    "8080:vsock:3:x": "vsock port 'x' is not a number",
    "8080:vsock:0:80": "vsock CID 0 is out of range: 1 to 4294967294",
    "8080:vsock:4294967295:80": "vsock CID 4294967295 is out of range",
    "8080:vsock:3:4294967295": "guest port 4294967295 is out of range: 1 to 4294967294",
    "8080:vsock:3:80/udp": "unix and vsock are streams",
    "8000-8001:vsock:3:80": "have no ranges",
    "x:80:vsock:3:80": "'x' is not an IP address",
    "8080:80,": "option '' is not one of source, proxy, backlog, idle",
    "8080:80,x=1": "option 'x' is not one of",
    "8080:80,proxy": "option 'proxy' has no value; proxy=v2 has one",
    "8080:80,proxy=v3": "proxy='v3' is neither v1 nor v2",
    "8080:80,source=": "source='' is neither alias nor client",
    "8080:80,backlog=many": "backlog='many' is not a number; backlog=512 is right",
    "8080:80,backlog=0": "backlog=0 is out of range: 1 to 65535",
    "8080:80,idle=1,idle=2": "option 'idle' is there twice",
    "8080:80,idle=604801": "idle=604801 is out of range",
    "8080:80/udp,proxy=v2": "proxy=v2 is for tcp",
    "8080:80/udp,backlog=5": "backlog=5 is for tcp",
    "unix:/a:80,source=client": "those of a unix socket have not",
    "8080:vsock:3:80,source=client": "not by vsock; proxy=v2 does",
    "8080:unix:/g,source=client": "not by unix",
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors_quote_the_text_and_say_what_is_wrong(text: str) -> None:
    with pytest.raises(SpecError, match=ERRORS[text]) as raised:
        parse(text)
    assert str(raised.value).startswith(f"forward {text!r}: ")


def usable(address: IPv4Address | IPv6Address) -> bool:
    return not address.is_multicast


addresses = st.ip_addresses().filter(usable)
guests = st.none() | addresses.filter(lambda address: not (address.is_unspecified or address.is_loopback)).map(str)
ports = st.integers(1, 65535)
idle = st.none() | st.integers(1, 604800)
proxies = st.sampled_from([None, "v1", "v2"])
sources = st.sampled_from(["alias", "client"])
with_header = st.builds(Options, proxy=proxies, backlog=ports, idle=idle)
of_streams = st.builds(Options, sources, proxies, ports, idle)
of_datagrams = st.builds(Options, sources, idle=idle)
plain_paths = st.text("abc./-_ =é", max_size=40).map(lambda text: f"/{text}")
any_paths = st.text(st.characters(blacklist_characters="\0", codec="utf-8"), max_size=20).map(lambda text: f"/{text}")
host_ends = st.fixed_dictionaries({"host_port": st.integers(0, 65535), "host_address": st.none() | addresses.map(str)})
specs = st.one_of(
    st.builds(
        lambda host, *rest, **others: Spec(guest_port=rest[0], guest_address=rest[1], **host, **others),
        host_ends,
        ports,
        guests,
        options=of_streams,
    ),
    st.builds(
        lambda host, *rest, **others: Spec(guest_port=rest[0], protocol="udp", guest_address=rest[1], **host, **others),
        host_ends,
        ports,
        guests,
        options=of_datagrams,
    ),
    st.builds(Spec, guest_port=ports, guest_address=guests, host_path=plain_paths, options=with_header),
    st.builds(Spec, host_path=any_paths, guest_path=any_paths, options=with_header),
    st.builds(
        lambda host, *rest, **others: Spec(guest_cid=rest[0], guest_port=rest[1], **host, **others),
        host_ends | st.fixed_dictionaries({"host_path": plain_paths}),
        st.integers(1, 2**32 - 2),
        st.integers(1, 2**32 - 2),
        options=with_header,
    ),
    st.builds(lambda host, **others: Spec(**host, **others), host_ends, guest_path=plain_paths, options=with_header),
)


@given(specs)
def test_str_is_parsed_back(spec: Spec) -> None:
    assert parse(str(spec)) == [spec]
    assert parse(str(spec.bare)) == [spec.bare]


@given(of_streams)
def test_options_are_parsed_back(options: Options) -> None:
    text = str(options)
    assert (parse_options(text[1:]) if text else Options()) == options


PARTS = ["tcp", "udp", "/", ":", "-", "[", "]", "::1", "127.0.0.1", "80", "0", "65535", "8000-8010", "unix", "%", "."]
PARTS += ["vsock:3:", "unix:/", ",", "idle=", "proxy=v1", "L3RtcA=="]


@given(st.text() | st.lists(st.sampled_from(PARTS) | st.text(max_size=2)).map("".join))
def test_any_text_is_forwards_or_a_spec_error(text: str) -> None:
    try:
        found = parse(text)
    except SpecError:
        return
    assert found
    for spec in found:
        assert parse(str(spec)) == [spec]


@given(st.integers(1, 65000), st.integers(1, 65000), st.integers(1, 500))
def test_ranges_go_in_step(host: int, guest: int, length: int) -> None:
    found = parse(f"{host}-{host + length}:{guest}-{guest + length}")
    assert [spec.host_port for spec in found] == list(range(host, host + length + 1))
    assert {spec.guest_port - spec.host_port for spec in found} == {guest - host}


@pytest.mark.parametrize(
    "fields",
    [
        {"host_port": -1},
        {"host_port": 65536},
        {"guest_port": 0},
        {"protocol": "sctp"},
        {"guest_address": "::"},
        {"host_address": "ff02::1"},
        {"host_address": "localhost"},
        {"guest_address": ""},
        {"host_path": "/a"},
        {"host_port": 0, "host_path": "/a", "host_address": "127.0.0.1"},
        {"guest_path": "/a"},
        {"guest_path": "/a", "guest_port": 0, "guest_cid": 3},
        {"guest_cid": 3, "guest_address": "192.168.65.3"},
        {"host_port": 0, "host_path": "/a:b"},
        {"guest_port": 0, "guest_path": "/a,b"},
    ],
)
def test_no_spec_is_wrong(fields: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        Spec(**{"host_port": 1, "guest_port": 1, **fields})  # type: ignore[arg-type]


def test_addresses_have_one_spelling() -> None:
    assert Spec(1, 1, host_address="0:0::0001") == Spec(1, 1, host_address="::1")

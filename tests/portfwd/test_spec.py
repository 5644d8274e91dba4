from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    "auto": "not there yet",
    "unix:L3RtcA==:unix:L3RtcA==": "not there yet",
    "8080:vsock:3:80": "not there yet",
    "8080:unix:/run/x.sock": "not there yet",
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors_quote_the_text_and_say_what_is_wrong(text: str) -> None:
    with pytest.raises(SpecError, match=ERRORS[text]) as raised:
        parse(text)
    assert str(raised.value).startswith(f"forward {text!r}: ")


def usable(address: IPv4Address | IPv6Address) -> bool:
    return not address.is_multicast


addresses = st.ip_addresses().filter(usable)
specs = st.builds(
    Spec,
    st.integers(0, 65535),
    st.integers(1, 65535),
    st.sampled_from(["tcp", "udp"]),
    st.none() | addresses.map(str),
    st.none() | addresses.filter(lambda address: not address.is_unspecified).map(str),
)


@given(specs)
def test_str_is_parsed_back(spec: Spec) -> None:
    assert parse(str(spec)) == [spec]


PARTS = ["tcp", "udp", "/", ":", "-", "[", "]", "::1", "127.0.0.1", "80", "0", "65535", "8000-8010", "unix", "%", "."]


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
    ],
)
def test_no_spec_is_wrong(fields: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        Spec(**{"host_port": 1, "guest_port": 1, **fields})  # type: ignore[arg-type]


def test_addresses_have_one_spelling() -> None:
    assert Spec(1, 1, host_address="0:0::0001") == Spec(1, 1, host_address="::1")

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP

from vpnkit.errors import WireError
from vpnkit.wire import dhcp

MAC = bytes.fromhex("025000000001")


def octets(n: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=n, max_size=n)


def header(**changes: int) -> bytes:
    fields = {"op": 1, "htype": 1, "hlen": 6} | changes
    return (
        bytes((fields["op"], fields["htype"], fields["hlen"], 0)) + bytes(24) + MAC + bytes(10 + 64 + 128) + dhcp.COOKIE
    )


# What go/pkg/vmnet sends: no parameter list, no padding, xid 01 00 00 00
VMNET_DISCOVER = (
    bytes.fromhex("01010600 01000000 0000 8000") + bytes(16) + MAC + bytes(202) + bytes.fromhex("63825363 350101 ff")
)


def test_discover_of_the_vmnet_client() -> None:
    message = dhcp.decode(VMNET_DISCOVER)
    assert (message.op, message.kind, message.xid, message.flags) == (1, dhcp.DISCOVER, 0x01000000, 0x8000)
    assert message.chaddr == MAC
    assert message.options == {53: b"\x01"}


@pytest.mark.requirement("RFC2131 2")
def test_every_cut_of_a_message_is_an_error_or_a_shorter_message() -> None:
    whole = header() + bytes.fromhex("350103 3204c0a84103 0c03616263 ff")
    for length in range(len(whole)):
        try:
            message = dhcp.decode(whole[:length])
        except WireError:
            continue
        assert length >= dhcp.HEADER.size
        assert message.options.items() <= dhcp.decode(whole).options.items()


@pytest.mark.requirement("RFC2131 2")
@pytest.mark.parametrize("change", [{"op": 0}, {"op": 3}, {"htype": 6}, {"hlen": 0}, {"hlen": 16}])
def test_not_ethernet(change: dict[str, int]) -> None:
    with pytest.raises(WireError):
        dhcp.decode(header(**change) + b"\xff")


@pytest.mark.requirement("RFC2131 2")
def test_no_cookie() -> None:
    with pytest.raises(WireError):
        dhcp.decode(header()[:-4] + bytes(4) + b"\xff")


@pytest.mark.requirement("RFC3396 5")
def test_repeated_options_are_one() -> None:
    message = dhcp.decode(header() + bytes.fromhex("0c0161 350101 0c0162 00 0c0163 ff 0c0164"))
    assert message.options == {12: b"abc", 53: b"\x01"}


@pytest.mark.requirement("RFC2131 4.1-3")
def test_overload_reads_file_then_sname() -> None:
    raw = bytearray(header())
    raw[44:48] = bytes.fromhex("0c0163ff")  # sname
    raw[108:115] = bytes.fromhex("0c0162 340103 ff")  # file; the option 52 there means nothing
    message = dhcp.decode(bytes(raw) + bytes.fromhex("350101 0c0161 340103 ff"))
    assert message.options == {53: b"\x01", 12: b"abc"}
    assert (message.sname, message.file) == (b"", b"")


def test_overload_of_file_only() -> None:
    raw = bytearray(header())
    raw[44:48] = b"boot"
    message = dhcp.decode(bytes(raw) + bytes.fromhex("340101 ff"))
    assert message.sname == b"boot"


@pytest.mark.parametrize("value", ["340100", "340104", "34020101", "3400"])
def test_bad_overload(value: str) -> None:
    with pytest.raises(WireError):
        dhcp.decode(header() + bytes.fromhex(value) + b"\xff")


@pytest.mark.parametrize("kind", ["", "3500", "35020101"])
def test_no_message_type(kind: str) -> None:
    assert dhcp.decode(header() + bytes.fromhex(kind) + b"\xff").kind == 0


@given(st.binary(max_size=600))
def test_any_bytes(data: bytes) -> None:
    """Whatever arrives, the decoder returns a message or raises WireError."""
    for candidate in (data, header() + data):
        try:
            dhcp.decode(memoryview(candidate))
        except WireError:
            pass


messages = st.builds(
    dhcp.DhcpMessage,
    op=st.sampled_from((1, 2)),
    xid=st.integers(0, 2**32 - 1),
    chaddr=octets(6),
    options=st.dictionaries(st.integers(1, 254).filter(lambda code: code != 52), st.binary(max_size=600), max_size=8),
    secs=st.integers(0, 65535),
    flags=st.integers(0, 65535),
    ciaddr=octets(4),
    yiaddr=octets(4),
    siaddr=octets(4),
    giaddr=octets(4),
    sname=st.binary(max_size=64).map(lambda b: b.rstrip(b"\0")),
    file=st.binary(max_size=128).map(lambda b: b.rstrip(b"\0")),
    hops=st.integers(0, 255),
)


@given(messages)
def test_round_trip(message: dhcp.DhcpMessage) -> None:
    raw = message.encode()
    assert len(raw) >= dhcp.MINIMUM
    again = dhcp.decode(raw)
    assert again == message
    assert list(again.options) == list(message.options)


@given(messages)
def test_scapy_reads_the_same_header(message: dhcp.DhcpMessage) -> None:
    theirs = BOOTP(message.encode())
    assert (theirs.op, theirs.xid, theirs.secs, int(theirs.flags)) == (
        message.op,
        message.xid,
        message.secs,
        message.flags,
    )
    assert theirs.chaddr[:6] == message.chaddr
    assert bytes(map(int, theirs.yiaddr.split("."))) == message.yiaddr


def test_scapy_reads_our_options() -> None:
    message = dhcp.DhcpMessage(
        2,
        7,
        MAC,
        {
            53: bytes((dhcp.OFFER,)),
            51: (86400).to_bytes(4, "big"),
            26: (65520).to_bytes(2, "big"),
            3: bytes((192, 168, 65, 1)),
            119: dhcp.encode_domains(["corp.example.com", "example.org"]),
            121: dhcp.encode_routes([(bytes(4), 0, bytes((192, 168, 65, 1))), (bytes((10, 1, 0, 0)), 16, b"\1\1\1\1")]),
        },
    )
    options = BOOTP(message.encode())[DHCP].options
    assert options[0] == ("message-type", 2)
    found = {option[0]: option[1:] for option in options if isinstance(option, tuple)}
    assert found["lease_time"] == (86400,)
    assert found["interface-mtu"] == (65520,)
    assert found["router"] == ("192.168.65.1",)
    assert found[119] == (b"\4corp\7example\3com\0\7example\3org\0",)
    assert found["classless_static_routes"] == (["0.0.0.0/0:192.168.65.1", "10.1.0.0/16:1.1.1.1"],)


@pytest.mark.requirement("RFC3397 2")
def test_domains() -> None:
    assert dhcp.encode_domains(["a.bc", "d."]) == b"\1a\2bc\0\1d\0"
    for bad in ("", "a..b", "x" * 64, ".".join(["x" * 63] * 4)):
        with pytest.raises(ValueError, match=r"is not a domain name|longer than"):
            dhcp.encode_domains([bad])


def test_fields_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        dhcp.DhcpMessage(2, 1, MAC, sname=bytes(65)).encode()

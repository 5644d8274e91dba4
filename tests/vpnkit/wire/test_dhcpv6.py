from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_Solicit,
    DHCP6OptClientId,
    DHCP6OptIA_NA,
    DHCP6OptIA_PD,
    DHCP6OptIAAddress,
    DHCP6OptOptReq,
    DHCP6OptRapidCommit,
)

from vpnkit.errors import WireError
from vpnkit.wire import dhcpv6

MAC = bytes.fromhex("025000000001")
DUID = dhcpv6.DUID_LL + MAC
ADDRESS = bytes.fromhex("fd6576706e6b0000 0000000000010005")


def option(code: int, value: bytes) -> bytes:
    return code.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value


SOLICIT = (
    b"\1abc" + option(1, DUID) + option(8, b"\0\0") + option(3, b"iaid" + bytes(8) + option(5, ADDRESS + bytes(8)))
)


def test_scapy_writes_what_we_read() -> None:
    written = (
        DHCP6_Solicit(trid=0x616263)
        / DHCP6OptClientId(duid=DUID_LL(lladdr="02:50:00:00:00:01"))
        / DHCP6OptRapidCommit()
        / DHCP6OptOptReq(reqopts=[23, 24, 82])
        / DHCP6OptIA_NA(iaid=7, ianaopts=[DHCP6OptIAAddress(addr="fd65:7670:6e6b::1:5")])
        / DHCP6OptIA_PD(iaid=8)
    )
    message = dhcpv6.decode(bytes(written))
    assert (message.kind, message.transaction) == (dhcpv6.SOLICIT, b"abc")
    assert message.get(dhcpv6.CLIENTID) == DUID
    assert message.get(dhcpv6.RAPID_COMMIT) == b""
    assert [message.requests(code) for code in (23, 24, 82, 83)] == [True, True, True, False]
    assert message.associations == (
        dhcpv6.Association(dhcpv6.IA_NA, b"\0\0\0\7", (ADDRESS,)),
        dhcpv6.Association(dhcpv6.IA_PD, b"\0\0\0\x08"),
    )


@pytest.mark.requirement("RFC8415 8")
def test_every_cut_is_an_error_or_ends_between_options() -> None:
    whole = dhcpv6.decode(SOLICIT)
    ends = {4, 18, 24, len(SOLICIT)}
    for length in range(len(SOLICIT) + 1):
        if length in ends:
            assert dhcpv6.decode(SOLICIT[:length]).options == whole.options[: sorted(ends).index(length)]
        else:
            with pytest.raises(WireError):
                dhcpv6.decode(SOLICIT[:length])


@pytest.mark.requirement("RFC8415 8")
@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\x0c" + bytes(33),  # RELAY-FORW
        b"\x0d" + bytes(33),
        b"\1abc" + option(1, b"")[:4],
        b"\1abc" + option(1, b"\0\3"),
        b"\1abc" + option(1, bytes(131)),
        b"\1abc" + option(2, bytes(2)),
        b"\1abc" + option(1, DUID) * 2,
        b"\1abc" + option(2, DUID) * 2,
        b"\1abc" + option(6, b"\0\x17\0"),
        b"\1abc" + option(3, bytes(11)),
        b"\1abc" + option(4, bytes(3)),
        b"\1abc" + option(25, bytes(11)),
        b"\1abc" + option(3, bytes(12) + b"\0\5\0\x18"),
        b"\1abc" + option(3, bytes(12) + option(5, bytes(23))),
        b"\1abc" + option(200, b"") * (dhcpv6.MAX_OPTIONS + 1),
        b"\1abc" + option(3, bytes(12) + option(5, bytes(24)) * (dhcpv6.MAX_OPTIONS + 1)),
    ],
)
def test_malformed(octets: bytes) -> None:
    with pytest.raises(WireError):
        dhcpv6.decode(octets)


@pytest.mark.requirement("RFC8415 11")
@pytest.mark.parametrize("size", [3, 14, 130])
def test_any_duid_that_the_rfc_allows(size: int) -> None:
    assert dhcpv6.decode(b"\1abc" + option(1, bytes(size))).get(dhcpv6.CLIENTID) == bytes(size)


@pytest.mark.requirement("RFC8415 16-1")
def test_options_that_nobody_knows_are_no_error() -> None:
    message = dhcpv6.decode(b"\1abc" + option(65535, b"x") + option(65535, b"y") + option(5, b""))
    assert message.options == [(65535, b"x"), (65535, b"y"), (5, b"")]


def test_what_is_inside_an_address_is_not_looked_at() -> None:
    deep = option(5, ADDRESS + bytes(8) + b"\0\5\xff\xff")
    assert dhcpv6.decode(b"\1abc" + option(3, bytes(12) + deep)).associations[0].addresses == (ADDRESS,)


@given(st.binary(max_size=400), st.binary(max_size=60))
def test_any_octets(noise: bytes, value: bytes) -> None:
    for candidate in (noise, SOLICIT + noise, b"\1abc" + option(3, bytes(12) + noise), b"\1abc" + option(39, value)):
        try:
            message = dhcpv6.decode(memoryview(candidate))
        except WireError:
            continue
        assert dhcpv6.decode(message.encode()) == message
        assert message.encode() == candidate
        dhcpv6.host_name(message.get(dhcpv6.CLIENT_FQDN) or b"")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (b"\0\2vm\7example\0", b"vm.example"),
        (b"\0\2vm", b"vm"),  # partial, RFC 4704 section 4.2
        (b"\0\5vm", b""),
        (b"\0\2vm\xc0\0", b"vm"),
        (b"\0", b""),
        (b"", b""),
    ],
)
def test_host_name(value: bytes, name: bytes) -> None:
    assert dhcpv6.host_name(value) == name


def test_scapy_reads_what_we_write() -> None:
    message = dhcpv6.Dhcpv6Message(dhcpv6.REPLY, b"abc")
    message.options.append(
        dhcpv6.encode_association(dhcpv6.IA_NA, b"\0\0\0\7", [dhcpv6.encode_address(ADDRESS, 100, 200)], 50, 80)
    )
    message.options.append(dhcpv6.encode_association(dhcpv6.IA_TA, b"\0\0\0\x08", [dhcpv6.encode_status(2, "none")]))
    from scapy.layers.dhcp6 import DHCP6_Reply, DHCP6OptIA_TA

    read = DHCP6_Reply(message.encode())
    assert read.trid == 0x616263
    given_ = read[DHCP6OptIA_NA]
    assert (given_.iaid, given_.T1, given_.T2) == (7, 50, 80)
    address = given_.ianaopts[0]
    assert (address.addr, address.preflft, address.validlft) == ("fd65:7670:6e6b::1:5", 100, 200)
    refused = read[DHCP6OptIA_TA]
    assert (refused.iaid, refused.iataopts[0].statuscode, refused.iataopts[0].statusmsg) == (8, 2, b"none")

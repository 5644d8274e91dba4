from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDNSSL,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
)

from vpnkit.errors import WireError
from vpnkit.wire import icmpv6, ipv6, ndp
from vpnkit.wire.checksum import is_valid
from vpnkit.wire.ndp import NeighborAdvertisement, NeighborSolicitation, PrefixInformation, RouterSolicitation

MAC = bytes.fromhex("525400000001")
GUEST, OURS = ipv6.link_local(MAC), ipv6.link_local(bytes.fromhex("f61636bcf9c6"))
PREFIX = IPv6Address("fd65:7670:6e6b::").packed
GATEWAY = PREFIX[:-1] + b"\1"

unicast = st.binary(min_size=16, max_size=16).filter(lambda address: address[0] != 0xFF and any(address))
macs = st.one_of(st.just(b""), st.binary(min_size=6, max_size=6))
solicitations = st.one_of(st.builds(RouterSolicitation, macs), st.builds(NeighborSolicitation, unicast, macs))
heard = st.one_of(
    solicitations, st.builds(NeighborAdvertisement, unicast, macs, st.booleans(), st.booleans(), st.booleans())
)
seconds = st.integers(0, ndp.INFINITE)
labels = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
domains = st.lists(labels, min_size=1, max_size=4).map(".".join)
advertisements = st.builds(
    ndp.RouterAdvertisement,
    st.integers(0, 9000),
    macs,
    st.integers(0, 255),
    st.booleans(),
    st.booleans(),
    seconds,
    seconds,
    st.integers(1280, 65535),
    st.lists(
        st.builds(PrefixInformation, unicast, st.integers(0, 128), seconds, seconds, st.booleans(), st.booleans()),
        max_size=3,
    ).map(tuple),
    st.lists(unicast, max_size=3).map(tuple),
    seconds,
    st.lists(domains, max_size=3).map(tuple),
    seconds,
)


def packet(message: bytes, *, source: bytes = GUEST, destination: bytes = OURS, ttl: int = 255) -> ipv6.Ipv6Packet:
    header = ipv6.encode_header(source, destination, ipv6.ICMPV6, len(message), ttl=ttl)
    return ipv6.decode(memoryview(bytes(header) + message))


def by_scapy(message, source: str = "fe80::5054:ff:fe00:1", destination: str = "ff02::1", **fields) -> ipv6.Ipv6Packet:
    return ipv6.decode(memoryview(bytes(IPv6(src=source, dst=destination, hlim=fields.pop("hlim", 255)) / message)))


@given(heard, unicast, unicast)
def test_round_trip(message, source, destination):
    raw = message.encode(source, destination)
    assert is_valid(raw, ipv6.pseudo_sum(source, destination, ipv6.ICMPV6, len(raw)))
    assert ndp.decode(packet(raw, source=source, destination=destination)) == message


@given(advertisements)
def test_scapy_reads_an_advertisement_of_a_router_as_it_was_meant(said):
    read = ICMPv6ND_RA(said.encode(OURS, ipv6.ALL_NODES))
    assert (read.chlim, read.M, read.O, read.routerlifetime) == (
        said.hop_limit,
        said.managed,
        said.other,
        said.router_lifetime,
    )
    assert (read.reachabletime, read.retranstimer) == (said.reachable_time, said.retransmission_timer)
    assert read[ICMPv6NDOptMTU].mtu == said.mtu
    if said.source_mac:
        assert read[ICMPv6NDOptSrcLLAddr].lladdr == said.source_mac.hex(":")
    for number, prefix in enumerate(said.prefixes, 1):
        option = read.getlayer(ICMPv6NDOptPrefixInfo, number)
        assert (option.prefixlen, option.L, option.A) == (prefix.length, prefix.on_link, prefix.autonomous)
        assert (option.validlifetime, option.preferredlifetime) == (prefix.valid, prefix.preferred)
        assert IPv6Address(option.prefix).packed == prefix.prefix
    assert (ICMPv6NDOptRDNSS in read) == bool(said.dns)
    if said.dns:
        assert tuple(IPv6Address(address).packed for address in read[ICMPv6NDOptRDNSS].dns) == said.dns
        assert read[ICMPv6NDOptRDNSS].lifetime == said.dns_lifetime
    assert (ICMPv6NDOptDNSSL in read) == bool(said.search)
    if said.search:
        names = [name.rstrip(".") for name in read[ICMPv6NDOptDNSSL].searchlist if name.strip(".")]
        assert names == list(said.search)
        assert read[ICMPv6NDOptDNSSL].lifetime == said.search_lifetime


@given(solicitations)
def test_scapy_reads_a_solicitation_as_it_was_meant(said):
    raw = said.encode(OURS, ipv6.ALL_NODES)
    read = ICMPv6ND_RS(raw) if isinstance(said, RouterSolicitation) else ICMPv6ND_NS(raw)
    assert not isinstance(said, NeighborSolicitation) or IPv6Address(read.tgt).packed == said.target
    assert (ICMPv6NDOptSrcLLAddr in read) == bool(said.source_mac)
    assert not said.source_mac or read[ICMPv6NDOptSrcLLAddr].lladdr == said.source_mac.hex(":")


@given(unicast, macs, st.booleans(), st.booleans(), st.booleans())
def test_scapy_reads_an_advertisement_of_a_neighbour_as_it_was_meant(target, mac, router, solicited, override):
    read = ICMPv6ND_NA(NeighborAdvertisement(target, mac, router, solicited, override).encode(OURS, GUEST))
    assert (IPv6Address(read.tgt).packed, read.R, read.S, read.O) == (target, router, solicited, override)
    assert not mac or read[ICMPv6NDOptDstLLAddr].lladdr == mac.hex(":")


def test_what_scapy_writes_is_read_and_unknown_options_are_skipped():
    options = ICMPv6NDOptUnknown(type=200, len=2, data=bytes(14)) / ICMPv6NDOptSrcLLAddr(lladdr=MAC.hex(":"))
    assert ndp.decode(by_scapy(ICMPv6ND_RS() / options)) == RouterSolicitation(MAC)
    assert ndp.decode(by_scapy(ICMPv6ND_NS(tgt="fd65:7670:6e6b::1") / options)) == NeighborSolicitation(GATEWAY, MAC)
    probe = by_scapy(ICMPv6ND_NS(tgt="fd65:7670:6e6b::1"), source="::", destination="ff02::1:ff00:1")
    assert ndp.decode(probe) == NeighborSolicitation(GATEWAY)


def test_a_long_search_list_is_cut_between_names():
    search = tuple(f"{'x' * 60}.{number}.example" for number in range(40))
    raw = ndp.RouterAdvertisement(0, search=search, search_lifetime=1).encode(OURS, ipv6.ALL_NODES)
    assert len(raw) < 1280 - ipv6.HEADER_SIZE
    told = [name.rstrip(".") for name in ICMPv6ND_RA(raw)[ICMPv6NDOptDNSSL].searchlist if name.strip(".")]
    assert told == list(search[: len(told)])
    assert told


SOLICIT = RouterSolicitation(MAC).encode(GUEST, ipv6.ALL_ROUTERS)
ASK = NeighborSolicitation(GATEWAY, MAC).encode(GUEST, OURS)
TELL = NeighborAdvertisement(GUEST, MAC, solicited=True).encode(GUEST, OURS)
VALID = pytest.mark.parametrize("raw", [SOLICIT, ASK, TELL], ids=["RS", "NS", "NA"])


@VALID
@pytest.mark.parametrize("ttl", [0, 1, 64, 254])
def test_a_hop_limit_that_a_router_decremented(raw, ttl):
    with pytest.raises(WireError, match="hop limit"):
        ndp.decode(packet(raw, ttl=ttl))


@VALID
def test_a_code(raw):
    with pytest.raises(WireError, match="code"):
        ndp.decode(packet(raw[:1] + b"\1" + raw[2:]))


@VALID
def test_every_cut(raw):
    whole = (8, 24)[raw is not SOLICIT]
    for length in range(len(raw)):
        if length == whole:
            assert ndp.decode(packet(raw[:length]))  # without its option
        else:
            with pytest.raises(WireError):
                ndp.decode(packet(raw[:length]))


@VALID
@pytest.mark.parametrize("length", [0, 2, 255])
def test_the_length_of_an_option(raw, length):
    with pytest.raises(WireError):
        ndp.decode(packet(raw[:-7] + bytes((length,)) + raw[-6:]))


@VALID
def test_a_link_layer_address_of_another_kind_of_link(raw):
    with pytest.raises(WireError, match="Ethernet"):
        ndp.decode(packet(raw[:-7] + b"\2" + raw[-6:] + bytes(8)))


@pytest.mark.parametrize("raw", [SOLICIT, ASK], ids=["RS", "NS"])
def test_a_link_layer_address_of_nobody(raw):
    with pytest.raises(WireError):
        ndp.decode(packet(raw, source=ipv6.UNSPECIFIED, destination=ipv6.solicited_node(GATEWAY)))


def test_nobody_asks_one_station():
    raw = NeighborSolicitation(GATEWAY).encode(ipv6.UNSPECIFIED, OURS)
    for destination in (OURS, ipv6.ALL_NODES, GATEWAY):
        with pytest.raises(WireError, match="probe"):
            ndp.decode(packet(raw, source=ipv6.UNSPECIFIED, destination=destination))


@pytest.mark.parametrize("message", [NeighborSolicitation, NeighborAdvertisement])
def test_a_multicast_target(message):
    with pytest.raises(WireError, match="multicast"):
        ndp.decode(packet(message(ipv6.ALL_NODES, MAC).encode(GUEST, OURS)))


def test_a_solicited_answer_to_everybody():
    with pytest.raises(WireError, match="everybody"):
        ndp.decode(packet(TELL, destination=ipv6.ALL_NODES))
    assert ndp.decode(packet(NeighborAdvertisement(GUEST, MAC).encode(GUEST, OURS), destination=ipv6.ALL_NODES))


@pytest.mark.parametrize("kind", [icmpv6.ROUTER_ADVERTISEMENT, icmpv6.REDIRECT, icmpv6.ECHO_REQUEST])
def test_what_a_router_does_not_hear(kind):
    with pytest.raises(WireError, match="type"):
        ndp.decode(packet(bytes((kind,)) + bytes(39)))


@given(st.integers(133, 136), st.binary(max_size=80), st.sampled_from([GUEST, ipv6.UNSPECIFIED]))
def test_anything_is_a_message_or_an_error(kind, rest, source):
    raw = bytes((kind, 0)) + rest
    try:
        message = ndp.decode(packet(raw, source=source, destination=ipv6.solicited_node(GATEWAY)))
    except WireError:
        return
    again = message.encode(source, ipv6.solicited_node(GATEWAY))
    assert ndp.decode(packet(again, source=source, destination=ipv6.solicited_node(GATEWAY))) == message

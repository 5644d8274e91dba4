from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.proto import ndp
from vpnkit.proto.deadlines import NEVER
from vpnkit.proto.ndp import Advertiser, RouterConfig, To, advertisement, answer
from vpnkit.wire import ipv6
from vpnkit.wire.ndp import NeighborAdvertisement, NeighborSolicitation, PrefixInformation

OUR_MAC = bytes.fromhex("f61636bcf9c6")
MAC = bytes.fromhex("525400000001")
PREFIX = bytes.fromhex("fd6576706e6b0000") + bytes(8)
GATEWAY, HOST = PREFIX[:-1] + b"\1", PREFIX[:-1] + b"\2"
LINK_LOCAL = ipv6.link_local(OUR_MAC)
OURS = {bytes([192, 168, 65, 1]), GATEWAY, HOST, LINK_LOCAL}
GUEST = ipv6.link_local(MAC)
CONFIG = RouterConfig(OUR_MAC, PREFIX, 1500, (GATEWAY,), ("vm.example",))


# What is said


def test_a_router_with_a_way_out():
    said = advertisement(CONFIG, offered=True, default_router=True)
    assert said.router_lifetime == 1800
    assert said.prefixes == (PrefixInformation(PREFIX, 64, 5400, 2700, on_link=True, autonomous=True),)
    assert (said.mtu, said.dns, said.search, said.source_mac) == (1500, (GATEWAY,), ("vm.example",), OUR_MAC)
    assert said.managed
    assert said.other


def test_lifetimes_are_those_that_rfc_4861_allows():
    """Section 6.2.1: AdvDefaultLifetime is 0 or MaxRtrAdvInterval to 9000 s; RFC 8106 section 5.1 for DNS."""
    said = advertisement(CONFIG, offered=True, default_router=True)
    assert 4 <= ndp.MAX_RTR_ADV_INTERVAL <= 1800
    assert 3 <= ndp.MIN_RTR_ADV_INTERVAL <= 0.75 * ndp.MAX_RTR_ADV_INTERVAL
    assert ndp.MAX_RTR_ADV_INTERVAL <= said.router_lifetime <= 9000
    assert said.dns_lifetime == said.search_lifetime >= ndp.MAX_RTR_ADV_INTERVAL
    assert all(ndp.ROUTER_LIFETIME <= prefix.preferred <= prefix.valid for prefix in said.prefixes)


def test_a_lan_without_a_way_out():
    said = advertisement(CONFIG, offered=True, default_router=False)
    assert said.router_lifetime == 0
    assert said.prefixes[0].preferred
    assert said.dns_lifetime


@pytest.mark.parametrize("default_router", [True, False])
def test_all_of_it_is_taken_back(default_router):
    said = advertisement(CONFIG, offered=False, default_router=default_router)
    assert (said.router_lifetime, said.dns_lifetime, said.search_lifetime) == (0, 0, 0)
    assert (said.prefixes[0].valid, said.prefixes[0].preferred) == (5400, 0)
    assert (said.dns, said.search) == (CONFIG.dns, CONFIG.search)  # it must say what it takes back
    assert not said.managed
    assert not said.other


# Questions


@pytest.mark.parametrize("target", [GATEWAY, HOST, LINK_LOCAL])
def test_our_addresses_are_answered(target):
    told = NeighborAdvertisement(target, OUR_MAC, router=True, solicited=True, override=True)
    assert answer(NeighborSolicitation(target, MAC), GUEST, OURS, OUR_MAC) == (told, GUEST)


@pytest.mark.parametrize("target", [GATEWAY, HOST, LINK_LOCAL])
def test_our_addresses_are_defended(target):
    """RFC 4861 section 7.2.4: who has no address is told with everybody."""
    told = NeighborAdvertisement(target, OUR_MAC, router=True, solicited=False, override=True)
    assert answer(NeighborSolicitation(target), ipv6.UNSPECIFIED, OURS, OUR_MAC) == (told, ipv6.ALL_NODES)


@pytest.mark.parametrize("target", [GUEST, PREFIX[:-1] + b"\3", bytes(15) + b"\1", bytes(16)])
@pytest.mark.parametrize("source", [GUEST, ipv6.UNSPECIFIED])
def test_no_other_address_is(target, source):
    assert answer(NeighborSolicitation(target), source, OURS, OUR_MAC) is None


# When


def later(low: float, high: float) -> float:
    return high


def run(advertiser: Advertiser, until: float) -> list[tuple[float, To | None]]:
    """What it says until then, and when."""
    said = []
    while (when := advertiser.next_deadline()) <= until:
        said += [(when, to) for to in advertiser.due(when)]
        assert advertiser.next_deadline() > when
    return said


def test_nothing_is_said_where_nothing_is_offered():
    advertiser = Advertiser(later)
    advertiser.change(0, offered=False)
    advertiser.solicited(To(GUEST, MAC), 0)
    advertiser.solicited(To(ipv6.UNSPECIFIED, MAC), 0)
    assert advertiser.next_deadline() == NEVER


def test_three_soon_and_then_now_and_then():
    advertiser = Advertiser(later)
    advertiser.change(0, offered=True)
    assert [when for when, to in run(advertiser, 2000)] == [0.5, 16.5, 32.5, 632.5, 1232.5, 1832.5]


def test_who_asks_is_answered_alone_within_half_a_second():
    advertiser = Advertiser(later)
    advertiser.change(0, offered=True)
    run(advertiser, 100)
    advertiser.solicited(To(GUEST, MAC), 100)
    advertiser.solicited(To(GUEST, MAC), 100.4)
    assert run(advertiser, 600) == [(100.5, To(GUEST, MAC))]


def test_who_has_no_address_is_answered_with_all():
    advertiser = Advertiser(later)
    advertiser.change(0, offered=True)
    run(advertiser, 100)
    advertiser.solicited(To(ipv6.UNSPECIFIED, MAC), 100)
    assert run(advertiser, 600) == [(100.5, None)]


def test_several_who_ask_are_answered_at_once():
    advertiser = Advertiser(later)
    advertiser.change(0, offered=True)
    run(advertiser, 100)
    advertiser.solicited(To(GUEST, MAC), 100)
    advertiser.solicited(To(ipv6.link_local(OUR_MAC), OUR_MAC), 100.1)
    advertiser.solicited(To(GUEST, MAC), 100.2)
    assert run(advertiser, 600) == [(100.6, None)]


def test_a_question_shortly_before_all_are_told():
    advertiser = Advertiser(later)
    advertiser.change(0, offered=True)
    advertiser.solicited(To(GUEST, MAC), 0.1)
    assert run(advertiser, 10) == [(0.5, None)]


def test_what_was_offered_is_taken_back_three_times_and_to_who_asks_later():
    advertiser = Advertiser(later)
    advertiser.change(0, offered=True)
    run(advertiser, 100)
    advertiser.change(100, offered=False)
    assert [when for when, to in run(advertiser, 10000)] == [100.5, 116.5, 132.5]
    advertiser.solicited(To(GUEST, MAC), 10000)
    assert run(advertiser, 1e9) == [(10000.5, To(GUEST, MAC))]
    assert advertiser.next_deadline() == NEVER


def test_what_changes_often_is_not_said_as_often():
    advertiser = Advertiser(later)
    for tenth in range(100):
        advertiser.change(tenth / 10, offered=tenth % 2 == 0)
        run(advertiser, tenth / 10)
    assert advertiser.next_deadline() <= 12.5


events = st.lists(
    st.tuples(
        st.floats(0, 20),
        st.sampled_from(["offer", "withdraw", "ask"]),
        st.sampled_from([ipv6.UNSPECIFIED, GUEST, LINK_LOCAL]),
    ),
    max_size=40,
)


@given(events, st.integers(0, 1 << 32))
def test_whatever_happens(happens, seed):
    """RFC 4861 section 6.2.6: no two for all within 3 s, and who asks hears within 3.5 s, once something is offered."""
    advertiser = Advertiser(random.Random(seed).uniform)
    now, ever = 0.0, False
    said: list[tuple[float, To | None]] = []
    asked: list[tuple[float, bytes]] = []
    for pause, what, who in happens:
        now += pause
        said += run(advertiser, now)
        if what == "ask":
            advertiser.solicited(To(who, MAC), now)
            if ever:
                asked.append((now, who))
        else:
            ever = ever or what == "offer"
            advertiser.change(now, offered=what == "offer")
    said += run(advertiser, now + 60)
    for_all = [when for when, to in said if to is None]
    assert all(b - a >= ndp.MIN_DELAY_BETWEEN_RAS - 1e-6 for a, b in pairwise(for_all))
    for when, who in asked:
        heard = [at - when for at, to in said if at >= when and (to is None or to.address == who)]
        assert heard
        assert heard[0] <= ndp.MIN_DELAY_BETWEEN_RAS + ndp.MAX_RA_DELAY_TIME
    assert ever or not said

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.proto.dns_upstreams import (
    ATTEMPT_SECONDS,
    MAX_HEALTHS,
    MAX_RETRY_SECONDS,
    MIN_ATTEMPT_SECONDS,
    SUSPECT_SECONDS,
    Choice,
    Routes,
    Server,
    Upstreams,
)
from vpnkit.wire.dns import encode_name

A, B, C = (Server(f"10.0.0.{number}") for number in (1, 2, 3))


@pytest.fixture
def upstreams() -> Upstreams:
    return Upstreams()


def asked(choice: Choice) -> tuple[Server, ...]:
    return choice.servers[: choice.at_once]


def test_the_operators_order_is_kept(upstreams: Upstreams) -> None:
    upstreams.answered(A, 0.1)
    upstreams.answered(B, 0.001)
    choice = upstreams.choose([A, B, C], 0.0)
    assert (choice.servers, asked(choice)) == ((A, B, C), (A,))


def test_one_silence_makes_company_and_more_the_last_place(upstreams: Upstreams) -> None:
    upstreams.failed(A, 10.0)
    choice = upstreams.choose([A, B], 10.1)
    assert (choice.servers, asked(choice)) == ((A, B), (A, B))
    upstreams.failed(A, 11.0)
    choice = upstreams.choose([A, B], 11.1)
    assert (choice.servers, asked(choice)) == ((B, A), (B,))
    upstreams.answered(A, 0.01)
    assert asked(upstreams.choose([A, B], 11.2)) == (A,)


def test_who_stays_silent_loses_his_place(upstreams: Upstreams) -> None:
    upstreams.failed(A, 10.0)
    assert upstreams.choose([A, B], 10.0 + SUSPECT_SECONDS).servers == (B, A)


def test_a_silent_server_is_given_another_chance_by_one_question_at_a_time(upstreams: Upstreams) -> None:
    for now in (1.0, 2.0):
        upstreams.failed(A, now)
    times = [now / 10 for now in range(20, 200) if A in asked(upstreams.choose([A, B], now / 10))]
    assert times[0] == 4.0
    assert all(later - earlier >= ATTEMPT_SECONDS for earlier, later in pairwise(times))
    for _ in range(20):
        upstreams.failed(A, 100.0)
    assert upstreams.health(A).retry_at == 100.0 + MAX_RETRY_SECONDS


def test_when_all_are_silent_all_are_asked_at_once(upstreams: Upstreams) -> None:
    for _ in range(3):
        upstreams.failed(A, 1.0)
        upstreams.failed(B, 1.0)
    choice = upstreams.choose([A, B], 1.5)
    assert (asked(choice), choice.hopeless) == ((A, B), True)
    upstreams.answered(B, 0.1)
    choice = upstreams.choose([A, B], 1.6)
    assert (choice.servers, choice.hopeless) == ((B, A), False)


def test_a_slow_server_is_not_asked_alone(upstreams: Upstreams) -> None:
    """A race pays when the first takes long and the next may not."""
    upstreams.answered(A, 0.8)
    assert asked(upstreams.choose([A, B], 1.0)) == (A, B)
    upstreams.answered(B, 0.7)
    assert asked(upstreams.choose([A, B], 1.0)) == (A,)
    assert asked(upstreams.choose([A], 1.0)) == (A,)


def test_patience_follows_what_was_measured(upstreams: Upstreams) -> None:
    assert upstreams.patience(A) == ATTEMPT_SECONDS
    for _ in range(20):
        upstreams.answered(A, 0.001)
        upstreams.answered(B, 0.5)
    assert upstreams.patience(A) == MIN_ATTEMPT_SECONDS
    assert 0.5 < upstreams.patience(B) < ATTEMPT_SECONDS
    upstreams.failed(A, 1.0)
    assert upstreams.patience(A) == ATTEMPT_SECONDS


def test_healths_are_bounded(upstreams: Upstreams) -> None:
    for number in range(MAX_HEALTHS + 10):
        upstreams.answered(Server(f"10.0.{number // 256}.{number % 256}"), 0.1)
    assert len(upstreams.all()) == MAX_HEALTHS


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["answered", "failed", "choose"]), st.floats(0, 3))),
    st.booleans(),
    st.integers(0, 3),
)
def test_every_choice_asks_somebody(events: list[tuple[int, str, float]], racing: bool, count: int) -> None:
    upstreams, now = Upstreams(), 0.0
    servers = [A, B, C][:count]
    for number, what, seconds in events:
        now += seconds
        if what == "answered":
            upstreams.answered([A, B, C][number], seconds)
        elif what == "failed":
            upstreams.failed([A, B, C][number], now)
        choice = upstreams.choose(servers, now, racing=racing)
        assert sorted(choice.servers) == sorted(servers)
        assert min(count, 1) <= choice.at_once <= count
        assert MIN_ATTEMPT_SECONDS <= upstreams.patience(A) <= ATTEMPT_SECONDS


def test_the_longest_zone_counts() -> None:
    zones = {encode_name("example"): [B], encode_name("corp.example"): [C]}
    routes = Routes([A], zones)
    assert routes.servers(encode_name("www.corp.example")) == (C,)
    assert routes.servers(encode_name("corp.example")) == (C,)
    assert routes.servers(encode_name("notcorp.example")) == (B,)
    assert routes.servers(encode_name("example.com")) == (A,)
    assert routes.servers(encode_name(".")) == (A,)
    assert routes == Routes([A], zones)
    assert routes != Routes([B], zones)


@pytest.mark.parametrize(
    ("server", "text"),
    [
        (Server("1.1.1.1"), "1.1.1.1#53"),
        (Server("::1", 5353), "::1#5353"),
        (Server("1.1.1.1", 853, "tls", "one.one"), "tls:1.1.1.1#853#one.one"),
        (Server("1.1.1.1", 853, "tls"), "tls:1.1.1.1#853"),
        (Server("", 0, "host"), "host"),
    ],
)
def test_servers_as_people_read_them(server: Server, text: str) -> None:
    assert str(server) == text

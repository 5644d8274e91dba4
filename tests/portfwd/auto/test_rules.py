"""Rules of automatic exposure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.auto.rules import parse_rule
from portfwd.options import SpecError
from portfwd.spec import is_rule, parse

# rule: {(protocol, guest's port): host's port}
CASES = {
    "auto": {("tcp", 80): 80, ("udp", 53): 53, ("tcp", 40000): 40000, ("udp", 40000): None, ("udp", 68): None},
    "auto:8000-9000,!8080,80=8080": {
        ("tcp", 8000): 8000,
        ("udp", 9000): 9000,
        ("tcp", 9001): None,
        ("tcp", 8080): None,
        ("tcp", 80): 8080,
    },
    "auto:!22,!6000-6063": {("tcp", 22): None, ("tcp", 6010): None, ("tcp", 80): 80},
    "auto:*,80=8080": {("tcp", 80): 8080, ("tcp", 81): 81},
    "auto:80-82=1080-1082": {("tcp", 81): 1081, ("tcp", 83): None},
    "auto:53/udp,80/tcp": {("udp", 53): 53, ("tcp", 53): None, ("tcp", 80): 80, ("udp", 80): None},
    "auto/tcp": {("tcp", 80): 80, ("udp", 53): None},
    "auto/udp:*": {("tcp", 80): None, ("udp", 53): 53},
    "auto:40000": {("udp", 40000): 40000},
    "0.0.0.0:auto:80": {("tcp", 80): 80},
}


@pytest.mark.parametrize("text", CASES)
def test_rules(text):
    assert is_rule(text)
    rule = parse_rule(text)
    assert {key: rule.host_port(*key) for key in CASES[text]} == CASES[text]


def test_addresses():
    assert parse_rule("auto").host_address is None
    assert parse_rule("0.0.0.0:auto").host_address == "0.0.0.0"
    assert parse_rule("[::0]:auto:80").host_address == "::"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("auto:", "'' is none of PORT"),
        ("auto:x", "'x' is none of PORT"),
        ("auto:0", "out of range"),
        ("auto:65536", "out of range"),
        ("auto:9-8", "runs backwards"),
        ("auto:1-2=3", "differ in length: 2 and 1"),
        ("auto:!80=81", "is an exclusion"),
        ("auto:!*", "would forward nothing"),
        ("1.2.3:auto", "is not an IP address"),
        ("[1.2.3.4]:auto", "brackets"),
        ("autos", "is the form"),
        ("auto:" + ",".join(["1"] * 300), "more than 256 items"),
    ],
)
def test_what_is_wrong(text, message):
    with pytest.raises(SpecError, match=message):
        parse_rule(text)


def test_a_rule_is_no_forward():
    with pytest.raises(SpecError, match="a rule that makes some"):
        parse("auto:80")
    assert not is_rule("8080:80")
    assert not is_rule("unix:/auto:80")


@given(st.lists(st.sampled_from(["auto", ":", "!", "80", "-", "=", "*", "/tcp", ",", "[::1]", "0.0.0.0"]), max_size=9))
def test_any_text_is_a_rule_or_a_spec_error(parts):
    try:
        rule = parse_rule("".join(parts))
    except SpecError:
        return
    port = rule.host_port("tcp", 80)
    assert port is None or 1 <= port <= 65535

"""9P messages: vectors by hand, round trips of every message in both dialects, and octets that are none."""

from __future__ import annotations

import dataclasses
import struct
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnkit.errors import WireError
from vpnkit.wire import p9

U8, U16, U32, U64 = (st.integers(0, 256**size - 1) for size in (1, 2, 4, 8))
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
QID = st.builds(p9.Qid, U8, U32, U64)
NUMBERS = ("n_uid", "n_gid", "n_muid")
FULL_STAT = st.builds(
    p9.Stat,
    QID,
    mode=U32,
    name=TEXT,
    length=U64,
    atime=U32,
    mtime=U32,
    uid=TEXT,
    gid=TEXT,
    muid=TEXT,
    kind=U16,
    dev=U32,
    extension=TEXT,
    n_uid=U32,
    n_gid=U32,
    n_muid=U32,
)
VALUES = {
    "B": U8,
    "H": U16,
    "I": U32,
    "Q": U64,
    "S": TEXT,
    "D": st.binary(max_size=300),
    "q": QID,
    "N": st.lists(TEXT, max_size=16).map(tuple),
    "K": st.lists(QID, max_size=16).map(tuple),
    "T": FULL_STAT,
}
MESSAGES = st.one_of(
    [
        st.tuples(*(VALUES[letter] for letter in layout.replace("|", ""))).map(lambda values, cls=cls: cls(*values))
        for cls, layout in p9.LAYOUTS.values()
    ]
)


def plain(message: p9.Message) -> p9.Message:
    """What 9P2000 carries of it."""
    found: typing.Any = message
    for name, empty in (("n_uname", p9.NO_UID), ("extension", "")):
        if hasattr(found, name):
            found = dataclasses.replace(found, **{name: empty})
    if isinstance(found, p9.Rerror):
        found = dataclasses.replace(found, errno=0)
    if isinstance(found, p9.Rstat | p9.Twstat):
        stat = dataclasses.replace(found.stat, extension="", **dict.fromkeys(NUMBERS, p9.NO_UID))
        found = dataclasses.replace(found, stat=stat)
    return found


@given(U16, MESSAGES)
def test_round_trip(tag: int, message: p9.Message) -> None:
    assert p9.decode(p9.encode(tag, message, extended=True), extended=True) == (tag, message)
    assert p9.decode(p9.encode(tag, message, extended=False), extended=False) == (tag, plain(message))


@given(U16, MESSAGES, st.booleans(), st.data())
def test_what_is_cut_short_or_too_long_is_refused(
    tag: int, message: p9.Message, extended: bool, data: st.DataObject
) -> None:
    whole = p9.encode(tag, message, extended=extended)
    length = data.draw(st.integers(7, len(whole) - 1)) if len(whole) > 7 else 7
    for wrong in (whole[:length], whole + b"x"):
        if wrong == whole:
            continue
        relabelled = struct.pack("<I", len(wrong)) + wrong[4:]
        with pytest.raises(WireError):
            p9.decode(wrong, extended=extended)
        with pytest.raises(WireError):
            p9.decode(relabelled, extended=extended)


@given(st.binary(max_size=200), st.sampled_from([*p9.LAYOUTS, 106, 0, 255]), st.booleans())
def test_any_octets(body: bytes, code: int, extended: bool) -> None:
    data = p9.HEADER.pack(7 + len(body), code, 1) + body
    try:
        tag, message = p9.decode(data, extended=extended)
    except WireError:
        return
    assert tag == 1
    assert p9.encode(tag, message, extended=extended) == data, "nothing is read that is not kept"


# Octets as the manual has them.
VECTORS = [
    ("13000000 64 ffff 00200000 0600 395032303030", p9.Tversion(8192, "9P2000"), p9.NOTAG, False),
    ("15000000 65 ffff 00200000 0800 395032303030 2e75", p9.Rversion(8192, "9P2000.u"), p9.NOTAG, False),
    ("14000000 68 0100 00000000 ffffffff 0100 75 0000", p9.Tattach(0, p9.NOFID, "u", ""), 1, False),
    (
        "18000000 68 0100 00000000 ffffffff 0100 75 0000 e8030000",
        p9.Tattach(0, p9.NOFID, "u", "", 1000),
        1,
        True,
    ),
    ("14000000 69 0100 80 01000000 0200000000000000", p9.Rattach(p9.Qid(p9.QTDIR, 1, 2)), 1, False),
    ("0b000000 6b 0200 0200 6e6f", p9.Rerror("no"), 2, False),
    ("0f000000 6b 0200 0200 6e6f 02000000", p9.Rerror("no", 2), 2, True),
    ("17000000 6e 0300 01000000 02000000 0200 0100 61 0100 62", p9.Twalk(1, 2, ("a", "b")), 3, False),
    ("09000000 6f 0300 0000", p9.Rwalk(()), 3, False),
    ("0c000000 70 0300 01000000 02", p9.Topen(1, p9.ORDWR), 3, False),
    ("17000000 74 0400 01000000 0500000000000000 00100000", p9.Tread(1, 5, 4096), 4, False),
    ("0d000000 75 0400 02000000 6869", p9.Rread(b"hi"), 4, False),
    ("07000000 79 0500", p9.Rclunk(), 5, False),
]


@pytest.mark.parametrize(("octets", "message", "tag", "extended"), VECTORS)
def test_vectors(octets: str, message: p9.Message, tag: int, extended: bool) -> None:
    data = bytes.fromhex(octets)
    assert p9.encode(tag, message, extended=extended) == data
    assert p9.decode(data, extended=extended) == (tag, message)


def test_a_directory_entry() -> None:
    stat = p9.Stat(p9.Qid(0, 1, 2), 0o644, "name", length=5, atime=6, mtime=7, uid="u", gid="g", muid="m")
    octets = bytes.fromhex(
        "3c00 ffff ffffffff 00 01000000 0200000000000000 a4010000 06000000 07000000 0500000000000000"
        "0400 6e616d65 0100 75 0100 67 0100 6d"
    )
    octets = struct.pack("<H", len(octets) - 2) + octets[2:]
    assert stat.encode(extended=False) == octets
    assert p9.decode_stat(octets, extended=False) == stat
    longer = stat.encode(extended=True)
    assert len(longer) == len(octets) + 2 + 12
    assert p9.decode_stat(longer, extended=True) == stat


@pytest.mark.parametrize(
    "octets",
    [
        "00000000",  # too short for its header
        "07000000 6a 0100",  # Terror, which does not exist
        "07000000 ff 0100",
        "08000000 79 0500",  # a size that is not its own
        "0c000000 7a 0100 ffffff",
        "0b000000 6b 0200 0200 ff fe",  # not UTF-8
        "0b000000 6b 0200 0200 61 00",  # a NUL
        "11000000 6e 0300 01000000 02000000 1100",  # 17 names
        "17000000 76 0400 01000000 0000000000000000 ffffffff",  # a count beyond the end
    ],
)
def test_malformed(octets: str) -> None:
    with pytest.raises(WireError):
        p9.decode(bytes.fromhex(octets), extended=False)


def test_the_two_lengths_of_a_stat_must_agree() -> None:
    whole = bytearray(p9.encode(1, p9.Rstat(p9.Stat(p9.Qid(0, 0, 0), 0, "n")), extended=False))
    for at in (7, 9):
        wrong = whole[:]
        wrong[at] += 1
        with pytest.raises(WireError):
            p9.decode(bytes(wrong), extended=False)


@pytest.mark.parametrize(
    "message",
    [
        p9.Rerror("x" * 65536),
        p9.Topen(1 << 32, 0),
        p9.Rstat(p9.Stat(p9.Qid(0, 0, 0), 0, "n" * 65500)),
        p9.Rstat(p9.Stat(p9.Qid(256, 0, 0), 0, "n")),
    ],
)
def test_what_does_not_fit_is_a_value_error(message: p9.Message) -> None:
    with pytest.raises(ValueError, match=r"."):
        p9.encode(1, message, extended=False)


def test_the_size_of_a_message() -> None:
    assert p9.message_size(b"\7\0\0\0") == 7
    with pytest.raises(WireError):
        p9.message_size(b"\6\0\0\0")
    with pytest.raises(WireError):
        p9.read_tag(b"\7\0\0\0\x64\0")

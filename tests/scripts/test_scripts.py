"""Every file of behaviours/ is a script of one TCP behaviour; one that fails names its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scripts.interpreter import Failed, Interpreter

SCRIPTS = sorted(Path(__file__).with_name("behaviours").glob("*.pkt"))
# Their numbers are those of segments of 1460 octets, which are larger than IPv6 leaves room for.
FULL = {
    *("fast-retransmit", "numbers-wrap", "sack-reneging", "tail-loss-probe"),
    *("window-not-scaled", "window-scale-edge"),
}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
async def test_behaviour(path: Path, nursery) -> None:
    Interpreter(path, nursery).run()


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.stem not in FULL], ids=lambda path: path.stem)
async def test_behaviour_by_ipv6(path: Path, nursery) -> None:
    Interpreter(path, nursery, version=6).run()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("+0 < S 0:0(0)\n+0 > . 0:0(0) ack 1\n", r"x.pkt:2: \+0 > .*: S\. 0:0\(0\) ack 1 win \d+ <0204.*> left"),
        ("\n# why\n+0 < S 0:0(0)\n+1 nothing\n", r"x.pkt:4: \+1 nothing: S\. .* left before"),
        ("+0 < S 0:0(0)\n", r"x.pkt:2: the end: S\. .* left before"),
        ("+0 nothing\n+5 > S. 0:0(0)\n", r"x.pkt:2: .*: nothing left"),
        ("+0 < S 0:0(0)\n+1 > S. 0:0(0) ack 1 <...>\n", r"x.pkt:2: .* left after 0.000 s"),
        ("+0 < S 0:1(0)\n", r"x.pkt:1: .*: the numbers are wrong"),
        ("+0 < X 0:0(0)\n", r"x.pkt:1: .*: not understood"),
        ("+0 dance\n", r"x.pkt:1: .*: not understood"),
        ("+0 < S 0:0(0) <love>\n", r"x.pkt:1: .*: no option love"),
        ("+0 state ESTABLISHED\n", r"x.pkt:1: .*: it is gone"),
    ],
)  # fmt: skip
async def test_a_script_that_fails_says_where_and_why(tmp_path, nursery, text: str, message: str) -> None:
    path = tmp_path / "x.pkt"
    path.write_text(text)
    with pytest.raises(Failed, match=message):
        Interpreter(path, nursery).run()

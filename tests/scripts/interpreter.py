"""Scripts of one TCP connection as text, close to packetdrill's language.

    # a comment
    host connect hold                          what the host answers, before the first segment: ok, refused,
                                               unreachable or hold
    +0 < S 0:0(0) win 65535 <mss 1460>         the guest sends, so many seconds after the line before
    +0 host connect ok                         the held answer
    +0 > S. 0:0(0) ack 1 <...>                 this leaves then, and nothing else before; options as they are, or any
    +0.1~0.3 > . 1:1(0) ack 1                  at some time between; `* >` is at any time
    +0 > icmp 3/3
    +1 nothing                                 until then

`host` also does: `data N`, `eof`, `close`, `calls` (a forward's client, port 22), and sees: `reads N`, `reads eof`,
`reads nothing`.  `state ESTABLISHED` is the connection's, `state gone` that there is none.  `iss N`, before the
first segment, makes the numbers of ours begin there.

Numbers of segments are relative to the SYNs, which have 0.  `again` is before a second connection of the same ports:
numbers of ours are relative to its own SYN, those of the guest to the first.  The payload is what its numbers say, so
a repetition has the same, and each octet that leaves is compared.  `&&` is between segments of the guest that arrive
together; a `win` that is not named is the one before.
"""

from __future__ import annotations

import re
import shlex
import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from tests.conformance.script import OPEN, REFUSED, UNREACHABLE, Heard, Script

if TYPE_CHECKING:
    from pathlib import Path

    import trio

ANY_TIME: Final = (0.0, 1e6)
SLACK: Final = 1e-3  # seconds by which a time may be wrong
LINE: Final = re.compile(r"(?:(?P<any>\*)|\+(?P<low>[\d.]+)(?:~(?P<high>[\d.]+))?)?\s*(?P<what>.+)")
SEGMENT: Final = re.compile(
    r"(?P<flags>[SFRPUEW.]+) (?P<start>\d+):(?P<end>\d+)\((?P<length>\d+)\)(?: ack (?P<ack>\d+))?"
    r"(?: win (?P<win>\d+))?(?: urg (?P<urgent>\d+))?(?: <(?P<options>.*)>)?"
)
PORTS: Final = {"ok": OPEN, "refused": REFUSED, "unreachable": UNREACHABLE, "hold": OPEN}
ICMPV6: Final = {(1, 0): (3, 0), (1, 3): (3, 1), (1, 4): (3, 3), (1, 1): (3, 13)}  # what says the same
FIXED: Final = {"nop": b"\x01", "eol": b"\x00", "sackOK": b"\x04\x02"}
GUEST: Final = 0  # whose octets
HOST: Final = 1


class Failed(AssertionError):
    """Where and why a script and the connection do not agree."""


class Timed(Script):
    """A script that knows when something left."""

    def __init__(self, nursery: trio.Nursery, **settings: int) -> None:
        self.times: deque[float] = deque()
        super().__init__(nursery, **settings)  # type: ignore[arg-type]

    def _hear(self, frames: list[bytes]) -> None:
        super()._hear(frames)
        self.times.extend([self.now] * len(frames))


def octets(whose: int, sequence: int, length: int) -> bytes:
    """What somebody says from a relative number on."""
    return bytes((7 * (sequence + i) + 101 * whose + (sequence + i >> 8)) & 255 for i in range(length))


class Interpreter:
    """Runs one file."""

    def __init__(self, path: Path, nursery: trio.Nursery, *, version: int = 4) -> None:
        """`version` is that of IP."""
        self.path = path
        self._nursery = nursery
        self._settings: dict[str, int] = {"version": version}
        self._version = version
        self._held = False
        self._script: Timed | None = None
        self._clock = 0.0  # of the last event
        self._written = 0  # by the host
        self._read = 0

    @property
    def script(self) -> Timed:
        if self._script is None:
            self._script = Timed(self._nursery, **self._settings)
            self._script.host.held = self._held
            self._clock = self._script.now
        return self._script

    def run(self) -> None:
        """Raises Failed, which names the line."""
        number, text = 0, "the end"
        try:
            for number, line in enumerate(self.path.read_text().splitlines(), 1):  # noqa: B007
                text = line.partition("#")[0].strip()
                if text:
                    self._line(text)
            number, text = number + 1, "the end"
            self._quiet()
        except (AssertionError, ValueError, OSError) as error:
            raise Failed(f"{self.path.name}:{number}: {text}: {error or type(error).__name__}") from error
        finally:
            if self._script is not None:
                self._script.close()

    def _line(self, text: str) -> None:
        match = LINE.fullmatch(text)
        assert match, "not understood"
        low = float(match["low"] or 0)
        when = ANY_TIME if match["any"] else (low, float(match["high"] or low))
        first, _, rest = match["what"].partition(" ")
        if self._script is None and (first in ("iss", "host") and rest != "calls"):
            self._prepare(first, rest)
        elif first == ">":
            self._leaves(when, rest)
        else:
            assert when[0] == when[1], "only what leaves can have more than one time"
            self._pass(when[0])
            self._happens(first, rest)

    def _prepare(self, first: str, rest: str) -> None:
        if first == "iss":
            self._settings["our_iss"] = int(rest)
            return
        what, _, answer = rest.partition(" ")
        assert what == "connect", "not before the first segment"
        assert answer in PORTS, "not understood"
        self._settings["port"] = PORTS[answer]
        self._held = answer == "hold"

    # Time

    def _quiet(self) -> None:
        if self._script is not None and self._script.frames:
            raise AssertionError(f"{self._shown(self._script.frames[0])} left before")

    def _shown(self, frame: bytes) -> str:
        if not self._is_tcp(frame):
            at = 34 if self._version == 4 else 54
            said = (frame[at], frame[at + 1])
            kind, code = said if self._version == 4 else ICMPV6.get(said, said)
            return f"icmp {kind}/{code}"
        heard = self.script.read(frame)
        options = f" <{heard.options.hex()}>" if heard.options else ""
        length = len(heard.payload)
        return f"{heard.flags} {heard.seq}:{heard.seq + length}({length}) ack {heard.ack} win {heard.win}{options}"

    def _is_tcp(self, frame: bytes) -> bool:
        return frame[23 if self._version == 4 else 20] == 6

    def _pass(self, seconds: float) -> None:
        """Nothing leaves until then."""
        script = self.script
        self._quiet()
        self._clock += seconds
        if self._clock > script.now:
            script.advance(self._clock - script.now)
            self._quiet()

    # What leaves

    def _leaves(self, when: tuple[float, float], what: str) -> None:
        script = self.script
        low, high = (self._clock + seconds for seconds in when)
        queue = script.guest.deadlines.queue
        while not script.frames and queue.next_deadline() <= high + SLACK:
            script.advance(max(queue.next_deadline() - script.now, 1e-9))
        assert script.frames, "nothing left"
        frame, at = script.frames.popleft(), script.times.popleft()
        shown = self._shown(frame)
        assert low - SLACK <= at <= high + SLACK, f"{shown} left after {at - self._clock:.3f} s"
        self._clock = at
        if what.startswith("icmp "):
            assert shown == what, f"{shown} left"
            return
        assert self._is_tcp(frame), f"{shown} left"
        self._compare(script.read(frame), what, shown)

    def _compare(self, heard: Heard, what: str, shown: str) -> None:
        wanted = SEGMENT.fullmatch(what)
        assert wanted, "not understood"
        start, end, length = (int(wanted[name]) for name in ("start", "end", "length"))
        flags = heard.flags if "P" in wanted["flags"] else heard.flags.replace("P", "")
        assert end == start + length, "the numbers are wrong"
        assert sorted(flags) == sorted(wanted["flags"]), f"{shown} left"
        assert (heard.seq, len(heard.payload)) == (start, length), f"{shown} left"
        assert heard.ack == int(wanted["ack"] or 0), f"{shown} left"
        assert wanted["win"] is None or heard.win == int(wanted["win"]), f"{shown} left"
        assert heard.payload == octets(HOST, start, length), "a wrong octet left"
        if wanted["options"] != "...":
            options = self._options(wanted["options"], self.script.iss, less=0 if self._version == 4 else 20)
            assert heard.options == options, f"{shown} left, expected options {options.hex()}"

    # What happens

    def _happens(self, first: str, rest: str) -> None:
        script = self.script
        if first == "<":
            script.burst(*(self._frame(text) for text in rest.split(" && ")))
        elif first == "host":
            self._host(*shlex.split(rest))
        elif first == "state":
            tcp = script.guest.tcp
            state = script.state.name if tcp.flows else "TIME_WAIT" if tcp._time_wait else "gone"
            assert state == rest.replace("-", "_"), f"it is {state}"
        elif first == "again":
            script.heard_irs = False
            self._written = self._read = 0
        else:
            assert first == "nothing", "not understood"

    def _frame(self, text: str) -> bytes:
        said = SEGMENT.fullmatch(text)
        assert said, "not understood"
        start, end, length = (int(said[name]) for name in ("start", "end", "length"))
        assert end == start + length, "the numbers are wrong"
        return self.script.segment(
            said["flags"],
            octets(GUEST, start, length),
            seq=start,
            ack=None if said["ack"] is None else int(said["ack"]),
            win=None if said["win"] is None else int(said["win"]),
            urgent=int(said["urgent"] or 0),
            options=self._options(said["options"], self.script.irs),
        )

    @staticmethod
    def _options(text: str | None, base: int, *, less: int = 0) -> bytes:
        """`mss N,wscale N,sackOK,sack A:B C:D,nop,eol,hex 0102`, padded with zeros; SACK blocks are relative to
        `base`, and an MSS is `less` than it is written."""
        made = b""
        for word in (text or "").split(","):
            kind, _, value = word.strip().partition(" ")
            if kind == "mss":
                made += struct.pack("!BBH", 2, 4, int(value) - less)
            elif kind == "wscale":
                made += bytes([3, 3, int(value)])
            elif kind == "sack":
                edges = [(base + int(number)) & 0xFFFFFFFF for number in re.split("[: ]", value)]
                made += struct.pack(f"!BB{len(edges)}I", 5, 2 + 4 * len(edges), *edges)
            elif kind == "hex":
                made += bytes.fromhex(value)
            elif kind:
                assert kind in FIXED, f"no option {kind}"
                made += FIXED[kind]
        return made + bytes(-len(made) % 4)

    def _host(self, what: str, word: str = "") -> None:
        script = self.script
        if what == "connect":
            number = {"ok": 0, "refused": 111, "unreachable": 113}[word]
            script.host.held = False
            script.host.answer(number)
            script.turn()
        elif what == "data":
            count = int(word)
            self._written += count
            script.host_writes(octets(HOST, 1 + self._written - count, count))
        elif what == "eof":
            script.host_finishes()
        elif what == "close":
            script.host_closes()
        elif what == "calls":
            script.host_calls()
        else:
            assert what == "reads", "not understood"
            self._host_reads(word)

    def _host_reads(self, word: str) -> None:
        script = self.script
        program = script.program
        if word == "eof":
            assert program.recv(1) == b"", "there was more to read"
            return
        got = script.host_reads()
        assert len(got) == (0 if word == "nothing" else int(word)), f"it read {len(got)}"
        assert got == octets(GUEST, 1 + self._read, len(got)), "a wrong octet was read"
        self._read += len(got)
